//! What there is: namespaces, pods, policies, nodes and veths by relation, and what changed since `compile` last asked.
//!
//! Pure, and without memory of the way: after the same facts, in whatever order, it is the same (but for [`PodId`]s,
//! which mean nothing outside). Nothing is judged here; [`crate::compile`] does that.

mod claims;
#[cfg(test)]
pub(crate) mod fixture;
pub mod matchers;
mod relist;
mod services;
#[cfg(test)]
mod tests;
mod veths;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use crate::facts::{
    Change, Kind, NamespaceFacts, NodeFacts, ObjectName, PodFacts, PolicyFacts, ServiceFacts, Veth, VethChange,
};
use claims::Claims;
use relist::Relists;
pub use services::Front;
use services::{Services, host_fronts};
use veths::Veths;
pub use veths::{Identity, Unknown};

/// A pod while it is in the index. Reused for another pod only after the death was handed out by [`Index::take_dirty`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(u32);

/// How pods are told apart: a pod recreated under its name is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct PodKey {
    name: ObjectName,
    uid: Arc<str>,
}

#[derive(Debug)]
struct Pod {
    uid: Arc<str>,
    facts: PodFacts,
}

/// Everything of one name of a namespace, whether the Namespace object itself is known or not.
#[derive(Debug, Default)]
pub struct Namespace {
    pub facts: Option<NamespaceFacts>,
    pub pods: BTreeSet<PodId>,
    pub policies: BTreeMap<Arc<str>, Arc<PolicyFacts>>,
}

/// What may have changed since the last [`Index::take_dirty`]. Named is not changed: whoever takes it compares.
#[derive(Debug, Default)]
pub struct Dirty {
    pub namespaces: BTreeSet<Arc<str>>,
    pub pods: BTreeSet<PodId>,
    pub policies: BTreeSet<ObjectName>,
    /// Veths that came, went, changed, or whose pod did.
    pub veths: BTreeSet<u32>,
    /// Addresses that other pods claim than before.
    pub addresses: BTreeSet<IpAddr>,
    /// Those that came, went, or whose backends on the node itself may be others.
    pub fronts: BTreeSet<Front>,
}

#[derive(Debug)]
pub struct Index {
    node: Arc<str>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    /// By [`PodId`].
    pods: Vec<Option<Pod>>,
    /// Sorted, so that pods of one name are found too.
    keys: BTreeMap<PodKey, PodId>,
    /// Which live pods an address is of.
    claims: Claims,
    nodes: BTreeMap<Arc<str>, NodeFacts>,
    veths: Veths,
    services: Services,
    relists: Relists,
    /// Places in `pods` that may be taken, and those that may be once their death was handed out.
    vacant: Vec<PodId>,
    vacated: Vec<PodId>,
    dirty: Dirty,
}

// === impl Index ===

