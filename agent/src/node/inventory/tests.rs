use std::time::Duration;

use super::*;
use crate::facts::ObjectName;

const NETNS: i32 = 7;

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    let veth = kind == LinkKind::Veth;
    Link {
        is_up: true,
        is_loopback: false,
        has_link_header: true,
        index,
        name: name.into(),
        kind,
        mac: None,
        master: None,
        peer: veth.then_some(2),
        netns_id: veth.then_some(NETNS),
    }
}

fn veth(index: u32, name: &str) -> Link {
    link(index, name, LinkKind::Veth)
}

fn port(index: u32, name: &str, master: u32) -> Link {
    Link { master: Some(master), ..veth(index, name) }
}

fn bridge(index: u32, name: &str) -> Event {
    Event::Link(link(index, name, LinkKind::Bridge))
}

fn mac(last: u8) -> Option<[u8; 6]> {
    (last != 0).then_some([2, 0, 0, 0, 0, last])
}

fn addresses(text: &str) -> Vec<(IpAddr, u8)> {
    let nets = text.split_whitespace().map(|net| net.parse::<IpNet>().expect("a net"));
    nets.map(|net| (net.addr(), net.prefix_len())).collect()
}

fn answer(link: Link, last: u8, text: &str) -> Event {
    Event::Answer { link, side: Some(PodSide { mac: mac(last), addresses: addresses(text) }) }
}

/// A result of pod `pod` on host interface `host`, whose pod's side has this MAC (0: not told) and these addresses.
fn result(file: &str, written: u64, pod: &str, host: &str, last: u8, text: &str) -> Event {
    let reading = Reading::Result(CniResult {
        pod: Some((ObjectName::new("default", pod), Some(format!("uid-{pod}").into()))),
        hosts: vec![HostInterface { name: "br7".into(), mac: None }, HostInterface { name: host.into(), mac: None }],
        sandboxes: vec![SandboxInterface { name: "eth0".into(), mac: mac(last), addresses: addresses(text) }],
        bridge: None,
    });
    Event::Result { file: file.into(), written: SystemTime::UNIX_EPOCH + Duration::from_secs(written), reading }
}

/// A change as a line of text.
fn line(VethChange { ifindex, veth }: &VethChange) -> String {
    let Some(Veth { ifindex: same, name, pod_mac, netns_id, addresses, pod, older, awaits_result }) = veth else {
        return format!("{ifindex} gone");
    };
    assert_eq!(ifindex, same);
    let mut line = format!("{ifindex} {name}");
    line += &pod_mac.map(|mac| format!(" mac {}", mac[5])).unwrap_or_default();
    line += &netns_id.filter(|&id| id != NETNS).map(|id| format!(" netns {id}")).unwrap_or_default();
    addresses.iter().for_each(|(address, length)| line += &format!(" {address}/{length}"));
    line += &pod.as_ref().map(|(name, uid)| format!(" {name} {}", uid.as_deref().unwrap_or("-"))).unwrap_or_default();
    line + if *older { " older" } else { "" } + if *awaits_result { " awaits" } else { "" }
}

fn check(inventory: &mut Inventory, events: impl IntoIterator<Item = Event>, expected: &[&str]) {
    let events: Vec<_> = events.into_iter().collect();
    events.iter().cloned().for_each(|event| inventory.apply(event));
    let changes: Vec<_> = inventory.changes().iter().map(line).collect();
    assert_eq!(changes, expected, "after {events:?}");
    assert_eq!(inventory.changes(), [], "told twice, after {events:?}");
}

/// After the first dump, which found the node's bridge and an older pod's port.
fn started() -> Inventory {
    let mut inventory = Inventory::new(None);
    let links = vec![link(1, "lo", LinkKind::Other), link(3, "cni0", LinkKind::Bridge), port(4, "veth4", 3)];
    check(&mut inventory, [Event::Links(links)], &["4 veth4 older"]);
    inventory
}

