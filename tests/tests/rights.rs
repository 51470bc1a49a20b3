//! What the agent may do on its node: with exactly these capabilities it enforces, and without any one of them it says which it lacks.
#![cfg(feature = "live")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::versions::{Scene, Version};
use palisade_tests::lab::{Agent, AgentOptions, Lab, Manifests, Node, PodSpec, Transport, objects, programs};

/// As deploy/ gives them.
const CAPABILITIES: [&str; 4] = ["bpf", "net_admin", "perfmon", "net_broadcast"];

/// Starts the agent as root with these capabilities alone, as a container runtime does: neither bounding set nor any other has more.
fn confined(agent: &Path, node: &Node, capabilities: &[&str]) -> PathBuf {
    let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let script = format!(
        "#!/bin/sh\nexec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{set} {} \"$@\"\n",
        agent.display()
    );
    let name = agent.file_name().expect("it is a file").to_string_lossy();
    let path = node.folder.join(format!("{name}-{}", capabilities.join("-")));
    fs::write(&path, script).expect("the folder can be written to");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

#[test]
fn each_capability_is_needed_and_no_more() {
    let lab = Lab::new("rights").expect("a lab");
    let node = lab.node("one", 1).expect("a node");
    let specs = [PodSpec::new("web", "a", &[]), PodSpec::new("web", "b", &[("app", "b")])];
    let pods = node.start_pods(&lab, &specs).expect("pods");
    let [a, b] = &pods[..] else { panic!("two pods") };
    let _server = Server::start(lab.guard(), &b.netns, "b", &[80, 81], &[]).expect("a server");
    let manifests = Manifests::new(&node.folder.join("manifests")).expect("a folder");
    let policy =
        objects::policy("web", "p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}");
    let objects = [
        objects::node(&node),
        objects::namespace("web", &[]),
        objects::pod(a, &node),
        objects::pod(b, &node),
        policy.expect("a policy"),
    ];
    for object in &objects {
        manifests.put(object).expect("the folder can be written to");
    }
    let mut options = AgentOptions::manifests(&manifests.folder);
    let program = programs::agent().expect("the agent is built");
    for lacking in CAPABILITIES {
        let others: Vec<&str> = CAPABILITIES.into_iter().filter(|capability| *capability != lacking).collect();
        options.program = Some(confined(&program, &node, &others));
        let agent = Agent::spawn(&lab, &node, &options).expect("an agent");
        let name = format!("CAP_{}", lacking.to_uppercase());
        let end = Instant::now() + Duration::from_secs(20);
        while !agent.log_text().contains(&name) {
            assert!(Instant::now() < end, "nothing is said of {name}:\n{}", agent.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(agent);
        fs::remove_file(node.folder.join("agent.log")).expect("it is there");
        assert!(!node.pin_dir.exists(), "something was made before it was seen that {name} is lacking");
    }
    options.program = Some(confined(&program, &node, &CAPABILITIES));
    let agent = Agent::start(&lab, &node, &options).expect("an agent with these capabilities");
    for address in &b.addresses {
        let reached = |port| {
            Probe::new(&a.netns, Transport::Tcp, *address, port).ask_within(Duration::from_millis(600)).reached()
        };
        assert_eq!((reached(80), reached(81)), (true, false), "{address}");
    }
    let complaints: Vec<String> = agent
        .log_text()
        .lines()
        .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
        .map(str::to_owned)
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// The kernel tells of the types of maps to who has CAP_SYS_ADMIN; agents tell each other.
#[test]
fn agents_of_two_layouts_need_no_more_to_take_over_connections() {
    let scene = Scene::new("rights-versions", 2).expect("a scene");
    let start = |version: Version| -> Agent {
        let mut options = scene.options(version).expect("built");
        let program = options.program.clone().map_or_else(programs::agent, Ok).expect("the agent is built");
        options.program = Some(confined(&program, &scene.node, &CAPABILITIES));
        Agent::start(&scene.lab, &scene.node, &options).expect("an agent")
    };
    let mut agent = start(Version::Ours);
    let traffic = scene.traffic(10).expect("traffic");
    for version in [Version::Other, Version::Ours] {
        assert!(agent.stop().expect("it runs").success());
        agent = start(version);
        assert_eq!(scene.pinned().expect("a folder"), [version], "{}", agent.log_text());
    }
    let tally = traffic.stop();
    assert!(tally.is_right() && tally.is_telling(), "{tally:#?}\n{}", agent.log_text());
    let taken = agent.log_text().lines().filter(|line| line.contains("flows of another version taken over")).count();
    assert_eq!(taken, 4, "{}", agent.log_text());
}
