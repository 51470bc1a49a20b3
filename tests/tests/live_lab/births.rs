//! Pods and their interfaces come, go and come again under the names, addresses and indices of others: every time the verdicts are those
//! of who is there now, and nothing that is forbidden passes in between.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use aya::programs::{SchedClassifier, TcAttachType};
use palisade::kernel::{AttachMode, Kernel, PinDir, Settings, Sizes, Standing};
use palisade::observe::state_dir;
use palisade_tests::bench::restart::attempts::{Attempts, Kind};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Netns, Node, Pod, PodSpec, objects};

use crate::scene::{PATIENCE, Scene, eventually};
use crate::troubles::pin;

/// `b` admits `a` at port 80 and nobody else; whoever is called `x` may open nothing but to `c`.
const B_FROM_A: &str = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}]}";
const X_TO_C: &str = "{podSelector: {matchLabels: {app: x}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: c}}}]}]}";

/// What is forbidden all the time, tried 200 times a second.
fn watch(from: &Netns, to: &Pod, port: u16) -> Attempts {
    let to = to.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
    Attempts::start(&[Kind { from: from.clone(), to, permitted: false, rate: 200 }])
}

fn expect_none(attempts: Attempts, when: &str) {
    let counts = attempts.finish().expect("sockets can be made");
    assert!(counts.wrongly_admitted == 0 && counts.forbidden > 10, "{when}: {counts:?}");
}

/// Addresses are given out in turn; now the lowest that is free is the next.
fn begin_addresses_anew(node: &Node) {
    for family in ["0", "1"] {
        let _ = fs::remove_file(node.folder.join("ipam/cbr0").join(format!("last_reserved_ip.{family}")));
    }
}

/// The agent has put both programs on the interface with this index.
fn attached(scene: &Scene, index: u32) -> bool {
    ["from_pod", "to_pod"].iter().all(|name| Path::new(&pin(scene, "links", &format!("{index}-{name}"))).exists())
}

#[test]
fn a_pod_that_comes_again_under_its_name_is_the_new_one() {
    let scene = Scene::new("restart");
    let [a, b, c] = &scene.pods;
    scene.policy("p", B_FROM_A);
    let agent = scene.start();
    let mut old = b.clone();
    for same_address in [true, true, false] {
        let when = format!("the same address: {same_address}");
        // As a StatefulSet does it: the old object goes when its pod has ended, and the new one has another UID.
        scene.node.stop_pod(&old).expect("CNI DEL");
        scene.manifests.remove(&objects::pod(&old, &scene.node)).expect("it was written");
        if same_address {
            begin_addresses_anew(&scene.node);
        }
        let new = scene.node.start_pod(&scene.lab, PodSpec::new("web", "b", &[("app", "b")])).expect("a pod");
        assert_eq!(new.addresses == old.addresses, same_address, "{when}: {:?}", new.addresses);
        let _server = Server::start(scene.lab.guard(), &new.netns, "b", &[80, 81], &[]).expect("a server");
        for pod in [a, c] {
            // It has another MAC address than the one before it, which is otherwise found out after seconds.
            pod.netns.ip(&["neigh flush dev eth0".to_owned()]).expect("there may be some");
        }
        let forbidden = [watch(&c.netns, &new, 80), watch(&a.netns, &new, 81)];
        scene.put(&objects::pod(&new, &scene.node));
        scene.expect_tcp(a, &new, 80, true, &when);
        scene.expect_tcp(c, &new, 80, false, &when);
        scene.expect_tcp(&new, c, 81, true, &when);
        forbidden.into_iter().for_each(|attempts| expect_none(attempts, &when));
        assert_eq!(scene.endpoint(&new)["pod"], "b", "{when}: {}", scene.endpoint(&new));
        old = new;
    }
    drop(agent);
}

/// What happens, in an order that may be any in which the address is free before it is given out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// The object of the old pod goes.
    Forget,
    /// CNI DEL of the old pod.
    Unplug,
    /// CNI ADD of the new pod.
    Plug,
    /// The object of the new pod comes, with its addresses.
    Tell,
}

const ORDERS: [[Step; 4]; 4] = [
    [Step::Forget, Step::Unplug, Step::Plug, Step::Tell],
    [Step::Unplug, Step::Forget, Step::Plug, Step::Tell],
    [Step::Unplug, Step::Plug, Step::Forget, Step::Tell],
    [Step::Unplug, Step::Plug, Step::Tell, Step::Forget],
];

