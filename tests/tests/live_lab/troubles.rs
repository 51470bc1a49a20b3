//! What cannot be written or attached is never called enforced: the agent says so, tries again, and what was in force stays.

use std::net::IpAddr;

use palisade::kernel::maps_folder;
use palisade_tests::lab::agent::{Source, palisade};
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Manifests, Netns, Pod, PodSpec, Transport};

use crate::counter::Counter;
use crate::neighbours::attach_tcx;
use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

/// How long programs that somebody took off may be missing, and as long again.
const VERIFIED: std::time::Duration = std::time::Duration::from_secs(20);

pub const DENY_B: &str = "{podSelector: {matchLabels: {app: b}}}";

/// Rows of the tables: one for each of these peers.
fn from_each(ports: std::ops::Range<u16>) -> String {
    let rule = |port| {
        let last = port % 100;
        format!("{{from: [{{ipBlock: {{cidr: 192.0.2.{last}/32}}}}], ports: [{{port: {port}}}]}}")
    };
    let rules: Vec<String> = ports.map(rule).collect();
    format!("{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{}]}}", rules.join(", "))
}

pub fn readiness(agent: &Agent) -> (u16, String) {
    agent.http("/readyz").expect("the agent answers")
}

/// A value of /metrics.
pub fn metric(agent: &Agent, name: &str) -> Option<f64> {
    let (_, page) = agent.http("/metrics").expect("the agent answers");
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

pub fn bpftool(scene: &Scene, arguments: &[&str]) {
    let said = scene.node.netns.command("bpftool").args(arguments).output().expect("bpftool runs");
    assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
}

pub fn pin(scene: &Scene, folder: &str, name: &str) -> String {
    maps_folder(&scene.node.pin_dir).with_file_name(folder).join(name).display().to_string()
}

pub fn ifindex(scene: &Scene, pod: &Pod) -> u64 {
    scene.endpoint(pod)["ifindex"].as_u64().expect("it is an endpoint")
}

#[test]
fn a_full_map_takes_the_next_change() {
    let scene = Scene::new("full");
    let [a, b, _] = &scene.pods;
    let agent = scene.start_with(&["--rules-max", "6"]);
    scene.policy_in_force(&agent, "p", &from_each(101..107));
    assert!(eventually(PATIENCE, || metric(&agent, "palisade_map_entries{map=\"RULES\"}") == Some(6.0)));
    scene.expect_tcp(a, b, 80, false, "six rows");
    // Six other rows, and nothing of the six before.
    scene.policy_in_force(&agent, "p", &from_each(111..117));
    scene.policy_in_force(&agent, "q", "{podSelector: {matchLabels: {app: a}}}");
    scene.expect_tcp(b, a, 80, false, "a later policy");
    assert!(!agent.log_text().contains("cannot write"), "{}", agent.log_text());
    // A seventh does not fit: b is closed and named, the others go on.
    scene.policy_in_force(&agent, "p", &from_each(111..118));
    assert!(eventually(PATIENCE, || scene.endpoint(b)["state"] == "closed"), "{}", scene.endpoints());
    assert_eq!(readiness(&agent).0, 200, "{}", agent.log_text());
}

#[test]
fn a_raised_limit_over_pinned_maps_is_no_limit_and_said_so() {
    let scene = Scene::new("raised");
    let [a, b, c] = &scene.pods;
    scene.start_with(&["--rules-max", "3"]).stop().expect("it runs");
    let agent = scene.start();
    let warned = "RULES holds 6 entries, not 1048576";
    assert!(agent.log_text().contains(warned), "{}", agent.log_text());
    assert_eq!(metric(&agent, "palisade_map_entries_max{map=\"RULES\"}"), Some(3.0));
    scene.policy_in_force(&agent, "p", &from_each(101..108));
    scene.policy_in_force(&agent, "q", "{podSelector: {matchLabels: {app: c}}}");
    scene.expect_tcp(a, c, 80, false, "what fits is enforced");
    assert!(eventually(PATIENCE, || scene.endpoint(b)["state"] == "closed"), "{}", scene.endpoints());
    assert!(scene.endpoints()["faults"].to_string().contains("no room"), "{}", scene.endpoints());
    agent.stop().expect("it runs");
    assert!(palisade(&scene.node, &["uninstall"]).expect("palisade runs").status.success());
    let agent = scene.start();
    assert!(eventually(PATIENCE, || scene.endpoint(b)["state"] == "enforced"), "{}", scene.endpoints());
    drop(agent);
}

#[test]
fn a_change_that_cannot_be_written_is_not_called_enforced() {
    let scene = Scene::new("stuck");
    let [a, b, _] = &scene.pods;
    let before = scene.policy("before", &from_each(101..104));
    let agent = scene.start();
    scene.expect_tcp(a, b, 80, false, "isolated");
    // From now on the kernel takes no row from anybody.
    bpftool(&scene, &["map", "freeze", "pinned", &pin(&scene, "maps", "RULES")]);
    scene.policy("after", &from_each(111..114));
    scene.manifests.remove(&before).expect("it was written");
    let not_ready = || readiness(&agent) != (200, "ok\n".to_owned());
    assert!(eventually(PATIENCE, not_ready), "{}", agent.log_text());
    let (status, reason) = readiness(&agent);
    assert!(status == 503 && reason.contains("cannot be written"), "{reason}");
    let shown = || scene.endpoint(b)["ingress_policies"].clone();
    let faults = || scene.endpoints()["faults"].to_string();
    assert!(eventually(PATIENCE, || faults().contains("cannot be written")), "{}", faults());
    assert_eq!(shown(), serde_json::json!(["web/before"]), "what the kernel enforces: {}", scene.endpoints());
    assert_eq!(metric(&agent, "palisade_faults{kind=\"Node\"}"), Some(1.0));
    for counter in ["palisade_failed_writes_total", "palisade_apply_failures_total"] {
        assert!(metric(&agent, counter) > Some(0.0), "{counter}: {:?}", metric(&agent, counter));
    }
    scene.expect_tcp(a, b, 80, false, "what was in force stays");
}

#[test]
fn programs_that_somebody_takes_off_are_put_back() {
    for attach in ["tcx", "clsact"] {
        let scene = Scene::new("taken");
        let [a, b, c] = &scene.pods;
        scene.policy("p", DENY_B);
        scene.policy("q", "{podSelector: {matchLabels: {app: c}}, policyTypes: [Egress]}");
        let agent = scene.start_with(&["--attach", attach]);
        scene.expect_tcp(a, b, 80, false, attach);
        scene.expect_tcp(c, a, 80, false, attach);
        if attach == "tcx" {
            let link = pin(&scene, "links", &format!("{}-to_pod", ifindex(&scene, b)));
            bpftool(&scene, &["link", "detach", "pinned", &link]);
            let link = pin(&scene, "links", &format!("{}-from_pod", ifindex(&scene, c)));
            std::fs::remove_file(link).expect("it is pinned");
        } else {
            for (pod, direction) in [(b, "egress"), (c, "ingress")] {
                let filter = ["filter", "del", "dev", &pod.host_interface, direction];
                let said = scene.node.netns.command("tc").args(filter).output().expect("tc runs");
                assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            }
        }
        let both = || agent.log_text().matches("took a program off").count() == 2;
        assert!(eventually(VERIFIED, both), "{attach}: {}", agent.log_text());
        scene.expect_tcp(a, b, 80, false, "put back");
        scene.expect_tcp(c, a, 80, false, "put back");
        assert_eq!(readiness(&agent).0, 200);
    }
}

#[test]
fn a_program_that_cannot_be_attached_is_told_of_and_tried_again() {
    let scene = Scene::new("crowded");
    let [a, b, c] = &scene.pods;
    scene.policy("p", "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress]}");
    // As many as the hook takes (BPF_MPROG_MAX), so that there is no room for ours at what is sent to b.
    let crowd: Vec<_> = std::iter::from_fn(|| {
        let counter = Counter::load().expect("the kernel takes it");
        let link = attach_tcx(&scene, &counter, &b.host_interface, true, false).ok()?;
        Some((counter, link))
    })
    .collect();
    let agent = Agent::spawn(&scene.lab, &scene.node, &scene.options().argument("--attach").argument("tcx"));
    let agent = agent.expect("it is started");
    let state = || scene.endpoint(b)["state"].clone();
    assert!(
        eventually(PATIENCE, || state() == "not attached" && agent.log_text().contains("enforcing")),
        "{}",
        state()
    );
    let (status, reason) = readiness(&agent);
    assert!(status == 503 && reason.contains("to_pod"), "{reason}");
    assert_eq!(metric(&agent, "palisade_endpoints{state=\"not-attached\"}"), Some(1.0));
    assert!(scene.endpoints()["faults"].to_string().contains(&b.host_interface), "{}", scene.endpoints());
    scene.expect_tcp(b, a, 80, false, "the other half is there");
    scene.expect_tcp(a, c, 80, true, "the others");
    drop(crowd);
    assert!(eventually(PATIENCE, || readiness(&agent).0 == 200), "{}", agent.log_text());
    scene.expect_tcp(a, b, 80, false, "there is room by now");
    assert!(eventually(PATIENCE, || state() == "enforced"), "{}", state());
}

#[test]
fn uninstall_refuses_while_an_agent_runs_and_touches_only_its_own() {
    let scene = Scene::new("running");
    let [a, b, _] = &scene.pods;
    scene.policy("p", DENY_B);
    let agent = scene.start();
    let said = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.code() == Some(1) && text.contains("stop it first"), "{text}");
    scene.expect_tcp(a, b, 80, false, "nothing was removed");
    assert_eq!(scene.endpoints()["agent"], "running");
    agent.stop().expect("it runs");
    assert_eq!(scene.endpoints()["agent"], "not running");
    let said = palisade(&scene.node, &["endpoints"]).expect("palisade runs");
    assert!(String::from_utf8_lossy(&said.stderr).contains("no agent runs"), "{said:?}");
    // What an administrator keeps beside it stays.
    let other = scene.node.pin_dir.join("vital/maps");
    std::fs::create_dir_all(&other).expect("a bpffs takes folders");
    assert!(palisade(&scene.node, &["uninstall"]).expect("palisade runs").status.success());
    scene.expect_tcp(a, b, 80, true, "uninstalled");
    assert!(other.exists() && !maps_folder(&scene.node.pin_dir).exists());
    let elsewhere = scene.node.folder.join("v1/maps");
    std::fs::create_dir_all(&elsewhere).expect("a folder");
    std::fs::write(elsewhere.join("mine"), "").expect("a file");
    let mut command = scene.node.netns.command(palisade_tests::lab::programs::agent().expect("it is built"));
    let said = command.args(["uninstall", "--pin-dir"]).arg(&scene.node.folder).output().expect("palisade runs");
    assert!(!said.status.success() && elsewhere.join("mine").exists(), "{said:?}");
}

