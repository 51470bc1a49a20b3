//! Services, and host ports of the node's pods: what the node may translate before a packet reaches whom it is for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::{Index, PodId};
use crate::facts::{ObjectName, PodFacts, Protocol, ServiceFacts};

/// A destination that the node may translate before a packet reaches whom it is for (kube-proxy, portmap).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// `None`: any (node ports, host ports without an address).
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// Who says that a front is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Service(ObjectName),
    /// By a host port.
    Pod(PodId),
}

#[derive(Debug, Default)]
pub(super) struct Services {
    all: HashMap<ObjectName, ServiceFacts>,
    fronts: BTreeMap<Front, BTreeSet<Source>>,
    /// The node's own addresses.
    own: BTreeSet<IpAddr>,
    /// Services with an address that is the node's own.
    local: BTreeSet<ObjectName>,
}

// === impl Services ===

impl Services {
    pub(super) fn all(&self) -> impl Iterator<Item = &ServiceFacts> {
        self.all.values()
    }

    pub(super) fn own(&self) -> &BTreeSet<IpAddr> {
        &self.own
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.all.keys()
    }

    /// Returns the fronts that came, went, or may stand for others.
    pub(super) fn set(&mut self, name: ObjectName, facts: Option<ServiceFacts>) -> BTreeSet<Front> {
        if self.all.get(&name) == facts.as_ref() {
            return BTreeSet::new();
        }
        let old = match &facts {
            Some(facts) => self.all.insert(name.clone(), facts.clone()),
            None => self.all.remove(&name),
        };
        let before = old.as_ref().map(fronts_of).unwrap_or_default();
        let after = facts.as_ref().map(fronts_of).unwrap_or_default();
        let source = Source::Service(name.clone());
        self.relate(&source, &before, &after);
        self.local.remove(&name);
        if facts.is_some_and(|facts| self.is_local(&facts)) {
            self.local.insert(name);
        }
        before.union(&after).copied().collect()
    }

    /// Host ports that a pod of this node has, or has no longer.
    pub(super) fn set_host_ports(
        &mut self,
        id: PodId,
        before: BTreeSet<Front>,
        after: &BTreeSet<Front>,
    ) -> BTreeSet<Front> {
        self.relate(&Source::Pod(id), &before, after);
        before.symmetric_difference(after).copied().collect()
    }

    fn relate(&mut self, source: &Source, before: &BTreeSet<Front>, after: &BTreeSet<Front>) {
        for front in before.difference(after) {
            if let Some(sources) = self.fronts.get_mut(front) {
                sources.remove(source);
                if sources.is_empty() {
                    self.fronts.remove(front);
                }
            }
        }
        for front in after.difference(before) {
            self.fronts.entry(*front).or_default().insert(source.clone());
        }
    }

    /// With IPVS every Service's address is one of the node's own, told one by one: only the fronts of those that changed are looked at.
    pub(super) fn set_own(&mut self, own: BTreeSet<IpAddr>) -> BTreeSet<Front> {
        let changed: Vec<IpAddr> = own.symmetric_difference(&self.own).copied().collect();
        self.own = own;
        let touched: BTreeSet<Front> = changed.into_iter().flat_map(|address| self.fronts_at(address)).collect();
        let sources = touched.iter().filter_map(|front| self.fronts.get(front)).flatten();
        let names: BTreeSet<ObjectName> = sources
            .filter_map(|source| match source {
                Source::Service(name) => Some(name.clone()),
                Source::Pod(_) => None,
            })
            .collect();
        for name in names {
            if self.all.get(&name).is_some_and(|facts| self.is_local(facts)) {
                self.local.insert(name);
            } else {
                self.local.remove(&name);
            }
        }
        touched
    }

    fn fronts_at(&self, address: IpAddr) -> impl Iterator<Item = Front> {
        let lowest = Protocol::ALL.into_iter().min().expect("there are some");
        let first = Front { address: Some(address), protocol: lowest, port: 0 };
        self.fronts.range(first..).map(|(front, _)| *front).take_while(move |front| front.address == Some(address))
    }

    fn is_local(&self, facts: &ServiceFacts) -> bool {
        facts.addresses.iter().any(|address| self.own.contains(address))
    }

    /// The fronts of this node's own addresses that a pod's change touches.
    pub(super) fn touched_by(&self, pods: [Option<&PodFacts>; 2]) -> BTreeSet<Front> {
        let selects = |facts: &&ServiceFacts| pods.iter().flatten().any(|pod| facts.selects(pod));
        let touched = self.local.iter().filter_map(|name| self.all.get(name)).filter(selects);
        touched.flat_map(fronts_of).filter(|front| front.address.is_some()).collect()
    }

    pub(super) fn all_fronts(&self) -> impl Iterator<Item = Front> {
        self.fronts.keys().copied()
    }
}

/// Of a pod's host ports.
pub(super) fn host_fronts(pod: &PodFacts) -> BTreeSet<Front> {
    let front =
        |port: &crate::facts::HostPort| Front { address: port.address, protocol: port.protocol, port: port.port };
    if pod.finished { BTreeSet::new() } else { pod.host_ports.iter().map(front).collect() }
}

fn fronts_of(facts: &ServiceFacts) -> BTreeSet<Front> {
    let mut fronts = BTreeSet::new();
    for port in &facts.ports {
        let protocol = port.protocol;
        fronts.extend(facts.addresses.iter().map(|address| Front {
            address: Some(*address),
            protocol,
            port: port.port,
        }));
        fronts.extend(port.node_port.map(|port| Front { address: None, protocol, port }));
    }
    fronts
}

// === impl Index ===

impl Index {
    pub fn has_front(&self, front: &Front) -> bool {
        self.services.fronts.contains_key(front)
    }

    /// Where the front's address is one of the node's own (NodeLocal DNSCache bound to a Service's address): address and port of each of
    /// the Service's pods, of the address's family, sorted. Else none.
    pub fn local_backends(&self, front: &Front) -> Vec<(IpAddr, u16)> {
        let Some(address) = front.address.filter(|address| self.services.own.contains(address)) else {
            return Vec::new();
        };
        let mut backends = BTreeSet::new();
        let services = self.services.fronts.get(front).into_iter().flatten().filter_map(|source| match source {
            Source::Service(name) => self.services.all.get(name),
            Source::Pod(_) => None,
        });
        for service in services {
            let pods = self.namespace(&service.name.namespace).into_iter().flat_map(|namespace| &namespace.pods);
            for pod in pods.filter_map(|id| self.pod(*id)).filter(|pod| service.selects(pod)) {
                let asked =
                    service.ports.iter().filter(|port| port.port == front.port && port.protocol == front.protocol);
                for port in asked.flat_map(|port| port.resolved(pod.ports.iter())) {
                    let own = pod.addresses.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
                    backends.extend(own.map(|own| (*own, port)));
                }
            }
        }
        backends.into_iter().collect()
    }
}
