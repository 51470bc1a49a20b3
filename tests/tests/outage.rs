//! Without an API server: what is known stays in force and is told to be stale, and a node that boots enforces what was last known.
#![cfg(feature = "live")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use palisade::last_known;
use palisade::observe::state_dir;
use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, ControlPlane, Lab, Node, Pod, PodSpec, Source, Transport, objects};

const DEADLINE: Duration = Duration::from_secs(30);
/// Short, as a retransmitted SYN (after a second) would hide that the first one was dropped.
const AT_ONCE: Duration = Duration::from_millis(600);

struct Scene {
    lab: Lab,
    node: Node,
    plane: ControlPlane,
    a: Pod,
    b: Pod,
    options: AgentOptions,
    state_dir: PathBuf,
    _server: Server,
}

impl Scene {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name).expect("a lab");
        let node = lab.node("one", 1).expect("a node");
        let plane = ControlPlane::start(&lab).expect("a control plane");
        plane.put_all(&[objects::node(&node), objects::namespace("web", &[])]).expect("objects are taken");
        let a = plane.start_pod(&lab, &node, PodSpec::new("web", "a", &[("app", "a")])).expect("a pod");
        let b = plane.start_pod(&lab, &node, PodSpec::new("web", "b", &[("app", "b")])).expect("a pod");
        let server = Server::start(lab.guard(), &b.netns, "b", &[80, 81], &[]).expect("a server");
        let state_dir = node.folder.join("state");
        let state = state_dir.display().to_string();
        let options = AgentOptions::new(Source::Kubeconfig(plane.kubeconfig.clone()));
        let options = options.argument("--state-dir").argument(&state);
        Self { lab, node, plane, a, b, options, state_dir, _server: server }
    }

    fn admit(&self, port: u16) {
        let spec = format!("{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{ports: [{{port: {port}}}]}}]}}");
        self.plane.put(&objects::policy("web", "one-port", &spec).expect("a policy")).expect("it is taken");
    }

    /// Whether a reaches b at each of the two ports; `None`: in one family alone, as when a change falls between two probes.
    fn reached(&self) -> [Option<bool>; 2] {
        let ask = |port: u16| {
            let outcomes =
                self.b.addresses.iter().map(|address| {
                    Probe::new(&self.a.netns, Transport::Tcp, *address, port).ask_within(AT_ONCE).reached()
                });
            let outcomes: Vec<bool> = outcomes.collect();
            outcomes.iter().all(|reached| *reached == outcomes[0]).then_some(outcomes[0])
        };
        [ask(80), ask(81)]
    }

    fn file(&self) -> PathBuf {
        last_known::path(&self.state_dir, &self.node.pin_dir)
    }

    /// As a boot leaves it: nothing in the kernel, nothing in /run.
    fn boot(&self) {
        fs::remove_dir_all(&self.node.pin_dir).expect("the pins can be removed");
        fs::remove_dir_all(state_dir(&self.node.pin_dir)).expect("the state can be removed");
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn page(agent: &Agent, path: &str) -> (u16, String) {
    agent.http(path).unwrap_or_default()
}

#[test]
fn what_was_last_known_is_enforced_after_a_boot() {
    let mut scene = Scene::new("boot");
    scene.admit(80);
    let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent");
    assert_eq!(scene.reached(), [true, false].map(Some));
    assert!(agent.stop().expect("it runs").success());
    assert!(scene.file().exists(), "the end writes what is known");

    scene.plane.kill_api_server().expect("it runs");
    scene.boot();
    // The kernel takes links away a moment after their pins.
    wait("nothing is enforced", || scene.reached() == [true, true].map(Some));
    let agent = Agent::spawn(&scene.lab, &scene.node, &scene.options).expect("an agent");
    wait("what was last known is in force", || page(&agent, "/readyz").1.contains("what was last known, at "));
    let (status, body) = page(&agent, "/readyz");
    assert!(status == 503 && body.contains("no complete list of Namespace, Pod, NetworkPolicy, Node since"), "{body}");
    assert_eq!(scene.reached(), [true, false].map(Some));

    scene.plane.restart_api_server(scene.lab.guard()).expect("it starts again");
    scene.admit(81);
    wait("the newest objects are in force", || {
        page(&agent, "/readyz").0 == 200 && scene.reached() == [false, true].map(Some)
    });
    assert!(agent.log_text().contains("complete lists have taken the place of the objects last known"));
    // An agent that is killed has written what was known a second earlier.
    let mark = state_dir(&scene.node.pin_dir).join("last-known-is-old");
    wait("the file is as new as the kernel", || !mark.exists());
    agent.kill().expect("it runs");
    scene.plane.kill_api_server().expect("it runs");
    scene.boot();
    let agent = Agent::spawn(&scene.lab, &scene.node, &scene.options).expect("an agent");
    wait("what was last known is in force", || scene.reached() == [false, true].map(Some));
    agent.kill().expect("it runs");

    // One that is damaged is ignored.
    scene.boot();
    let mut bytes = fs::read(scene.file()).expect("it is there");
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(scene.file(), bytes).expect("it can be written");
    let agent = Agent::spawn(&scene.lab, &scene.node, &scene.options).expect("an agent");
    wait("it is told of", || agent.log_text().contains("last-known is damaged: its checksum is another"));
    // These pods are older than the first agent that the node knows of, and stay as they are until the list; new ones are closed.
    assert!(page(&agent, "/readyz").1.contains("no complete list of objects yet"));
    drop(agent);

    let folder = scene.state_dir.display().to_string();
    let done = palisade(&scene.node, &["uninstall", "--state-dir", &folder]).expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(!scene.state_dir.exists(), "nothing is left");
}

/// Not even after the time at which it is looked whether programs are still where they were put.
#[test]
fn a_new_agent_without_an_api_server_changes_nothing() {
    let mut scene = Scene::new("again");
    let spec = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}";
    scene.plane.put(&objects::policy("web", "egress", spec).expect("a policy")).expect("it is taken");
    scene.options = AgentOptions::new(Source::Kubeconfig(scene.plane.kubeconfig.clone()));
    let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent");
    let refused = || {
        let status = palisade(&scene.node, &["status", "-o", "json"]).expect("it runs");
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("it is JSON");
        status["service_traffic_refused"].as_bool().expect("it is said")
    };
    assert!(!refused());
    agent.kill().expect("it runs");
    scene.plane.kill_api_server().expect("it runs");
    let _agent = Agent::spawn(&scene.lab, &scene.node, &scene.options).expect("an agent");
    let end = Instant::now() + Duration::from_secs(13);
    while Instant::now() < end {
        assert!(!refused(), "Service traffic is refused");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(scene.reached(), [true, false].map(Some));
}

#[test]
fn stale_is_told_and_what_is_known_stays() {
    let mut scene = Scene::new("stale");
    scene.admit(80);
    let mut agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent");
    let metric = |agent: &Agent| {
        let (_, page) = page(agent, "/metrics");
        let of = "palisade_stale_since_timestamp_seconds{kind=\"NetworkPolicy\"} ";
        page.lines().find_map(|line| line.strip_prefix(of)?.parse::<u64>().ok()).expect("it is there")
    };
    assert_eq!(metric(&agent), 0);
    assert_eq!(page(&agent, "/readyz"), (200, "ok\n".to_owned()));
    scene.plane.kill_api_server().expect("it runs");
    wait("it is told", || metric(&agent) != 0);
    let (status, body) = page(&agent, "/readyz");
    assert!(status == 200 && body.contains("ok, but stale") && body.contains("NetworkPolicy since 20"), "{body}");
    wait("the status has it", || {
        let status = palisade(&scene.node, &["status"]).expect("it runs");
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        text.contains("objects          STALE, what is known stays in force: ")
            && text.contains("NetworkPolicy since 20")
    });
    assert_eq!(scene.reached(), [true, false].map(Some));

    // A restart without an API server changes nothing, and a pod whose interface is new is known by its CNI result.
    agent.kill().expect("it runs");
    agent = Agent::spawn(&scene.lab, &scene.node, &scene.options).expect("an agent");
    wait("what was last known is in force", || page(&agent, "/readyz").1.contains("what was last known, at "));
    assert_eq!(scene.reached(), [true, false].map(Some));

    scene.plane.restart_api_server(scene.lab.guard()).expect("it starts again");
    agent.wait_ready(DEADLINE).expect("it is ready again");
    wait("it is seen again", || metric(&agent) == 0);
    let (_, metrics) = page(&agent, "/metrics");
    let watches = "palisade_api_requests_total{resource=\"networkpolicies\",verb=\"watch\",code=\"200\"}";
    assert!(metrics.contains(watches), "{metrics}");
    assert_eq!(scene.reached(), [true, false].map(Some));
}
