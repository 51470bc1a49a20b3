//! The agent's life: what stays when it ends, what is gone after `uninstall`, and what it does with input that is wrong.

use std::collections::BTreeSet;

use aya::programs::{SchedClassifier, TcAttachType};
use palisade::kernel::{Maps, maps_folder};
use palisade_common::layout::{FlowKey, FlowValue, Judgement};
use palisade_tests::judges::Memory;
use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::{Connection, DEADLINE};
use palisade_tests::lab::{Agent, AgentOptions, Node, Pod, PodSpec, objects};
use serde_json::Value;

use crate::scene::{PATIENCE, Scene, eventually};

const ONLY_80: &str =
    "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}";

#[test]
fn enforcement_and_connections_outlive_the_agent() {
    for attach in ["tcx", "clsact"] {
        let scene = Scene::new("outlive");
        let [a, b, c] = &scene.pods;
        scene.policy("p", ONLY_80);
        let mut older: Vec<Connection> =
            b.addresses.iter().map(|address| Connection::open(&a.netns, *address, 80).expect("no agent yet")).collect();
        let start = || scene.start_with(&["--attach", attach]);
        let check = |when: &str, connections: &mut [Connection]| {
            scene.expect_tcp(a, b, 80, true, when);
            scene.expect_tcp(a, b, 81, false, when);
            scene.expect_tcp(a, c, 81, true, when);
            assert!(connections.iter_mut().all(|connection| connection.echoes(DEADLINE)), "{attach}, {when}");
        };
        let agent = start();
        check("connections older than the agent", &mut older);
        let opened = b.addresses.iter().map(|address| Connection::open(&a.netns, *address, 80).expect("it is allowed"));
        let mut all: Vec<Connection> = older.into_iter().chain(opened).collect();
        assert!(agent.stop().expect("it runs").success(), "SIGTERM is a clean end");
        check("after SIGTERM", &mut all);
        let agent = start();
        check("adopted", &mut all);
        agent.kill().expect("it runs");
        check("after SIGKILL", &mut all);
        // What changed while nobody looked holds once the next one is ready.
        scene.policy("p", "{podSelector: {matchLabels: {app: c}}, policyTypes: [Ingress]}");
        let agent = start();
        scene.expect_tcp(a, b, 81, true, "the new policy");
        scene.expect_tcp(a, c, 80, false, "the new policy");
        assert!(all.iter_mut().all(|connection| connection.echoes(DEADLINE)), "{attach}: still open");
        drop(agent);
    }
}

#[test]
fn uninstall_leaves_nothing() {
    for attach in ["tcx", "clsact"] {
        let scene = Scene::new("gone");
        let [a, b, _] = &scene.pods;
        scene.policy("p", ONLY_80);
        let before = on_interfaces(&scene);
        let agent = scene.start_with(&["--attach", attach]);
        scene.expect_tcp(a, b, 81, false, attach);
        assert_ne!(on_interfaces(&scene), before, "{attach}");
        assert!(scene.node.pin_dir.exists());
        // A device like others, until it is a port of the pods' bridge.
        let young = scene.node.start_pod(&scene.lab, PodSpec::new("web", "young", &[("app", "b")])).expect("a pod");
        scene.put(&objects::pod(&young, &scene.node));
        assert!(eventually(PATIENCE, || scene.endpoint(&young)["pod"] == "young"), "{}", scene.endpoints());
        let loaded = loaded(&scene.node);
        for kind in ["prog", "map", "link"] {
            // A clsact filter is none, but what is before the node's sockets is.
            assert!(loaded.iter().any(|(of, _)| *of == kind), "{attach}: {kind} in {loaded:?}");
        }
        agent.stop().expect("it runs");
        let said = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert!(!scene.node.pin_dir.exists(), "{attach}: pins are left");
        let (_, qdiscs) = on_interfaces(&scene);
        assert!(!qdiscs.contains("clsact"), "{attach}: {qdiscs}");
        scene.node.stop_pod(&young).expect("CNI DEL");
        assert_eq!(on_interfaces(&scene), before, "{attach}: what is on the interfaces");
        // The kernel frees them after a grace period.
        let left = || loaded.iter().filter(|found| is_loaded(&scene.node, **found)).collect::<Vec<_>>();
        assert!(eventually(PATIENCE, || left().is_empty()), "{attach}: {:?}", left());
        scene.expect_tcp(a, b, 81, true, "traffic flows again");
        let again = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
        assert!(again.status.success(), "a second time there is nothing to do");
        let status = palisade(&scene.node, &["status"]).expect("palisade runs");
        let said = String::from_utf8_lossy(&status.stderr);
        assert!(status.status.code() == Some(1) && said.contains("nothing is enforced on this node"), "{said}");
    }
}

