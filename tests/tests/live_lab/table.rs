//! The table of policies and who reaches whom: one lab of two nodes, the rows one after another, from a folder and from
//! a real API server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_tests::lab::probe::{DEADLINE, Probe};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{
    Agent, AgentOptions, ControlPlane, Lab, Manifests, Netns, Node, Outcome, Pod, PodSpec, Transport, objects, overlay,
    raw,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::scene::{AT_ONCE, PATIENCE, await_updates, updates};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    #[serde(default)]
    api: bool,
    /// `namespace/name` → spec.
    policies: BTreeMap<String, Value>,
    /// Pod or namespace → its labels in this row.
    #[serde(default)]
    labels: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    closed: Vec<String>,
    open: Vec<String>,
}

#[derive(Clone, Copy)]
enum Way {
    Tcp(u16),
    Udp(u16),
    Sctp(u16),
    Echo,
}

struct Question {
    text: String,
    from: Netns,
    to: (Netns, IpAddr, String),
    way: Way,
    open: bool,
}

/// Somebody who asks and is asked.
struct Place {
    netns: Netns,
    addresses: [IpAddr; 2],
    _server: Server,
}

/// What the agents read.
enum Objects {
    Folder(Manifests),
    Cluster(Box<ControlPlane>),
}

struct World {
    places: BTreeMap<&'static str, Place>,
    /// Objects whose labels rows change: pods and namespaces by their names in the table.
    labelled: BTreeMap<&'static str, Value>,
    agents: Vec<Agent>,
    objects: Objects,
    nodes: [Node; 2],
    lab: Lab,
}

#[test]
fn the_table_from_a_folder() {
    let rows = rows();
    assert!(rows.len() >= 40, "{} rows", rows.len());
    play(World::new(false), &rows);
}

#[test]
fn the_table_from_an_api_server() {
    let rows: Vec<Row> = rows().into_iter().filter(|row| row.api).collect();
    assert!(rows.len() >= 10, "{} rows", rows.len());
    play(World::new(true), &rows);
}

fn rows() -> Vec<Row> {
    serde_norway::from_str(include_str!("rows.yaml")).expect("the table is YAML")
}

fn play(world: World, rows: &[Row]) {
    let mut failures = Vec::new();
    let mut there = BTreeMap::new();
    for row in rows {
        there = world.make(row, there);
        let wrong = world.check(row);
        if !wrong.is_empty() {
            failures.push(format!("{}:\n    {}", row.name, wrong.join("\n    ")));
        }
    }
    let logs: Vec<String> = world.agents.iter().map(Agent::log_text).collect();
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), logs.join("\n"));
}

// === impl World ===

impl World {
    fn new(cluster: bool) -> Self {
        let lab = Lab::new("table").expect("a lab");
        let nodes = [lab.node("one", 1).expect("a node"), lab.node("two", 2).expect("a node")];
        overlay::join(&[&nodes[0], &nodes[1]]).expect("an overlay");
        let objects = if cluster {
            Objects::Cluster(Box::new(ControlPlane::start(&lab).expect("a control plane")))
        } else {
            Objects::Folder(Manifests::new(&lab.folder.join("manifests")).expect("a folder"))
        };
        let labelled = BTreeMap::from([
            ("web", objects::namespace("web", &[("team", "web")])),
            ("ops", objects::namespace("ops", &[("team", "ops"), ("env", "")])),
        ]);
        let places = BTreeMap::new();
        let mut world = Self { places, labelled, agents: Vec::new(), objects, nodes, lab };
        for object in [objects::node(&world.nodes[0]), objects::node(&world.nodes[1])] {
            world.put(&object);
        }
        for object in world.labelled.values() {
            world.put(object);
        }
        world.start_pods();
        for (name, number) in [("one", 0), ("two", 1)] {
            let node = &world.nodes[number];
            let place = world.place(&node.netns, node.addresses, name);
            world.places.insert(name, place);
        }
        let (outside, addresses) = world.lab.outside("out", 200).expect("a machine outside");
        let place = world.place(&outside, addresses, "out");
        world.places.insert("out", place);
        world.put(&host_network_pod(&world.nodes[1]));
        let options = match &world.objects {
            Objects::Folder(manifests) => AgentOptions::manifests(&manifests.folder),
            Objects::Cluster(plane) => {
                AgentOptions::new(palisade_tests::lab::Source::Kubeconfig(plane.kubeconfig.clone()))
            }
        };
        world.agents =
            world.nodes.iter().map(|node| Agent::start(&world.lab, node, &options).expect("an agent")).collect();
        world
    }

