//! Random Services and host ports, and what the node makes of packets to them: any translation, whether kube-proxy would do it or not.

use serde_json::{Map, Value, json};

use super::Dice;
use super::cluster::{Cluster, KEYS, NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS, VALUES};
use super::traffic::{end, stranger};

/// Node ports and host ports.
const NODE_PORTS: [u16; 3] = [30080, 30081, 443];
/// How many Services there are at most; their addresses overlap now and then.
const SERVICES: usize = 4;
const NODES: [[&str; 2]; 2] = [["192.168.0.1", "fd01::1"], ["192.168.0.2", "fd01::2"]];
const OWN: &str = "own 192.168.0.1 fd01::1";

/// What can be asked of a Service that is there, or was.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    /// Of both families.
    addresses: Vec<String>,
    /// Protocol as in a packet's line, port, node port.
    ports: Vec<(&'static str, u16, Option<u16>)>,
}

/// A destination that may be translated, and what it then is.
pub struct Translated {
    pub source: String,
    pub destination: String,
    pub kind: (&'static str, u16),
    pub six: bool,
    /// The words that [`crate::case`] reads behind a flow's family.
    pub way: String,
}

impl Cluster {
    pub(super) fn service_objects(&mut self, dice: &mut Dice) -> Vec<Value> {
        let mut objects = vec![json!(OWN)];
        for _ in 0..1 + dice.below(SERVICES) {
            objects.push(self.service(dice));
        }
        objects
    }

    /// A new Service, or an old one that becomes another.
    pub(super) fn service(&mut self, dice: &mut Dice) -> Value {
        let number = dice.below(SERVICES);
        let name = format!("{}/s{number}", NAMESPACES[number % NAMESPACES.len()]);
        let (mut spec, addresses) = addresses(number, dice);
        let mut ports = Vec::new();
        let mut entries: Vec<Value> = Vec::new();
        for _ in 0..1 + dice.below(3) {
            let (protocol, port) = (*dice.pick(&PROTOCOLS), *dice.pick(&PORTS));
            let node_port = dice.percent(30).then(|| *dice.pick(&NODE_PORTS));
            entries.push(entry(protocol, port, node_port, dice));
            ports.push((kind(protocol), port, node_port));
        }
        spec.insert("ports".to_owned(), json!(entries));
        if dice.percent(85) {
            spec.insert("selector".to_owned(), json!({*dice.pick(&KEYS): dice.pick(&VALUES)}));
        }
        self.services.retain(|service| service.name != name);
        self.services.push(Service { name: name.clone(), addresses, ports });
        json!({format!("service {name}"): spec})
    }

    pub(super) fn delete_service(&mut self, dice: &mut Dice) -> Option<Value> {
        if self.services.is_empty() {
            return None;
        }
        let service = self.services.remove(dice.below(self.services.len()));
        Some(json!(format!("delete service {}", service.name)))
    }

    /// Which addresses are the node's own; a Service's may be among them, as with a cache on the node.
    pub(super) fn own(&self, dice: &mut Dice) -> Value {
        if dice.percent(50) { json!(OWN) } else { json!(format!("{OWN} 10.96.0.1 fd00:96::1 10.96.0.2 169.254.20.10")) }
    }

    /// A word of a pod: a port of its node.
    pub(super) fn host_port(dice: &mut Dice) -> String {
        let address = if dice.percent(40) { "@192.168.0.1" } else { "" };
        format!(" host:{}={}/{}{address}", dice.pick(&NODE_PORTS), dice.pick(&PORTS), dice.pick(&PROTOCOLS))
    }

    /// A flow to a Service or to a port of a node, mostly of a pod of this node.
    pub(super) fn to_service(&self, dice: &mut Dice) -> Option<Translated> {
        if self.services.is_empty() {
            return None;
        }
        let here = self.any(dice, true)?;
        let six = here.six && dice.percent(50);
        let service = dice.pick(&self.services);
        let (protocol, port, node_port) = *dice.pick(&service.ports);
        let own: Vec<&String> = service.addresses.iter().filter(|address| address.contains(':') == six).collect();
        let node_port = node_port.or_else(|| dice.percent(10).then(|| *dice.pick(&NODE_PORTS)));
        let (destination, port) = match node_port {
            Some(node_port) if own.is_empty() || dice.percent(60) => {
                (dice.pick(&NODES)[usize::from(six)].to_owned(), node_port)
            }
            _ if own.is_empty() => return None,
            _ => ((*dice.pick(&own)).clone(), port),
        };
        let source = match dice.below(10) {
            0 => stranger(dice, six).to_owned(),
            1 => "node".to_owned(),
            _ => here.name.clone(),
        };
        let local = self.any(dice, true).filter(|pod| !six || pod.six).map(|pod| pod.name);
        let remote = self.any(dice, false).filter(|pod| !six || pod.six).map(|pod| pod.name);
        // What does not come from a pod of this node is only seen where it arrives at one.
        let backend = match if source == here.name { dice.below(12) } else { 0 } {
            0..=4 => local?,
            5 | 6 => source.clone(),
            7 | 8 => remote?,
            9 => stranger(dice, six).to_owned(),
            10 => dice.pick(&NODES)[usize::from(six)].to_owned(),
            _ => String::new(),
        };
        let way = way(&source, &backend, six, dice);
        Some(Translated { source, destination, kind: (protocol, port), six, way })
    }