#[test]
fn an_address_that_is_given_to_another_at_once_is_that_ones() {
    for order in ORDERS {
        let scene = Scene::new("heir");
        let [a, b, c] = &scene.pods;
        scene.policy("p", B_FROM_A);
        scene.policy("x", X_TO_C);
        let agent = scene.start();
        scene.expect_tcp(a, b, 80, true, "the old pod");
        let mut heir: Option<(Pod, Server)> = None;
        let mut forbidden = Vec::new();
        for step in order {
            match step {
                Step::Forget => scene.manifests.remove(&objects::pod(a, &scene.node)).expect("it was written"),
                Step::Unplug => {
                    scene.node.stop_pod(a).expect("CNI DEL");
                    begin_addresses_anew(&scene.node);
                }
                Step::Plug => {
                    let x = scene.node.start_pod(&scene.lab, PodSpec::new("web", "x", &[("app", "x")])).expect("a pod");
                    assert_eq!(x.addresses, a.addresses, "{order:?}");
                    // Without palisade-cni, the agent reads the result some moments after ADD has returned: until then the veth is
                    // that of whose address it has, as long as there is such an object.
                    let read = || scene.endpoint(&x)["closed"].to_string().contains("web/x");
                    assert!(eventually(PATIENCE, read), "{order:?}: {}", scene.endpoint(&x));
                    forbidden.push(watch(&x.netns, b, 80));
                    let server = Server::start(scene.lab.guard(), &x.netns, "x", &[80], &[]).expect("a server");
                    heir = Some((x, server));
                }
                Step::Tell => {
                    let (x, _) = heir.as_ref().expect("it was plugged before");
                    scene.put(&objects::pod(x, &scene.node));
                }
            }
        }
        let (x, _) = heir.as_ref().expect("it was plugged");
        let when = format!("{order:?}");
        scene.expect_tcp(x, c, 80, true, &when);
        scene.expect_tcp(c, x, 80, true, &when);
        scene.expect_tcp(x, b, 80, false, &when);
        forbidden.into_iter().for_each(|attempts| expect_none(attempts, &when));
        drop(agent);
    }
}

#[test]
fn an_interface_that_is_renamed_keeps_its_programs() {
    for attach in ["tcx", "clsact"] {
        let scene = Scene::new("renamed");
        let [a, b, c] = &scene.pods;
        scene.policy("p", B_FROM_A);
        let _agent = scene.start_with(&["--attach", attach]);
        scene.expect_tcp(a, b, 80, true, attach);
        let forbidden = [watch(&c.netns, b, 80), watch(&a.netns, b, 81)];
        let [own, other] = [b, c].map(|pod| pod.host_interface.clone());
        // Two change their names with each other, again and again.
        let swap = [
            format!("link set {own} name between"),
            format!("link set {other} name {own}"),
            format!("link set between name {other}"),
        ];
        let back = [
            format!("link set {other} name between"),
            format!("link set {own} name {other}"),
            format!("link set between name {own}"),
        ];
        for _ in 0..20 {
            scene.node.netns.ip(&[&swap[..], &back[..]].concat()).expect("they can be renamed");
        }
        scene.node.netns.ip(&swap).expect("they can be renamed");
        scene.expect_tcp(a, b, 80, true, "renamed");
        scene.expect_tcp(a, c, 81, true, "renamed");
        scene.node.netns.ip(&back).expect("they can be renamed");
        scene.expect_tcp(a, b, 80, true, "and back");
        // One that is younger than the agent, whose result knows it by the name that it had.
        let mut young = scene.node.start_pod(&scene.lab, PodSpec::new("web", "young", &[("app", "b")])).expect("a pod");
        scene.put(&objects::pod(&young, &scene.node));
        let _server = Server::start(scene.lab.guard(), &young.netns, "young", &[80], &[]).expect("a server");
        assert!(eventually(PATIENCE, || scene.endpoint(&young)["pod"] == "young"), "{}", scene.endpoints());
        scene.node.netns.ip(&[format!("link set {} name young", young.host_interface)]).expect("it can be renamed");
        young.host_interface = "young".to_owned();
        assert!(eventually(PATIENCE, || scene.endpoint(&young)["state"].is_string()), "{}", scene.endpoints());
        assert_eq!(scene.endpoint(&young)["state"], "enforced", "{attach}: {}", scene.endpoint(&young));
        scene.expect_tcp(a, &young, 80, true, "a young one");
        forbidden.into_iter().for_each(|attempts| expect_none(attempts, attach));
    }
}

/// Between an event and what follows from it, a name may have become another's.
#[test]
fn programs_go_by_index_whatever_the_name_says() {
    for (name, mode) in [("tcx", AttachMode::Tcx), ("clsact", AttachMode::Clsact)] {
        let scene = Scene::new("stale");
        scene.lab.guard().folder(&state_dir(&scene.node.pin_dir));
        let [_, b, c] = &scene.pods;
        let index = scene.index_of(&b.host_interface);
        let on = || [b, c].map(|pod| programs(&scene, name, &pod.host_interface));
        scene.node.netns.run(|| {
            let pins = PinDir::open(&scene.node.pin_dir).expect("a folder for pins");
            let kernel = Kernel::open(pins, Sizes::default(), Settings::default(), mode);
            let mut kernel = kernel.expect("the programs are loaded");
            // The second time they are replaced.
            for _ in 0..2 {
                kernel.attach(index, &c.host_interface).expect("it is there");
                assert_eq!(on(), [2, 0], "{name}: {} and {}", b.host_interface, c.host_interface);
                assert_eq!(kernel.standing(index).expect("it is there"), Standing::First, "{name}");
            }
            kernel.detach(index).expect("it is there");
        });
        assert!(eventually(PATIENCE, || on() == [0, 0]), "{name}: {:?}", on());
    }
}