    fn start_pods(&mut self) {
        let web_a = PodSpec::new("web", "a", &[("app", "a"), ("tier", "front")]);
        let specs = [
            (0, "a", web_a.port("http", "TCP", 80).port("dns", "UDP", 53)),
            (0, "b", PodSpec::new("web", "b", &[("app", "b")]).port("http", "TCP", 8080)),
            (1, "c", PodSpec::new("web", "c", &[("app", "c"), ("tier", "back")]).port("http", "TCP", 80)),
            (0, "d", PodSpec::new("ops", "d", &[("app", "d")])),
            (1, "e", PodSpec::new("ops", "e", &[("app", "a"), ("tier", "")]).port("http", "TCP", 8080)),
        ];
        for (number, name, spec) in specs {
            let node = &self.nodes[number];
            let pod: Pod = match &self.objects {
                Objects::Folder(_) => node.start_pod(&self.lab, spec),
                Objects::Cluster(plane) => plane.start_pod(&self.lab, node, spec),
            }
            .expect("a pod");
            let object = objects::pod(&pod, node);
            self.put(&object);
            let place = self.place(&pod.netns, [pod.ipv4(), pod.ipv6()], name);
            self.labelled.insert(name, object);
            self.places.insert(name, place);
        }
    }

    fn place(&self, netns: &Netns, addresses: [IpAddr; 2], name: &str) -> Place {
        let server = Server::start(self.lab.guard(), netns, name, &[80, 81, 8080], &[53, 54]).expect("a server");
        Place { netns: netns.clone(), addresses, _server: server }
    }

    fn put(&self, object: &Value) {
        match &self.objects {
            Objects::Folder(manifests) => manifests.put(object),
            Objects::Cluster(plane) => plane.put(object),
        }
        .expect("objects are taken");
    }

    fn remove(&self, object: &Value) {
        match &self.objects {
            Objects::Folder(manifests) => manifests.remove(object),
            Objects::Cluster(plane) => plane.remove(object),
        }
        .expect("objects can be removed");
    }

    /// The objects as the row wants them, by kind and name; only what differs from what is there is written.
    fn make(&self, row: &Row, there: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
        let mut wanted = BTreeMap::new();
        for (name, object) in &self.labelled {
            let mut object = object.clone();
            if let Some(labels) = row.labels.get(*name) {
                object["metadata"]["labels"] = json!(labels);
                if object["kind"] == "Namespace" {
                    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = (*name).into();
                }
            }
            wanted.insert((*name).to_owned(), object);
        }
        for (name, spec) in &row.policies {
            let (namespace, policy) = name.split_once('/').expect("namespace/name");
            let spec = self.with_addresses(&spec.to_string());
            wanted.insert(name.clone(), objects::policy(namespace, policy, &spec).expect("JSON is YAML"));
        }
        let first = there.is_empty();
        let before: Vec<u64> = self.agents.iter().map(updates).collect();
        let mut changes = 0;
        for object in there.iter().filter(|(name, _)| !wanted.contains_key(*name)).map(|(_, object)| object) {
            self.remove(object);
            changes += 1;
        }
        for object in wanted.iter().filter(|(name, object)| there.get(*name) != Some(object)).map(|(_, object)| object)
        {
            self.put(object);
            // What the first row wants of pods and namespaces is there already, and is not told again.
            changes += u64::from(!first || object["kind"] == "NetworkPolicy");
        }
        for (agent, before) in self.agents.iter().zip(before) {
            await_updates(agent, before, changes, &row.name);
        }
        wanted
    }