#[test]
fn before_the_first_list_endpoints_are_named() {
    let scene = Scene::new("waiting");
    let [_, b, _] = &scene.pods;
    let options = AgentOptions::new(Source::silent(&scene.node.folder).expect("a file"));
    let agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("it is started");
    assert!(eventually(PATIENCE, || scene.endpoint(b)["state"] == "not attached"), "{}", scene.endpoints());
    assert!(scene.endpoint(b)["not_attached"].to_string().contains("first complete list"), "{}", scene.endpoints());
    let late = scene.node.start_pods(&scene.lab, &[PodSpec::new("web", "late", &[])]).expect("a pod");
    let row = || scene.endpoint(&late[0]);
    assert!(eventually(PATIENCE, || row()["state"] == "closed" && row()["pod"] == "late"), "{}", row());
    let said = palisade(&scene.node, &["endpoints"]).expect("palisade runs");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("web/late")).expect("it is listed");
    assert!(line.contains("closed") && !line.contains("open") && line.contains("complete list"), "{line}");
    // Its node reaches it, as a kubelet's probe does, and nobody else; it reaches nobody.
    let _server = Server::start(scene.lab.guard(), &late[0].netns, "late", &[80], &[]).expect("a server");
    let reaches = |from: &Netns, to: &IpAddr| Probe::new(from, Transport::Tcp, *to, 80).ask_within(AT_ONCE).reached();
    for (own, other) in late[0].addresses.iter().zip(&b.addresses) {
        assert!(eventually(PATIENCE, || reaches(&scene.node.netns, own)), "{own} from its node: {}", row());
        assert!(!reaches(&b.netns, own), "{own} from another pod");
        assert!(!reaches(&late[0].netns, other), "another pod at {other}");
    }
    // The next one is as much the node's first agent: what is older than it stays as it is.
    agent.kill().expect("it runs");
    let agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("it is started");
    let begun = || agent.log_text().matches("started;").count() == 2;
    assert!(eventually(PATIENCE, || begun() && scene.endpoint(b)["state"] == "not attached"), "{}", scene.endpoints());
    scene.expect_tcp(&scene.pods[0], b, 80, true, "older than the node's first agent");
    drop(agent);
}

