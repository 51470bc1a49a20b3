//! Three nodes with pods, Services and a kube-proxy each: one and two are joined by VXLAN, three to both by plain routes
//! (Flannel's host-gw). The API server has all objects; a folder has them without the Services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use palisade_tests::lab::server::Server;
use palisade_tests::lab::tunnel::Tunnel;
use palisade_tests::lab::{
    Agent, AgentOptions, ControlPlane, KubeProxy, Lab, Manifests, Mode, Netns, Node, Pod, PodSpec, Source, objects,
    overlay,
};
use serde_json::Value;

use crate::catalogue::{self, Catalogue, Entry, SERVICE_PORT, TARGET_PORT};

/// How long anything may take that has no bound of its own, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The ends of the tunnel from node one.
const NEAR: [&str; 2] = ["192.0.2.1", "2001:db8:9::1"];
const FAR: [&str; 2] = ["192.0.2.2", "2001:db8:9::2"];

/// Somebody who asks and is asked.
pub struct Place {
    pub netns: Netns,
    pub addresses: [IpAddr; 2],
    /// Container ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Whose node it is, or is on.
    pub node: Option<String>,
    /// Of a pod: the node's side of its veth.
    pub interface: String,
    _server: Server,
}

pub struct World {
    pub places: BTreeMap<String, Place>,
    pub catalogue: Catalogue,
    /// Service → its cluster IPs.
    pub cluster_ips: BTreeMap<String, Vec<IpAddr>>,
    _proxies: Vec<KubeProxy>,
    /// From node one to `far`.
    tunnel: Option<Tunnel>,
    pub plane: ControlPlane,
    /// What there is without Services.
    pub withheld: Manifests,
    pub nodes: [Node; 3],
    pub lab: Lab,
}

impl World {
    pub fn new(mode: Mode) -> Self {
        let lab = Lab::new("services").expect("a lab");
        let nodes =
            [("one", 1), ("two", 2), ("three", 3)].map(|(name, number)| lab.node(name, number).expect("a node"));
        let [one, two, three] = &nodes;
        overlay::join(&[one, two]).expect("an overlay");
        overlay::route(&[three], &[one, two]).expect("routes");
        let plane = ControlPlane::start(&lab).expect("a control plane");
        let withheld = Manifests::new(&lab.folder.join("withheld")).expect("a folder");
        let mut world = Self {
            places: BTreeMap::new(),
            catalogue: catalogue::read(),
            cluster_ips: BTreeMap::new(),
            _proxies: Vec::new(),
            tunnel: None,
            plane,
            withheld,
            nodes,
            lab,
        };
        world.write_namespaces_and_nodes();
        world.start_pods();
        world.start_others();
        world.dig();
        world.write_services();
        let start = |node| KubeProxy::start(&world.lab, node, &world.plane, mode).expect("kube-proxy");
        world._proxies = world.nodes.iter().map(start).collect();
        world
    }

    fn write_namespaces_and_nodes(&self) {
        let namespaces = [("web", "team", "web"), ("ops", "team", "ops"), ("kube-system", "team", "system")];
        for (name, key, value) in namespaces {
            self.put(&objects::namespace(name, &[(key, value)]));
        }
        for node in &self.nodes {
            self.put(&objects::node(node));
            overlay::masquerade(node).expect("rules of nftables");
        }
    }

    fn start_pods(&mut self) {
        let web = |name: &str, http| PodSpec::new("web", name, &[("app", name)]).port("http", "TCP", http);
        let specs = [
            (0, web("a", TARGET_PORT)),
            (0, web("b", TARGET_PORT).host_port(8088, "TCP", TARGET_PORT).host_port(8088, "UDP", TARGET_PORT)),
            (1, web("c", 9090)),
            (2, web("d", TARGET_PORT)),
            (1, PodSpec::new("ops", "e", &[("app", "e")])),
        ];
        for (number, spec) in specs {
            let name = spec.name.clone();
            let pod = self.start_pod(number, spec);
            let server = Server::start(self.lab.guard(), &pod.netns, &name, &[TARGET_PORT, 9090], &[TARGET_PORT, 9090]);
            let place = Place {
                netns: pod.netns.clone(),
                addresses: [pod.ipv4(), pod.ipv6()],
                ports: pod.ports.iter().map(|(name, _, port)| (name.clone(), *port)).collect(),
                node: Some(pod.node.clone()),
                interface: pod.host_interface.clone(),
                _server: server.expect("a server"),
            };
            self.places.insert(name, place);
        }
        for node in &self.nodes {
            // Else the answers of a Service's backend on the client's own bridge would not be translated back.
            node.bridge_netfilter(true).expect("the node has a bridge by now");
        }
    }

    /// Also into the folder, with the UID that the API server gave it.
    pub fn start_pod(&self, node: usize, spec: PodSpec) -> Pod {
        let node = &self.nodes[node];
        let pod = self.plane.start_pod(&self.lab, node, spec).expect("a pod");
        self.withheld.put(&objects::pod(&pod, node)).expect("the folder can be written to");
        pod
    }

