//! Frames by hand between two pods of one bridge: what a pod must not be able to send, and what none of them gets round.

use std::collections::BTreeSet;
use std::net::IpAddr;

use palisade_tests::lab::raw::{self, Frames, internet_checksum};
use palisade_tests::lab::{Pod, objects};

use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

/// Of nobody.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const FOREIGN: [&str; 2] = ["10.244.1.200", "fd00:244:1::200"];
const ALL_NODES: &str = "ff02::1";

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    /// Between pods that no policy selects, while both are enforced.
    arrives: bool,
    /// With b isolated, but for TCP 81 of everybody.
    arrives_isolated: bool,
}

#[test]
fn forged_frames_do_not_arrive() {
    let scene = Scene::new("frames");
    let [a, b, c] = &scene.pods;
    let cases = cases(a, b, c);
    let (sender, receiver) = (frames(a), frames(b));
    let arrives = |case: &Case| {
        sender.send(&case.frame).expect("it is sent");
        let found =
            receiver.receive(AT_ONCE, |seen| without_tag(seen).starts_with(&without_tag(&case.frame)).then_some(()));
        found.expect("a packet socket").is_some()
    };
    // The bridge must know where b is.
    assert!(raw::ping(&a.netns, b.ipv4(), AT_ONCE).expect("a raw socket"));
    let lost: Vec<&str> = cases.iter().filter(|case| !arrives(case)).map(|case| case.name).collect();
    assert!(lost.is_empty(), "without an agent everything arrives, but not {lost:?}");
    let agent = scene.start();
    let check = |isolated: bool| {
        let wanted = |case: &&Case| if isolated { case.arrives_isolated } else { case.arrives };
        let wrong: Vec<&str> =
            cases.iter().filter(|case| arrives(case) != wanted(case)).map(|case| case.name).collect();
        assert!(wrong.is_empty(), "isolated: {isolated}, not as they should be: {wrong:?}\n{}", agent.log_text());
    };
    check(false);
    scene.policy_in_force(&agent, "p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 81}]}]}");
    check(true);
}

#[test]
fn a_trusted_namespace_sends_from_any_address_and_is_named() {
    let scene = Scene::new("trusted");
    let [a, b, c] = &scene.pods;
    let agent = scene.start();
    assert!(eventually(PATIENCE, || scene.endpoint(a)["trusted"] == false), "{}", scene.endpoints());
    assert!(!foreign_arrives(a, b), "not trusted");
    let mut namespace = objects::namespace("web", &[]);
    namespace["metadata"]["annotations"]["palisade.dev/trusted-addresses"] = "true".into();
    scene.put(&namespace);
    assert!(eventually(PATIENCE, || foreign_arrives(a, b)), "trusted\n{}", agent.log_text());
    assert!(eventually(PATIENCE, || scene.endpoint(a)["trusted"] == true), "{}", scene.endpoints());
    assert!(eventually(PATIENCE, || scene.endpoint(c)["trusted"] == true), "{}", scene.endpoints());
    // Trusted with addresses, not exempt from policies.
    scene.policy_in_force(&agent, "p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 81}]}]}");
    scene.expect_tcp(a, b, 81, true, "allowed");
    scene.expect_tcp(a, b, 80, false, "refused");
    scene.put(&objects::namespace("web", &[]));
    assert!(eventually(PATIENCE, || scene.endpoint(a)["trusted"] == false), "{}", scene.endpoints());
    assert!(!foreign_arrives(a, b), "trusted no longer");
}