/// Until its result is there, a new veth with an address that was another pod's is nobody's.
#[test]
fn a_new_one_awaits_its_result_where_others_have_one() {
    let mut inventory = started();
    check(&mut inventory, [answer(port(4, "veth4", 3), 1, "10.0.0.4/24")], &["4 veth4 mac 1 10.0.0.4/24 older"]);
    // Results may be kept nowhere.
    let first = [Event::Link(port(5, "veth5", 3)), answer(port(5, "veth5", 3), 2, "10.0.0.5/24")];
    check(&mut inventory, first, &["5 veth5 mac 2 10.0.0.5/24"]);
    let named = result("a", 1, "a", "veth4", 1, "10.0.0.4/24");
    check(
        &mut inventory,
        [named],
        &["4 veth4 mac 1 10.0.0.4/24 default/a uid-a older", "5 veth5 mac 2 10.0.0.5/24 awaits"],
    );
    let own = result("b", 2, "b", "veth5", 2, "10.0.0.5/24");
    check(&mut inventory, [own], &["5 veth5 mac 2 10.0.0.5/24 default/b uid-b"]);
}

fn questions(inventory: &mut Inventory) -> Vec<u32> {
    std::iter::from_fn(|| inventory.question()).collect()
}

#[test]
fn a_pod_is_born_and_dies() {
    let mut inventory = started();
    assert_eq!(questions(&mut inventory), [4]);
    check(&mut inventory, [Event::Link(veth(5, "veth5"))], &[]);
    check(&mut inventory, [Event::Link(port(5, "veth5", 3))], &["5 veth5"]);
    assert_eq!(questions(&mut inventory), [5]);
    check(&mut inventory, [answer(port(5, "veth5", 3), 9, "")], &["5 veth5 mac 9"]);
    check(&mut inventory, [Event::PodSideChanged { netns_id: NETNS, index: 2 }], &[]);
    assert_eq!(questions(&mut inventory), [4, 5], "both are in the namespace 7");
    let seen = answer(port(5, "veth5", 3), 9, "fe80::9/64 10.0.0.5/24");
    check(&mut inventory, [seen.clone()], &["5 veth5 mac 9 10.0.0.5/24 fe80::9/64"]);
    check(&mut inventory, [seen], &[]);
    let web = result("a", 1, "web", "veth5", 9, "10.0.0.5/24");
    check(&mut inventory, [web], &["5 veth5 mac 9 10.0.0.5/24 fe80::9/64 default/web uid-web"]);
    assert_eq!(questions(&mut inventory), [5]);
    check(&mut inventory, [Event::ResultGone("a".into())], &["5 veth5 mac 9 10.0.0.5/24 fe80::9/64"]);
    check(&mut inventory, [Event::LinkGone(5)], &["5 gone"]);
    check(&mut inventory, [Event::LinkGone(5)], &[]);
}

#[test]
fn whose_a_veth_is() {
    let cidrs = || Event::PodCidrs(vec!["10.0.0.0/24".parse().expect("a net"), "fd00::/64".parse().expect("a net")]);
    let mut inventory = started();
    check(&mut inventory, [Event::Link(veth(5, "docker")), answer(veth(5, "docker"), 1, "172.17.0.2/16")], &[]);
    check(&mut inventory, [cidrs()], &[]);
    check(&mut inventory, [answer(veth(5, "docker"), 1, "fd00::2/64")], &["5 docker mac 1 fd00::2/64"]);
    // A pod that takes its address off stays a pod.
    check(&mut inventory, [answer(veth(5, "docker"), 1, "")], &["5 docker mac 1"]);
    // Addresses first, pod CIDRs later.
    let mut inventory = started();
    check(&mut inventory, [Event::Link(veth(5, "v")), answer(veth(5, "v"), 1, "10.0.0.2/32")], &[]);
    check(&mut inventory, [cidrs()], &["5 v mac 1 10.0.0.2/32"]);
    // Named by a result, on no bridge.
    let mut inventory = started();
    check(&mut inventory, [result("a", 1, "web", "v", 1, "10.9.0.2/32"), Event::Link(veth(5, "v"))], &[]);
    check(&mut inventory, [answer(veth(5, "v"), 1, "")], &["5 v mac 1 10.9.0.2/32 default/web uid-web"]);
    // A host's interface that is no veth is not a pod's, whatever names it.
    check(&mut inventory, [Event::Link(Link { kind: LinkKind::Other, ..port(6, "vxlan", 3) })], &[]);
}

