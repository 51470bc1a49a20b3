//! Two nodes joined by VXLAN, pods on both, a machine outside, and an agent on each; policies of every kind of peer and port.

use std::net::IpAddr;

use palisade_tests::lab::agent::palisade_command;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Lab, Manifests, Netns, Node, PodSpec, objects, overlay};
use serde_json::{Value, json};

/// Every pod serves these, under these names.
pub const PORTS: [(&str, &str, u16); 4] =
    [("http", "TCP", 80), ("alt", "TCP", 81), ("admin", "TCP", 8080), ("dns", "UDP", 53)];

const POLICIES: &[(&str, &str)] = &[
    (
        "db-from-api",
        "\
podSelector: {matchLabels: {app: db}}
policyTypes: [Ingress, Egress]
ingress:
- from: [{podSelector: {matchLabels: {app: api}}}]
  ports: [{protocol: TCP, port: http}, {protocol: TCP, port: 8080}]
- from: [{namespaceSelector: {matchLabels: {team: ops}}}]
",
    ),
    (
        "api-to-db",
        "\
podSelector: {matchLabels: {app: api}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {app: db}}}]
  ports: [{protocol: TCP, port: 80, endPort: 81}, {protocol: UDP, port: dns}]
- to: [{ipBlock: {cidr: 10.244.2.0/24, except: [10.244.2.3/32]}}]
",
    ),
    (
        "web-from-outside",
        "\
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{ipBlock: {cidr: 172.30.0.0/16}}, {ipBlock: {cidr: 'fd00:30::/64'}}]
  ports: [{protocol: TCP}]
",
    ),
];

/// Somebody who asks and is asked.
pub struct Place {
    /// As the commands are asked.
    pub name: String,
    pub netns: Netns,
    pub addresses: [IpAddr; 2],
    /// Which of the nodes it is on.
    pub node: Option<usize>,
    _server: Server,
}

pub struct World {
    pub places: Vec<Place>,
    pub agents: Vec<Agent>,
    _manifests: Manifests,
    pub nodes: [Node; 2],
    pub lab: Lab,
}

impl World {
    pub fn new() -> Self {
        let lab = Lab::new("show").expect("a lab");
        let nodes = [lab.node("one", 1).expect("a node"), lab.node("two", 2).expect("a node")];
        overlay::join(&[&nodes[0], &nodes[1]]).expect("an overlay");
        let manifests = Manifests::new(&lab.folder.join("manifests")).expect("a folder");
        let put = |object: &Value| manifests.put(object).expect("the folder can be written to");
        nodes.iter().for_each(|node| put(&objects::node(node)));
        put(&objects::namespace("shop", &[]));
        put(&objects::namespace("ops", &[("team", "ops")]));
        let specs = [
            (0, "shop", "web", "web"),
            (0, "shop", "api", "api"),
            (0, "shop", "db", "db"),
            (1, "shop", "db-far", "db"),
            (1, "ops", "prometheus", "prometheus"),
        ];
        let tcp: Vec<u16> = PORTS.iter().filter(|port| port.1 == "TCP").map(|port| port.2).collect();
        let mut places = Vec::new();
        for (node, namespace, name, app) in specs {
            let spec = PodSpec::new(namespace, name, &[("app", app)]);
            let spec = PORTS.iter().fold(spec, |spec, (name, protocol, port)| spec.port(name, protocol, *port));
            let pod = nodes[node].start_pod(&lab, spec).expect("a pod");
            put(&objects::pod(&pod, &nodes[node]));
            let server = Server::start(lab.guard(), &pod.netns, name, &tcp, &[53]).expect("a server");
            places.push(Place {
                name: pod.full_name(),
                netns: pod.netns.clone(),
                addresses: [pod.ipv4(), pod.ipv6()],
                node: Some(node),
                _server: server,
            });
        }
        let (netns, addresses) = lab.outside("out", 200).expect("a machine outside");
        let server = Server::start(lab.guard(), &netns, "out", &tcp, &[53]).expect("a server");
        places.push(Place { name: "out".to_owned(), netns, addresses, node: None, _server: server });
        for (name, spec) in POLICIES {
            put(&objects::policy("shop", name, spec).expect("YAML"));
        }
        let ports = json!({"selector": {"app": "db"}, "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "targetPort": "http"}]});
        put(&objects::service("shop", "db", &ports));
        let options = AgentOptions::manifests(&manifests.folder).argument("--drift-every=1s");
        let agents = nodes.iter().map(|node| Agent::start(&lab, node, &options).expect("an agent")).collect();
        // Names are known as soon as an agent says that it is ready.
        Self { places, agents, _manifests: manifests, nodes, lab }
    }

    pub fn place(&self, name: &str) -> &Place {
        self.places.iter().find(|place| place.name == name).expect("it is there")
    }

    /// Exit code, standard output and standard error of a command on a node.
    pub fn palisade(&self, node: usize, arguments: &[&str]) -> (i32, String, String) {
        let output = palisade_command(&self.nodes[node], arguments).expect("a command").output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }
}