/// With CAP_NET_ADMIN a pod does as it likes with its interface. It stays who it is, whether a CNI result says so or its address.
#[test]
fn what_a_pod_gives_itself_is_not_its_own() {
    for results in [true, false] {
        let scene = Scene::new("taken");
        if !results {
            std::fs::remove_dir_all(scene.node.cni_cache().join("results")).expect("there were pods");
        }
        let [a, b, _] = &scene.pods;
        let outside = "172.30.0.77".parse().expect("an address");
        let gateway = "10.244.1.1".parse().expect("an address");
        let admitted = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 172.30.0.77/32}}]}]}";
        scene.policy("p", admitted);
        let agent = scene.start();
        let addresses = || {
            let row = scene.endpoint(a);
            let all = row["addresses"].as_array().into_iter().flatten();
            BTreeSet::from_iter(all.filter_map(|address| address.as_str().map(str::to_owned)))
        };
        assert!(eventually(PATIENCE, || scene.endpoint(a)["pod"] == "a"), "{results}: {}", scene.endpoints());
        let known = addresses();
        a.netns
            .ip(&[
                "link set eth0 address 02:00:00:00:00:77".into(),
                format!("addr add {gateway}/32 dev eth0"),
                format!("addr add {outside}/32 dev eth0"),
                "addr add fe80::77/64 dev eth0 nodad".into(),
            ])
            .expect("the pod may do that");
        // The last is its own, and so tells that the others were seen.
        let seen = eventually(PATIENCE, || addresses().contains("fe80::77"));
        assert!(seen, "{results}: {}\n{}", scene.endpoints(), agent.log_text());
        let more: Vec<String> = addresses().difference(&known).cloned().collect();
        assert!(more.iter().all(|address| address.starts_with("fe80::")), "with results: {results}: {more:?}");
        for mac in [a.mac, STRANGER] {
            assert!(!arrives(a, b, &ethernet(b.mac, mac, &udp(outside, b.ipv4(), 80))), "{results}: from {outside}");
            assert!(!arrives(a, b, &arp_reply(b.mac, mac, gateway, b.ipv4())), "{results}: as {gateway}");
            // Without a result nothing but the interface tells of the MAC.
            let own = arrives(a, b, &arp_reply(b.mac, mac, a.ipv4(), b.ipv4()));
            assert_eq!(own, results == (mac == a.mac), "with results: {results}, as itself");
        }
    }
}

#[test]
fn link_local_addresses_are_no_way_round() {
    let scene = Scene::new("local");
    let [a, b, _] = &scene.pods;
    assert!(link_local_reaches(a, b, 80), "without an agent");
    let agent = scene.start();
    assert!(link_local_reaches(a, b, 80), "without a policy\n{}", agent.log_text());
    let isolated = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {}}]}]}";
    scene.policy_in_force(&agent, "p", isolated);
    // An address of no pod: selectors do not match it.
    assert!(eventually(PATIENCE, || !link_local_reaches(a, b, 80)), "isolated");
    scene.expect_tcp(a, b, 80, true, "by its own addresses");
    let named = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 'fe80::/10'}}]}]}";
    scene.policy_in_force(&agent, "p", named);
    assert!(eventually(PATIENCE, || link_local_reaches(a, b, 80)), "by a block");
    scene.expect_tcp(a, b, 80, false, "the block is of link-local addresses");
}

fn link_local_reaches(from: &Pod, to: &Pod, port: u16) -> bool {
    let scope = from.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6")).expect("IPv6 is there");
    let scope = scope.lines().find(|line| line.ends_with("eth0")).expect("eth0 has an address");
    let scope = u32::from_str_radix(scope.split_whitespace().nth(1).expect("an index"), 16).expect("a number");
    let address = std::net::SocketAddrV6::new(to.link_local(), port, 0, scope);
    from.netns.run(|| std::net::TcpStream::connect_timeout(&address.into(), AT_ONCE)).is_ok()
}

fn foreign_arrives(from: &Pod, to: &Pod) -> bool {
    let foreign = FOREIGN[0].parse().expect("an address");
    arrives(from, to, &ethernet(to.mac, from.mac, &udp(foreign, to.ipv4(), 81)))
}

fn arrives(from: &Pod, to: &Pod, frame: &[u8]) -> bool {
    let receiver = frames(to);
    frames(from).send(frame).expect("it is sent");
    let found = receiver.receive(AT_ONCE, |seen| seen.starts_with(frame).then_some(()));
    found.expect("a packet socket").is_some()
}