#[test]
fn bridges() {
    let other = || [bridge(8, "br7"), Event::Link(port(5, "v", 8))];
    let mut inventory = started();
    check(&mut inventory, other(), &[]);
    check(&mut inventory, [result("a", 1, "web", "elsewhere", 1, "")], &["5 v"]);
    let mut inventory = started();
    check(&mut inventory, other(), &[]);
    let Event::Result { file, written, reading: Reading::Result(web) } = result("a", 1, "web", "elsewhere", 1, "")
    else {
        unreachable!("result() makes results")
    };
    let bare = Reading::Result(CniResult { pod: None, ..web.clone() });
    check(&mut inventory, [Event::Result { file: file.clone(), written, reading: bare }], &[]);
    let configured = Reading::Result(CniResult { hosts: Vec::new(), bridge: Some("br7".into()), ..web });
    check(&mut inventory, [Event::Result { file, written, reading: configured }], &["5 v"]);
    // The administrator's word counts alone; and the bridge may come after its name.
    let mut inventory = Inventory::new(Some("br7".into()));
    check(&mut inventory, [Event::Links(vec![]), bridge(3, "cni0"), Event::Link(port(4, "w", 3))], &[]);
    check(&mut inventory, other(), &["5 v"]);
    let mut inventory = started();
    check(&mut inventory, [bridge(8, "tmp"), Event::Link(port(5, "v", 8))], &[]);
    check(&mut inventory, [bridge(8, "cni0")], &["5 v"]);
}

#[test]
fn results_that_are_not_believed() {
    let asked = |last| [Event::Link(port(5, "v", 3)), answer(port(5, "v", 3), last, "10.0.0.5/24")];
    let mut inventory = started();
    // Nothing is said before the other end was looked at.
    let stale = result("a", 1, "old", "v", 1, "10.0.0.4/24");
    check(&mut inventory, [stale.clone(), Event::Link(port(5, "v", 3))], &["5 v"]);
    check(&mut inventory, asked(2), &["5 v mac 2 10.0.0.5/24"]);
    check(
        &mut inventory,
        [result("b", 0, "new", "v", 2, "10.0.0.5/24")],
        &["5 v mac 2 10.0.0.5/24 default/new uid-new"],
    );
    // Of two that fit, the later; also if it was read first.
    let later = result("c", 2, "last", "v", 2, "10.0.0.6/24");
    check(&mut inventory, [later], &["5 v mac 2 10.0.0.6/24 default/last uid-last"]);
    check(&mut inventory, [result("d", 1, "third", "v", 2, "10.0.0.7/24")], &[]);
    check(&mut inventory, [Event::ResultGone("c".into())], &["5 v mac 2 10.0.0.7/24 default/third uid-third"]);
    // A half-written file takes nothing away; a loopback's in its place does.
    let reading = |reading| Event::Result { file: "d".into(), written: SystemTime::UNIX_EPOCH, reading };
    check(&mut inventory, [reading(Reading::NotYet("short".into()))], &[]);
    check(&mut inventory, [reading(Reading::Foreign)], &["5 v mac 2 10.0.0.5/24 default/new uid-new"]);
    check(&mut inventory, [Event::ResultFiles(["a".into()].into())], &["5 v mac 2 10.0.0.5/24"]);
    // Where no result tells a MAC, or it could not be read, the name decides.
    let mut inventory = started();
    check(&mut inventory, [result("a", 1, "web", "v", 0, "10.0.0.5/24")], &[]);
    check(&mut inventory, asked(2), &["5 v mac 2 10.0.0.5/24 default/web uid-web"]);
    let mut inventory = started();
    check(&mut inventory, [stale], &[]);
    check(&mut inventory, asked(0), &["5 v mac 1 10.0.0.4/24 default/old uid-old"]);
    // The host's side differs, so without a MAC of the pod's side the name was reused.
    let mut inventory = started();
    let Event::Result { reading: Reading::Result(mut web), file, written } = result("a", 1, "web", "v", 0, "") else {
        unreachable!("result() makes results")
    };
    web.hosts[1].mac = mac(30);
    check(&mut inventory, [Event::Result { file, written, reading: Reading::Result(web) }], &[]);
    let other = Link { mac: mac(31), ..port(5, "v", 3) };
    check(&mut inventory, [answer_after_link(other, 2)].concat(), &["5 v mac 2"]);
}

