//! The lab itself, without an agent: everything reaches everything, on every way that tests rely on.
#![cfg(feature = "live")]

use std::net::IpAddr;
use std::time::Duration;

use palisade_tests::lab::probe::{DEADLINE, Probe, ask_all};
use palisade_tests::lab::raw::{self, Frames};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Connection, ControlPlane, Lab, Outcome, PodSpec, Transport, objects, overlay};

#[test]
fn everything_reaches_everything() {
    let lab = Lab::new("lab").expect("a lab");
    let one = lab.node("one", 1).expect("a node");
    let two = lab.node("two", 2).expect("a node");
    overlay::join(&[&one, &two]).expect("an overlay");
    let (outside, outside_addresses) = lab.outside("outside", 200).expect("a machine outside");
    let mut pods = one
        .start_pods(&lab, &[PodSpec::new("default", "a", &[("app", "a")]), PodSpec::new("default", "b", &[])])
        .expect("pods of the first node");
    pods.push(two.start_pod(&lab, PodSpec::new("other", "c", &[])).expect("a pod of the second node"));
    let mut servers = Vec::new();
    for pod in &pods {
        servers.push(Server::start(lab.guard(), &pod.netns, &pod.full_name(), &[80], &[53]).expect("a server"));
    }
    servers.push(Server::start(lab.guard(), &outside, "outside", &[80], &[53]).expect("a server"));

    for netfilter in [true, false] {
        one.bridge_netfilter(netfilter).expect("the setting exists");
        let places = pods.iter().map(|pod| &pod.netns).chain([&one.netns, &outside]);
        let mut probes = Vec::new();
        let mut expected = Vec::new();
        for from in places {
            let targets = pods.iter().map(|pod| (pod.full_name(), pod.addresses.clone()));
            for (name, addresses) in targets.chain([("outside".to_owned(), outside_addresses.to_vec())]) {
                for address in addresses {
                    probes.push(Probe::new(from, Transport::Tcp, address, 80));
                    probes.push(Probe::new(from, Transport::Udp, address, 53));
                    expected.extend([Outcome::Reached(name.clone()), Outcome::Reached(name.clone())]);
                }
            }
        }
        for ((probe, outcome), expected) in probes.iter().zip(ask_all(&probes)).zip(expected) {
            assert_eq!(outcome, expected, "{} {:?} {}", probe.from.name(), probe.transport, probe.to);
        }
    }
    let nobody = IpAddr::from([10, 244, 1, 250]);
    let [a, b, c] = &pods[..] else { panic!("three pods") };
    assert_eq!(Probe::new(&a.netns, Transport::Tcp, b.ipv4(), 81).ask(), Outcome::Refused);
    assert!(matches!(
        Probe::new(&a.netns, Transport::Tcp, nobody, 80).ask(),
        Outcome::TimedOut | Outcome::Unreachable(_)
    ));
    for target in [b, c] {
        for address in &target.addresses {
            assert!(raw::ping(&a.netns, *address, DEADLINE).expect("a raw socket"), "ping {address}");
            let init = raw::sctp_init(4000, 5000);
            let to = (&target.netns, *address);
            assert!(raw::arrives(&a.netns, to, raw::SCTP, &init, DEADLINE).expect("raw sockets"), "SCTP {address}");
            let mut connection = Connection::open(&a.netns, *address, 80).expect("a connection");
            assert_eq!(connection.name, target.full_name());
            assert!(connection.echoes(DEADLINE) && connection.echoes(DEADLINE));
        }
    }
    assert!(!raw::ping(&a.netns, nobody, Duration::from_millis(100)).expect("a raw socket"));
    let neighbour = a.netns.scoped(b.link_local(), 80, "eth0").expect("it has an eth0");
    assert!(raw::ping(&a.netns, neighbour, DEADLINE).expect("a raw socket"));
    let probe = Probe { from: a.netns.clone(), transport: Transport::Tcp, to: neighbour };
    assert_eq!(probe.ask(), Outcome::Reached(b.full_name()));

    // A frame of an ethertype that no one has, from one pod to the other.
    let receiver = Frames::open(&b.netns, "eth0").expect("a packet socket");
    let mut frame = [b.mac, a.mac].concat();
    frame.extend_from_slice(&[0x88, 0xb5, 1, 2, 3, 4]);
    Frames::open(&a.netns, "eth0").expect("a packet socket").send(&frame).expect("it is sent");
    let seen = receiver.receive(DEADLINE, |seen| seen.starts_with(&frame).then_some(())).expect("a packet socket");
    assert_eq!(seen, Some(()));

    one.stop_pod(a).expect("CNI DEL");
    assert_ne!(
        Probe::new(&b.netns, Transport::Udp, a.ipv4(), 53).ask_within(Duration::from_millis(300)),
        Outcome::Reached(a.full_name())
    );

    let (prefix, folder) = (lab.prefix.clone(), lab.folder.clone());
    drop(servers);
    drop(lab);
    let left: Vec<_> = std::fs::read_dir("/run/netns").expect("ip made it").flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(&prefix)), "{left:?}");
    assert!(!folder.exists());
}

#[test]
fn api_server_keeps_what_it_is_given() {
    let lab = Lab::new("plane").expect("a lab");
    let node = lab.node("one", 1).expect("a node");
    let mut plane = ControlPlane::start(&lab).expect("a control plane");
    let policy = objects::policy("web", "none", "{podSelector: {}, policyTypes: [Ingress]}").expect("a policy");
    plane.put_all(&[objects::node(&node), objects::namespace("web", &[]), policy.clone()]).expect("objects are taken");
    let spec = PodSpec::new("web", "a", &[("app", "a")]).port("http", "TCP", 80);
    let pod = plane.start_pod(&lab, &node, spec).expect("a pod");
    let pod_object = objects::pod(&pod, &node);
    let stored = plane.get(&pod_object).expect("the pod is there");
    assert_eq!(stored["status"]["podIPs"][1]["ip"], pod.ipv6().to_string());
    assert_eq!((&stored["spec"]["nodeName"], &stored["metadata"]["uid"]), (&"one".into(), &pod.uid.as_str().into()));
    plane.kill_api_server().expect("it runs");
    assert!(plane.get(&policy).is_err());
    plane.restart_api_server(lab.guard()).expect("it starts again");
    assert_eq!(plane.get(&policy).expect("etcd kept it")["metadata"]["name"], "none");
    plane.remove(&policy).expect("it is removed");
    plane.remove(&pod_object).expect("it is removed");
    assert!(plane.get(&pod_object).is_err() && plane.get(&policy).is_err());
}