fn cases(a: &Pod, b: &Pod, c: &Pod) -> Vec<Case> {
    let case = |name, arrives, arrives_isolated, frame| Case { name, frame, arrives, arrives_isolated };
    let foreign = FOREIGN.map(|text| text.parse::<IpAddr>().expect("an address"));
    let group: IpAddr = ALL_NODES.parse().expect("an address");
    let mut cases = Vec::new();
    for (family, foreign) in foreign.into_iter().enumerate() {
        let (own, to, other) = (a.addresses[family], b.addresses[family], c.addresses[family]);
        let [good, from_nobody, from_c, to_foreign, to_c] = if family == 0 {
            ["v4 as it should be", "v4 from nobody's address", "v4 from c's address", "v4 to nobody's", "v4 to c's"]
        } else {
            ["v6 as it should be", "v6 from nobody's address", "v6 from c's address", "v6 to nobody's", "v6 to c's"]
        };
        let send = |from, to| ethernet(b.mac, a.mac, &udp(from, to, 53));
        cases.push(case(good, true, false, send(own, to)));
        cases.push(case(from_nobody, false, false, send(foreign, to)));
        cases.push(case(from_c, false, false, send(other, to)));
        // By b's MAC address with another's IP address.
        cases.push(case(to_foreign, false, false, send(own, foreign)));
        cases.push(case(to_c, false, false, send(own, other)));
        cases.push(case(
            "a MAC address that is not its own",
            false,
            false,
            ethernet(b.mac, STRANGER, &udp(own, to, 53)),
        ));
        cases.push(case("tagged", true, false, tagged(b.mac, a.mac, &udp(own, to, 53))));
        cases.push(case("tagged, from nobody's address", false, false, tagged(b.mac, a.mac, &udp(foreign, to, 53))));
    }
    let arp = |sender: IpAddr| arp_reply(b.mac, a.mac, sender, b.ipv4());
    cases.push(case("ARP for its own address", true, true, arp(a.ipv4())));
    cases.push(case("ARP for nobody's address", false, false, arp(foreign[0])));
    cases.push(case("ARP for c's address", false, false, arp(c.ipv4())));
    let advertise = |target| ethernet(b.mac, a.mac, &neighbour_advertisement(a, target, b.ipv6()));
    cases.push(case("ND for its own address", true, true, advertise(a.ipv6())));
    cases.push(case("ND for nobody's address", false, false, advertise(foreign[1])));
    cases.push(case("ND for c's address", false, false, advertise(c.ipv6())));
    let router = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let local = a.link_local().into();
    let to_all = [0x33, 0x33, 0, 0, 0, 1];
    cases.push(case(
        "a router advertisement to b",
        false,
        false,
        ethernet(b.mac, a.mac, &icmp6(local, b.ipv6(), &router)),
    ));
    cases.push(case(
        "a router advertisement to all",
        false,
        false,
        ethernet(to_all, a.mac, &icmp6(local, group, &router)),
    ));
    let mut odd = [b.mac, a.mac].concat();
    odd.extend_from_slice(&[0x88, 0xb5, 1, 2, 3, 4]);
    cases.push(case("an ethertype that is not IP", true, false, odd));
    cases
}

fn frames(pod: &Pod) -> Frames {
    Frames::open(&pod.netns, "eth0").expect("a packet socket")
}

/// The kernel takes a VLAN tag off before a packet socket sees the frame.
fn without_tag(frame: &[u8]) -> Vec<u8> {
    if frame.get(12..14) == Some(&[0x81, 0x00]) { [&frame[..12], &frame[16..]].concat() } else { frame.to_vec() }
}

fn ethernet(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&to[..], &from, &kind, packet].concat()
}

fn tagged(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let frame = ethernet(to, from, packet);
    [&frame[..12], &[0x81, 0x00, 0, 5], &frame[12..]].concat()
}

fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            let sum = internet_checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            [&header[..], payload].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = (payload.len() as u16).to_be_bytes();
            let start = [0x60, 0, 0, 0, length[0], length[1], protocol, 255];
            [&start[..], &from.octets(), &to.octets(), payload].concat()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families in one packet"),
    }
}

/// From port 81, without a checksum, which the packet socket does not mind.
fn udp(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    ip(from, to, 17, &[0, 81, port[0], port[1], 0, 12, 0, 0, b'l', b'i', b'v', b'e'])
}

fn arp_reply(to: [u8; 6], from: [u8; 6], sender: IpAddr, target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (sender, target) else { panic!("ARP is for IPv4") };
    let start = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2];
    [&to[..], &from, &start, &from, &sender.octets(), &to, &target.octets()].concat()
}

fn neighbour_advertisement(from: &Pod, target: IpAddr, to: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!("neighbour discovery is for IPv6") };
    let message = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets(), &[2, 1], &from.mac].concat();
    icmp6(from.ipv6(), to, &message)
}

/// With its checksum.
fn icmp6(from: IpAddr, to: IpAddr, message: &[u8]) -> Vec<u8> {
    let packet = ip(from, to, 58, message);
    let pseudo = [&packet[8..40], &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 58], message].concat();
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&internet_checksum(&pseudo).to_be_bytes());
    ip(from, to, 58, &message)
}
