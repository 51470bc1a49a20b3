//! Facts as text, for tests: one change a line.
//!
//!     ns a team=x                       namespace; `trusted` trusts its pods
//!     pod a/web#u1 ip=10.0.0.1,fd00::1 node=n port=http/TCP/80 app=web      `finished`, `host`, hostport=TCP/80 or TCP/80/IP
//!     policy a/p app=web in(PEERS|PORTS) out()      subject `.` is everybody; `in()` isolates and allows nothing
//!     veth 5 mac=5 ip=10.0.0.1/24 pod=a/web#u1      `older`, `new` (its CNI result will come); the MAC's last byte
//!     service a/web ip=10.96.0.1,fd00:96::1 port=TCP/80/30080/8080 app=web     node port 0: none; target port or its name; labels: selector
//!     own 10.0.0.1 fd00::1              the node's addresses, all of them
//!     node n1 · relist KIND · relisted KIND · complete · -pod a/web#u1 (gone; so with all others)
//!
//! PEERS: `*` missing, `-` an empty list, else joined by `+`: `SELECTOR` in the policy's namespace, `SELECTOR//SELECTOR`
//! namespaces and pods, `@CIDR!EXCEPT!…`. PORTS: `*`, `-`, else joined by `;`: `TCP`, `TCP/80`, `TCP/80-90`, `TCP/http`.
//! SELECTOR: `.` everything, else joined by `,`: `k=v`, `k=v^w`, `k!=v`, `k`, `!k`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Index;
use crate::facts::*;

pub(crate) const NODE: &str = "n";

pub(crate) fn index(lines: &str) -> Index {
    let mut index = Index::new(NODE);
    apply(&mut index, lines);
    index
}

/// Applies lines, separated by line ends.
pub(crate) fn apply(index: &mut Index, lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let verb = words.next().expect("a line that is not empty has a word");
        let rest: Vec<&str> = words.collect();
        let (gone, kind) = verb.strip_prefix('-').map_or((false, verb), |kind| (true, kind));
        match kind {
            "ns" => index.apply(namespace(&rest, gone)),
            "pod" => index.apply(pod(&rest, gone)),
            "policy" => index.apply(policy(&rest, gone)),
            "node" => {
                let facts = NodeFacts { name: rest[0].into(), addresses: vec![], pod_cidrs: vec![] };
                index.apply(Change::Node(rest[0].into(), (!gone).then_some(facts)));
            }
            "veth" => index.apply_veth(veth(&rest, gone)),
            "service" => index.apply(service(&rest, gone)),
            "own" => index.apply_addresses(rest.iter().map(|ip| ip.parse().expect("an address")).collect()),
            "relist" => index.apply(Change::Relist(kind_of(rest[0]))),
            "relisted" => index.apply(Change::Relisted(kind_of(rest[0]))),
            "complete" => Kind::ALL.into_iter().for_each(|kind| index.apply(Change::Relisted(kind))),
            other => panic!("no such line: {other}"),
        }
    }
}

fn kind_of(name: &str) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.name() == name).expect("a kind by its name")
}

fn namespace(words: &[&str], gone: bool) -> Change {
    let (trusted, labels) = words[1..].iter().partition::<Vec<&str>, _>(|word| **word == "trusted");
    let facts = NamespaceFacts { name: words[0].into(), labels: labels_of(&labels), trusted: !trusted.is_empty() };
    Change::Namespace(words[0].into(), (!gone).then_some(facts))
}

