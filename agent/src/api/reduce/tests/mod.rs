//! Tables of (what, YAML, what it is reduced to). A fault is shown as `! field`.

mod objects;
mod peers;
mod policies;

use super::object;
use crate::facts::{
    Change, Namespaces, NodeFacts, Operator, Peer, Peers, PodFacts, PolicyFacts, PortMatch, Ports, Rule, Selector,
    ServiceFacts, ServicePort, TargetPort, Update,
};

/// The one place that calls the code.
fn check(what: &str, yaml: &str, expected: &str) {
    let value = serde_norway::from_str(yaml).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = match object(value) {
        Ok(None) => "nothing".to_owned(),
        Ok(Some(update)) => show(&update),
        Err(fault) => format!("refused ! {}", fault.field),
    };
    assert_eq!(found.trim(), expected.trim(), "{what}:\n{yaml}");
}

fn show(Update { change, faults, .. }: &Update) -> String {
    let change = match change {
        Change::Namespace(name, facts) => {
            let facts = facts.as_ref().map(|facts| {
                let labels = join(facts.labels.iter().map(|(key, value)| format!("{key}={value}")), ",");
                format!("{labels}{}", if facts.trusted { " trusted" } else { "" })
            });
            format!("{name}: {}", facts.unwrap_or_else(|| "closed".to_owned()))
        }
        Change::Pod { name, uid, facts } => {
            format!("{name} {uid}: {}", facts.as_ref().map_or_else(|| "closed".to_owned(), pod))
        }
        Change::Policy(name, facts) => {
            format!("{name}: {}", facts.as_ref().map_or_else(|| "gone".to_owned(), policy))
        }
        Change::Service(name, facts) => {
            format!("{name}: {}", facts.as_ref().map_or_else(|| "gone".to_owned(), service))
        }
        Change::Node(name, facts) => format!("{name}: {}", facts.as_ref().map_or_else(|| "gone".to_owned(), node)),
        Change::Relist(kind) | Change::Relisted(kind) => kind.name().to_owned(),
    };
    let faults = faults.iter().map(|fault| format!(" ! {}", fault.field));
    format!("{change}{}", join(faults, ""))
}

fn pod(pod: &PodFacts) -> String {
    let PodFacts { name: _, uid: _, labels, addresses, ports, host_ports, node, host_network, finished } = pod;
    let labels = join(labels.iter().map(|(key, value)| format!("{key}={value}")), ",");
    let addresses = join(addresses.iter().map(ToString::to_string), ",");
    let ports = join(ports.iter().map(|port| format!("{}={}/{}", port.name, port.protocol.name(), port.port)), ",");
    let mut parts = vec![format!("[{labels}]"), format!("[{addresses}]"), format!("[{ports}]")];
    let ends = host_ports.iter().map(|port| match port.address {
        Some(address) => format!("{}/{}/{address}", port.protocol.name(), port.port),
        None => format!("{}/{}", port.protocol.name(), port.port),
    });
    parts.extend((!host_ports.is_empty()).then(|| format!("host ports {}", join(ends, ","))));
    parts.extend(node.as_ref().map(|node| format!("on {node}")));
    parts.extend(host_network.then(|| "host".to_owned()));
    parts.extend(finished.then(|| "finished".to_owned()));
    parts.join(" ")
}

fn service(ServiceFacts { name: _, addresses, ports, selector }: &ServiceFacts) -> String {
    let port = |ServicePort { protocol, port, node_port, target }: &ServicePort| {
        let target = match target {
            TargetPort::Number(target) => target.to_string(),
            TargetPort::Named(name) => name.to_string(),
        };
        let node_port = node_port.map_or(String::new(), |port| format!(" node {port}"));
        format!("{}/{port}{node_port} to {target}", protocol.name())
    };
    let addresses = join(addresses.iter().map(ToString::to_string), ",");
    let selector = selector.iter().flat_map(|labels| labels.iter()).map(|(key, value)| format!("{key}={value}"));
    format!("[{addresses}] [{}] [{}]", join(ports.iter().map(port), ","), join(selector, ","))
}

fn node(NodeFacts { name: _, addresses, pod_cidrs }: &NodeFacts) -> String {
    let addresses = join(addresses.iter().map(ToString::to_string), ",");
    format!("[{addresses}] [{}]", join(pod_cidrs.iter().map(ToString::to_string), ","))
}

fn policy(policy: &PolicyFacts) -> String {
    let PolicyFacts { name: _, subject, isolates_ingress, isolates_egress, ingress, egress } = policy;
    let mut text = selector(subject);
    for (isolates, direction, rules) in [(isolates_ingress, "in", ingress), (isolates_egress, "out", egress)] {
        if *isolates {
            text += &format!(" {direction}({})", join(rules.iter().map(rule), " | "));
        } else {
            assert!(rules.is_empty(), "rules of a direction that is not isolated");
        }
    }
    text
}

fn rule(Rule { peers, ports }: &Rule) -> String {
    let peers = match peers {
        Peers::All => "all".to_owned(),
        Peers::These(peers) if peers.is_empty() => "none".to_owned(),
        Peers::These(peers) => join(peers.iter().map(peer), " + "),
    };
    let ports = match ports {
        Ports::All => "all".to_owned(),
        Ports::These(ports) if ports.is_empty() => "none".to_owned(),
        Ports::These(ports) => join(ports.iter().map(port), ","),
    };
    format!("{peers}: {ports}")
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces: Namespaces::Named(name), pods } => format!("{name}/{}", selector(pods)),
        Peer::Pods { namespaces: Namespaces::Matching(namespaces), pods } => {
            format!("<{}>/{}", selector(namespaces), selector(pods))
        }
        Peer::Block(block) => format!("{}{}", block.cidr, join(block.except.iter().map(|net| format!(" -{net}")), "")),
    }
}

fn port(port: &PortMatch) -> String {
    match port {
        PortMatch::Range { protocol, first, last } if first == last => format!("{}/{first}", protocol.name()),
        PortMatch::Range { protocol, first, last } => format!("{}/{first}-{last}", protocol.name()),
        PortMatch::Named { protocol, name } => format!("{}/{name}", protocol.name()),
    }
}

fn selector(Selector { requirements }: &Selector) -> String {
    let values = |values: &std::collections::BTreeSet<String>| join(values.iter().cloned(), "|");
    let requirements = requirements.iter().map(|requirement| match &requirement.operator {
        Operator::In(list) => format!("{}={}", requirement.key, values(list)),
        Operator::NotIn(list) => format!("{}!={}", requirement.key, values(list)),
        Operator::Exists => requirement.key.to_string(),
        Operator::DoesNotExist => format!("!{}", requirement.key),
    });
    let text = join(requirements, "&");
    if text.is_empty() { "*".to_owned() } else { text }
}

fn join(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}
