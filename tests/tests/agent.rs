//! What the agent promises about its own life: when it is ready, and what stays when it goes.
#![cfg(feature = "live")]

use std::net::SocketAddr;
use std::time::Duration;

use palisade_tests::lab::probe::{Datagrams, Probe};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Lab, Manifests, Outcome, PodSpec, Transport, objects};

/// Short, as a retransmitted SYN (after a second) would hide that the first one was dropped.
const AT_ONCE: Duration = Duration::from_millis(600);

#[test]
fn ready_means_enforced_and_the_end_changes_nothing() {
    let lab = Lab::new("ready").expect("a lab");
    let node = lab.node("one", 1).expect("a node");
    let specs = [PodSpec::new("default", "a", &[("app", "a")]), PodSpec::new("default", "b", &[("app", "b")])];
    let pods = node.start_pods(&lab, &specs).expect("pods");
    let [a, b] = &pods[..] else { panic!("two pods") };
    let server = Server::start(lab.guard(), &b.netns, "b", &[80, 81], &[]).expect("a server");
    let manifests = Manifests::new(&node.folder.join("manifests")).expect("a folder");
    let policy = objects::policy(
        "default",
        "only-80",
        "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}",
    );
    let objects = [
        objects::node(&node),
        objects::namespace("default", &[]),
        objects::pod(a, &node),
        objects::pod(b, &node),
        policy.expect("a policy"),
    ];
    for object in &objects {
        manifests.put(object).expect("the folder can be written to");
    }
    let options = AgentOptions::manifests(&manifests.folder);
    let check = |when: &str| {
        for address in &b.addresses {
            let open = Probe::new(&a.netns, Transport::Tcp, *address, 80).ask_within(AT_ONCE);
            assert_eq!(open, Outcome::Reached("b".into()), "{address} {when}");
            let closed = Probe::new(&a.netns, Transport::Tcp, *address, 81).ask_within(AT_ONCE);
            assert_eq!(closed, Outcome::TimedOut, "{address} {when}");
        }
    };
    let agent = Agent::start(&lab, &node, &options).expect("an agent");
    check("once ready");
    assert!(agent.stop().expect("it runs").success(), "SIGTERM is a clean end");
    check("after SIGTERM");
    let agent = Agent::start(&lab, &node, &options).expect("a second agent");
    check("with the second agent");
    agent.kill().expect("it runs");
    check("after SIGKILL");
    drop(server);
}

/// The answers to a flow that was cut are not the beginning of a new flow the other way round, though they cross the change and their
/// sender may open flows.
#[test]
fn flow_that_is_cut_is_not_opened_anew_by_its_answers() {
    let lab = Lab::new("cut").expect("a lab");
    let node = lab.node("one", 1).expect("a node");
    let specs = [PodSpec::new("default", "a", &[("app", "a")]), PodSpec::new("default", "b", &[("app", "b")])];
    let pods = node.start_pods(&lab, &specs).expect("pods");
    let [a, b] = &pods[..] else { panic!("two pods") };
    let _server = Server::start(lab.guard(), &b.netns, "b", &[], &[53]).expect("a server");
    let manifests = Manifests::new(&node.folder.join("manifests")).expect("a folder");
    let objects =
        [objects::node(&node), objects::namespace("default", &[]), objects::pod(a, &node), objects::pod(b, &node)];
    for object in &objects {
        manifests.put(object).expect("the folder can be written to");
    }
    let _agent = Agent::start(&lab, &node, &AgentOptions::manifests(&manifests.folder)).expect("an agent");
    // Both ends are on this node, and which of them is isolated differs.
    let ways: [&[&str]; 3] = [
        &[
            "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}",
            "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {}}]}]}",
        ],
        &["{podSelector: {matchLabels: {app: b}}}"],
        &["{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}"],
    ];
    for (round, specs) in (0..5).flat_map(|round| ways.iter().map(move |way| (round, way))) {
        for address in &b.addresses {
            let stream = Datagrams::start(&a.netns, SocketAddr::new(*address, 53)).expect("no policy yet");
            let policies: Vec<_> = specs
                .iter()
                .zip(["one", "two"])
                .map(|(spec, name)| objects::policy("default", name, spec).expect("a policy"))
                .collect();
            for policy in &policies {
                manifests.put(policy).expect("the folder can be written to");
            }
            let last = stream.last_answered(Duration::from_millis(200), Duration::from_secs(2));
            assert!(last.is_ok(), "{address}, round {round}, {specs:?}: {last:?}");
            for policy in &policies {
                manifests.remove(policy).expect("it is there");
            }
        }
    }
}