/// What is remembered for it may be taken for the next pod's that has it: with `--existing-flows keep`, whatever policy says by then.
#[test]
fn a_generation_that_something_is_remembered_for_is_not_given_again() {
    const LAST: u32 = 1000;
    let scene = Scene::new("reborn");
    scene.start().stop().expect("it runs");
    let judged = [[Judgement { epoch: 1, generation: LAST }; 2]; 2];
    let value = FlowValue { judged, seen: palisade::pause::now(), ..FlowValue::default() };
    let key = FlowKey { low_port: 7, high_port: 8, protocol: 6, family: 4, ..FlowKey::default() };
    Memory::open(&scene.node.pin_dir).and_then(|mut memory| memory.put_flow(key, value)).expect("its maps are pinned");
    let agent = scene.start();
    let late = scene.node.start_pod(&scene.lab, PodSpec::new("web", "late", &[("app", "late")])).expect("a pod");
    scene.put(&objects::pod(&late, &scene.node));
    let index = scene.index_of(&late.host_interface);
    let record = || {
        let found = Maps::open_pinned(&scene.node.pin_dir).and_then(|maps| maps.found()).expect("they can be read");
        let number = found.tables.endpoints.get(&index)?.at(found.epoch);
        found.records.get(&number).copied()
    };
    assert!(eventually(PATIENCE, || record().is_some()), "{}", agent.log_text());
    let generation = record().expect("it has one").generation;
    assert!(generation > LAST, "{generation}");
}

#[test]
fn agents_of_two_nodes_do_not_disturb_each_other() {
    let scene = Scene::new("two");
    let other = Scene::new("another");
    scene.policy("p", ONLY_80);
    other.policy("p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 81}]}]}");
    let [a, b, _] = &scene.pods;
    let [other_a, other_b, _] = &other.pods;
    let first = scene.start();
    let second = other.start();
    let check = |when: &str| {
        scene.expect_tcp(a, b, 80, true, when);
        scene.expect_tcp(a, b, 81, false, when);
        other.expect_tcp(other_a, other_b, 81, true, when);
        other.expect_tcp(other_a, other_b, 80, false, when);
    };
    check("both run");
    let mut refused = Agent::spawn(&scene.lab, &scene.node, &scene.options()).expect("it is started");
    // Not by /readyz, which the first one would answer.
    assert_eq!(refused.wait_end(PATIENCE).expect("the pins are in use").code(), Some(1));
    let said = refused.log_text();
    assert!(said.contains("is in use by another palisade agent"), "{said}");
    check("after a third was refused");
    second.stop().expect("it runs");
    assert!(palisade(&other.node, &["uninstall"]).expect("palisade runs").status.success());
    scene.expect_tcp(a, b, 81, false, "the other node's agent was uninstalled");
    other.expect_tcp(other_a, other_b, 80, true, "uninstalled");
    drop(first);
}

#[test]
fn what_does_not_parse_is_named_and_the_rest_goes_on() {
    let scene = Scene::new("broken");
    let [a, b, c] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene
        .manifests
        .put_text("broken.yaml", "kind: NetworkPolicy\n\t- what is this")
        .expect("the folder can be written to");
    // This one can be read, but not as it was meant: c is isolated and the rule admits nobody.
    scene.policy("odd", "{podSelector: {matchLabels: {app: c}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}");
    let agent = scene.start();
    scene.expect_tcp(a, b, 80, true, "the good policy");
    scene.expect_tcp(a, b, 81, false, "the good policy");
    scene.expect_tcp(a, c, 80, false, "the odd policy is closed");
    let named = |what: &str| agent.log_text().contains(what);
    assert!(eventually(PATIENCE, || named("broken.yaml")), "{}", agent.log_text());
    assert!(eventually(PATIENCE, || named("10.0.0.0/99")), "{}", agent.log_text());
    let faults = || scene.endpoints()["faults"].to_string();
    assert!(eventually(PATIENCE, || faults().contains("web/odd")), "{}", faults());
    scene.policy("odd", "{podSelector: {matchLabels: {app: c}}, ingress: [{}]}");
    scene.expect_tcp(a, c, 80, true, "corrected");
    assert!(eventually(PATIENCE, || !faults().contains("web/odd")), "{}", faults());
}