impl Index {
    pub fn new(node_name: &str) -> Self {
        Self {
            node: node_name.into(),
            namespaces: BTreeMap::new(),
            pods: Vec::new(),
            keys: BTreeMap::new(),
            claims: Claims::default(),
            nodes: BTreeMap::new(),
            veths: Veths::default(),
            services: Services::default(),
            relists: Relists::default(),
            vacant: Vec::new(),
            vacated: Vec::new(),
            dirty: Dirty::default(),
        }
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Namespace(name, facts) => self.set_namespace(name, facts),
            Change::Pod { name, uid, facts } => self.set_pod(PodKey { name, uid }, facts),
            Change::Policy(name, facts) => self.set_policy(name, facts),
            Change::Node(name, facts) => self.set_node(name, facts),
            Change::Service(name, facts) => self.set_service(name, facts),
            Change::Relist(kind) => self.relist(kind),
            Change::Relisted(kind) => self.relisted(kind),
        }
    }

    pub fn apply_veth(&mut self, change: VethChange) {
        let VethChange { ifindex, veth } = change;
        if self.veths.get(ifindex) != veth.as_ref() {
            self.veths.set(ifindex, veth);
            self.identify(ifindex);
        }
    }

    /// The node's own addresses, all of them.
    pub fn apply_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.dirty.fronts.append(&mut self.services.set_own(addresses));
    }

    /// A complete list of Services was seen.
    pub fn services_complete(&self) -> bool {
        self.relists.has_services()
    }

    /// Every kind that is needed was listed completely at least once.
    pub fn complete(&self) -> bool {
        self.relists.complete()
    }

    /// What may have changed since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        self.vacant.append(&mut self.vacated);
        mem::take(&mut self.dirty)
    }

    /// Hands everything out once more, for a compiler that starts with an index that is not new.
    pub fn touch_all(&mut self) {
        let Self { namespaces, keys, claims, veths, services, dirty, .. } = self;
        dirty.fronts.extend(services.all_fronts());
        dirty.namespaces.extend(namespaces.keys().cloned());
        dirty.pods.extend(keys.values());
        dirty.addresses.extend(claims.addresses());
        dirty.veths.extend(veths.all().map(|veth| veth.ifindex));
        for (namespace, entry) in namespaces {
            for name in entry.policies.keys() {
                dirty.policies.insert(ObjectName { namespace: namespace.clone(), name: name.clone() });
            }
        }
    }

    /// Whether objects may be others than at the last [`Self::take_dirty`].
    pub fn has_other_objects(&self) -> bool {
        let Dirty { namespaces, pods, policies, fronts, .. } = &self.dirty;
        !(namespaces.is_empty() && pods.is_empty() && policies.is_empty() && fronts.is_empty())
    }

    pub fn services(&self) -> impl Iterator<Item = &ServiceFacts> {
        self.services.all()
    }

    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &Namespace)> {
        self.namespaces.iter()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeFacts> {
        self.nodes.values()
    }

    pub fn node(&self, name: &str) -> Option<&NodeFacts> {
        self.nodes.get(name)
    }

    /// This node's own addresses.
    pub fn own_addresses(&self) -> &BTreeSet<IpAddr> {
        self.services.own()
    }

    /// Pods of one name: one that is gone and its successor may both be there.
    pub fn pods_named<'a>(&'a self, name: &'a ObjectName) -> impl Iterator<Item = PodId> + 'a {
        let first = PodKey { name: name.clone(), uid: Arc::default() };
        self.keys.range(first..).take_while(move |(key, _)| key.name == *name).map(|(_, id)| *id)
    }

    pub fn policy(&self, name: &ObjectName) -> Option<&Arc<PolicyFacts>> {
        self.namespaces.get(&name.namespace)?.policies.get(&name.name)
    }

    pub fn pod(&self, id: PodId) -> Option<&PodFacts> {
        self.slot(id).map(|pod| &pod.facts)
    }

    pub fn uid(&self, id: PodId) -> Option<&Arc<str>> {
        self.slot(id).map(|pod| &pod.uid)
    }

    pub fn pods(&self) -> impl Iterator<Item = (PodId, &PodFacts)> {
        let id = |place: usize| PodId(u32::try_from(place).expect("places are made from u32"));
        self.pods.iter().enumerate().filter_map(move |(place, pod)| Some((id(place), &pod.as_ref()?.facts)))
    }

    /// The live pods whose address it is, by CNI results of this node or else by their status; in no order that means anything.
    pub fn claims(&self, address: IpAddr) -> &[PodId] {
        self.claims.of(address)
    }

    /// The addresses that a pod may be known by, whether they are its alone or not.
    pub fn addresses(&self, id: PodId) -> impl Iterator<Item = IpAddr> {
        let stated = self.pod(id).into_iter().flat_map(|pod| pod.addresses.iter().copied());
        stated.chain(self.veths.behind(id).flat_map(|ifindex| self.claims.given_by(ifindex)))
    }

    pub fn veth(&self, ifindex: u32) -> Option<&Veth> {
        self.veths.get(ifindex)
    }

    pub fn veths(&self) -> impl Iterator<Item = &Veth> {
        self.veths.all()
    }

    /// Which pod is behind a veth, `None` where there is no such veth.
    pub fn identity(&self, ifindex: u32) -> Option<Identity> {
        self.veths.identity(ifindex)
    }

    fn slot(&self, id: PodId) -> Option<&Pod> {
        self.pods.get(id.0 as usize)?.as_ref()
    }

    fn set_namespace(&mut self, name: Arc<str>, facts: Option<NamespaceFacts>) {
        if facts.is_some() {
            self.relists.saw_namespace(&name);
        }
        let entry = self.namespaces.entry(name.clone()).or_default();
        if entry.facts != facts {
            entry.facts = facts;
            self.dirty.namespaces.insert(name.clone());
        }
        self.prune(&name);
    }

    fn set_policy(&mut self, name: ObjectName, facts: Option<PolicyFacts>) {
        if facts.is_some() {
            self.relists.saw_policy(&name);
        }
        let entry = self.namespaces.entry(name.namespace.clone()).or_default();
        if entry.policies.get(&name.name).map(|facts| &**facts) != facts.as_ref() {
            match facts {
                Some(facts) => entry.policies.insert(name.name.clone(), Arc::new(facts)),
                None => entry.policies.remove(&name.name),
            };
            self.dirty.policies.insert(name.clone());
        }
        self.prune(&name.namespace);
    }

    fn set_node(&mut self, name: Arc<str>, facts: Option<NodeFacts>) {
        match facts {
            Some(facts) => {
                self.relists.saw_node(&name);
                self.nodes.insert(name, facts);
            }
            None => {
                self.nodes.remove(&name);
            }
        }
    }

    fn set_service(&mut self, name: ObjectName, facts: Option<ServiceFacts>) {
        if facts.is_some() {
            self.relists.saw_service(&name);
        }
        self.dirty.fronts.append(&mut self.services.set(name, facts));
    }

    fn set_pod(&mut self, key: PodKey, facts: Option<PodFacts>) {
        if facts.is_some() {
            self.relists.saw_pod(&key);
        }
        let id = match (self.keys.get(&key), &facts) {
            (Some(&id), _) => id,
            (None, Some(_)) => self.place(),
            (None, None) => return,
        };
        let before = self.pods[id.0 as usize].take();
        if before.as_ref().map(|pod| &pod.facts) == facts.as_ref() {
            self.pods[id.0 as usize] = before;
            return;
        }
        self.set_fronts(id, before.as_ref().map(|pod| &pod.facts), facts.as_ref());
        let old = before.map_or(BTreeSet::new(), |pod| claimed(&pod.facts));
        let new = facts.as_ref().map_or(BTreeSet::new(), claimed);
        self.reclaim(id, &old, &new);
        let mut veths = self.veths.touched_by(id, &key.name, old.union(&new));
        self.relate(id, &key, facts.is_some());
        self.pods[id.0 as usize] = facts.map(|facts| Pod { uid: key.uid.clone(), facts });
        self.dirty.pods.insert(id);
        self.dirty.veths.append(&mut veths.clone());
        while let Some(ifindex) = veths.pop_first() {
            self.identify(ifindex);
        }
    }

    fn set_fronts(&mut self, id: PodId, before: Option<&PodFacts>, after: Option<&PodFacts>) {
        let node = &self.node;
        let here = |pod: &&PodFacts| pod.node.as_ref() == Some(node);
        let [old, new] = [before, after].map(|pod| pod.filter(here).map(host_fronts).unwrap_or_default());
        let mut fronts = self.services.set_host_ports(id, old, &new);
        fronts.append(&mut self.services.touched_by([before, after]));
        self.dirty.fronts.append(&mut fronts);
    }

    /// A place for a pod that is new.
    fn place(&mut self) -> PodId {
        self.vacant.pop().unwrap_or_else(|| {
            let id = PodId(u32::try_from(self.pods.len()).expect("fewer than 2^32 pods fit into memory"));
            self.pods.push(None);
            id
        })
    }

    fn relate(&mut self, id: PodId, key: &PodKey, present: bool) {
        let namespace = self.namespaces.entry(key.name.namespace.clone()).or_default();
        if present {
            self.keys.insert(key.clone(), id);
            namespace.pods.insert(id);
            return;
        }
        self.keys.remove(key);
        self.vacated.push(id);
        namespace.pods.remove(&id);
        self.prune(&key.name.namespace);
    }

    fn reclaim(&mut self, id: PodId, old: &BTreeSet<IpAddr>, new: &BTreeSet<IpAddr>) {
        self.claims.state(id, old, new);
        self.dirty.addresses.extend(old.symmetric_difference(new));
    }

    /// Forgets the entry of a namespace in which nothing is left.
    fn prune(&mut self, name: &Arc<str>) {
        if let Some(Namespace { facts: None, pods, policies }) = self.namespaces.get(name)
            && pods.is_empty()
            && policies.is_empty()
        {
            self.namespaces.remove(name);
        }
    }

    fn relist(&mut self, kind: Kind) {
        match kind {
            Kind::Namespace => {
                let known = self.namespaces.iter().filter(|(_, entry)| entry.facts.is_some());
                self.relists.begin_namespaces(known.map(|(name, _)| name.clone()).collect());
            }
            Kind::Pod => self.relists.begin_pods(self.keys.keys().cloned().collect()),
            Kind::Policy => {
                let names = self.namespaces.iter().flat_map(|(namespace, entry)| {
                    let name = |name: &Arc<str>| ObjectName { namespace: namespace.clone(), name: name.clone() };
                    entry.policies.keys().map(name)
                });
                self.relists.begin_policies(names.collect());
            }
            Kind::Node => self.relists.begin_nodes(self.nodes.keys().cloned().collect()),
            Kind::Service => self.relists.begin_services(self.services.names().cloned().collect()),
        }
    }

    fn relisted(&mut self, kind: Kind) {
        let complete = self.complete();
        match kind {
            Kind::Namespace => {
                self.relists.end_namespaces().into_iter().for_each(|name| self.set_namespace(name, None));
            }
            Kind::Pod => self.relists.end_pods().into_iter().for_each(|key| self.set_pod(key, None)),
            Kind::Policy => self.relists.end_policies().into_iter().for_each(|name| self.set_policy(name, None)),
            Kind::Node => self.relists.end_nodes().into_iter().for_each(|name| self.set_node(name, None)),
            Kind::Service => self.relists.end_services().into_iter().for_each(|name| self.set_service(name, None)),
        }
        if complete != self.complete() {
            // Until now every veth was closed.
            self.dirty.veths.extend(self.veths.all().map(|veth| veth.ifindex));
        }
    }
}

/// The addresses that are a pod's own. A finished pod's may be another's already (SEMANTICS 9.3), and those of a
/// hostNetwork pod are its node's (SEMANTICS 10).
fn claimed(pod: &PodFacts) -> BTreeSet<IpAddr> {
    if pod.finished || pod.host_network { BTreeSet::new() } else { pod.addresses.iter().copied().collect() }
}