#[test]
fn a_missing_source_is_found_before_anything_is_loaded() {
    let scene = Scene::new("checked");
    let nowhere = scene.node.folder.join("nowhere");
    let kubeconfig = Source::Kubeconfig(nowhere.clone());
    for options in [AgentOptions::manifests(&nowhere), AgentOptions::new(kubeconfig)] {
        let mut agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("it is started");
        assert_eq!(agent.wait_end(PATIENCE).expect("it has nothing to read").code(), Some(1));
        assert!(agent.log_text().contains("nowhere"), "{}", agent.log_text());
        assert!(!scene.node.pin_dir.exists(), "nothing was loaded");
    }
}

#[test]
fn a_node_name_that_nobody_has_is_warned_of() {
    let scene = Scene::new("named");
    let good = scene.start();
    assert!(!good.log_text().contains("no Node is named"), "{}", good.log_text());
    good.stop().expect("it runs");
    let empty = Manifests::new(&scene.node.folder.join("empty")).expect("a folder");
    let agent = Agent::start(&scene.lab, &scene.node, &AgentOptions::manifests(&empty.folder)).expect("an agent");
    let warned = || agent.log_text().contains("is --node-name right?");
    assert!(eventually(PATIENCE, warned), "{}", agent.log_text());
    let faults = || scene.endpoints()["faults"].to_string();
    assert!(eventually(PATIENCE, || faults().contains("is --node-name right?")), "{}", faults());
}