/// A pod that is allowed to may give itself another MAC address and other addresses: it stays what the CNI made it, as the node's end of
/// the veth says which it is.
#[test]
fn a_pod_cannot_change_who_it_is() {
    let mut inventory = started();
    let Event::Result { reading: Reading::Result(mut web), file, written } =
        result("a", 1, "web", "v", 2, "10.0.0.5/24")
    else {
        unreachable!("result() makes results")
    };
    web.hosts[1].mac = mac(30);
    let own = Link { mac: mac(30), ..port(5, "v", 3) };
    let told = Event::Result { file, written, reading: Reading::Result(web) };
    let known = "5 v mac 2 10.0.0.5/24 default/web uid-web";
    check(&mut inventory, [vec![told], answer_after_link(own.clone(), 2)].concat(), &[known]);
    check(&mut inventory, [answer(own.clone(), 9, "10.0.0.1/24 172.16.0.1/12")], &[]);
    // Of what it gave itself, what only its link knows is said by no result.
    check(&mut inventory, [answer(own, 9, "fe80::9/64")], &["5 v mac 2 10.0.0.5/24 fe80::9/64 default/web uid-web"]);
}

fn answer_after_link(link: Link, last: u8) -> Vec<Event> {
    vec![Event::Link(link.clone()), answer(link, last, "")]
}

#[test]
fn addresses_are_the_cnis() {
    let mut inventory = started();
    let privileged = answer(port(5, "v", 3), 1, "10.0.0.5/24 10.0.0.99/24 fe80::1/64 fd00::99/64");
    check(
        &mut inventory,
        [Event::Link(port(5, "v", 3)), result("a", 1, "web", "v", 1, "10.0.0.5/24 fd00::5/64"), privileged],
        &["5 v mac 1 10.0.0.5/24 fd00::5/64 fe80::1/64 default/web uid-web"],
    );
    // One result with two pairs: each side by its MAC.
    let reading = Reading::Result(CniResult {
        pod: Some((ObjectName::new("default", "two"), None)),
        hosts: ["va", "vb"].map(|name| HostInterface { name: name.into(), mac: None }).to_vec(),
        sandboxes: [("eth0", 1, "10.0.0.1/24"), ("eth1", 2, "10.0.0.2/24")]
            .map(|(name, last, text)| SandboxInterface {
                name: name.into(),
                mac: mac(last),
                addresses: addresses(text),
            })
            .to_vec(),
        bridge: None,
    });
    let mut inventory = started();
    let both = Event::Result { file: "two".into(), written: SystemTime::UNIX_EPOCH, reading };
    let events = [answer_after_link(veth(5, "va"), 1), answer_after_link(veth(6, "vb"), 2), vec![both]].concat();
    let expected = ["5 va mac 1 10.0.0.1/24 default/two -", "6 vb mac 2 10.0.0.2/24 default/two -"];
    check(&mut inventory, events, &expected);
}

#[test]
fn moves_and_losses() {
    let mut inventory = started();
    questions(&mut inventory);
    // Renamed, and taken off the bridge: still the pod's.
    check(&mut inventory, [Event::Link(port(4, "renamed", 3))], &["4 renamed older"]);
    check(&mut inventory, [Event::Link(veth(4, "renamed"))], &[]);
    // What is known of the other end goes with it.
    check(&mut inventory, [answer(port(4, "v", 3), 1, "10.0.0.5/24")], &["4 v mac 1 10.0.0.5/24 older"]);
    let moved = Link { netns_id: Some(8), ..port(4, "v", 3) };
    check(&mut inventory, [Event::Link(moved.clone())], &["4 v netns 8 older"]);
    assert_eq!(questions(&mut inventory), [4]);
    // An answer without the other end leaves what was known; the move that it tells of counts.
    check(&mut inventory, [answer(moved.clone(), 1, "")], &["4 v mac 1 netns 8 older"]);
    check(&mut inventory, [Event::Answer { link: moved, side: None }], &[]);
    check(&mut inventory, [Event::Answer { link: port(4, "v", 3), side: None }], &["4 v older"]);
    assert!(!inventory.has_question(), "an answer is no news to ask about");
    // The other end was in this namespace and has left it.
    let local = Link { peer: Some(6), netns_id: None, ..port(5, "w", 3) };
    check(&mut inventory, [Event::Link(local)], &["5 w"]);
    questions(&mut inventory);
    check(&mut inventory, [Event::LinkGone(6)], &[]);
    assert_eq!(questions(&mut inventory), [5]);
    check(&mut inventory, [Event::PodSidesMissed], &[]);
    assert_eq!(questions(&mut inventory), [4, 5]);
    // A new dump: one is gone, one is new and not older.
    let links = vec![link(3, "cni0", LinkKind::Bridge), port(4, "v", 3), port(9, "x", 3)];
    check(&mut inventory, [Event::Links(links)], &["5 gone", "9 x"]);
    assert_eq!(questions(&mut inventory), [4, 9]);
    // An index that is used again at once is another interface.
    check(&mut inventory, [Event::LinkGone(4), Event::Link(port(4, "v", 3))], &["4 gone", "4 v"]);
    // An answer that comes after its interface has gone is nobody's.
    check(&mut inventory, [Event::LinkGone(4), answer(port(4, "v", 3), 1, "")], &["4 gone"]);
}