    /// Processes of the nodes, and a machine outside, which hands what is for Services to node one.
    fn start_others(&mut self) {
        let guard = self.lab.guard();
        for node in &self.nodes {
            let server = Server::start_on(guard, node, &node.name, &[TARGET_PORT], &[TARGET_PORT]).expect("a server");
            let place = Place {
                netns: node.netns.clone(),
                addresses: node.addresses,
                ports: BTreeMap::new(),
                node: Some(node.name.clone()),
                interface: String::new(),
                _server: server,
            };
            self.places.insert(node.name.clone(), place);
        }
        let far = Netns::create(guard, &format!("{}-far", self.lab.prefix)).expect("a namespace");
        let server = Server::start(guard, &far, "far", &[TARGET_PORT], &[TARGET_PORT]).expect("a server");
        let addresses = FAR.map(|text| text.parse().expect("an address"));
        let place = |netns, addresses, server| Place {
            netns,
            addresses,
            ports: BTreeMap::new(),
            node: None,
            interface: String::new(),
            _server: server,
        };
        self.places.insert("far".into(), place(far, addresses, server));
        let (netns, addresses) = self.lab.outside("out", 200).expect("a machine outside");
        let [v4, v6] = self.nodes[0].addresses;
        let routes = self.catalogue.values().flat_map(Entry::virtual_addresses);
        let routes: Vec<String> =
            routes.map(|to| format!("route add {to} via {}", if to.is_ipv4() { v4 } else { v6 })).collect();
        netns.ip(&routes).expect("routes");
        let server = Server::start(guard, &netns, "out", &[TARGET_PORT, SERVICE_PORT], &[TARGET_PORT, SERVICE_PORT])
            .expect("a server");
        self.places.insert("out".into(), place(netns, addresses, server));
    }

    /// The only way to `far`, by a device without a link header.
    pub fn dig(&mut self) {
        let (node, far) = (&self.nodes[0].netns, &self.places["far"].netns);
        let tunnel = Tunnel::start(self.lab.guard(), [node, far], "tun0").expect("a tunnel");
        let side = |netns: &Netns, [v4, v6]: [&str; 2], more: &[String]| {
            let lines =
                ["link set tun0 up".into(), format!("addr add {v4}/24 dev tun0"), format!("addr add {v6}/64 dev tun0")];
            netns.ip(&[&lines, more].concat()).expect("it has the device");
        };
        let [v4, v6] = NEAR;
        side(far, FAR, &[format!("route add default via {v4}"), format!("route add default via {v6}")]);
        side(node, NEAR, &[]);
        self.tunnel = Some(tunnel);
    }

    /// Takes the device away.
    pub fn fill(&mut self) {
        self.tunnel = None;
    }

    fn write_services(&mut self) {
        for (name, entry) in &self.catalogue {
            let Some(service) = entry.service(name) else { continue };
            self.plane.put(&service).expect("a Service");
            self.plane.put_all(&entry.slices(&service, &self.places)).expect("its slices");
            let stored = self.plane.get(&service).expect("it is there");
            if !entry.headless() {
                let addresses = serde_json::from_value(stored["spec"]["clusterIPs"].clone());
                self.cluster_ips.insert(name.clone(), addresses.expect("a Service has cluster IPs"));
            }
        }
    }

    /// To the API server and into the folder.
    pub fn put(&self, object: &Value) {
        self.plane.put(object).expect("objects are taken");
        self.withheld.put(object).expect("the folder can be written to");
    }

    pub fn remove(&self, object: &Value) {
        self.plane.remove(object).expect("it is there");
        self.withheld.remove(object).expect("it is there");
    }

    /// One on each node. Those that know Services read the API server, the others the folder.
    pub fn start_agents(&self, knowing_services: bool) -> Vec<Agent> {
        let source = if knowing_services {
            Source::Kubeconfig(self.plane.kubeconfig.clone())
        } else {
            Source::Manifests(self.withheld.folder.clone())
        };
        let mut agents = self.spawn_agents(source);
        agents.iter_mut().for_each(|agent| agent.wait_ready(PATIENCE).expect("it enforces"));
        agents
    }

    /// The same without waiting for anything.
    pub fn spawn_agents(&self, source: Source) -> Vec<Agent> {
        let options = AgentOptions::new(source);
        self.nodes.iter().map(|node| Agent::spawn(&self.lab, node, &options).expect("an agent")).collect()
    }

    /// `$b.v4` and so on in the spec are addresses of places.
    pub fn policy(&self, name: &str, spec: &str) -> Value {
        let mut spec = spec.to_owned();
        for (name, place) in &self.places {
            for (family, address) in ["v4", "v6"].iter().zip(place.addresses) {
                spec = spec.replace(&format!("${name}.{family}"), &address.to_string());
            }
        }
        assert!(!spec.contains('$'), "a name is not known: {spec}");
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        objects::policy(namespace, name, &spec).expect("YAML")
    }

    /// Puts these policies in the place of those, and waits until the agents have taken that in.
    pub fn change_policies(&self, agents: &[Agent], old: &[Value], new: &[Value]) {
        let before: Vec<u64> = agents.iter().map(|agent| agent.updates().expect("it answers")).collect();
        let changed: Vec<&Value> = new.iter().filter(|policy| !old.contains(policy)).collect();
        let same_name = |policy: &Value| new.iter().any(|other| other["metadata"] == policy["metadata"]);
        let gone: Vec<&Value> = old.iter().filter(|policy| !same_name(policy)).collect();
        changed.iter().for_each(|policy| self.put(policy));
        gone.iter().for_each(|policy| self.remove(policy));
        let changes = u64::try_from(changed.len() + gone.len()).expect("few");
        for (agent, before) in agents.iter().zip(before) {
            agent.wait_updates(before + changes, PATIENCE).expect("the policies are taken in");
        }
    }
}
