//! What the policies say about one flow: SEMANTICS 2 to 7, read literally for one question at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::cidr::Cidr;
use super::cluster::{Cluster, at, declares, is_peer, labels, list, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Egress,
    Ingress,
}

/// What is asked: may a flow of this protocol and destination port be opened between the subject and this peer?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The pod whose policies are asked.
    pub subject: &'a Value,
    pub direction: Direction,
    /// The other end.
    pub peer: IpAddr,
    pub protocol: u8,
    /// Destination port of the opening packet; `None` where the protocol has no ports.
    pub port: Option<u16>,
}

/// SEMANTICS 1.2.
pub fn isolated(cluster: &Cluster, pod: &Value, direction: Direction) -> bool {
    applying(cluster, pod, direction).next().is_some()
}

/// SEMANTICS 1.1 to 1.3.
pub fn admits(cluster: &Cluster, question: Question<'_>) -> bool {
    if !isolated(cluster, question.subject, question.direction) {
        return true;
    }
    let claimants = cluster.pods_at(question.peer);
    // An address that several live pods claim is none's (SEMANTICS 9.4).
    let peer = if let [only] = claimants[..] { Some(only) } else { None };
    admits_as(cluster, question, peer)
}

fn admits_as(cluster: &Cluster, question: Question<'_>, peer: Option<&Value>) -> bool {
    applying(cluster, question.subject, question.direction).any(|policy| {
        let rules = match question.direction {
            Direction::Ingress => list(policy, "spec.ingress"),
            Direction::Egress => list(policy, "spec.egress"),
        };
        rules.iter().any(|rule| rule_matches(cluster, policy, rule, question, peer))
    })
}

fn applying<'a>(cluster: &'a Cluster, pod: &'a Value, direction: Direction) -> impl Iterator<Item = &'a Value> {
    cluster.policies(text(pod, "metadata.namespace")).filter(move |policy| {
        // 15.2: a selector that cannot be understood selects all of the namespace, as the policy still isolates.
        let selected = selects(at(policy, "spec.podSelector"), &labels(pod)).unwrap_or(true);
        is_peer(pod) && selected && isolates(policy, direction)
    })
}

/// SEMANTICS 2.2 and 2.3.
fn isolates(policy: &Value, direction: Direction) -> bool {
    let types = list(policy, "spec.policyTypes");
    let named = |name: &str| types.iter().any(|kind| kind.as_str() == Some(name));
    match direction {
        Direction::Ingress => types.is_empty() || named("Ingress"),
        Direction::Egress if types.is_empty() => !list(policy, "spec.egress").is_empty(),
        Direction::Egress => named("Egress"),
    }
}

/// SEMANTICS 3.1 to 3.3.
fn rule_matches(cluster: &Cluster, policy: &Value, rule: &Value, question: Question<'_>, peer: Option<&Value>) -> bool {
    let peers = match question.direction {
        Direction::Ingress => list(rule, "from"),
        Direction::Egress => list(rule, "to"),
    };
    let ports = list(rule, "ports");
    let peer_matches =
        peers.is_empty() || peers.iter().any(|entry| peer_matches(cluster, policy, entry, question.peer, peer));
    let target = match question.direction {
        Direction::Ingress => Some(question.subject),
        Direction::Egress => peer,
    };
    peer_matches && (ports.is_empty() || ports.iter().any(|entry| port_matches(entry, question, target)))
}

/// SEMANTICS 5 and 6.
fn peer_matches(cluster: &Cluster, policy: &Value, entry: &Value, address: IpAddr, peer: Option<&Value>) -> bool {
    let present = |key: &str| entry.get(key).filter(|value| !value.is_null());
    match (present("ipBlock"), present("namespaceSelector"), present("podSelector")) {
        (Some(block), None, None) => block_holds(block, address),
        // 5.7.
        (Some(_), _, _) | (None, None, None) => false,
        (None, namespaces, pods) => {
            let Some(peer) = peer else { return false };
            let namespace = text(peer, "metadata.namespace");
            let namespace_matches = match namespaces {
                None => namespace == text(policy, "metadata.namespace"),
                Some(selector) => {
                    cluster.namespace_labels(namespace).is_some_and(|labels| selects(selector, &labels) == Some(true))
                }
            };
            let pod_matches = pods.is_none_or(|selector| selects(selector, &labels(peer)) == Some(true));
            // An invalid half matches nothing even where the other would decide.
            namespace_matches && pod_matches
        }
    }
}

fn block_holds(block: &Value, address: IpAddr) -> bool {
    let Some(cidr) = Cidr::read(text(block, "cidr")) else { return false };
    let mut excepted = false;
    for entry in list(block, "except") {
        match entry.as_str().and_then(Cidr::read) {
            Some(except) if except.strictly_inside(&cidr) => excepted |= except.holds(address),
            // 6.4, 15.2.
            Some(_) | None => return false,
        }
    }
    cidr.holds(address) && !excepted
}

/// SEMANTICS 4; `None`: the selector is not valid.
fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> Option<bool> {
    let mut all = true;
    if let Some(members) = at(selector, "matchLabels").as_object() {
        for (key, value) in members {
            all &= labels.get(key).map(String::as_str) == Some(value.as_str()?);
        }
    }
    for expression in list(selector, "matchExpressions") {
        let own = labels.get(expression.get("key")?.as_str()?);
        let values: Vec<&str> = list(expression, "values").iter().filter_map(Value::as_str).collect();
        all &= match text(expression, "operator") {
            "In" if !values.is_empty() => own.is_some_and(|own| values.contains(&own.as_str())),
            "NotIn" if !values.is_empty() => own.is_none_or(|own| !values.contains(&own.as_str())),
            "Exists" if values.is_empty() => own.is_some(),
            "DoesNotExist" if values.is_empty() => own.is_none(),
            _ => return None,
        };
    }
    Some(all)
}

/// SEMANTICS 7. `target` is the destination pod, where the destination is one.
fn port_matches(entry: &Value, question: Question<'_>, target: Option<&Value>) -> bool {
    let present = |key: &str| entry.get(key).filter(|value| !value.is_null());
    let name = match present("protocol") {
        None => "TCP",
        Some(name) => name.as_str().unwrap_or("?"),
    };
    let number = match name {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => return false,
    };
    let Some(asked) = question.port.filter(|_| question.protocol == number) else { return false };
    let legal = |value: &Value| value.as_u64().filter(|port| (1..=65535).contains(port));
    match (present("port"), present("endPort")) {
        (None, None) => true,
        // 7.4: a range needs a first number.
        (None, Some(_)) => false,
        (Some(Value::String(name_of_port)), None) => {
            target.is_some_and(|target| declares(target, name_of_port, name, asked))
        }
        (Some(Value::String(_)), Some(_)) => false,
        (Some(first), None) => legal(first) == Some(u64::from(asked)),
        (Some(first), Some(last)) => match (legal(first), legal(last)) {
            (Some(first), Some(last)) => first <= last && (first..=last).contains(&u64::from(asked)),
            (None, _) | (_, None) => false,
        },
    }
}
