//! What the agent tells: Events on objects that cannot be enforced as written, that it may be on the wrong node, that it is not alone; and
//! what it never tells.
#![cfg(feature = "live")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use palisade::observe::state_dir;
use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{
    Agent, AgentOptions, ControlPlane, Lab, Meddler, Meddling, Node, Pod, PodSpec, Source, Transport, objects,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
const AT_ONCE: Duration = Duration::from_millis(600);

struct Scene {
    plane: ControlPlane,
    options: AgentOptions,
    a: Pod,
    b: Pod,
    node: Node,
    _server: Server,
    lab: Lab,
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
        let options = AgentOptions::new(Source::Kubeconfig(plane.kubeconfig.clone()));
        Self { plane, options, a, b, node, _server: server, lab }
    }

    fn start(&self) -> Agent {
        self.start_with(&self.options)
    }

    fn start_with(&self, options: &AgentOptions) -> Agent {
        let mut agent = Agent::spawn(&self.lab, &self.node, options).expect("an agent");
        agent.wait_ready(2 * DEADLINE).expect("it is ready");
        agent
    }

    fn policy(&self, name: &str, spec: &str) {
        self.plane.put(&objects::policy("web", name, spec).expect("a policy")).expect("it is taken");
    }

    /// Whether a reaches b at 80 and at 81.
    fn reached(&self) -> [bool; 2] {
        [80, 81].map(|port| {
            self.b
                .addresses
                .iter()
                .all(|address| Probe::new(&self.a.netns, Transport::Tcp, *address, port).ask_within(AT_ONCE).reached())
        })
    }

    /// Events that the agent has told, of objects of this name.
    fn events(&self, name: &str) -> Vec<Event> {
        let events = self
            .plane
            .with_client(async |client| Ok(Api::<Event>::all(client).list(&ListParams::default()).await?.items));
        let is_it = |event: &Event| event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some(name));
        events.expect("the API server answers").into_iter().filter(is_it).collect()
    }

    fn faults(&self) -> Vec<Value> {
        let output = palisade(&self.node, &["status", "-o", "json"]).expect("it runs");
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["faults"].as_array().cloned().unwrap_or_default()
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Older servers took what no server takes today, and it is still there. It is written to where the API server keeps it.
#[test]
fn an_object_that_says_nothing_sensible_isolates_and_is_told_of_on_the_object() {
    let scene = Scene::new("odd");
    scene.policy("good", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}");
    let odd = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "web", "name": "odd", "uid": "8b6f3e0e-5f0a-4d2e-9d6b-1f0c2b1a0001"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Egress"],
            "egress": [
                {"to": [{"ipBlock": {"cidr": "10.300.0.0/16"}}], "ports": [{"port": 80}]},
                {"ports": [{"port": 70000}]},
                {"ports": [{"port": 81, "protocol": "TCP"}]},
            ],
        },
    });
    let agent = scene.start();
    assert_eq!(scene.reached(), [true, false]);
    scene.plane.put_raw("/registry/networkpolicies/web/odd", &odd).expect("etcd takes anything");
    // a is isolated now, its first two rules admit nothing, and the third what it says; b takes no connection there.
    wait("it is enforced", || scene.reached() == [false, false]);
    wait("an Event tells of it", || !scene.events("odd").is_empty());
    let told = scene.events("odd");
    let [event] = &told[..] else { panic!("one Event: {told:#?}") };
    let regarding = event.regarding.clone().expect("it is of an object");
    assert_eq!(regarding.kind.as_deref(), Some("NetworkPolicy"));
    assert_eq!(regarding.uid.as_deref(), odd["metadata"]["uid"].as_str());
    assert_eq!(event.reason.as_deref(), Some("NotEnforcedAsWritten"));
    assert_eq!(event.reporting_instance.as_deref(), Some("one"));
    let note = event.note.clone().unwrap_or_default();
    for field in ["spec.egress[0].to[0]", "spec.egress[1].ports[0]"] {
        assert!(note.contains(field), "{note}");
    }
    assert!(!note.contains("on node"), "it is so on every node: {note}");
    wait("the status has it", || scene.faults().iter().any(|fault| fault["object"] == "web/odd"));
    let (_, metrics) = agent.http("/metrics").expect("it answers");
    assert!(metrics.contains("palisade_faults{kind=\"NetworkPolicy\"} 2"), "{metrics}");

    // Another agent has nothing to add, and what is the node's own matter is told with the node.
    agent.stop().expect("it runs");
    let options = scene.options.clone().argument("--prefixes-max").argument("1");
    assert!(palisade(&scene.node, &["uninstall"]).expect("it runs").status.success());
    let many = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}]}]}";
    scene.policy("many", many);
    let agent = scene.start_with(&options);
    wait("an Event tells of it", || !scene.events("many").is_empty());
    let note = scene.events("many")[0].note.clone().unwrap_or_default();
    assert!(note.starts_with("on node one: spec.ingress[0]: an ipBlock does not fit"), "{note}");
    assert_eq!(scene.events("odd").len(), 1, "told before");
    assert_eq!(scene.events("good").len(), 0);
    // One that selects no pod of this node is left to others.
    let elsewhere = odd.to_string().replace("\"odd\"", "\"elsewhere\"").replace("\"a\"", "\"nobody\"");
    let elsewhere: Value = serde_json::from_str(&elsewhere).expect("it is JSON");
    scene.plane.put_raw("/registry/networkpolicies/web/elsewhere", &elsewhere).expect("etcd takes anything");
    wait("it is known", || scene.faults().iter().any(|fault| fault["object"] == "web/elsewhere"));
    scene.policy("more", &many.replace("192.0.2", "203.0.113"));
    wait("what comes later is told", || !scene.events("more").is_empty());
    assert_eq!(scene.events("elsewhere").len(), 0);
    drop(agent);
}