/// However it is called, and though what was told of it has gone: nobody else can have become its pod.
#[test]
fn who_was_named_stays_known() {
    let mut inventory = started();
    let own = |name| Link { mac: mac(30), ..port(5, name, 3) };
    let ours =
        [Event::Link(own("v")), answer(own("v"), 1, "10.0.0.5/24"), result("a", 1, "web", "v", 1, "10.0.0.5/24")];
    check(&mut inventory, ours, &["5 v mac 1 10.0.0.5/24 default/web uid-web"]);
    check(&mut inventory, [Event::Link(own("renamed"))], &["5 renamed mac 1 10.0.0.5/24 default/web uid-web"]);
    // Another has the name by now, and its own result.
    let others = [Event::Link(port(6, "v", 3)), answer(port(6, "v", 3), 2, "10.0.0.6/24")];
    check(&mut inventory, others, &["6 v mac 2 10.0.0.6/24 awaits"]);
    let theirs = result("b", 2, "other", "v", 2, "10.0.0.6/24");
    check(&mut inventory, [theirs], &["6 v mac 2 10.0.0.6/24 default/other uid-other"]);
    // What is left are its addresses.
    check(&mut inventory, [Event::ResultGone("a".into())], &["5 renamed mac 1 10.0.0.5/24"]);
}

fn device_names(inventory: &Inventory) -> String {
    inventory.devices().iter().map(|device| &*device.name).collect::<Vec<_>>().join(" ")
}

/// What is sent by these has been seen by nobody else.
#[test]
fn devices_by_which_packets_leave() {
    let mut inventory = Inventory::new(None);
    let other = |index, name| Event::Link(link(index, name, LinkKind::Other));
    let loopback = Link { is_loopback: true, ..link(1, "lo", LinkKind::Other) };
    for (event, expected) in [
        (Event::Link(loopback), ""),
        (other(2, "eth0"), "eth0"),
        (bridge(3, "cni0"), "eth0"),
        // A veth that is nobody's yet may lead anywhere.
        (Event::Link(veth(4, "veth-a")), "eth0 veth-a"),
        (Event::Link(port(4, "veth-a", 3)), "eth0"),
        (bridge(5, "docker0"), "eth0 docker0"),
        (Event::Link(port(6, "veth-c", 5)), "eth0 docker0"),
        // A port of a bond, not of a bridge.
        (Event::Link(port(7, "veth-d", 2)), "eth0 docker0 veth-d"),
        (Event::Link(Link { master: Some(5), ..link(8, "eth1", LinkKind::Other) }), "eth0 docker0 veth-d eth1"),
        (Event::Link(link(9, "bwp9", LinkKind::Ifb)), "eth0 docker0 veth-d eth1"),
        (Event::LinkGone(2), "docker0 veth-d eth1"),
    ] {
        inventory.apply(event);
        inventory.changes();
        assert_eq!(device_names(&inventory), expected);
    }
}

#[test]
fn addresses_of_the_node() {
    let mut inventory = Inventory::new(None);
    inventory.apply(Event::Link(link(2, "eth0", LinkKind::Other)));
    inventory.apply(Event::Link(link(3, "kube-ipvs0", LinkKind::Other)));
    let own = [(2, "192.0.2.1"), (3, "10.96.0.1"), (9, "fd00::1"), (2, "fe80::1"), (2, "192.0.2.2")];
    inventory.apply(Event::Own(own.map(|(index, text)| (index, text.parse().expect("an address"))).into()));
    let told = |inventory: &Inventory| inventory.own_addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
    // The one of a device that is not known yet comes with the device.
    assert_eq!(told(&inventory), ["192.0.2.1", "192.0.2.2"]);
    inventory.apply(Event::Link(link(9, "eth1", LinkKind::Other)));
    assert_eq!(told(&inventory), ["192.0.2.1", "192.0.2.2", "fd00::1"]);
}
