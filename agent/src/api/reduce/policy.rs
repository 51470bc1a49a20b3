//! NetworkPolicies, field by field: what cannot be understood closes what it concerns, and the rest counts (SEMANTICS 15.2).
//!
//! A field that is not known is such a thing too. It is a slip of the pen (`form:` for `from:` would open a rule to
//! everybody) or a condition of a later API, and either way what is beside it does not say all.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::selector::selector;
use super::shape::Metadata;
use super::{Faults, cidr, meta, port};
use crate::facts::{
    Block, Change, Fault, Kind, Namespaces, ObjectName, Peer, Peers, PolicyFacts, Rule, Selector, Update,
};

/// # Errors
/// It has no name, or no readable namespace.
pub fn reduce(value: &Value) -> Result<Update, Fault> {
    let name = name(value)?;
    let mut faults = Faults::new(Kind::Policy, name.to_string());
    let facts = match value.get("spec") {
        // A spec that is missing is an empty one, as for the API server.
        None | Some(Value::Null) => facts(&name, &Map::new(), &mut faults),
        Some(Value::Object(spec)) => facts(&name, spec, &mut faults),
        Some(_other) => {
            faults.add("spec", "spec is a map, the policy isolates every pod of its namespace");
            closed(&name)
        }
    };
    Ok(Update { written: written(value), ..Update::new(Change::Policy(name, Some(facts)), faults.into_vec()) })
}

/// The latest of what the API server notes about those who have written parts of it, or else when it was made.
fn written(value: &Value) -> Option<i64> {
    let metadata = value.get("metadata")?;
    let second = |time: &Value| Some(time.as_str()?.parse::<Timestamp>().ok()?.as_second());
    let parts = metadata.get("managedFields").and_then(Value::as_array).into_iter().flatten();
    let latest = parts.filter_map(|part| second(part.get("time")?)).max();
    latest.or_else(|| second(metadata.get("creationTimestamp")?))
}

/// # Errors
/// It has no name, or no readable namespace.
pub fn gone(value: &Value) -> Result<Change, Fault> {
    name(value).map(|name| Change::Policy(name, None))
}

fn name(value: &Value) -> Result<ObjectName, Fault> {
    let metadata: Metadata = value.get("metadata").map(super::shape_of).unwrap_or_default();
    meta::namespaced_name(Kind::Policy, &metadata)
}

/// A field that is there and not null, which the API takes for the same (SEMANTICS 2.4, 3.2, 3.3).
pub(super) fn member<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    object.get(field).filter(|value| !value.is_null())
}

/// # Errors
/// There is another field.
pub(super) fn only(object: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match object.keys().find(|field| !known.contains(&field.as_str())) {
        None => Ok(()),
        Some(field) => Err(format!("the field {field:?} is not known here")),
    }
}

fn closed(name: &ObjectName) -> PolicyFacts {
    PolicyFacts {
        name: name.clone(),
        subject: Selector::everything(),
        isolates_ingress: true,
        isolates_egress: true,
        ingress: Vec::new(),
        egress: Vec::new(),
    }
}

fn facts(name: &ObjectName, spec: &Map<String, Value>, faults: &mut Faults) -> PolicyFacts {
    let known = only(spec, &["podSelector", "policyTypes", "ingress", "egress"]);
    let subject = match member(spec, "podSelector").map(selector) {
        None => Selector::everything(),
        Some(Ok(subject)) => subject,
        Some(Err((field, message))) => {
            let message = format!("{message}, the policy isolates every pod of its namespace");
            faults.add(format!("spec.podSelector{field}"), message);
            Selector::everything()
        }
    };
    let (isolates_ingress, isolates_egress) = match policy_types(spec, faults) {
        Some(types) => types,
        // What is not known might have been the policyTypes, or the egress rules.
        None => (true, known.is_err() || has_rules(member(spec, "egress"))),
    };
    if let Err(message) = known {
        faults
            .add("spec", format!("{message}, it is ignored; a direction that policyTypes does not settle is isolated"));
    }
    let mut rules = |direction: Direction, isolates| {
        let rules = rules(name, direction, member(spec, direction.field), faults);
        if isolates { rules } else { Vec::new() }
    };
    let ingress = rules(INGRESS, isolates_ingress);
    let egress = rules(EGRESS, isolates_egress);
    PolicyFacts { name: name.clone(), subject, isolates_ingress, isolates_egress, ingress, egress }
}

/// Whether it isolates for ingress and for egress; `None` where it is to be derived from the rules (SEMANTICS 2.2).
fn policy_types(spec: &Map<String, Value>, faults: &mut Faults) -> Option<(bool, bool)> {
    let both = |faults: &mut Faults, field: String| {
        faults.add(field, "policyTypes is a list of Ingress and Egress, the policy isolates for both");
        Some((true, true))
    };
    let types = match member(spec, "policyTypes") {
        None => return None,
        Some(Value::Array(types)) if types.is_empty() => return None,
        Some(Value::Array(types)) => types,
        Some(_other) => return both(faults, "spec.policyTypes".to_owned()),
    };
    let unknown = |kind: &Value| !matches!(kind.as_str(), Some("Ingress" | "Egress"));
    if let Some(index) = types.iter().position(unknown) {
        return both(faults, format!("spec.policyTypes[{index}]"));
    }
    let has = |wanted: &str| types.iter().any(|kind| kind.as_str() == Some(wanted));
    Some((has("Ingress"), has("Egress")))
}

/// Rules that cannot be read count as there being some.
fn has_rules(rules: Option<&Value>) -> bool {
    rules.is_some_and(|rules| rules.as_array().is_none_or(|rules| !rules.is_empty()))
}

