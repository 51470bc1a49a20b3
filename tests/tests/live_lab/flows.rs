//! Flows that outlive a change of policy, answers, errors about flows, and datagrams in pieces.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use palisade_tests::lab::probe::{Connection, DEADLINE, Probe};
use palisade_tests::lab::raw;
use palisade_tests::lab::{Netns, Outcome, Transport};

use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

const TCP: u8 = 6;

#[test]
fn a_change_cuts_what_it_forbids_within_a_second_and_nothing_else() {
    let scene = Scene::new("cut");
    let agent = scene.start();
    let [a, b, _] = &scene.pods;
    // The first time nobody has seen the connections being opened, as no policy selected the pods; the second time they
    // were opened under a policy.
    for first in ["{podSelector: {matchLabels: {app: none}}}", "{podSelector: {matchLabels: {app: b}}, ingress: [{}]}"]
    {
        for address in &b.addresses {
            scene.policy_in_force(&agent, "p", first);
            let mut cut = Connection::open(&a.netns, *address, 80).expect("a connection");
            let mut kept = Connection::open(&a.netns, *address, 81).expect("a connection");
            assert!(cut.echoes(DEADLINE) && kept.echoes(DEADLINE));
            let changed = Instant::now();
            scene.policy("p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 81}]}]}");
            let mut last = changed;
            while cut.echoes(Duration::from_millis(300)) && changed.elapsed() < PATIENCE {
                last = Instant::now();
            }
            assert!(last - changed < Duration::from_secs(1), "{address}: cut after {:?}, {first}", last - changed);
            assert!(!cut.echoes(AT_ONCE), "{address}: it stays cut");
            assert!(kept.echoes(DEADLINE), "{address}: what is allowed goes on, {first}");
            scene.policy("p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}, {port: 81}]}]}");
            // The kernel repeats what was not acknowledged, ever more rarely.
            assert!(cut.echoes(PATIENCE), "{address}: allowed again, it goes on");
        }
    }
}

#[test]
fn flows_that_were_admitted_once_are_kept_if_asked() {
    let scene = Scene::new("keep");
    let agent = scene.start_with(&["--existing-flows", "keep"]);
    let [a, b, _] = &scene.pods;
    for address in &b.addresses {
        scene.policy_in_force(&agent, "p", "{podSelector: {matchLabels: {app: b}}, ingress: [{}]}");
        let mut connection = Connection::open(&a.netns, *address, 80).expect("a connection");
        scene.policy_in_force(&agent, "p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 81}]}]}");
        scene.expect_tcp(a, b, 80, false, "new connections are refused");
        assert!(connection.echoes(DEADLINE), "{address}: an old connection is kept");
    }
}

#[test]
fn a_udp_flow_resumes_with_the_openers_next_packet() {
    let scene = Scene::new("udp");
    let _agent = scene.start();
    let [a, b, _] = &scene.pods;
    // Nor may b open anything: an answer under way when the flow is cut would else be one of its own.
    let admits = |port: u16| {
        format!(
            "{{podSelector: {{matchLabels: {{app: b}}}}, policyTypes: [Ingress, Egress], ingress: [{{ports: [{{port: {port}, protocol: UDP}}]}}]}}"
        )
    };
    for address in &b.addresses {
        let socket = connected(&a.netns, SocketAddr::new(*address, 53));
        let answered = |wanted: bool| eventually(PATIENCE, || answer(&socket, b"who", AT_ONCE).is_ok() == wanted);
        scene.policy("p", &admits(53));
        assert!(answered(true), "{address}: allowed");
        scene.policy("p", &admits(54));
        assert!(answered(false), "{address}: a change cuts the same tuple");
        scene.policy("p", &admits(53));
        assert!(answered(true), "{address}: allowed again");
    }
}

#[test]
fn an_answer_may_not_open_the_other_way() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let scene = Scene::new("reverse");
    let _agent = scene.start();
    let [a, b, _] = &scene.pods;
    let policy = scene.policy("a", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]}");
    scene.expect_tcp(b, a, 80, false, "a is isolated");
    for address in [0, 1] {
        let mut connection = Connection::open(&a.netns, b.addresses[address], 80).expect("a connection");
        assert!(connection.echoes(DEADLINE), "answers pass");
        let port = connection.local().expect("it is open").port();
        // Any segment with SYN and without ACK opens a flow, whatever else is set. The last one belongs to the flow.
        for (flags, arrives) in [(SYN, false), (SYN | 1, false), (SYN | 0x20, false), (SYN | 0xc0, false), (ACK, true)]
        {
            let arrived = segment_arrives(&b.netns, (&a.netns, a.addresses[address]), (80, port), flags);
            assert_eq!(arrived, arrives, "flags {flags:#x} to {}", a.addresses[address]);
        }
    }
    scene.manifests.remove(&policy).expect("it is there");
    scene.expect_tcp(b, a, 80, true, "without the policy");
    assert!(segment_arrives(&b.netns, (&a.netns, a.ipv4()), (80, 5000), SYN), "the segments are good ones");
}

