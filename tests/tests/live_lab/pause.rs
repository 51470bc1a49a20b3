//! `palisade pause`: at once, for as long as was said, with or without an agent.

use std::time::{Duration, Instant};

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{
    Agent, AgentOptions, Connection, ControlPlane, Outcome, Pod, PodSpec, Source, Transport, objects,
};
use serde_json::{Value, json};

use crate::exits::{VIPS, expect, translate};
use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

/// Pod `b` may be sent what is for port 80, and may send nothing.
const ONLY_80: &str =
    "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80}]}]}";

fn run(scene: &Scene, arguments: &str) -> (bool, String) {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let said = palisade(&scene.node, &arguments).expect("palisade runs");
    (said.status.success(), String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
}

fn metric(agent: &Agent, name: &str) -> String {
    let (_, page) = agent.http("/metrics").expect("a page");
    let line = page.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    line.and_then(|line| line.rsplit_once(' ').map(|(_, value)| value.to_owned())).unwrap_or_default()
}

fn paused(scene: &Scene) -> Value {
    let said = palisade(&scene.node, &["status", "-o", "json"]).expect("palisade runs");
    serde_json::from_slice::<Value>(&said.stdout).expect("JSON")["paused"].clone()
}

#[test]
fn a_pod_is_paused_at_once_and_until_the_time_said() {
    let scene = Scene::new("pause");
    let [a, b, c] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", ONLY_80);
    scene.policy_in_force(&agent, "q", "{podSelector: {matchLabels: {app: c}}}");
    scene.expect_tcp(a, b, 81, false, "before");
    for wrong in ["pause --for 1m", "pause web/b", "pause web/b --for 2d", "pause web/b --all --for 1m"] {
        assert!(!run(&scene, wrong).0, "{wrong}");
    }
    let (success, said) = run(&scene, "pause web/nobody --for 1m");
    assert!(!success && said.contains("palisade endpoints"), "{said}");

    let begun = Instant::now();
    let (success, said) = run(&scene, "pause web/b --for 6s");
    assert!(success && said.contains("PAUSED web/b until") && said.contains("--end web/b"), "{said}");
    let admitted = Connection::open(&a.netns, b.ipv4(), 80);
    let forbidden = Connection::open(&a.netns, b.ipv6(), 81);
    let (mut admitted, mut forbidden) = (admitted.expect("a rule admits it"), forbidden.expect("it is paused"));
    scene.expect_tcp(b, a, 80, true, "it may send");
    scene.expect_tcp(a, c, 80, false, "another pod is not paused");
    scene.expect_tcp(b, c, 80, false, "nor when the paused one asks it");
    assert_eq!(paused(&scene)[0]["what"], "web/b");
    assert_eq!(
        (metric(&agent, "palisade_paused_endpoints"), metric(&agent, "palisade_paused_node")),
        ("1".into(), "0".into())
    );
    assert!(metric(&agent, "palisade_packets_total{reason=\"paused\"}") != "0");
    assert!(agent.log_text().contains("ENFORCEMENT IS PAUSED"), "{}", agent.log_text());
    assert!(forbidden.echoes(Duration::from_millis(500)), "after {:?}", begun.elapsed());

    // It ends by itself.
    assert!(eventually(PATIENCE, || metric(&agent, "palisade_paused_endpoints") == "0"));
    assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    assert!(!forbidden.echoes(Duration::from_millis(500)), "no rule admits it");
    assert!(admitted.echoes(PATIENCE), "what a rule admits goes on");
    scene.expect_tcp(a, b, 81, false, "afterwards");
    assert_eq!(paused(&scene), Value::Array(Vec::new()));
    assert!(agent.log_text().contains("enforcement goes on after a pause"), "{}", agent.log_text());
}

#[test]
fn the_whole_node_is_paused_without_an_agent_and_an_agent_that_starts_tells_of_it() {
    let scene = Scene::new("pauseall");
    let [a, b, _] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", ONLY_80);
    let unknown = scene.node.start_pod(&scene.lab, PodSpec::new("web", "unknown", &[])).expect("a pod");
    assert!(eventually(PATIENCE, || scene.endpoint(&unknown)["state"] != Value::Null));
    scene.expect_tcp(&unknown, a, 80, false, "nobody knows it");
    agent.kill().expect("it runs");
    let (success, said) = run(&scene, "pause --all --for 60s");
    assert!(success && said.contains("PAUSED every pod of the node") && said.contains("no agent answers"), "{said}");
    scene.expect_tcp(a, b, 81, true, "paused");
    scene.expect_tcp(&unknown, a, 80, true, "paused, and unknown");
    let agent = scene.start();
    assert_eq!(metric(&agent, "palisade_paused_node"), "1");
    assert_eq!(paused(&scene)[0]["what"], "every pod of the node");
    scene.expect_tcp(a, b, 81, true, "a new agent does not end it");
    assert!(run(&scene, "pause --end --all").0);
    scene.expect_tcp(a, b, 81, false, "ended");
    assert_eq!(metric(&agent, "palisade_paused_node"), "0");
    assert!(!run(&scene, "pause --end --all").0, "nothing is paused");
    // Without an agent it ends by the clock alone.
    agent.kill().expect("it runs");
    assert!(run(&scene, "pause web/b --for 2s").0);
    scene.expect_tcp(a, b, 81, true, "paused");
    std::thread::sleep(Duration::from_secs(2));
    scene.expect_tcp(a, b, 81, false, "over");
}

#[test]
fn a_pause_is_an_event_of_the_pod() {
    let scene = Scene::new("pauseevent");
    let plane = ControlPlane::start(&scene.lab).expect("a control plane");
    for object in [objects::node(&scene.node), objects::namespace("web", &[])] {
        plane.put(&object).expect("it is taken");
    }
    let pod: Pod = plane.start_pod(&scene.lab, &scene.node, PodSpec::new("web", "d", &[])).expect("a pod");
    plane.put(&objects::pod(&pod, &scene.node)).expect("it is taken");
    let options = AgentOptions::new(Source::Kubeconfig(plane.kubeconfig.clone()));
    let _agent = Agent::start(&scene.lab, &scene.node, &options).expect("an agent");
    assert!(eventually(PATIENCE, || scene.endpoint(&pod)["state"] == "enforced"), "{}", scene.endpoints());
    assert!(run(&scene, "pause web/d --for 2s").0);
    let reasons = || {
        plane.with_client(async |client| {
            let events: kube::Api<k8s_openapi::api::events::v1::Event> = kube::Api::namespaced(client, "web");
            let events = events.list(&kube::api::ListParams::default()).await?;
            let of_pod = events.items.into_iter().filter(|event| {
                event
                    .regarding
                    .as_ref()
                    .is_some_and(|object| object.name.as_deref() == Some("d") && object.uid == Some(pod.uid.clone()))
            });
            Ok(of_pod.filter_map(|event| event.reason).collect::<Vec<_>>())
        })
    };
    let told = || {
        reasons().is_ok_and(|reasons| {
            ["EnforcementPaused", "EnforcementResumed"].iter().all(|wanted| reasons.iter().any(|told| told == wanted))
        })
    };
    assert!(eventually(PATIENCE, told), "{:?}", reasons());
}

/// A pod that may be sent anything could be sent answers, which would open what it may not open itself.
#[test]
fn what_a_paused_pod_opens_ends_with_the_pause_though_anybody_may_send_to_it() {
    let scene = Scene::new("pauseopen");
    let [a, ..] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", "{podSelector: {matchLabels: {app: d}}, policyTypes: [Egress]}");
    // Born under the policy: every opening of its own was seen, so nobody doubts which end opened what.
    let d = scene.node.start_pod(&scene.lab, PodSpec::new("web", "d", &[("app", "d")])).expect("a pod");
    let _server = Server::start(scene.lab.guard(), &d.netns, &d.name, &[80], &[]).expect("a server");
    scene.put(&objects::pod(&d, &scene.node));
    assert!(eventually(PATIENCE, || scene.endpoint(&d)["state"] == "enforced"), "{}", scene.endpoints());
    scene.expect_tcp(&d, a, 80, false, "before");
    assert!(run(&scene, "pause web/d --for 60s").0);
    assert!(scene.endpoint(&d)["paused_until"].is_string() && scene.endpoint(a)["paused_until"].is_null());
    let mut connection = Connection::open(&d.netns, a.ipv4(), 80).expect("it is paused");
    assert!(connection.echoes(PATIENCE), "it is paused");
    let datagrams = Datagram::new(&d, a);
    assert!(eventually(PATIENCE, || datagrams.answered()), "it is paused");
    assert!(run(&scene, "pause --end web/d").0);
    assert!(!connection.echoes(AT_ONCE), "no rule admits it");
    assert!(!datagrams.answered() && !datagrams.answered(), "no rule admits it");
    scene.expect_tcp(a, &d, 80, true, "the other way is open");
}

/// A socket of UDP that stays the same.
struct Datagram(std::net::UdpSocket);

impl Datagram {
    fn new(from: &Pod, to: &Pod) -> Self {
        let socket = from.netns.run(|| std::net::UdpSocket::bind((from.ipv4(), 0))).expect("a socket");
        socket.connect((to.ipv4(), 53)).expect("an address");
        socket.set_read_timeout(Some(AT_ONCE)).expect("it is not 0");
        Self(socket)
    }

    fn answered(&self) -> bool {
        self.0.send(b"question").is_ok() && self.0.recv(&mut [0; 64]).is_ok()
    }
}

/// Behind a Service two pods have their say: who is paused is not who is asked there.
#[test]
fn behind_a_service_only_the_paused_pods_policy_is_silent() {
    let scene = Scene::new("pausesvc");
    let [a, b, _] = &scene.pods;
    let service = json!({"clusterIP": VIPS[0], "clusterIPs": VIPS, "selector": {"app": "b"}, "ports": [{"port": 80}]});
    scene.put(&objects::service("web", "s", &service));
    translate(&scene, &b.addresses);
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}");
    let (silence, reached) = (Outcome::TimedOut, Outcome::Reached(b.name.clone()));
    expect(&scene, a, &silence, "before");
    assert!(run(&scene, "pause web/b --for 60s").0);
    expect(&scene, a, &silence, "while its server is paused");
    assert!(run(&scene, "pause web/a --for 60s").0);
    expect(&scene, a, &reached, "while it is paused");
    assert!(run(&scene, "pause --end web/b").0);
    scene.policy_in_force(&agent, "q", "{podSelector: {matchLabels: {app: b}}}");
    expect(&scene, a, &silence, "while it is paused and its server admits nobody");
    assert!(run(&scene, "pause --all --for 60s").0);
    expect(&scene, a, &reached, "while everything is paused");
}

/// Where marked packets end up at the node.
#[test]
fn what_a_service_leads_to_at_the_node_is_paused_for_its_client() {
    let scene = Scene::new("pausenode");
    let [a, b, _] = &scene.pods;
    let service = json!({"clusterIP": VIPS[0], "clusterIPs": VIPS, "ports": [{"port": 80}]});
    scene.put(&objects::service("web", "s", &service));
    let _server = Server::start_on(scene.lab.guard(), &scene.node, "node", &[80], &[]).expect("a server");
    translate(&scene, &scene.node.addresses);
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", "{podSelector: {}, policyTypes: [Egress]}");
    expect(&scene, a, &Outcome::TimedOut, "before");
    assert!(run(&scene, "pause web/a --for 60s").0);
    expect(&scene, a, &Outcome::Reached("node".to_owned()), "while it is paused");
    let other = Probe::new(&b.netns, Transport::Tcp, VIPS[0].parse().expect("an address"), 80);
    assert_eq!(other.ask_within(AT_ONCE), Outcome::TimedOut, "another pod");
    assert!(run(&scene, "pause --end web/a").0);
    expect(&scene, a, &Outcome::TimedOut, "afterwards");
}