#[test]
fn a_node_that_is_another_is_said() {
    let scene = Scene::new("renamed");
    scene.policy("p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}");
    let agent = scene.start();
    assert_eq!(scene.faults(), Vec::<Value>::new());
    let says = |what: &str| {
        scene
            .faults()
            .iter()
            .any(|fault| fault["kind"] == "Node" && fault["message"].as_str().is_some_and(|m| m.contains(what)))
    };
    // New addresses: the object and the machine do not agree for a while.
    let mut node = objects::node(&scene.node);
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "172.30.0.77"}]);
    scene.plane.put(&node).expect("it is taken");
    wait("it is told", || says("this machine has none of the addresses of the Node \"one\" (172.30.0.77)"));
    assert_eq!(scene.reached(), [true, false], "the pods' policies do not depend on it");
    scene.node.netns.ip(&["addr add 172.30.0.77/24 dev eth0".to_owned()]).expect("addresses can be added");
    wait("it is over", || scene.faults().is_empty());
    agent.stop().expect("it runs");

    // Another node's name: nothing that is enforced becomes open by it.
    let mut other = objects::node(&scene.node);
    other["metadata"]["name"] = "two".into();
    other["status"]["addresses"] = json!([{"type": "InternalIP", "address": "172.30.0.99"}]);
    scene.plane.put(&other).expect("it is taken");
    let options = scene.options.clone().argument("--node-name").argument("two");
    let agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("an agent");
    wait("it is told", || says("this machine has none of the addresses of the Node \"two\""));
    assert!(!scene.reached()[1], "what is forbidden stays so");
    wait("an Event tells of it", || !scene.events("two").is_empty());
    agent.stop().expect("it runs");

    // A name that nobody has.
    let options = scene.options.clone().argument("--node-name").argument("nobody");
    let _agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("an agent");
    wait("it is told", || says("is --node-name right?"));
    assert!(!scene.reached()[1], "what is forbidden stays so");
}

#[test]
fn a_second_agent_of_a_node_is_refused_and_changes_nothing() {
    let scene = Scene::new("twice");
    scene.policy("p", "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}");
    let first = scene.start();
    let pins = scene.lab.bpffs().join("another");
    let mut command = scene.node.command(palisade_tests::lab::programs::agent().expect("it is built"));
    command.args(["agent", "--node-name", "one", "--kubeconfig"]).arg(&scene.plane.kubeconfig);
    let output = command.arg("--pin-dir").arg(&pins).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another palisade agent runs in this network namespace"), "{said}");
    assert!(said.contains(&*state_dir(&scene.node.pin_dir).to_string_lossy()), "{said}");
    assert!(!pins.exists() && !state_dir(&pins).exists(), "nothing was made");
    assert_eq!(scene.reached(), [true, false]);
    assert_eq!(scene.faults(), Vec::<Value>::new());
    first.stop().expect("it runs");
}