fn mac(pod: &Pod) -> String {
    pod.mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn an_interface_that_comes_back_is_enforced_again() {
    let scene = Scene::new("travel");
    let [a, b, c] = &scene.pods;
    scene.policy("p", B_FROM_A);
    let agent = scene.start();
    let index = scene.index_of(&b.host_interface);
    scene.expect_tcp(a, b, 80, true, "before");
    let forbidden = watch(&c.netns, b, 80);
    let interface = &b.host_interface;
    for _ in 0..3 {
        // To another namespace and back, under its index.
        scene.node.netns.ip(&[format!("link set {interface} netns {}", c.netns.name())]).expect("it can be moved");
        assert!(eventually(PATIENCE, || !attached(&scene, index)), "the pins have gone: {}", agent.log_text());
        let back = format!("link set {interface} netns {}", scene.node.netns.name());
        c.netns.ip(&[back]).expect("it can be moved");
        assert_eq!(scene.index_of(interface), index);
        scene.node.netns.ip(&[format!("link set {interface} master cni0")]).expect("the bridge is there");
        assert!(eventually(PATIENCE, || attached(&scene, index)), "{}", agent.log_text());
        scene.node.netns.ip(&[format!("link set {interface} up")]).expect("it is there");
        scene.expect_tcp(a, b, 80, true, "it is back");
        scene.expect_tcp(a, b, 81, false, "it is back");
    }
    for _ in 0..3 {
        // Another one under its index, in one go.
        let [gone, made] = [
            format!("link del {interface}"),
            format!(
                "link add {interface} index {index} type veth peer name eth0 address {} netns {}",
                mac(b),
                b.netns.name()
            ),
        ];
        scene.node.netns.ip(&[gone, made, format!("link set {interface} master cni0")]).expect("links");
        let linked = || programs(&scene, "tcx", interface) == 2;
        assert!(eventually(PATIENCE, linked), "{}", agent.log_text());
        scene.join(b, interface);
        scene.expect_tcp(a, b, 80, true, "under the same index");
        scene.expect_tcp(a, b, 81, false, "under the same index");
    }
    expect_none(forbidden, "while it came and went");
}

/// How many of a pod's programs the hooks of the interface have.
pub fn programs(scene: &Scene, attach: &str, interface: &str) -> usize {
    const NAMES: [&str; 2] = ["from_pod", "to_pod"];
    if attach == "clsact" {
        let of = |direction| {
            let arguments = ["filter", "show", "dev", interface, direction];
            let said = scene.node.netns.command("tc").args(arguments).output().expect("tc runs");
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            NAMES.iter().map(|name| said.matches(&format!(" {name} direct-action")).count()).sum::<usize>()
        };
        return of("ingress") + of("egress");
    }
    scene.node.netns.run(|| {
        let places = [TcAttachType::Ingress, TcAttachType::Egress];
        let all = places.iter().filter_map(|place| SchedClassifier::query_tcx(interface, *place).ok());
        let names = all.flat_map(|found| found.1).filter_map(|program| program.name_as_str().map(str::to_owned));
        names.filter(|name| NAMES.contains(&name.as_str())).count()
    })
}

#[test]
fn a_bridge_that_is_made_again_changes_nothing() {
    let scene = Scene::new("rebuilt");
    let [a, b, c] = &scene.pods;
    scene.policy("p", B_FROM_A);
    let agent = scene.start();
    let forbidden = [watch(&c.netns, b, 80), watch(&a.netns, b, 81)];
    for _ in 0..2 {
        let mac = scene.node.netns.mac("cni0").expect("it has one");
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let number = scene.node.number;
        let made = [
            format!("link add cni0 address {mac} type bridge"),
            "link set cni0 up".to_owned(),
            format!("addr add 10.244.{number}.1/24 dev cni0"),
            format!("addr add fd00:244:{number}::1/64 dev cni0 nodad"),
        ];
        scene.node.netns.ip(&["link del cni0".to_owned()]).expect("it is there");
        scene.node.netns.ip(&made).expect("a bridge");
        for pod in &scene.pods {
            scene.node.netns.ip(&[format!("link set {} master cni0", pod.host_interface)]).expect("links");
        }
        scene.expect_tcp(a, b, 80, true, "made again");
        scene.expect_tcp(c, b, 80, false, "made again");
        scene.expect_tcp(a, c, 81, true, "made again");
    }
    forbidden.into_iter().for_each(|attempts| expect_none(attempts, "while the bridge was away"));
    drop(agent);
}