#[derive(Clone, Copy)]
struct Direction {
    field: &'static str,
    peers: &'static str,
}

const INGRESS: Direction = Direction { field: "ingress", peers: "from" };
const EGRESS: Direction = Direction { field: "egress", peers: "to" };

fn rules(policy: &ObjectName, direction: Direction, value: Option<&Value>, faults: &mut Faults) -> Vec<Rule> {
    let Direction { field, peers: _ } = direction;
    match value {
        None => Vec::new(),
        Some(Value::Array(entries)) => {
            let path = |index| format!("spec.{field}[{index}]");
            entries
                .iter()
                .enumerate()
                .map(|(index, entry)| rule(policy, direction, entry, &path(index), faults))
                .collect()
        }
        Some(_other) => {
            faults.add(format!("spec.{field}"), "rules are a list, none is in force");
            Vec::new()
        }
    }
}

fn rule(policy: &ObjectName, direction: Direction, entry: &Value, path: &str, faults: &mut Faults) -> Rule {
    let object = entry.as_object().ok_or_else(|| "this is no rule".to_owned());
    match object.and_then(|rule| only(rule, &[direction.peers, "ports"]).map(|()| rule)) {
        Ok(rule) => Rule {
            peers: peers(policy, member(rule, direction.peers), &format!("{path}.{}", direction.peers), faults),
            ports: port::ports(member(rule, "ports"), &format!("{path}.ports"), faults),
        },
        Err(message) => {
            faults.add(path, format!("{message}, the rule admits nobody"));
            Rule { peers: Peers::These(Vec::new()), ports: crate::facts::Ports::These(Vec::new()) }
        }
    }
}

/// A list that was not empty never becomes "everybody", whatever is left of it (SEMANTICS 3.4).
fn peers(policy: &ObjectName, value: Option<&Value>, path: &str, faults: &mut Faults) -> Peers {
    let entries = match value {
        None => return Peers::All,
        Some(Value::Array(entries)) if entries.is_empty() => return Peers::All,
        Some(Value::Array(entries)) => entries,
        Some(_other) => {
            faults.add(path, "peers are a list, the rule admits nobody");
            return Peers::These(Vec::new());
        }
    };
    let read = |(index, entry): (usize, &Value)| match peer(policy, entry) {
        Ok(peer) => Some(peer),
        Err((field, message)) => {
            faults.add(format!("{path}[{index}]{field}"), format!("{message}, this peer is nobody"));
            None
        }
    };
    Peers::These(entries.iter().enumerate().filter_map(read).collect())
}

/// The field within the entry, and what is wrong with it.
type Reason = (String, String);

fn peer(policy: &ObjectName, entry: &Value) -> Result<Peer, Reason> {
    let whole = |message: &str| (String::new(), message.to_owned());
    let entry = entry.as_object().ok_or_else(|| whole("this is no peer"))?;
    only(entry, &["podSelector", "namespaceSelector", "ipBlock"]).map_err(|message| whole(&message))?;
    let read = |field: &str| {
        let inside = |(inner, message): Reason| (format!(".{field}{inner}"), message);
        member(entry, field).map(|value| selector(value).map_err(inside)).transpose()
    };
    let (namespaces, pods) = (read("namespaceSelector")?, read("podSelector")?);
    match (member(entry, "ipBlock"), namespaces, pods) {
        (Some(value), None, None) => {
            block(value).map(Peer::Block).map_err(|(inner, message)| (format!(".ipBlock{inner}"), message))
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(whole("ipBlock stands alone, without selectors")),
        (None, None, None) => Err(whole("a peer needs a podSelector, a namespaceSelector or an ipBlock")),
        (None, None, Some(pods)) => Ok(Peer::Pods { namespaces: Namespaces::Named(policy.namespace.clone()), pods }),
        (None, Some(namespaces), pods) => {
            let pods = pods.unwrap_or_else(Selector::everything);
            Ok(Peer::Pods { namespaces: Namespaces::Matching(namespaces), pods })
        }
    }
}

/// An except that cannot be understood takes the whole block with it, as without it the block would admit more.
fn block(value: &Value) -> Result<Block, Reason> {
    let object = value.as_object().ok_or_else(|| (String::new(), "an ipBlock is a map".to_owned()))?;
    only(object, &["cidr", "except"]).map_err(|message| (String::new(), message))?;
    let cidr = match member(object, "cidr") {
        Some(Value::String(text)) => cidr::network(text),
        None => Err("an ipBlock needs a cidr".to_owned()),
        Some(other) => Err(format!("{other} is no CIDR")),
    };
    let cidr = cidr.map_err(|message| (".cidr".to_owned(), message))?;
    let entries: &[Value] = match member(object, "except") {
        None => &[],
        Some(Value::Array(entries)) => entries,
        Some(_other) => return Err((".except".to_owned(), "except is a list of CIDRs".to_owned())),
    };
    let mut except = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let network = entry.as_str().ok_or_else(|| format!("{entry} is no CIDR")).and_then(cidr::network);
        let inside = network.and_then(|network| {
            // `contains` is false across families.
            let inside = cidr.contains(&network) && network.prefix_len() > cidr.prefix_len();
            if inside { Ok(network) } else { Err(format!("{network} is not a part of {cidr}")) }
        });
        except.push(inside.map_err(|message| (format!(".except[{index}]"), message))?);
    }
    // Sorted, what contains comes before what it contains.
    except.sort_unstable();
    let mut canonical: Vec<ipnet::IpNet> = Vec::with_capacity(except.len());
    for network in except {
        if canonical.last().is_none_or(|last| !last.contains(&network)) {
            canonical.push(network);
        }
    }
    Ok(Block { cidr, except: canonical })
}
