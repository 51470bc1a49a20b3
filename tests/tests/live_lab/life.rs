//! The agent's life: what stays when it ends, what is gone after `uninstall`, and what it does with input that is wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::{Connection, DEADLINE};
use palisade_tests::lab::{Agent, AgentOptions, Node, objects};
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
        let before = attached(&scene.node);
        let agent = scene.start_with(&["--attach", attach]);
        scene.expect_tcp(a, b, 81, false, attach);
        let during = attached(&scene.node);
        let ours = during.iter().filter(|line| line.contains("from_pod") || line.contains("to_pod")).count();
        assert_eq!(ours, 2 * scene.pods.len(), "{attach}: {during:?}");
        assert!(scene.node.pin_dir.exists());
        let loaded = loaded(&scene.node);
        for kind in ["prog", "map", "link"] {
            let some = loaded.iter().any(|(of, _)| *of == kind);
            assert!(some || (kind, attach) == ("link", "clsact"), "{attach}: no {kind} in {loaded:?}");
        }
        agent.stop().expect("it runs");
        let said = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(attached(&scene.node), before, "{attach}");
        assert!(!scene.node.pin_dir.exists(), "{attach}: pins are left");
        // The kernel frees them after a grace period.
        let left = || loaded.iter().filter(|(kind, id)| is_loaded(&scene.node, kind, id)).collect::<Vec<_>>();
        assert!(eventually(PATIENCE, || left().is_empty()), "{attach}: {:?}", left());
        scene.expect_tcp(a, b, 81, true, "traffic flows again");
        let again = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
        assert!(again.status.success(), "a second time there is nothing to do");
    }
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
    let error = refused.wait_ready(PATIENCE).expect_err("the pins are in use");
    let said = format!("{error:#}");
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
    let waited = agent.wait_ready(Duration::from_secs(2));
    assert!(waited.is_err(), "it cannot be ready");
    let log = agent.log_text();
    assert!(log.contains("nowhere"), "what cannot be read is named: {log}");
    scene.expect_tcp(a, b, 80, true, "no source");
    scene.expect_tcp(a, b, 81, false, "no source");
}

/// Programs on the interfaces of the node, without numbers that differ each time.
fn attached(node: &Node) -> BTreeSet<String> {
    let programs = bpftool(node, &["net"])[0]["tc"].as_array().cloned().unwrap_or_default();
    programs.iter().map(|program| format!("{} {} {}", program["devname"], program["kind"], program["name"])).collect()
}

/// Programs on the interfaces of the node, and the maps and links that belong to them: kind and id.
fn loaded(node: &Node) -> BTreeSet<(&'static str, String)> {
    let net = bpftool(node, &["net"]);
    let programs = net[0]["tc"].as_array().cloned().unwrap_or_default();
    let ids: BTreeSet<u64> =
        programs.iter().filter_map(|program| program["prog_id"].as_u64().or(program["id"].as_u64())).collect();
    let mut found = BTreeSet::new();
    for id in &ids {
        found.insert(("prog", id.to_string()));
        let program = bpftool(node, &["prog", "show", "id", &id.to_string()]);
        let maps = program["map_ids"].as_array().cloned().unwrap_or_default();
        found.extend(maps.iter().map(|map| ("map", map.to_string())));
    }
    let links = bpftool(node, &["link"]).as_array().cloned().unwrap_or_default();
    let ours = links.iter().filter(|link| link["prog_id"].as_u64().is_some_and(|id| ids.contains(&id)));
    found.extend(ours.map(|link| ("link", link["id"].to_string())));
    found
}

fn bpftool(node: &Node, arguments: &[&str]) -> Value {
    let said = node.netns.command("bpftool").arg("-j").args(arguments).output().expect("bpftool runs");
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

fn is_loaded(node: &Node, kind: &str, id: &str) -> bool {
    node.netns.command("bpftool").args([kind, "show", "id", id]).output().expect("bpftool runs").status.success()
}
