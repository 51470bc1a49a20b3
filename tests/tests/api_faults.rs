//! Faults of a real API server, of its etcd and of what is between it and the agent, while objects change and connections are made: nothing
//! that is allowed throughout is ever refused, nothing that is forbidden throughout ever passes, and afterwards the kernel's tables are those
//! that an agent writes which has seen nothing of it.
#![cfg(feature = "live")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::traffic::{Stream, Traffic};
use palisade_tests::lab::{
    Agent, AgentOptions, ControlPlane, Lab, Meddler, Meddling, Node, Pod, PodSpec, Source, objects,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);
/// How long objects change while something is wrong.
const CHURN: Duration = Duration::from_millis(700);
/// Allowed throughout, and never.
const OPEN: u16 = 80;
const SHUT: u16 = 81;

const POLICIES: (&str, &str) = ("networking.k8s.io", "networkpolicies");
const READABLE: [(&str, &str); 5] = [("", "namespaces"), ("", "pods"), ("", "nodes"), ("", "services"), POLICIES];
/// The account that the agent is known as.
const ACCOUNT: &str = "agent";

struct Scene {
    agent: Option<Agent>,
    meddler: Meddler,
    plane: ControlPlane,
    options: AgentOptions,
    a: Pod,
    b: Pod,
    node: Node,
    _server: Server,
    lab: Lab,
    /// How many marks were made.
    marks: u16,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new("api-faults").expect("a lab");
        let node = lab.node("one", 1).expect("a node");
        let plane = ControlPlane::start(&lab).expect("a control plane");
        plane.put_all(&[objects::node(&node), objects::namespace("web", &[])]).expect("objects are taken");
        let a = plane.start_pod(&lab, &node, PodSpec::new("web", "a", &[("app", "a")])).expect("a pod");
        let b = plane.start_pod(&lab, &node, PodSpec::new("web", "b", &[("app", "b")])).expect("a pod");
        let server = Server::start(lab.guard(), &b.netns, "b", &[OPEN, SHUT], &[]).expect("a server");
        let account = plane.reader(ACCOUNT, &READABLE).expect("an account");
        let meddler = Meddler::start(&lab, &account).expect("a proxy");
        let mut options = AgentOptions::new(Source::Kubeconfig(meddler.kubeconfig.clone()));
        options.log_level = Some("info,palisade::api=debug".to_owned());
        let mut scene = Self { agent: None, meddler, plane, options, a, b, node, _server: server, lab, marks: 0 };
        change(&scene.plane, 0).expect("objects are taken");
        scene.await_own_service();
        scene.agent = Some(scene.start());
        scene
    }

    /// The API server makes a Service of itself a moment after it is ready. One that is killed before that makes it later, when tables are
    /// compared.
    fn await_own_service(&self) {
        let own =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kubernetes", "namespace": "default"}});
        let end = Instant::now() + DEADLINE;
        while let Err(error) = self.plane.get(&own) {
            assert!(Instant::now() < end, "the API server has no Service of its own: {error:#}");
            sleep(Duration::from_millis(20));
        }
    }

    fn start(&self) -> Agent {
        let mut agent = Agent::spawn(&self.lab, &self.node, &self.options).expect("an agent");
        agent.wait_ready(2 * DEADLINE).expect("it is ready");
        agent
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("one runs")
    }

    fn ready(&self) -> (u16, String) {
        self.agent().http("/readyz").unwrap_or_default()
    }

    /// Connections of every kind to b while `fault` does its work, then a fresh agent as the judge of what was made of it.
    fn after(&mut self, what: &str, fault: impl FnOnce(&mut Self)) {
        let begin = Instant::now();
        let mut traffic = Traffic::default();
        for address in self.b.addresses.clone() {
            for (stream, port) in [(Stream::Kept(1), OPEN), (Stream::New, OPEN), (Stream::ForbiddenNew, SHUT)] {
                traffic.add(&self.a.netns, stream, SocketAddr::new(address, port)).expect("what is allowed passes");
            }
        }
        fault(self);
        let faulty = begin.elapsed();
        self.settle();
        let found = tables(&self.node);
        let tally = traffic.stop();
        let log = || self.agent().log_text();
        assert!(tally.is_right(), "{what}: {tally:#?}\n{}", log());
        assert!(tally.echoes > 0 && tally.opened > 0 && tally.tried > 0, "{what}: {tally:?}");

        let log = log();
        self.agent.take().expect("one runs").kill().expect("it runs");
        let done = palisade(&self.node, &["uninstall"]).expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.agent = Some(self.start());
        // The names of numbers are written a moment later.
        let end = Instant::now() + Duration::from_secs(5);
        while tables(&self.node) != found && Instant::now() < end {
            sleep(Duration::from_millis(20));
        }
        let fresh = tables(&self.node);
        for (table, rows) in &fresh {
            assert_eq!(found.get(table), Some(rows), "{what}: {table} after it, and of a fresh agent; its log:\n{log}");
        }
        println!("{what}: {faulty:.1?}, {:.1?} with a fresh agent", begin.elapsed());
    }

    /// Waits until the agent knows the newest objects of each kind, by what its tables make of some that are made now.
    fn settle(&mut self) {
        self.marks += 1;
        let (mark, port) = (self.marks, 9000 + self.marks);
        let (namespace, address) = (format!("mark-{mark}"), format!("10.244.99.{mark}"));
        let rule =
            format!("from: [{{namespaceSelector: {{matchLabels: {{mark: '{mark}'}}}}}}], ports: [{{port: {port}}}]");
        let policy = format!("{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{{{rule}}}]}}");
        let made = [
            objects::namespace(&namespace, &[("mark", &mark.to_string())]),
            pod_elsewhere(&namespace, "p", &address),
            objects::policy("web", "mark", &policy).expect("a policy"),
            objects::service(
                "web",
                &format!("mark-{mark}"),
                &json!({"ports": [{"port": port}], "selector": {"app": "b"}}),
            ),
        ];
        wait("the API server takes objects again", || self.plane.put_all(&made).is_ok());
        let port = port.to_string();
        let end = Instant::now() + DEADLINE;
        loop {
            let tables = tables(&self.node);
            let has = |table: &str, parts: &[&str]| {
                let is_it = |row: &String| parts.iter().all(|part| row.contains(part));
                tables.get(table).is_some_and(|rows| rows.iter().any(is_it))
            };
            let ready = self.ready().1;
            let seen = [has("RULES", &[&address, &port, "web/mark"]), has("SERVICES", &[&port]), ready == "ok\n"];
            if seen == [true; 3] {
                return;
            }
            let log = || self.agent().log_text();
            assert!(
                Instant::now() < end,
                "not known are rule, Service, or that all is well: {seen:?} {ready}\n{}",
                log()
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Objects change for a while.
    fn churn(&self) {
        let end = Instant::now() + CHURN;
        for turn in 0.. {
            // While the server cannot be asked there is nothing to see, and it is what is tried.
            if change(&self.plane, turn).is_err() {
                sleep(Duration::from_millis(20));
            }
            if Instant::now() > end {
                return;
            }
        }
    }

    /// Objects change until `done`.
    fn churn_while(&mut self, done: impl FnOnce(&mut ControlPlane, &Lab)) {
        let (stop, writer) = (AtomicBool::new(false), self.plane.writer());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0.. {
                    if writer.put_all(&changed(turn)).is_err() {
                        sleep(Duration::from_millis(20));
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            done(&mut self.plane, &self.lab);
            stop.store(true, Ordering::Relaxed);
        });
    }

    fn said(&self, text: &str) -> bool {
        self.agent().log_text().contains(text)
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(20));
    }
}

/// Runs on another node, which is not there.
fn pod_elsewhere(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "client"}},
        "spec": {"nodeName": "elsewhere", "containers": [{"name": "c", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

/// What changes with each turn: who else may reach b, at which ports, and at which addresses they are. a may always reach it at OPEN, and
/// nobody at SHUT.
fn changed(turn: u32) -> Vec<Value> {
    let open = format!("{{ports: [{{port: {OPEN}}}, {{port: {}}}]}}", 1000 + turn % 7);
    let team =
        format!("{{from: [{{namespaceSelector: {{matchLabels: {{team: t{}}}}}}}], ports: [{{port: 7}}]}}", turn % 3);
    let block = format!("{{from: [{{ipBlock: {{cidr: 192.0.2.0/24, except: [192.0.2.{}/32]}}}}]}}", turn % 5);
    let spec = format!("{{podSelector: {{matchLabels: {{app: b}}}}, ingress: [{open}, {team}, {block}]}}");
    vec![
        objects::policy("web", "b", &spec).expect("a policy"),
        objects::namespace("clients", &[("team", &format!("t{}", turn % 2))]),
        pod_elsewhere("clients", &format!("c{}", turn % 4), &format!("10.244.98.{}", turn % 4)),
    ]
}

fn change(plane: &ControlPlane, turn: u32) -> anyhow::Result<()> {
    plane.put_all(&changed(turn))?;
    if turn % 4 == 3 {
        // Its end is missed by whoever does not list anew.
        plane.remove(&pod_elsewhere("clients", &format!("c{}", (turn / 4) % 4), ""))?;
    }
    Ok(())
}

/// The tables as the kernel has them, with names for numbers: a class is its addresses, a set of ports is its ports.
fn tables(node: &Node) -> BTreeMap<&'static str, BTreeSet<String>> {
    let output = palisade(node, &["maps", "-o", "json"]).expect("it runs");
    let Ok(maps) = serde_json::from_slice::<Value>(&output.stdout) else { return BTreeMap::new() };
    let rows = |table: &str| maps[table].as_array().cloned().unwrap_or_default();
    let mut sets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows("PORTS") {
        let port = format!("{} {} by {}", row["protocol"], row["ports"], row["rule"]);
        sets.entry(row["set"].to_string()).or_default().insert(port);
    }
    let ports = |set: &Value| sets.get(&set.to_string()).map_or_else(|| set.to_string(), |set| format!("{set:?}"));
    let mut classes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (table, key) in [("CLASS_EXACT", "address"), ("CLASS_CIDR", "prefix")] {
        for row in rows(table).into_iter().filter(|row| row["class"].is_u64()) {
            classes.entry(row["class"].to_string()).or_default().insert(row[key].to_string());
        }
    }
    let class = |class: &Value| format!("{:?}", classes.get(&class.to_string()));
    let endpoint = |row: Value| {
        let defaults = [&row["ingress_default"], &row["egress_default"]].map(ports);
        let flags: Vec<&Value> =
            row["flags"].as_array().into_iter().flatten().filter(|flag| *flag != "midstream").collect();
        format!("{} at {}: {flags:?} {} {defaults:?}", row["pod"], row["ifindex"], row["addresses"])
    };
    let rule =
        |row: Value| format!("{}: {} {} by {}", row["what"], class(&row["class"]), ports(&row["ports"]), row["rule"]);
    BTreeMap::from([
        ("ENDPOINTS", rows("ENDPOINTS").into_iter().map(endpoint).collect()),
        ("RULES", rows("RULES").into_iter().map(rule).collect()),
        ("PORTS", sets.values().map(|set| format!("{set:?}")).collect()),
        ("CLASSES", classes.values().map(|class| format!("{class:?}")).collect()),
        ("SERVICES", rows("SERVICES").into_iter().map(|row| row.to_string()).collect()),
    ])
}

#[test]
fn whatever_happens_to_the_api_server_the_tables_are_right_afterwards() {
    let mut scene = Scene::new();
    scene.after("the API server is killed", |scene| {
        scene.churn_while(|plane, lab| {
            plane.kill_api_server().expect("it runs");
            sleep(CHURN);
            plane.restart_api_server(lab.guard()).expect("it starts again");
        });
        scene.churn();
    });
    scene.after("etcd is killed", |scene| {
        scene.churn_while(|plane, lab| {
            plane.kill_etcd().expect("it runs");
            sleep(CHURN);
            plane.restart_etcd(lab.guard()).expect("it starts again");
        });
        scene.churn();
    });
    scene.after("what was missed is forgotten", |scene| {
        scene.meddler.begin(Meddling::Cut);
        scene.churn();
        scene.plane.compact().expect("etcd answers");
        scene.plane.kill_api_server().expect("it runs");
        scene.plane.restart_api_server(scene.lab.guard()).expect("it starts again");
        scene.meddler.begin(Meddling::None);
        wait("it is told that its version is gone", || scene.said("HTTP 410"));
    });
    scene.after("the network is bad", |scene| {
        for meddling in [Meddling::Delay(Duration::from_millis(150)), Meddling::Truncate(900), Meddling::Cut] {
            scene.meddler.begin(meddling);
            scene.churn();
        }
        scene.meddler.cut(Meddling::Truncate(5000));
        scene.churn();
        scene.meddler.begin(Meddling::None);
    });
    scene.after("a proxy garbles", |scene| {
        scene.meddler.begin(Meddling::Garble);
        scene.churn();
        wait("it is noticed", || scene.said("ends before its end"));
        scene.meddler.begin(Meddling::None);
    });
    scene.after("a proxy repeats what was said", |scene| {
        scene.meddler.begin(Meddling::Replay);
        scene.churn();
        wait("it is noticed", || scene.said("comes after what is of version"));
        scene.meddler.begin(Meddling::None);
    });
    scene.after("the answers are none", |scene| {
        let empty =
            r#"{"kind": "NetworkPolicyList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}"#;
        let answers = [
            (500, "oops"),
            (503, r#"{"kind": "Status", "code": 503, "details": {"retryAfterSeconds": 1}}"#),
            (200, "<html>Please log in</html>"),
            (200, "{}"),
            // Of another kind for everybody else; a watch has no such lines.
            (200, empty),
            (403, r#"{"kind": "Status", "code": 403, "message": "forbidden: not yet"}"#),
        ];
        for (status, body) in answers {
            scene.meddler.cut(Meddling::Answer { resource: None, status, body });
            scene.churn();
        }
        wait("it is told", || scene.ready().1.contains("ok, but stale"));
        scene.meddler.begin(Meddling::None);
    });
    scene.after("the account loses a right", |scene| {
        scene.plane.reader(ACCOUNT, &READABLE[..4]).expect("it is taken");
        wait("the role counts", || !scene.plane.allows(ACCOUNT, "watch", POLICIES).expect("it answers"));
        scene.meddler.cut(Meddling::None);
        let forbidden = "networkpolicies.networking.k8s.io is forbidden";
        let end = Instant::now() + DEADLINE;
        loop {
            let (status, text) = scene.ready();
            if status == 200 && text.contains("NetworkPolicy since ") && text.contains(forbidden) {
                break;
            }
            assert!(Instant::now() < end, "it is not told which: {status} {text}\n{}", scene.agent().log_text());
            sleep(Duration::from_millis(20));
        }
        assert!(scene.said("this account may not list and watch networkpolicies"));
        wait("the others are seen to change", || !scene.ready().1.contains("Pod since"));
        scene.churn();
        scene.plane.reader(ACCOUNT, &READABLE).expect("it is taken");
    });
}
