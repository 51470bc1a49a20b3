//! A random cluster: few labels, addresses and ports, so that policies and packets meet.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Dice;
use super::services::Service;

pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub const KEYS: [&str; 3] = ["app", "tier", "env"];
pub const VALUES: [&str; 3] = ["a", "b", ""];
pub const PORTS: [u16; 6] = [53, 80, 81, 443, 8080, 9000];
pub const PORT_NAMES: [&str; 3] = ["web", "dns", "db"];
pub const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    pub uid: usize,
    pub local: bool,
    pub host_network: bool,
    pub finished: bool,
    pub six: bool,
    /// Number that its addresses are made of.
    pub address: u8,
    /// The API has told of it.
    pub known: bool,
    /// Its veth is there (pods of this node only).
    pub veth: bool,
    /// It has its addresses; else it is pending.
    pub addressed: bool,
    /// Another pod has its address already, and it is about to go.
    pub leaving: bool,
    /// Labels, ports and options, as they were first told.
    pub words: String,
}

#[derive(Clone, Debug)]
pub struct Cluster {
    pub pods: Vec<Pod>,
    pub(super) policies: Vec<String>,
    pub(super) services: Vec<Service>,
    /// Those whose objects are there.
    pub(super) namespaces: BTreeSet<&'static str>,
    /// Deletions of pods that come after their successors.
    pub(super) late: Vec<String>,
    next_pod: usize,
    pub(super) next_uid: usize,
    /// Numbers of addresses whose pods are gone, by node.
    pub(super) free: BTreeMap<bool, Vec<u8>>,
    next_address: u8,
}

impl Pod {
    /// Packets can be sent from and to its veth.
    pub fn is_reachable(&self) -> bool {
        self.local && self.veth && self.addressed && !self.host_network && !self.finished
    }

    /// Its own address in one family.
    pub fn ip(&self, six: bool) -> String {
        let net = u8::from(!self.local);
        match (self.host_network, six) {
            (true, false) => format!("192.168.0.{}", 1 + net),
            (true, true) => format!("fd01::{}", 1 + net),
            (false, false) => format!("10.244.{net}.{}", self.address),
            (false, true) => format!("fd00:24{}::{}", 4 + net, self.address),
        }
    }

    pub fn ips(&self) -> Vec<String> {
        let six = self.six && !self.host_network;
        std::iter::once(self.ip(false)).chain(six.then(|| self.ip(true))).collect()
    }

    /// The line that tells of it as it is now, except that labels are those of its beginning.
    pub fn line(&self) -> String {
        let mut line = format!("pod {}{} uid:u{}", self.name, self.words, self.uid);
        if self.addressed {
            for address in self.ips() {
                line += &format!(" {address}");
            }
        } else {
            line += " phase:Pending";
        }
        if self.host_network {
            line += " hostNetwork";
        }
        if !self.local {
            line += " node:n2";
        }
        line
    }
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            pods: Vec::new(),
            policies: Vec::new(),
            services: Vec::new(),
            namespaces: NAMESPACES.into(),
            late: Vec::new(),
            next_pod: 0,
            next_uid: 1,
            free: BTreeMap::new(),
            next_address: 8,
        }
    }

    pub fn objects(&mut self, dice: &mut Dice) -> Vec<Value> {
        let mut objects = vec![json!("node n1 192.168.0.1 fd01::1"), json!("node n2 192.168.0.2 fd01::2")];
        for namespace in NAMESPACES {
            objects.push(namespace_line(namespace, dice));
        }
        for index in 0..6 + dice.below(4) {
            // Two pods of this node at least.
            let local = index < 2 || dice.percent(60);
            objects.push(self.new_pod(dice, local));
        }
        for _ in 0..6 + dice.below(6) {
            objects.push(self.policy(dice));
        }
        objects.extend(self.service_objects(dice));
        if dice.percent(40) {
            dice.shuffle(&mut objects);
        }
        objects
    }

    /// A pod that packets can be sent from and to.
    pub fn any(&self, dice: &mut Dice, local: bool) -> Option<Pod> {
        let fitting: Vec<&Pod> = self
            .pods
            .iter()
            .filter(|pod| if local { pod.is_reachable() } else { !pod.local && pod.known && pod.addressed })
            .collect();
        if fitting.is_empty() { None } else { Some((*dice.pick(&fitting)).clone()) }
    }

    /// Whether packets of this family can be sent from and to the pod of this name.
    pub fn reachable(&self, name: &str, six: bool) -> bool {
        self.pods.iter().any(|pod| pod.name == name && pod.is_reachable() && (pod.six || !six))
    }

    pub fn new_pod(&mut self, dice: &mut Dice, local: bool) -> Value {
        let name = format!("{}/p{}", dice.pick(&NAMESPACES), self.next_pod);
        self.next_pod += 1;
        let host_network = dice.percent(6);
        let pod = self.pod(dice, name, local, host_network);
        let line = pod.line();
        self.pods.push(pod);
        json!(line)
    }

    /// A pod that is known and has its addresses, not yet one of the cluster's.
    pub(super) fn pod(&mut self, dice: &mut Dice, name: String, local: bool, host_network: bool) -> Pod {
        let uid = self.next_uid;
        self.next_uid += 1;
        let reused = if dice.percent(60) { self.free.entry(local).or_default().pop() } else { None };
        let address = reused.unwrap_or_else(|| {
            self.next_address += 1;
            self.next_address
        });
        let six = dice.percent(80) && !host_network;
        let mut words = labels(dice);
        for port in PORT_NAMES {
            if dice.percent(60) {
                let kind = if dice.percent(60) { "port" } else { "init" };
                words += &format!(" {kind}:{port}={}/{}", dice.pick(&PORTS), dice.pick(&PROTOCOLS));
            }
        }
        if dice.percent(12) {
            words += &Self::host_port(dice);
        }
        for (option, chance) in [("terminating", 8), ("older", 25)] {
            if dice.percent(chance) {
                words += &format!(" {option}");
            }
        }
        Pod {
            name,
            uid,
            local,
            host_network,
            finished: false,
            six,
            address,
            known: true,
            veth: true,
            addressed: true,
            leaving: false,
            words,
        }
    }

    pub fn relabel(&mut self, dice: &mut Dice) -> Option<Value> {
        let key = *dice.pick(&KEYS);
        let value = if dice.percent(20) { Value::Null } else { json!(dice.pick(&VALUES)) };
        let patch = json!({"metadata": {"labels": {key: value}}});
        let namespaces: Vec<&str> = self.namespaces.iter().copied().collect();
        if dice.percent(25) && !namespaces.is_empty() {
            return Some(json!({format!("patch ns {}", dice.pick(&namespaces)): patch}));
        }
        let known: Vec<&Pod> = self.pods.iter().filter(|pod| pod.known).collect();
        if known.is_empty() {
            return None;
        }
        Some(json!({format!("patch pod {}", dice.pick(&known).name): patch}))
    }
}

pub fn namespace_line(namespace: &str, dice: &mut Dice) -> Value {
    let trusted = if dice.percent(5) { " trusted" } else { "" };
    json!(format!("ns {namespace}{}{trusted}", labels(dice)))
}

fn labels(dice: &mut Dice) -> String {
    let mut line = String::new();
    for key in KEYS {
        if dice.percent(60) {
            line += &format!(" {key}={}", dice.pick(&VALUES));
        }
    }
    line
}
