//! API objects: what they are reduced to does not depend on how they are written or through which door they come, and what
//! cannot be understood closes and is told.

use palisade::api::reduce::intern::Interner;
use palisade::api::reduce::{self, namespace, node, pod, service};
use palisade::facts::{Change, Fault, Peers, PolicyFacts, Ports, Rule, Update};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub fn check(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    let reduced = reduce::object(value.clone());
    assert_eq!(reduced, reduce::object(value.clone()), "reduced twice");
    match &reduced {
        Ok(Some(update)) => {
            told(&update.faults, update);
            unconcerned(&value, update);
            other_door(&value, update);
            if let Change::Policy(_, Some(facts)) = &update.change {
                closed(&value["spec"], facts, &update.faults);
            }
        }
        Ok(None) => {}
        // Which object it is cannot be known; the folder names its file.
        Err(fault) => assert!(!fault.message.is_empty(), "{fault:?}"),
    }
}

/// Every fault says of which object and where.
pub fn told(faults: &[Fault], context: &dyn std::fmt::Debug) {
    for Fault { kind: _, object, field: _, message } in faults {
        assert!(!object.is_empty() && !message.is_empty(), "{faults:?} of {context:?}");
        assert!(!message.ends_with('.'), "{message}");
    }
}

/// What means nothing to us changes nothing.
fn unconcerned(value: &Value, update: &Update) {
    let mut more = value.clone();
    let object = more.as_object_mut().expect("it was reduced as an object");
    object.insert("palisadeUnknown".to_owned(), Value::from(vec![1, 2]));
    assert_eq!(reduce::object(more).as_ref(), Ok(&Some(update.clone())), "another field of the object");
    let mut more = value.clone();
    if let Some(Value::Object(metadata)) = more.get_mut("metadata") {
        metadata.insert("managedFields".to_owned(), Value::from("anything"));
    }
    assert_eq!(reduce::object(more).as_ref(), Ok(&Some(update.clone())), "another field of its metadata");
}

/// The API server's objects are decoded from the text, those of a folder from a value.
fn other_door(value: &Value, update: &Update) {
    let text = value.to_string();
    let mut interner = Interner::default();
    let other = match &update.change {
        Change::Pod { .. } => pod::reduce(&decode(&text), &mut interner),
        Change::Namespace(..) => namespace::reduce(&decode(&text), &mut interner),
        Change::Node(..) => node::reduce(&decode(&text)),
        Change::Service(..) => service::reduce(&decode(&text), &mut interner),
        Change::Policy(..) => return,
        Change::Relist(_) | Change::Relisted(_) => panic!("an object is no list"),
    };
    assert_eq!(other.as_ref(), Ok(update), "by the other door: {text}");
}

fn decode<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("one object keeps a whole page out: {error} in {text}"))
}

/// A policy never admits more than what stands there, read as generously as can be.
fn closed(spec: &Value, facts: &PolicyFacts, faults: &[Fault]) {
    let PolicyFacts { subject, isolates_ingress, isolates_egress, ingress, egress, .. } = facts;
    let types = spec["policyTypes"].as_array().filter(|types| !types.is_empty());
    let says = |kind: &str| types.is_some_and(|types| types.iter().any(|entry| entry == kind));
    assert!(*isolates_ingress || (types.is_some() && !says("Ingress")), "{spec}");
    assert!(*isolates_egress || !says("Egress"), "{spec}");
    let has_egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    assert!(*isolates_egress || types.is_some() || !has_egress, "{spec}");
    if !subject.requirements.is_empty() {
        let selector = &spec["podSelector"];
        assert!(selector.is_object(), "a subject out of nothing: {spec}");
    }
    for (isolates, rules, field, peers) in
        [(isolates_ingress, ingress, "ingress", "from"), (isolates_egress, egress, "egress", "to")]
    {
        if !isolates {
            assert!(rules.is_empty(), "rules of a direction that is not isolated: {facts:?}");
            continue;
        }
        let written = spec[field].as_array().map_or(0, Vec::len);
        assert_eq!(rules.len(), written, "as many rules as are written: {spec}");
        for (index, rule) in rules.iter().enumerate() {
            rule_is_closed(&spec[field][index], peers, rule, faults);
        }
    }
}

fn rule_is_closed(entry: &Value, peers_field: &str, rule: &Rule, faults: &[Fault]) {
    let is_none = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let length = |value: &Value| value.as_array().map_or(0, Vec::len);
    match &rule.peers {
        Peers::All => assert!(entry.is_object() && is_none(&entry[peers_field]), "open to everybody: {entry}"),
        Peers::These(peers) => {
            let lost = peers.len() < length(&entry[peers_field]) || !entry.is_object();
            assert!(!lost || !faults.is_empty(), "a peer was lost without a word: {entry}");
        }
    }
    match &rule.ports {
        Ports::All => assert!(entry.is_object() && is_none(&entry["ports"]), "open at every port: {entry}"),
        Ports::These(ports) => {
            let lost = ports.len() < length(&entry["ports"]) || !entry.is_object();
            assert!(!lost || !faults.is_empty(), "a port was lost without a word: {entry}");
        }
    }
}
