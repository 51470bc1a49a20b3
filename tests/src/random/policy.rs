//! Random NetworkPolicies, a few of their parts not valid.

use serde_json::{Map, Value, json};

use super::Dice;
use super::cluster::{Cluster, KEYS, NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS, VALUES};

/// Blocks that nest and overlap, around pods, nodes and strangers.
const BLOCKS: [&str; 21] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "10.244.0.0/24",
    "10.244.0.8/29",
    "10.244.0.9/32",
    "10.244.0.12/32",
    "10.244.1.0/24",
    "10.244.1.8/30",
    "192.0.2.0/24",
    "192.0.2.0/25",
    "192.0.2.7/32",
    "192.168.0.2/32",
    "::/0",
    "fd00:244::/32",
    "fd00:244::8/125",
    "fd00:244::9/128",
    "fd00:245::/64",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "fe80::/10",
];

impl Cluster {
    pub fn policy(&mut self, dice: &mut Dice) -> Value {
        let known = self.policies.len() > 5 && dice.percent(40);
        let name = if known {
            dice.pick(&self.policies).clone()
        } else {
            format!("{}/q{}", dice.pick(&NAMESPACES), self.policies.len())
        };
        if !known {
            self.policies.push(name.clone());
        }
        let mut spec = Map::new();
        if dice.percent(90) {
            let subject = if dice.percent(55) { json!({}) } else { selector(dice) };
            spec.insert("podSelector".to_owned(), subject);
        }
        match dice.below(10) {
            0 => {}
            1 | 2 => drop(spec.insert("policyTypes".to_owned(), json!([]))),
            3 => drop(spec.insert("policyTypes".to_owned(), Value::Null)),
            4 => drop(spec.insert("policyTypes".to_owned(), json!(["Ingress"]))),
            5 => drop(spec.insert("policyTypes".to_owned(), json!(["Egress"]))),
            _ => drop(spec.insert("policyTypes".to_owned(), json!(["Ingress", "Egress"]))),
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            match dice.below(12) {
                0 => {}
                1 => drop(spec.insert(direction.to_owned(), Value::Null)),
                2 => drop(spec.insert(direction.to_owned(), json!([]))),
                count => {
                    let rules: Vec<Value> = (0..1 + count % 3).map(|_| rule(dice, peers)).collect();
                    spec.insert(direction.to_owned(), json!(rules));
                }
            }
        }
        let key = format!("policy {name}");
        json!({key: spec})
    }

    pub fn delete_policy(&mut self, dice: &mut Dice) -> Option<Value> {
        if self.policies.len() < 2 {
            return None;
        }
        let at = dice.below(self.policies.len());
        let name = self.policies.remove(at);
        // A policy that was written more than once is listed as often.
        self.policies.retain(|other| *other != name);
        Some(json!(format!("delete policy {name}")))
    }
}

fn selector(dice: &mut Dice) -> Value {
    let key = *dice.pick(&KEYS);
    let value = *dice.pick(&VALUES);
    let expression = |dice: &mut Dice| {
        let key = *dice.pick(&KEYS);
        let first = *dice.pick(&VALUES);
        let second = *dice.pick(&VALUES);
        match dice.below(20) {
            0..=5 => json!({"key": key, "operator": "In", "values": [first, second]}),
            6..=11 => json!({"key": key, "operator": "NotIn", "values": [first]}),
            12..=15 => json!({"key": key, "operator": "Exists"}),
            16..=18 => json!({"key": key, "operator": "DoesNotExist"}),
            // Not valid (SEMANTICS 4.4).
            _ => json!({"key": key, "operator": "In", "values": []}),
        }
    };
    match dice.below(6) {
        0 => json!({}),
        1 => json!({"matchLabels": {}, "matchExpressions": null}),
        2 | 3 => json!({"matchLabels": {key: value}}),
        4 => json!({"matchExpressions": [expression(dice)]}),
        _ => json!({"matchLabels": {key: value}, "matchExpressions": [expression(dice)]}),
    }
}

fn rule(dice: &mut Dice, peers_key: &str) -> Value {
    let mut rule = Map::new();
    match dice.below(16) {
        0 => {}
        1 => drop(rule.insert(peers_key.to_owned(), json!([]))),
        _ => {
            let peers: Vec<Value> = (0..1 + dice.below(3)).map(|_| peer(dice)).collect();
            rule.insert(peers_key.to_owned(), json!(peers));
        }
    }
    match dice.below(10) {
        0..=3 => {}
        4 => drop(rule.insert("ports".to_owned(), json!([]))),
        _ => {
            let ports: Vec<Value> = (0..1 + dice.below(3)).map(|_| port(dice)).collect();
            rule.insert("ports".to_owned(), json!(ports));
        }
    }
    json!(rule)
}

fn peer(dice: &mut Dice) -> Value {
    match dice.below(20) {
        0..=4 => json!({"podSelector": selector(dice)}),
        5..=8 => json!({"namespaceSelector": selector(dice)}),
        9 => json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": dice.pick(&NAMESPACES)}}}),
        10..=12 => json!({"namespaceSelector": selector(dice), "podSelector": selector(dice)}),
        13..=18 => block(dice),
        _ => json!({}),
    }
}

/// Excepts are drawn from the same list; those that are not inside are left out, so that most blocks are valid.
fn block(dice: &mut Dice) -> Value {
    let cidr = *dice.pick(&BLOCKS);
    let mut excepts = Vec::new();
    if dice.percent(50) {
        let outer = crate::oracle::cidr::Cidr::read(cidr).expect("the list has CIDRs only");
        for _ in 0..4 {
            let except = *dice.pick(&BLOCKS);
            let inner = crate::oracle::cidr::Cidr::read(except).expect("the list has CIDRs only");
            if inner.strictly_inside(&outer) {
                excepts.push(except);
            }
        }
    }
    if excepts.is_empty() {
        json!({"ipBlock": {"cidr": cidr}})
    } else {
        json!({"ipBlock": {"cidr": cidr, "except": excepts}})
    }
}

fn port(dice: &mut Dice) -> Value {
    let mut port = Map::new();
    if dice.percent(70) {
        port.insert("protocol".to_owned(), json!(dice.pick(&PROTOCOLS)));
    }
    match dice.below(10) {
        0 | 1 => {}
        2 | 3 => drop(port.insert("port".to_owned(), json!(dice.pick(&PORT_NAMES)))),
        4..=6 => {
            let first = *dice.pick(&PORTS);
            let last = if dice.percent(90) { first.saturating_add(dice.below(500) as u16) } else { 1 };
            port.insert("port".to_owned(), json!(first));
            port.insert("endPort".to_owned(), json!(last));
        }
        _ => drop(port.insert("port".to_owned(), json!(dice.pick(&PORTS)))),
    }
    json!(port)
}
