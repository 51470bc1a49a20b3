//! The manifests of deploy/ before a real API server: it takes them, the agent's account may what the agent does, and no more; and an agent
//! with that account enforces, and says what it lacks.
#![cfg(feature = "live")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, ControlPlane, Lab, Node, Pod, PodSpec, Source, Transport, objects};
use serde::Deserialize as _;
use serde_json::{Value, json};

const MANIFEST: &str = include_str!("../../deploy/palisade.yaml");
const UNINSTALL: &str = include_str!("../../deploy/uninstall.yaml");

fn objects(manifest: &str) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(manifest);
    documents.map(|document| Value::deserialize(document).expect("YAML")).filter(|value| !value.is_null()).collect()
}

fn may(plane: &ControlPlane, verb: &str, group: &str, resource: &str) -> bool {
    plane.allows("system:serviceaccount:palisade:palisade", verb, (group, resource)).expect("the API server answers")
}

#[test]
fn the_api_server_takes_the_manifests_and_the_account_may_read_alone() {
    let lab = Lab::new("deploy").expect("a lab");
    let plane = ControlPlane::start(&lab).expect("a control plane");
    plane.put_all(&objects(MANIFEST)).expect("the manifest is taken");
    let policies = ("networking.k8s.io", "networkpolicies");
    for (group, resource) in [("", "pods"), ("", "namespaces"), ("", "nodes"), ("", "services"), policies] {
        for verb in ["get", "list", "watch"] {
            assert!(may(&plane, verb, group, resource), "{verb} {resource}");
        }
        for verb in ["create", "update", "patch", "delete"] {
            assert!(!may(&plane, verb, group, resource), "{verb} {resource}");
        }
    }
    assert!(may(&plane, "create", "events.k8s.io", "events") && may(&plane, "patch", "events.k8s.io", "events"));
    assert!(!may(&plane, "get", "", "secrets") && !may(&plane, "list", "", "secrets"));
    plane.put_all(&objects(UNINSTALL)).expect("the removal replaces the agents");
}

/// As the kubelet gives it to the agent's pod: a token of its account, and the authority that signed the API server's certificate.
fn account(plane: &ControlPlane) -> PathBuf {
    let asked =
        TokenRequest { spec: TokenRequestSpec { audiences: Vec::new(), ..Default::default() }, ..Default::default() };
    let given = plane.with_client(async |client| {
        let api: Api<ServiceAccount> = Api::namespaced(client, "palisade");
        Ok(api.create_token_request("palisade", &PostParams::default(), &asked).await?)
    });
    let token = given.expect("a token is given").status.expect("with what was asked for").token;
    let (file, kubeconfig) = (plane.folder().join("token"), plane.folder().join("palisade.kubeconfig"));
    fs::write(&file, token).expect("the folder can be written to");
    let admin = fs::read_to_string(&plane.kubeconfig).expect("it is there");
    let mut contents: Value = serde_norway::from_str(&admin).expect("YAML");
    contents["users"][0]["user"] = json!({"tokenFile": file});
    fs::write(&kubeconfig, contents.to_string()).expect("the folder can be written to");
    kubeconfig
}

struct Scene {
    lab: Lab,
    node: Node,
    plane: ControlPlane,
    a: Pod,
    b: Pod,
    options: AgentOptions,
    _server: Server,
}

impl Scene {
    /// The manifest is applied, and port 80 alone of b is admitted.
    fn new(name: &str) -> Self {
        let lab = Lab::new(name).expect("a lab");
        let node = lab.node("one", 1).expect("a node");
        let plane = ControlPlane::start(&lab).expect("a control plane");
        plane.put_all(&objects(MANIFEST)).expect("the manifest is taken");
        plane.put_all(&[objects::node(&node), objects::namespace("web", &[])]).expect("objects are taken");
        let a = plane.start_pod(&lab, &node, PodSpec::new("web", "a", &[("app", "a")])).expect("a pod");
        let b = plane.start_pod(&lab, &node, PodSpec::new("web", "b", &[("app", "b")])).expect("a pod");
        let spec = "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 80}]}]}";
        plane.put(&objects::policy("web", "one-port", spec).expect("a policy")).expect("it is taken");
        let server = Server::start(lab.guard(), &b.netns, "b", &[80, 81], &[]).expect("a server");
        let options = AgentOptions::new(Source::Kubeconfig(account(&plane)));
        Self { lab, node, plane, a, b, options, _server: server }
    }

