//! `--xdp`: what is refused where it comes in, and that nothing else is any different for it.

use std::net::IpAddr;
use std::time::Duration;

use palisade_tests::frame::{Body, Frame, Ip, Tcp, Upper};
use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::{Connection, DEADLINE, Probe};
use palisade_tests::lab::raw::{self, Frames};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, Netns, Outcome, PodSpec, Transport, objects, overlay};
use serde_json::Value;

use crate::counter::Counter;
use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};
use crate::troubles::metric;

/// `b` takes TCP 80 of everybody and nothing else.
const ONLY_80: &str = "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}";
const EARLY: &str = "palisade_refused_early_total{hook=\"xdp\"}";
/// Two looks at the devices, ten seconds apart.
const LASTING: Duration = Duration::from_secs(30);

fn early(agent: &Agent) -> u64 {
    metric(agent, EARLY).expect("it is counted") as u64
}

fn status(scene: &Scene) -> Value {
    let said = palisade(&scene.node, &["status", "-o", "json"]).expect("palisade runs");
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

/// How the program is on a device of the node, by the agent's own account.
fn mode(scene: &Scene, device: &str) -> Value {
    let status = status(scene);
    let devices = status["xdp"].as_array().cloned().unwrap_or_default();
    let found = devices.into_iter().find(|entry| entry["device"] == device).unwrap_or_default();
    found["mode"].clone()
}

/// What ip-link(8) says of XDP on a device.
fn has_xdp(netns: &Netns, device: &str) -> bool {
    let said = netns.command("ip").args(["-d", "link", "show", device]).output().expect("ip runs");
    String::from_utf8_lossy(&said.stdout).contains("prog/xdp")
}

fn ask(from: &Netns, transport: Transport, to: IpAddr, port: u16) -> Outcome {
    Probe::new(from, transport, to, port).ask_within(AT_ONCE)
}

/// Someone outside of the cluster and a pod of another node, what both may do and may not, by IPv4 and IPv6.
struct Others {
    outside: Netns,
    outside_addresses: [IpAddr; 2],
    remote: Netns,
    _servers: [Server; 2],
}

impl Others {
    fn new(scene: &Scene) -> Self {
        let (outside, outside_addresses) = scene.lab.outside("out", 200).expect("a machine outside");
        let node = scene.lab.node("two", 2).expect("a node");
        let pod = node.start_pod(&scene.lab, PodSpec::new("web", "r", &[("app", "r")])).expect("a pod");
        overlay::join(&[&scene.node, &node]).expect("an overlay");
        scene.put(&objects::node(&node));
        scene.put(&objects::pod(&pod, &node));
        let server =
            |netns: &Netns, name| Server::start(scene.lab.guard(), netns, name, &[80], &[53]).expect("a server");
        let servers = [server(&outside, "out"), server(&pod.netns, "r")];
        Self { outside, outside_addresses, remote: pod.netns.clone(), _servers: servers }
    }

    /// The same whether or not the program is there.
    fn expect(&self, scene: &Scene, when: &str) {
        let [_, b, _] = &scene.pods;
        let reached = Outcome::Reached(b.name.clone());
        for (from, name) in [(&self.outside, "outside"), (&self.remote, "another node")] {
            for address in &b.addresses {
                let at = format!("{when}: {name} -> b at {address}");
                assert_eq!(ask(from, Transport::Tcp, *address, 80), reached, "{at} 80");
                assert_eq!(ask(from, Transport::Tcp, *address, 81), Outcome::TimedOut, "{at} 81");
                assert_eq!(ask(from, Transport::Udp, *address, 53), Outcome::TimedOut, "{at} UDP 53");
                assert!(!raw::ping(from, *address, AT_ONCE).expect("a raw socket"), "{at} echo");
            }
        }
        // Replies, those of UDP among them.
        for address in self.outside_addresses {
            for (transport, port) in [(Transport::Tcp, 80), (Transport::Udp, 53)] {
                let outcome = ask(&b.netns, transport, address, port);
                assert_eq!(outcome, Outcome::Reached("out".to_owned()), "{when}: b -> outside at {address}");
            }
        }
    }
}

#[test]
fn what_is_refused_at_the_pod_is_refused_where_it_comes_in() {
    let scene = Scene::new("uplink");
    let others = Others::new(&scene);
    let [_, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    let agent = scene.start();
    others.expect(&scene, "without the program");
    assert_eq!(early(&agent), 0);
    assert!(status(&scene)["xdp"].is_null(), "{}", status(&scene));
    let mut open: Vec<Connection> = [&others.outside, &others.remote]
        .into_iter()
        .flat_map(|from| b.addresses.iter().map(move |to| Connection::open(from, *to, 80).expect("it is permitted")))
        .collect();
    agent.stop().expect("it runs");

    for wish in ["auto", "native"] {
        let agent = scene.start_with(&["--xdp", wish, "--xdp-devices", "eth*"]);
        // Never native on a veth unless it is asked for.
        let expected = if wish == "auto" { "generic" } else { "native" };
        assert!(eventually(PATIENCE, || mode(&scene, "eth0") == expected), "{}", status(&scene));
        let before = early(&agent);
        others.expect(&scene, wish);
        for connection in &mut open {
            assert!(connection.echoes(DEADLINE), "{wish}: an open connection");
        }
        // TCP and echo of two peers in two families; UDP is the pod's interface's to refuse until enough is known.
        assert!(early(&agent) >= before + 8, "{wish}: {before}, then {}", early(&agent));
        tagged(&scene, &others, &agent);
        assert!(eventually(PATIENCE, || agent.log_text().contains("at=\"xdp, interface")), "{}", agent.log_text());
        let [v4, _] = others.outside_addresses.map(|address| address.to_string());
        let explained = palisade(&scene.node, &["explain", &v4, "web/b", "81"]).expect("palisade runs");
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        assert!(explained.contains("xdp, refused where it comes in: eth0"), "{explained}");
        flood(&scene, &others, &agent);
        agent.kill().expect("it runs");
        // Without an agent as well.
        assert!(has_xdp(&scene.node.netns, "eth0"));
        others.expect(&scene, "no agent");
    }

    let agent = scene.start();
    assert!(!has_xdp(&scene.node.netns, "eth0"), "turned off");
    let before = early(&agent);
    others.expect(&scene, "turned off");
    assert_eq!(early(&agent), before, "turned off");
    for connection in &mut open {
        assert!(connection.echoes(DEADLINE), "turned off: an open connection");
    }
    agent.stop().expect("it runs");

    drop(scene.start_with(&["--xdp", "generic", "--xdp-devices", "eth0"]));
    assert!(has_xdp(&scene.node.netns, "eth0"));
    let said = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(!has_xdp(&scene.node.netns, "eth0"), "uninstalled");
    assert!(!scene.node.pin_dir.exists(), "nothing is left");
}

/// A SYN from outside to b.
fn syn(scene: &Scene, others: &Others, port: u16, source_port: u16, tags: Vec<(u16, u16)>) -> Vec<u8> {
    let [_, b, _] = &scene.pods;
    let upper = Upper::Tcp(Tcp {
        source: source_port,
        destination: port,
        sequence: 1,
        acknowledgement: 0,
        flags: 2,
        data: 0,
        header_words: None,
    });
    let ip = Ip {
        source: others.outside_addresses[0],
        destination: b.ipv4(),
        hop_limit: 64,
        options: 0,
        extensions: Vec::new(),
        fragment: None,
        length: None,
        header_words: None,
        version: None,
        payload_max: None,
        upper,
    };
    let source_mac = others.outside.mac("eth0").expect("it has one");
    let destination_mac = scene.node.netns.mac("eth0").expect("it has one");
    Frame { source_mac, destination_mac, tags, body: Body::Ip(ip), cut: None, padding: 0 }.bytes()
}

/// With up to two VLAN tags. The underlay's bridge takes one off, which is in no frame from there on.
fn tagged(scene: &Scene, others: &Others, agent: &Agent) {
    let wire = Frames::open(&others.outside, "eth0").expect("a packet socket");
    let tag = (0x8100, 5);
    let send = |port, tags: Vec<(u16, u16)>| {
        let before = early(agent);
        wire.send(&syn(scene, others, port, 40_000, tags)).expect("it is sent");
        let refused = || early(agent) > before;
        eventually(AT_ONCE, refused)
    };
    assert!(send(81, vec![]) && send(81, vec![tag]) && send(81, vec![(0x88a8, 4), tag]));
    assert!(!send(80, vec![tag]), "permitted");
    assert!(!send(81, vec![tag; 4]), "more tags than are looked behind");
}

/// Many are counted and a few told of.
fn flood(scene: &Scene, others: &Others, agent: &Agent) {
    const PACKETS: u16 = 5000;
    let wire = Frames::open(&others.outside, "eth0").expect("a packet socket");
    const SOURCE_PORT: std::ops::Range<usize> = 34..36;
    let before = early(agent);
    let mut frame = syn(scene, others, 81, 0, Vec::new());
    for number in 0..PACKETS {
        frame[SOURCE_PORT].copy_from_slice(&(10_000 + number).to_be_bytes());
        wire.send(&frame).expect("it is sent");
    }
    assert!(eventually(PATIENCE, || early(agent) >= before + u64::from(PACKETS)), "{before}, then {}", early(agent));
    let lines = agent.log_text().lines().filter(|line| line.contains("at=\"xdp")).count();
    assert!(lines < usize::from(PACKETS) / 10, "{lines} lines");
}

#[test]
fn another_xdp_program_is_left_alone() {
    let scene = Scene::new("foreign");
    scene.policy("p", ONLY_80);
    let (outside, _) = scene.lab.outside("out", 200).expect("a machine outside");
    let [_, b, _] = &scene.pods;
    let theirs = Counter::load_xdp().expect("it loads");
    let link = scene.node.netns.run(|| theirs.attach_xdp(scene.index_of("eth0"))).expect("it can be attached");
    let agent = scene.start_with(&["--xdp", "auto", "--xdp-devices", "eth0"]);
    let said = || status(&scene)["xdp"].to_string();
    assert!(eventually(PATIENCE, || said().contains("another XDP program")), "{}", status(&scene));
    assert!(agent.log_text().contains("not on eth0: another XDP program"), "{}", agent.log_text());
    assert_eq!(metric(&agent, "palisade_xdp_devices{mode=\"missing\"}"), Some(1.0));
    let before = theirs.count().expect("it counts");
    assert_eq!(ask(&outside, Transport::Tcp, b.ipv4(), 81), Outcome::TimedOut);
    assert!(theirs.count().expect("it counts") > before, "theirs is still asked");
    assert_eq!(early(&agent), 0);
    // Once it has gone, ours comes.
    drop(link);
    assert!(eventually(LASTING, || mode(&scene, "eth0") == "generic"), "{}", status(&scene));
    assert_eq!(ask(&outside, Transport::Tcp, b.ipv4(), 81), Outcome::TimedOut);
    assert!(early(&agent) > 0);
}

#[test]
fn a_device_that_returns_gets_its_program_again() {
    let scene = Scene::new("returns");
    let _agent = scene.start_with(&["--xdp", "auto", "--xdp-devices", "wan*"]);
    let node = &scene.node.netns;
    let add =
        || node.ip(&["link add wan0 type veth peer name far0".into(), "link set wan0 up".into()]).expect("a veth");
    assert!(mode(&scene, "wan0").is_null());
    for _ in 0..2 {
        add();
        assert!(eventually(PATIENCE, || mode(&scene, "wan0") == "generic"), "{}", status(&scene));
        assert!(has_xdp(node, "wan0"));
        node.ip(&["link del wan0".into()]).expect("it is there");
        assert!(eventually(PATIENCE, || mode(&scene, "wan0").is_null()), "{}", status(&scene));
    }
}