#[test]
fn errors_about_admitted_flows_pass() {
    let scene = Scene::new("errors");
    let [a, b, _] = &scene.pods;
    scene.policy("b", "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 9999, protocol: UDP}]}]}");
    scene.policy(
        "a",
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 9999, protocol: UDP}]}]}",
    );
    let agent = scene.start();
    for address in &b.addresses {
        // Nobody serves the port: b's kernel says so, though b may open nothing and a admits nothing.
        let ask = |port| Probe::new(&a.netns, Transport::Udp, *address, port).ask_within(AT_ONCE);
        assert_eq!(ask(9999), Outcome::Refused, "{address}\n{}", agent.log_text());
        assert_eq!(ask(9998), Outcome::TimedOut, "{address}");
        assert!(!raw::ping(&a.netns, *address, AT_ONCE).expect("a raw socket"), "echo is no error");
    }
    // A narrow network behind the next router, which tells a of it.
    let narrow =
        ["link add narrow mtu 1280 type veth peer name far", "link set narrow up", "addr add 10.99.0.1/24 dev narrow"];
    let mut narrow: Vec<String> = narrow.map(str::to_owned).into();
    narrow.push("addr add fd00:99::1/64 dev narrow nodad".to_owned());
    scene.lab.underlay.ip(&narrow).expect("a network");
    for address in ["10.99.0.5", "fd00:99::5"] {
        let socket = connected(&a.netns, SocketAddr::new(address.parse().expect("an address"), 9999));
        let learnt = eventually(PATIENCE, || {
            // A send may fail with what an earlier one has brought about, which is what is waited for.
            let _ = socket.send(&[0; 1390]);
            route_to(&a.netns, address).contains("mtu 1280")
        });
        assert!(learnt, "{address}: {}", route_to(&a.netns, address));
    }
}

#[test]
fn datagrams_in_pieces_follow_their_first_with_and_without_bridge_netfilter() {
    let scene = Scene::new("pieces");
    let [a, b, _] = &scene.pods;
    scene.policy(
        "b",
        "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 53, protocol: UDP}, {port: 80}]}]}",
    );
    let _agent = scene.start();
    let large: Vec<u8> = (0..60_000_u32).map(|place| place as u8).collect();
    for netfilter in [false, true] {
        scene.node.bridge_netfilter(netfilter).expect("the setting exists");
        for address in &b.addresses {
            let when = format!("{address}, bridge netfilter {netfilter}");
            let socket = connected(&a.netns, SocketAddr::new(*address, 53));
            let reply = answer(&socket, &large, DEADLINE).unwrap_or_else(|error| panic!("{when}: {error}"));
            assert!(reply.strip_prefix(b"b\n") == Some(&large), "{when}: {} bytes", reply.len());
            // Were it let through, b's kernel would say that nobody serves the port.
            let socket = connected(&a.netns, SocketAddr::new(*address, 54));
            let refused = answer(&socket, &large, AT_ONCE).expect_err("nobody serves it");
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "{when}");
            let tcp = |port| Probe::new(&a.netns, Transport::Tcp, *address, port).ask_within(AT_ONCE);
            assert_eq!((tcp(80), tcp(81)), (Outcome::Reached("b".into()), Outcome::TimedOut), "{when}");
        }
    }
}

fn connected(from: &Netns, to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = from.run(|| UdpSocket::bind((any, 0))).expect("a socket");
    socket.connect(to).expect("it has a route");
    socket
}

fn answer(socket: &UdpSocket, question: &[u8], deadline: Duration) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(deadline))?;
    socket.send(question)?;
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// A TCP segment without data and with an odd sequence number, which is looked for at the other end.
fn segment_arrives(from: &Netns, to: (&Netns, IpAddr), (source, destination): (u16, u16), flags: u8) -> bool {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.extend_from_slice(&[0x50, 0x41, 0x4c, flags, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    raw::arrives(from, to, TCP, &segment, AT_ONCE).expect("raw sockets")
}

fn route_to(netns: &Netns, address: &str) -> String {
    let mut command: Command = netns.command("ip");
    let said = command.args(["-o", "route", "get", address]).output().expect("ip runs");
    String::from_utf8_lossy(&said.stdout).into_owned()
}