    fn reached(&self, port: u16) -> bool {
        let address = self.b.addresses[0];
        Probe::new(&self.a.netns, Transport::Tcp, address, port).ask_within(Duration::from_millis(600)).reached()
    }

    /// The account's role without one verb of one resource.
    fn forbid(&self, verb: &str, resource: &str) {
        let mut role = role();
        let mut rules = Vec::new();
        for rule in role["rules"].as_array().expect("rules") {
            for one in rule["resources"].as_array().expect("resources") {
                let mut rule = rule.clone();
                rule["resources"] = json!([one]);
                if one == resource {
                    rule["verbs"].as_array_mut().expect("verbs").retain(|other| other != verb);
                }
                rules.push(rule);
            }
        }
        role["rules"] = rules.into();
        self.plane.put(&role).expect("it is taken");
    }
}

fn role() -> Value {
    objects(MANIFEST).into_iter().find(|object| object["kind"] == "ClusterRole").expect("the manifest has one")
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_agent_with_the_account_enforces_and_says_which_right_it_lacks() {
    let scene = Scene::new("account");
    let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent with the account");
    assert_eq!((scene.reached(80), scene.reached(81)), (true, false));
    let complaints = |agent: &Agent| agent.log_text().lines().filter(|line| line.contains(" WARN ")).count();
    assert_eq!(complaints(&agent), 0, "{}", agent.log_text());
    drop(agent);
    let needed =
        [("pods", "Pod"), ("namespaces", "Namespace"), ("nodes", "Node"), ("networkpolicies", "NetworkPolicy")];
    for (resource, kind) in needed.into_iter().chain([("services", "Service")]) {
        scene.forbid("watch", resource);
        // The authorizer learns of it a moment later.
        let group = if resource == "networkpolicies" { "networking.k8s.io" } else { "" };
        wait("the verb is taken away", || !may(&scene.plane, "watch", group, resource));
        let _ = fs::remove_file(scene.node.folder.join("agent.log"));
        let agent = Agent::spawn(&scene.lab, &scene.node, &scene.options).expect("an agent");
        let said = format!("cannot watch resource \\\"{resource}\\\" in API group \\\"{group}\\\"");
        wait(&format!("nothing is said of {resource}"), || agent.log_text().contains(&said));
        let log = agent.log_text();
        let line = log.lines().find(|line| line.contains(&said)).expect("it was found");
        let (follows, ready) = match kind {
            "Service" => {
                ("pods with an egress policy reach Services only if it admits their addresses as they are", true)
            }
            _ => ("there is no complete list yet, so pods stay closed until it answers", false),
        };
        assert!(line.contains(&format!("kind=\"{kind}\"")) && line.contains(follows), "{line}");
        let page = || agent.http("/readyz").unwrap_or_default();
        wait(&format!("readiness without {resource}: {:?}", page()), || (page().0 == 200) == ready);
        wait(&format!("{kind} is told to be stale: {:?}", page()), || page().1.contains(&format!("{kind} since 20")));
        // What an earlier agent wrote is in force.
        assert_eq!((scene.reached(80), scene.reached(81)), (true, false), "without {resource}:\n{log}");
        scene.plane.put(&role()).expect("it is taken");
        wait("the right is seen to be back", || page() == (200, "ok\n".to_owned()));
        drop(agent);
        // Lists are streamed by this API server, and a single object is asked for only when an Event is about it.
        for verb in ["list", "get"] {
            scene.forbid(verb, resource);
            wait("the verb is taken away", || !may(&scene.plane, verb, group, resource));
            let _ = fs::remove_file(scene.node.folder.join("agent.log"));
            let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent");
            assert_eq!(complaints(&agent), 0, "without {verb} {resource}: {}", agent.log_text());
        }
    }
}
