//! Programs of others on the interfaces of our pods: they go on, and none of them can hide ours.

use std::fs::File;
use std::time::Duration;

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::{Connection, DEADLINE};
use palisade_tests::lab::{Pod, Transport, probe::Probe};

use crate::counter::Counter;
use crate::scene::{AT_ONCE, Scene, eventually};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Clsact,
    /// With the priority and the handle that ours takes where it can.
    ClsactFirst,
    Tcx,
}

/// Their programs, one for each direction, on every pod's interface.
struct Theirs {
    counters: [Counter; 2],
    _links: Vec<File>,
}

#[test]
fn a_program_that_says_ok_hides_nothing_and_goes_on() {
    // TCX runs before clsact, so theirs cannot come first where ours is a filter of clsact.
    for (ours, theirs) in
        [("tcx", Kind::Clsact), ("tcx", Kind::Tcx), ("clsact", Kind::Clsact), ("clsact", Kind::ClsactFirst)]
    {
        // Where ours has the place already, the kernel takes no other one there.
        let orders: &[bool] = if theirs == Kind::ClsactFirst { &[true] } else { &[true, false] };
        for &first in orders {
            play(ours, theirs, first);
        }
    }
}

fn play(ours: &str, kind: Kind, first: bool) {
    let when = format!("ours by {ours}, theirs by {kind:?}, theirs first: {first}");
    let scene = Scene::new("ok");
    let [a, b, c] = &scene.pods;
    scene.policy(
        "p",
        "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80}]}], egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}]}",
    );
    let before = first.then(|| Theirs::attach(&scene, kind));
    let agent = scene.start_with(&["--attach", ours]);
    let theirs = before.unwrap_or_else(|| Theirs::attach(&scene, kind));
    assert_eq!(reaches(a, b, 80), [true, true], "{when}");
    assert_eq!(reaches(a, b, 81), [false, false], "{when}: ingress of b");
    assert_eq!(reaches(a, c, 80), [false, false], "{when}: egress of a");
    let counts = theirs.counts();
    let mut connection = Connection::open(&a.netns, b.ipv6(), 80).expect("it is allowed");
    assert!(connection.echoes(DEADLINE));
    let later = theirs.counts();
    assert!(counts[0] < later[0] && counts[1] < later[1], "{when}: theirs sees packets: {counts:?} {later:?}");
    agent.stop().expect("it runs");
    let gone = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
    assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
    assert_eq!(reaches(a, c, 80), [true, true], "{when}: uninstalled");
    let last = theirs.counts();
    assert!(later[0] < last[0] && later[1] < last[1], "{when}: theirs outlives ours: {later:?} {last:?}");
}

/// What is put in front of ours on purpose can hide it: that is told while it is so.
#[test]
fn a_program_in_front_is_told_of() {
    // The agent looks every ten seconds.
    const LOOKED: Duration = Duration::from_secs(25);
    let scene = Scene::new("front");
    let [a, _, _] = &scene.pods;
    let agent = scene.start();
    let told = || {
        let faults = scene.endpoints()["faults"].clone();
        let messages = faults.as_array().into_iter().flatten().filter_map(|fault| fault["message"].as_str());
        messages.filter(|it| it.contains("in front") && it.contains(&*a.host_interface)).count()
    };
    let counter = Counter::load().expect("the kernel takes it");
    let link = attach_tcx(&scene, &counter, &a.host_interface, true, true).expect("a link");
    assert!(eventually(LOOKED, || told() == 1), "{}\n{}", scene.endpoints(), agent.log_text());
    drop(link);
    assert!(eventually(LOOKED, || told() == 0), "{}", scene.endpoints());
}

fn reaches(from: &Pod, to: &Pod, port: u16) -> [bool; 2] {
    let ask = |address| Probe::new(&from.netns, Transport::Tcp, address, port).ask_within(AT_ONCE).reached();
    [ask(to.ipv4()), ask(to.ipv6())]
}

impl Theirs {
    fn attach(scene: &Scene, kind: Kind) -> Self {
        let counters = [(); 2].map(|()| Counter::load().expect("the kernel takes it"));
        let mut links = Vec::new();
        for (counter, direction) in counters.iter().zip(["ingress", "egress"]) {
            let pin = scene.lab.bpffs().join(format!("theirs-{direction}"));
            counter.pin(&pin).expect("a bpffs");
            for interface in scene.pods.iter().map(|pod| &*pod.host_interface) {
                if kind == Kind::Tcx {
                    let link = attach_tcx(scene, counter, interface, direction == "egress", false);
                    links.push(link.expect("a link"));
                    continue;
                }
                // The agent may have made it already.
                let _ = tc(scene, &["qdisc", "add", "dev", interface, "clsact"]);
                let place: &[&str] = if kind == Kind::Clsact { &["prio", "10"] } else { &["prio", "1", "handle", "1"] };
                let filter =
                    [&["filter", "add", "dev", interface, direction], place, &["protocol", "all", "bpf", "da"]];
                let filter = filter.concat();
                let said = tc(scene, &[&filter[..], &["object-pinned", &pin.to_string_lossy()]].concat());
                assert!(said.is_empty(), "{said}");
            }
        }
        Self { counters, _links: links }
    }

    fn counts(&self) -> [u64; 2] {
        self.counters.each_ref().map(|counter| counter.count().expect("the map is there"))
    }
}

/// On an interface of the node, behind all that is there or in front of it.
pub fn attach_tcx(
    scene: &Scene,
    counter: &Counter,
    interface: &str,
    egress: bool,
    first: bool,
) -> std::io::Result<File> {
    scene.node.netns.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
        counter.attach_tcx(index, egress, first)
    })
}

/// What it complains of.
fn tc(scene: &Scene, arguments: &[&str]) -> String {
    let output = scene.node.netns.command("tc").args(arguments).output().expect("tc runs");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