    fn with_addresses(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, place) in &self.places {
            for (family, address) in ["v4", "v6"].iter().zip(place.addresses) {
                text = text.replace(&format!("${name}.{family}"), &address.to_string());
            }
        }
        assert!(!text.contains('$'), "a name is not known: {text}");
        text
    }

    /// What is not as the row says, after it had time to become so.
    fn check(&self, row: &Row) -> Vec<String> {
        let closed = row.closed.iter().flat_map(|line| self.questions(line, false));
        let mut questions: Vec<Question> =
            closed.chain(row.open.iter().flat_map(|line| self.questions(line, true))).collect();
        let end = Instant::now() + PATIENCE;
        loop {
            let answers: Vec<Result<(), String>> = std::thread::scope(|scope| {
                let threads: Vec<_> = questions.iter().map(|question| scope.spawn(|| question.ask())).collect();
                threads.into_iter().map(|thread| thread.join().expect("a probe does not panic")).collect()
            });
            let mut left = answers.iter();
            questions.retain(|_| left.next().is_some_and(Result::is_err));
            let wrong: Vec<String> = answers.into_iter().filter_map(Result::err).collect();
            if wrong.is_empty() || Instant::now() > end {
                return wrong;
            }
        }
    }

    fn questions(&self, line: &str, open: bool) -> Vec<Question> {
        let (from, rest) = line.split_once("->").expect("FROM -> TO WAY");
        let (mut to, mut ways, mut families) = (Vec::new(), Vec::new(), vec![0, 1]);
        for word in rest.split_whitespace() {
            match word.split_once('/') {
                Some(("tcp", port)) => ways.push(Way::Tcp(port.parse().expect("a port"))),
                Some(("udp", port)) => ways.push(Way::Udp(port.parse().expect("a port"))),
                Some(("sctp", port)) => ways.push(Way::Sctp(port.parse().expect("a port"))),
                Some(other) => panic!("{other:?} is no way"),
                None if word == "icmp" => ways.push(Way::Echo),
                None if word == "v4" => families = vec![0],
                None if word == "v6" => families = vec![1],
                None => to.push(word),
            }
        }
        let mut questions = Vec::new();
        for from in from.split_whitespace() {
            for to in to.iter().filter(|to| **to != from) {
                for (way, family) in ways.iter().flat_map(|way| families.iter().map(move |family| (*way, *family))) {
                    let target = &self.places[to];
                    let address = target.addresses[family];
                    let way_text = match way {
                        Way::Tcp(port) => format!("tcp/{port}"),
                        Way::Udp(port) => format!("udp/{port}"),
                        Way::Sctp(port) => format!("sctp/{port}"),
                        Way::Echo => "echo".to_owned(),
                    };
                    questions.push(Question {
                        text: format!("{from} -> {to} {way_text} at {address}"),
                        from: self.places[from].netns.clone(),
                        to: (target.netns.clone(), address, (*to).to_owned()),
                        way,
                        open,
                    });
                }
            }
        }
        questions
    }
}

// === impl Question ===

impl Question {
    /// What came instead of what was expected.
    fn ask(&self) -> Result<(), String> {
        // Refusal is silence: a short one, as a repeated SYN would hide that the first was dropped.
        let deadline: Duration = if self.open { DEADLINE } else { AT_ONCE };
        let (netns, address, name) = &self.to;
        let of_raw = |arrived: anyhow::Result<bool>| match arrived {
            Ok(true) => Outcome::Reached(name.clone()),
            Ok(false) => Outcome::TimedOut,
            Err(error) => Outcome::Unreachable(format!("{error:#}")),
        };
        let outcome = match self.way {
            Way::Tcp(port) => Probe::new(&self.from, Transport::Tcp, *address, port).ask_within(deadline),
            Way::Udp(port) => Probe::new(&self.from, Transport::Udp, *address, port).ask_within(deadline),
            Way::Sctp(port) => {
                let init = raw::sctp_init(4000, port);
                of_raw(raw::arrives(&self.from, (netns, *address), raw::SCTP, &init, deadline))
            }
            Way::Echo => of_raw(raw::ping(&self.from, *address, deadline)),
        };
        let wanted = if self.open { Outcome::Reached(name.clone()) } else { Outcome::TimedOut };
        if outcome == wanted { Ok(()) } else { Err(format!("{}: {outcome}, expected: {wanted}", self.text)) }
    }
}

/// It has the addresses that its node's processes are seen with elsewhere.
fn host_network_pod(node: &Node) -> Value {
    let addresses = ["10.244.2.0", "fd00:244:2::"];
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "web", "name": "host", "labels": {"app": "a", "tier": ""}, "uid": "host"},
        "spec": {"nodeName": node.name, "hostNetwork": true, "containers": [{"name": "server", "image": "none"}]},
        "status": {
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": [{"ip": addresses[0]}, {"ip": addresses[1]}],
            "hostIP": node.addresses[0],
        },
    })
}