fn labels_of(words: &[&str]) -> Labels {
    let labels = words.iter().map(|word| word.split_once('=').expect("a label is key=value"));
    Arc::new(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn name_of(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').expect("a name is namespace/name");
    ObjectName::new(namespace, name)
}

fn protocol_of(name: &str) -> Protocol {
    Protocol::ALL.into_iter().find(|protocol| protocol.name() == name).expect("a protocol by its name")
}

fn pod(words: &[&str], gone: bool) -> Change {
    let (name, uid) = words[0].split_once('#').unwrap_or((words[0], words[0]));
    let name = name_of(name);
    let mut facts = PodFacts {
        name: name.clone(),
        uid: uid.into(),
        labels: Labels::default(),
        addresses: vec![],
        ports: Arc::default(),
        host_ports: Arc::default(),
        node: None,
        host_network: false,
        finished: false,
    };
    let (mut labels, mut ports) = (vec![], BTreeSet::new());
    for word in &words[1..] {
        match word.split_once('=') {
            Some(("ip", list)) => facts.addresses = list.split(',').map(|ip| ip.parse().expect("an address")).collect(),
            Some(("hostport", port)) => {
                let mut parts = port.split('/');
                let (protocol, port) = (protocol_of(parts.next().expect("a protocol")), parts.next().expect("a port"));
                let address = parts.next().map(|ip| ip.parse().expect("an address"));
                let port = HostPort { protocol, port: port.parse().expect("a port"), address };
                Arc::make_mut(&mut facts.host_ports).insert(port);
            }
            Some(("node", node)) => facts.node = Some(node.into()),
            Some(("port", port)) => {
                let [name, protocol, port] = port.split('/').collect::<Vec<_>>()[..] else { panic!("{port}") };
                let (protocol, port) = (protocol_of(protocol), port.parse().expect("a port"));
                ports.insert(NamedPort { name: name.into(), protocol, port });
            }
            Some(_) => labels.push(*word),
            None => match *word {
                "finished" => facts.finished = true,
                "host" => facts.host_network = true,
                other => panic!("no such word of a pod: {other}"),
            },
        }
    }
    facts.labels = labels_of(&labels);
    facts.ports = Arc::new(ports);
    Change::Pod { name, uid: uid.into(), facts: (!gone).then_some(facts) }
}

fn service(words: &[&str], gone: bool) -> Change {
    let name = name_of(words[0]);
    let mut facts = ServiceFacts { name: name.clone(), addresses: vec![], ports: vec![], selector: None };
    let mut labels = vec![];
    for word in &words[1..] {
        match word.split_once('=').expect("a word of a service is key=value") {
            ("ip", list) => facts.addresses = list.split(',').map(|ip| ip.parse().expect("an address")).collect(),
            ("port", port) => {
                let [protocol, port, node_port, target] = port.split('/').collect::<Vec<_>>()[..] else {
                    panic!("{port}")
                };
                facts.ports.push(ServicePort {
                    protocol: protocol_of(protocol),
                    port: port.parse().expect("a port"),
                    node_port: Some(node_port.parse().expect("a port")).filter(|port| *port != 0),
                    target: target.parse().map_or_else(|_| TargetPort::Named(target.into()), TargetPort::Number),
                });
            }
            _ => labels.push(*word),
        }
    }
    facts.selector = (!labels.is_empty()).then(|| labels_of(&labels));
    Change::Service(name, (!gone).then_some(facts))
}

fn policy(words: &[&str], gone: bool) -> Change {
    let name = name_of(words[0]);
    if gone {
        return Change::Policy(name, None);
    }
    let mut facts = PolicyFacts {
        name: name.clone(),
        subject: selector(words[1]),
        isolates_ingress: false,
        isolates_egress: false,
        ingress: vec![],
        egress: vec![],
    };
    for word in &words[2..] {
        let (direction, rule) = word.strip_suffix(')').and_then(|word| word.split_once('(')).expect("in(…)");
        let (isolates, rules) = match direction {
            "in" => (&mut facts.isolates_ingress, &mut facts.ingress),
            "out" => (&mut facts.isolates_egress, &mut facts.egress),
            other => panic!("no such direction: {other}"),
        };
        *isolates = true;
        if !rule.is_empty() {
            let (peers, ports) = rule.split_once('|').expect("peers|ports");
            rules.push(Rule { peers: peers_of(peers, &name.namespace), ports: ports_of(ports) });
        }
    }
    Change::Policy(name, Some(facts))
}

fn peers_of(text: &str, namespace: &Arc<str>) -> Peers {
    let peer = |text: &str| {
        if let Some(block) = text.strip_prefix('@') {
            let mut nets = block.split('!').map(|net| net.parse().expect("a CIDR"));
            let cidr = nets.next().expect("a block has a CIDR");
            let except: BTreeSet<_> = nets.collect();
            return Peer::Block(Block { cidr, except: except.into_iter().collect() });
        }
        match text.split_once("//") {
            Some((namespaces, pods)) => {
                Peer::Pods { namespaces: Namespaces::Matching(selector(namespaces)), pods: selector(pods) }
            }
            None => Peer::Pods { namespaces: Namespaces::Named(namespace.clone()), pods: selector(text) },
        }
    };
    match text {
        "*" => Peers::All,
        "-" => Peers::These(vec![]),
        list => Peers::These(list.split('+').map(peer).collect()),
    }
}

fn ports_of(text: &str) -> Ports {
    let port = |text: &str| {
        let (protocol, port) = text.split_once('/').unwrap_or((text, "0-65535"));
        let protocol = protocol_of(protocol);
        let (first, last) = port.split_once('-').unwrap_or((port, port));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) => PortMatch::Range { protocol, first, last },
            _ => PortMatch::Named { protocol, name: port.into() },
        }
    };
    match text {
        "*" => Ports::All,
        "-" => Ports::These(vec![]),
        list => Ports::These(list.split(';').map(port).collect()),
    }
}

pub(crate) fn selector(text: &str) -> Selector {
    let requirement = |text: &str| {
        let values = |list: &str| list.split('^').map(str::to_owned).collect();
        let (key, operator) = if let Some((key, value)) = text.split_once("!=") {
            (key, Operator::NotIn(values(value)))
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Operator::In(values(value)))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (text, Operator::Exists)
        };
        Requirement { key: key.into(), operator }
    };
    let requirements: BTreeSet<Requirement> = match text {
        "." => BTreeSet::new(),
        list => list.split(',').map(requirement).collect(),
    };
    Selector { requirements: requirements.into_iter().collect() }
}

fn veth(words: &[&str], gone: bool) -> VethChange {
    let ifindex = words[0].parse().expect("an interface index");
    if gone {
        return VethChange { ifindex, veth: None };
    }
    let mut veth = Veth {
        ifindex,
        name: format!("veth{ifindex}").into(),
        pod_mac: None,
        netns_id: None,
        addresses: vec![],
        pod: None,
        older: false,
        awaits_result: false,
    };
    let fields: BTreeMap<&str, &str> =
        words[1..].iter().map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
    for (field, value) in fields {
        match field {
            "mac" => veth.pod_mac = Some([2, 0, 0, 0, 0, value.parse().expect("the last byte")]),
            "ip" => {
                let nets = value.split(',').map(|net| net.parse::<ipnet::IpNet>().expect("address/length"));
                veth.addresses = nets.map(|net| (net.addr(), net.prefix_len())).collect();
            }
            "pod" => {
                let (name, uid) = value.split_once('#').map_or((value, None), |(name, uid)| (name, Some(uid.into())));
                veth.pod = Some((name_of(name), uid));
            }
            "new" => veth.awaits_result = true,
            "older" => veth.older = true,
            other => panic!("no such word of a veth: {other}"),
        }
    }
    VethChange { ifindex, veth: Some(veth) }
}