    /// A packet to a Service, and another that bears its sender's mark, or that of an interface that may be gone.
    pub(super) fn marks(&self, dice: &mut Dice) -> Vec<String> {
        let Some(Translated { source, destination, kind: (protocol, port), six, .. }) = self.to_service(dice) else {
            return Vec::new();
        };
        let Some(other) = self.any(dice, true).filter(|pod| !six || pod.six).map(|pod| pod.name) else {
            return Vec::new();
        };
        let by = if dice.percent(70) && self.reachable(&source, six) {
            source.clone()
        } else {
            format!("if{}", 10 + dice.below(12))
        };
        let from = if self.reachable(&source, six) { source } else { other.clone() };
        let (own, peer) = (end(&from, six, Some(4002)), stranger(dice, six));
        let far = if dice.percent(50) { destination.clone() } else { peer.to_owned() };
        let (vip, seen) = (end(&destination, six, Some(port)), end(&far, six, Some(*dice.pick(&PORTS))));
        let here = end(&other, six, Some(*dice.pick(&PORTS)));
        let id = dice.below(50);
        let pieces = [format!("data=1472 frag=0+ fid={id}"), format!("data=80 frag=1480 fid={id}")];
        let packet = |to: &str, words: &str| format!("{protocol} {own} > {to} {words}");
        let way = *dice.pick(&["out", "in", "to"]);
        let arrives = |words: &str| match way {
            "to" => format!("to {other} {} mark={by}", packet(&here, words)),
            way => format!("{way} {by} {}", packet(&seen, words)),
        };
        match dice.below(7) {
            0 => vec![format!("out if{} {}", 10 + dice.below(12), packet(&vip, "data=5"))],
            1 | 2 => {
                let [first, last] = pieces;
                let both = |words: &str| vec![format!("from {from} {}", packet(&vip, words)), arrives(words)];
                [both(&first), both(&last)].concat()
            }
            3 => vec![format!("from {from} {}", packet(&vip, "data=5")), arrives("cut=30")],
            4 => vec![arrives("data=5")],
            _ => vec![format!("from {from} {}", packet(&vip, "data=5")), arrives("data=5"), arrives("data=6")],
        }
    }
}

/// The part of a Service that says where it is, and its addresses.
fn addresses(number: usize, dice: &mut Dice) -> (Map<String, Value>, Vec<String>) {
    let mut spec = Map::new();
    let mut own = Vec::new();
    let number = if dice.percent(10) { dice.below(SERVICES) } else { number } + 1;
    match dice.below(20) {
        0 => drop(spec.insert("clusterIP".to_owned(), json!("None"))),
        1 => {
            spec.insert("type".to_owned(), json!("ExternalName"));
            spec.insert("externalName".to_owned(), json!("elsewhere.example"));
        }
        kind => {
            own = vec![format!("10.96.0.{number}"), format!("fd00:96::{number}")];
            own.truncate(if kind < 6 { 1 } else { 2 });
            spec.insert("clusterIP".to_owned(), json!(own[0]));
            spec.insert("clusterIPs".to_owned(), json!(own));
        }
    }
    if dice.percent(15) {
        let external = [format!("198.51.100.{}", 1 + dice.below(2)), "2001:db8:e::1".to_owned()];
        spec.insert("externalIPs".to_owned(), json!(external));
        own.extend(external);
    }
    if dice.percent(15) {
        let mut entry = json!({"ip": "203.0.113.1"});
        if dice.percent(60) {
            entry["ipMode"] = json!(dice.pick(&["VIP", "Proxy"]));
        }
        spec.insert("status".to_owned(), json!({"loadBalancer": {"ingress": [entry]}}));
        own.push("203.0.113.1".to_owned());
    }
    (spec, own)
}

fn entry(protocol: &str, port: u16, node_port: Option<u16>, dice: &mut Dice) -> Value {
    let mut entry = json!({"port": port});
    if protocol != "TCP" || dice.percent(50) {
        entry["protocol"] = json!(protocol);
    }
    match dice.below(10) {
        0..=3 => entry["targetPort"] = json!(dice.pick(&PORT_NAMES)),
        4..=7 => entry["targetPort"] = json!(dice.pick(&PORTS)),
        _ => {}
    }
    if let Some(node_port) = node_port {
        entry["nodePort"] = json!(node_port);
    }
    entry
}

fn kind(protocol: &str) -> &'static str {
    match protocol {
        "UDP" => "udp",
        "SCTP" => "sctp",
        _ => "tcp",
    }
}

/// Who is reached, if it is not who is addressed, and as whom.
fn way(source: &str, backend: &str, six: bool, dice: &mut Dice) -> String {
    let mut way = if six { "v6" } else { "v4" }.to_owned();
    if backend.is_empty() {
        return way;
    }
    let port = *dice.pick(&PORTS);
    // The name of a pod has no family of its own.
    way += &if backend.contains(':') { format!(" via [{backend}]:{port}") } else { format!(" via {backend}:{port}") };
    let hairpin = source == backend;
    if hairpin || dice.percent(20) {
        let remote = NODES[1][usize::from(six)];
        way += &format!(" masq {}", if hairpin || dice.percent(60) { "node" } else { remote });
    }
    way
}