/// A token of an account that may all, as a file that a kubeconfig names.
fn token_of_an_account(plane: &ControlPlane) -> String {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "agent", "namespace": "default"}});
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "apiVersion": format!("{group}/v1"),
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "agent"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": "default"}],
    });
    plane.put_all(&[account, binding]).expect("objects are taken");
    let token = plane.with_client(async |client| {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ServiceAccount"));
        let accounts: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
        let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        Ok(accounts.create_subresource::<Value, Value>("token", "agent", &PostParams::default(), &asked).await?)
    });
    token.expect("a token")["status"]["token"].as_str().expect("it is there").to_owned()
}

/// Every file below, as text.
fn texts(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => texts(&entry.path(), into),
            Ok(kind) if kind.is_file() => {
                into.push_str(&String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()))
            }
            _ => {}
        }
    }
}

/// Not even at the lowest level, and not when the server's answers make no sense.
#[test]
fn tokens_and_secrets_are_never_told() {
    const SECRET: &str = "hunter2-in-a-pod";
    let mut scene = Scene::new("secrets");
    let token = token_of_an_account(&scene.plane);
    let mut pod = objects::pod(&scene.a, &scene.node);
    pod["metadata"]["annotations"] = json!({"vault": SECRET});
    scene.plane.put(&pod).expect("it is taken");
    let mut elsewhere = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "web", "name": "elsewhere", "labels": {"app": "b"}},
        "spec": {"nodeName": "two", "containers": [{"name": "c", "image": "i", "env": [{"name": "PASSWORD", "value": SECRET}]}]},
    });
    scene.plane.put(&elsewhere).expect("it is taken");
    scene.policy(
        "p",
        "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}",
    );

    let kubeconfig = scene.lab.folder.join("token.kubeconfig");
    let admin: Value =
        serde_norway::from_str(&fs::read_to_string(&scene.plane.kubeconfig).expect("it is there")).expect("YAML");
    let mut with_token = admin.clone();
    fs::write(scene.lab.folder.join("token"), format!("{token}\n")).expect("it can be written");
    with_token["users"][0]["user"] = json!({"tokenFile": "token"});
    fs::write(&kubeconfig, with_token.to_string()).expect("it can be written");
    let state = scene.node.folder.join("state");
    scene.options = AgentOptions::new(Source::Kubeconfig(kubeconfig))
        .argument("--state-dir")
        .argument(&state.display().to_string());
    scene.options.log_level = Some("trace".to_owned());
    let mut everything = String::new();
    let mut look = |agent: &Agent| {
        everything += &agent.log_text();
        for path in ["/metrics", "/readyz"] {
            everything += &agent.http(path).expect("it answers").1;
        }
        for command in ["status", "endpoints", "maps"] {
            let output = palisade(&scene.node, &[command, "-o", "json"]).expect("it runs");
            everything += &String::from_utf8_lossy(&output.stdout);
        }
    };
    let agent = scene.start();
    assert_eq!(scene.reached(), [true, false]);
    look(&agent);
    agent.stop().expect("it runs");

    // The same by way of somebody who garbles what the server says.
    let meddler = Meddler::start(&scene.lab, &scene.plane.kubeconfig).expect("a proxy");
    scene.options.source = Source::Kubeconfig(meddler.kubeconfig.clone());
    let agent = scene.start();
    meddler.begin(Meddling::Garble);
    for turn in 0..4 {
        elsewhere["metadata"]["labels"]["turn"] = turn.to_string().into();
        scene.plane.put(&elsewhere).expect("it is taken");
    }
    wait("it is noticed", || agent.log_text().contains("ends before its end"));
    meddler.cut(Meddling::Truncate(700));
    wait("it is told", || agent.http("/readyz").is_ok_and(|(_, text)| text.contains("stale")));
    meddler.begin(Meddling::None);
    wait("it is seen again", || agent.http("/readyz").is_ok_and(|(_, text)| text == "ok\n"));
    look(&agent);
    agent.stop().expect("it runs");

    texts(&state_dir(&scene.node.pin_dir), &mut everything);
    texts(&state, &mut everything);
    assert!(
        everything.contains("last-known") || everything.contains("palisade-last-known"),
        "what was kept is among it"
    );
    let key = fs::read_to_string(scene.lab.folder.join("control-plane/admin.key")).expect("it is there");
    let key = key.lines().nth(1).expect("it has lines");
    let signature = token.rsplit('.').next().expect("it has parts");
    for (what, secret) in
        [("the token", &*token), ("its signature", signature), ("a key", key), ("a pod's secret", SECRET)]
    {
        let place = everything.lines().find(|line| line.contains(secret));
        assert_eq!(place, None, "{what} was told");
    }
}