#[test]
fn a_pod_whose_object_is_missing_is_closed_and_named() {
    let scene = Scene::new("missing");
    let [a, b, c] = &scene.pods;
    let object = objects::pod(b, &scene.node);
    scene.manifests.remove(&object).expect("it was written");
    let agent = scene.start();
    scene.expect_tcp(a, c, 80, true, "known pods");
    scene.expect_tcp(a, b, 80, false, "nobody knows b");
    scene.expect_tcp(b, a, 80, false, "nobody knows b");
    for address in &b.addresses {
        let mut connection = Connection::open(&scene.node.netns, *address, 80).expect("its node reaches it");
        assert!(connection.echoes(DEADLINE));
    }
    let row = || scene.endpoint(b);
    assert!(eventually(PATIENCE, || row()["state"] == "closed"), "{}", row());
    assert!(row()["closed"].as_str().is_some_and(|why| why.contains("web/b")), "it is named: {}", row());
    scene.put(&object);
    scene.expect_tcp(a, b, 80, true, "its object has come");
    assert!(eventually(PATIENCE, || row()["closed"] == Value::Null && row()["pod"] == "b"), "{}", row());
    drop(agent);
}

#[test]
fn a_source_that_is_not_there_keeps_what_is_in_force() {
    let scene = Scene::new("source");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let nowhere = AgentOptions::manifests(&scene.node.folder.join("nowhere"));
    let mut agent = Agent::spawn(&scene.lab, &scene.node, &nowhere).expect("it is started");
    assert_eq!(agent.wait_end(PATIENCE).expect("it has nothing to read").code(), Some(1));
    let log = agent.log_text();
    assert!(log.contains("nowhere"), "what cannot be read is named: {log}");
    scene.expect_tcp(a, b, 80, true, "no source");
    scene.expect_tcp(a, b, 81, false, "no source");
}

/// Programs, maps and links of the node's agent, by its pins and by what is on the interfaces: kind and id.
fn loaded(node: &Node) -> BTreeSet<(&'static str, u64)> {
    let mut found = BTreeSet::new();
    for (kind, folder) in [("map", "maps"), ("link", "links"), ("link", "exits")] {
        let pins = std::fs::read_dir(maps_folder(&node.pin_dir).with_file_name(folder)).into_iter().flatten().flatten();
        for pin in pins.map(|entry| entry.path().display().to_string()) {
            let object = bpftool(node, &[kind, "show", "pinned", &pin]);
            found.extend(object["id"].as_u64().map(|id| (kind, id)));
            found.extend(object["prog_id"].as_u64().map(|id| ("prog", id)));
        }
    }
    let net = bpftool(node, &["net"]);
    let filters = net[0]["tc"].as_array().cloned().unwrap_or_default();
    found.extend(filters.iter().filter_map(|filter| Some(("prog", filter["id"].as_u64()?))));
    found
}

/// Ids of the programs of TCX on the pods' interfaces, and the qdiscs of all.
fn on_interfaces(scene: &Scene) -> (Vec<u32>, String) {
    let programs = scene.node.netns.run(|| {
        let places = [TcAttachType::Ingress, TcAttachType::Egress];
        let of = |place, pod: &Pod| SchedClassifier::query_tcx(&pod.host_interface, place).expect("the kernel tells").1;
        let found = scene.pods.iter().flat_map(|pod| places.map(|place| of(place, pod)));
        found.flatten().map(|program| program.id()).collect()
    });
    let qdiscs = scene.node.netns.command("tc").args(["qdisc", "show"]).output().expect("tc runs");
    (programs, String::from_utf8_lossy(&qdiscs.stdout).into_owned())
}

fn bpftool(node: &Node, arguments: &[&str]) -> Value {
    let said = node.netns.command("bpftool").arg("-j").args(arguments).output().expect("bpftool runs");
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

fn is_loaded(node: &Node, (kind, id): (&str, u64)) -> bool {
    let arguments = [kind, "show", "id", &id.to_string()];
    node.netns.command("bpftool").args(arguments).output().expect("bpftool runs").status.success()
}
