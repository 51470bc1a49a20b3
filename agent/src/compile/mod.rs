//! Facts → desired tables, computing only what a change touches.
//!
//! The state is a function of the facts alone, whatever the way there, but for what must outlive a change: numbers
//! (which only grow), generations, and whether a pod may have connections that nobody saw being opened. Called by `run`
//! with the index after every batch of changes; `tables` turns the delta into writes.

mod blocks;
mod canonical;
mod catalog;
mod classes;
mod decisions;
mod desired;
mod endpoints;
mod faults;
mod hosts;
mod limits;
mod numbers;
mod peers;
mod policies;
mod ports;
mod prefix;
mod record;
mod services;
mod stamps;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use palisade_common::layout::{EndpointRecord, TableRef, endpoint_flag};

use crate::facts::{Fault, ObjectName, Peer, PodFacts, Veth};
use crate::index::{Dirty, Identity, Index};
use crate::tables::{Delta, Tables};
use blocks::Blocks;
pub use canonical::{Allowed, Canonical, CanonicalEndpoint, PeerClass, RuleName, TableName};
pub use catalog::{AgentEntry, Catalog, ClassEntry, EndpointEntry, FaultEntry, RuleEntry, TableEntry, XdpEntry};
use classes::Classes;
use decisions::{Decisions, Means};
use desired::Desired;
pub use endpoints::Closed;
use endpoints::{Endpoint, Endpoints};
use hosts::Hosts;
pub use limits::Limits;
pub use numbers::Numbers;
use peers::Peers;
use policies::{Policies, PortName};
use record::Own;
use services::Services;
use stamps::Stamps;

/// As seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress = 0,
    Egress = 1,
}

/// What came of an update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// From the desired tables before to those after.
    pub delta: Delta,
    /// All that cannot be enforced as written, as it is now; sorted.
    pub faults: Vec<Fault>,
}

#[derive(Debug)]
pub struct Compiler {
    limits: Limits,
    numbers: Numbers,
    policies: Policies,
    peers: Peers,
    blocks: Blocks,
    hosts: Hosts,
    classes: Classes,
    decisions: Decisions,
    endpoints: Endpoints,
    services: Services,
    stamps: Stamps,
    /// The first interface for which there is no room.
    cut: Option<u32>,
    desired: Desired,
    /// The time of the update, as it was told (CLOCK_MONOTONIC).
    second: u32,
}

// === impl Direction ===

impl Direction {
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

// === impl Compiler ===

impl Compiler {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            numbers: Numbers::default(),
            policies: Policies::default(),
            peers: Peers::default(),
            blocks: Blocks::default(),
            hosts: Hosts::default(),
            classes: Classes::default(),
            decisions: Decisions::default(),
            endpoints: Endpoints::default(),
            services: Services::default(),
            stamps: Stamps::default(),
            cut: None,
            desired: Desired::default(),
            second: 0,
        }
    }

    /// Numbers above those that an earlier agent's tables hold. Before the first update.
    pub fn start_above(mut self, numbers: Numbers) -> Self {
        self.numbers = self.numbers.above(numbers);
        self
    }

    /// Goes on where an earlier agent's records end: an interface that still has the pod of its record keeps
    /// generation, number, stamp and what is known of its connections. Before the first update.
    pub fn adopt(&mut self, records: impl IntoIterator<Item = EndpointRecord>) {
        let stamps = &mut self.stamps;
        let records = records.into_iter().inspect(|record| stamps.adopt(record.ifindex, record.stamp));
        let generation = self.endpoints.adopt(records);
        self.numbers.generation = self.numbers.generation.max(generation);
    }

    /// Keeps the Services that an earlier agent knew until all are listed. Before the first update.
    pub fn adopt_services(&mut self, tables: &Tables) {
        self.services.adopt(tables);
    }

    /// Everything that is wanted.
    pub fn tables(&self) -> &Tables {
        &self.desired.tables
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The highest numbers given out so far.
    pub fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// Brings the tables up to date with the index. `second`: the time (CLOCK_MONOTONIC), kept in the records of endpoints that a
    /// policy begins to isolate.
    pub fn update(&mut self, index: &mut Index, second: u32) -> Compiled {
        self.second = second;
        let mut dirty = index.take_dirty();
        let mut endpoints = self.update_subjects(index, &dirty);
        endpoints.append(&mut self.stamps.begin());
        let means = (&mut self.numbers.backends, &mut self.desired);
        self.services.update(index, std::mem::take(&mut dirty.fronts), self.limits.services_max, means);
        self.update_peers(index, dirty);
        self.update_tables(index, &mut endpoints);
        self.update_room(&mut endpoints);
        for ifindex in endpoints {
            self.write_endpoint(index, ifindex);
        }
        Compiled { delta: self.desired.take_delta(), faults: self.faults(index) }
    }

    /// The record of an interface until everything was listed once: nothing passes there but between the pod, whoever it is, and its node.
    /// `before`: the one that it has. `number`: its own if it has none.
    pub fn early(
        &mut self,
        index: &Index,
        veth: &Veth,
        before: Option<&EndpointRecord>,
        number: u32,
    ) -> EndpointRecord {
        let (number, generation) = match before {
            Some(before) => (before.number, before.generation),
            None => (number, numbers::next(&mut self.numbers.generation)),
        };
        let endpoint = Endpoint::early(number, generation);
        let mut record = record::record(veth, &endpoint, &Own::of(index, veth, None), false);
        record.flags |= endpoint_flag::EARLY;
        record
    }

    /// The last update's change could not be written: what was in force is so still, and what that uses must not be given to others.
    pub fn hold(&mut self) {
        self.stamps.hold();
    }

    /// Who is selected by what. Returns the endpoints whose record may be another.
    fn update_subjects(&mut self, index: &Index, dirty: &Dirty) -> BTreeSet<u32> {
        let Self { endpoints: subjects, policies, numbers, .. } = self;
        let mut endpoints = dirty.veths.clone();
        let mut touched = dirty.policies.clone();
        for &ifindex in &dirty.veths {
            touched.append(&mut subjects.refresh(index, ifindex, &mut numbers.generation));
        }
        for namespace in &dirty.namespaces {
            endpoints.extend(subjects.of_namespace(namespace));
        }
        for policy in &dirty.policies {
            endpoints.append(&mut subjects.try_policy(index, policy));
        }
        for policy in &touched {
            let selects = subjects.selected_by(policy).next().is_some();
            if policies.refresh(index, policy, selects, numbers) {
                endpoints.extend(subjects.selected_by(policy));
            }
        }
        endpoints
    }

    /// Which class each address and prefix has.
    fn update_peers(&mut self, index: &Index, dirty: Dirty) {
        let Self { policies, peers, blocks, hosts, classes, numbers, desired, limits, .. } = self;
        let (appeared, vanished) = policies.registry.take_changes();
        for (id, peer) in &vanished {
            match peer {
                Peer::Pods { namespaces, pods } => peers.vanish(index, *id, namespaces, pods),
                Peer::Block(block) => blocks.forget(block, *id),
            }
        }
        let mut new_blocks = BTreeMap::new();
        for (id, peer) in &appeared {
            if let Peer::Block(block) = peer {
                blocks.want(block, *id);
                new_blocks.insert(block.clone(), *id);
            }
        }
        let selectors = appeared.iter().filter_map(|(id, peer)| match peer {
            Peer::Pods { namespaces, pods } => Some((*id, namespaces, pods)),
            Peer::Block(_) => None,
        });
        peers.appear(index, selectors);
        blocks.admit(&new_blocks, limits.prefixes_max);
        let mut pods = dirty.pods;
        for namespace in dirty.namespaces.iter().filter_map(|name| index.namespace(name)) {
            pods.extend(&namespace.pods);
        }
        let names = policies.take_names();
        if !names.is_empty() {
            let named = |pod: &PodFacts| !peers::resolved(pod, |name| names.contains(name)).is_empty();
            pods.extend(index.pods().filter(|(_, pod)| named(pod)).map(|(id, _)| id));
        }
        for pod in pods {
            peers.evaluate(index, &policies.names, pod);
        }
        peers.touch(dirty.addresses.into_iter());
        let moved = blocks.take_moved();
        blocks.settle(classes, &mut numbers.class, desired);
        let mut changed = peers.settle(index, blocks, &moved, limits.exact_max, (classes, &mut numbers.class));
        changed.append(&mut blocks.take_dirty_hosts());
        hosts.settle(peers, blocks, limits.exact_max, changed, desired);
    }

    /// Why nothing passes at the interface but between its pod and the node; `None`: that is not so, or there is no such endpoint.
    pub fn closed(&self, ifindex: u32) -> Option<String> {
        self.endpoints.all.get(&ifindex)?.closed.as_ref().map(ToString::to_string)
    }

    /// A policy selects a pod of this node.
    pub fn has_subjects_of(&self, policy: &ObjectName) -> bool {
        self.endpoints.selected_by(policy).next().is_some()
    }

    /// This node has pods of the namespace.
    pub fn has_endpoints_in(&self, namespace: &str) -> bool {
        self.endpoints.of_namespace(namespace).next().is_some()
    }

    /// Which tables the endpoints need, and their rows. Adds the endpoints whose tables found or lost their room.
    fn update_tables(&mut self, index: &Index, endpoints: &mut BTreeSet<u32>) {
        for ifindex in &*endpoints {
            for direction in Direction::ALL {
                let table = self.wanted_table(index, *ifindex, direction);
                let Some(endpoint) = self.endpoints.all.get_mut(ifindex) else {
                    table.into_iter().for_each(|id| self.decisions.release(id));
                    continue;
                };
                if let Some(old) = std::mem::replace(&mut endpoint.tables[direction as usize], table) {
                    self.decisions.release(old);
                }
            }
        }
        for table in self.endpoints.take_left() {
            self.decisions.release(table);
        }
        let Self { decisions, classes, numbers, desired, limits, .. } = self;
        let dead = classes.sweep();
        let born = classes.take_born();
        let flipped = decisions.settle(&dead, &born, limits, &mut Means { classes, numbers, desired });
        if !flipped.is_empty() {
            let uses = |endpoint: &Endpoint| endpoint.tables.iter().flatten().any(|id| flipped.contains(id));
            endpoints.extend(self.endpoints.all.iter().filter(|(_, endpoint)| uses(endpoint)).map(|(&id, _)| id));
        }
    }

    fn wanted_table(&mut self, index: &Index, ifindex: u32, direction: Direction) -> Option<u32> {
        let endpoint = self.endpoints.all.get(&ifindex)?;
        let pod = index.pod(endpoint.pod?)?;
        let sides = endpoint.policies.iter().filter_map(|policy| self.policies.side(policy, direction));
        let sides: Vec<Arc<policies::Side>> = sides.cloned().collect();
        if sides.is_empty() {
            return None;
        }
        let ports = match direction {
            Direction::Ingress => {
                let asked = |name: &PortName| sides.iter().any(|side| side.names.contains(name));
                peers::resolved(pod, asked)
            }
            Direction::Egress => Arc::default(),
        };
        Some(self.decisions.acquire(direction, sides, ports, &mut self.numbers))
    }

    /// Finds the endpoints for which there is no room; adds all if these are others than before.
    fn update_room(&mut self, endpoints: &mut BTreeSet<u32>) {
        let cut = self.endpoints.all.keys().nth(self.limits.endpoints_max).copied();
        if cut != self.cut {
            self.cut = cut;
            endpoints.extend(self.endpoints.all.keys());
            // Numbers are given back before any is taken.
            for &ifindex in endpoints.iter().filter(|&&ifindex| cut.is_some_and(|cut| ifindex >= cut)) {
                self.endpoints.forget_number(ifindex);
            }
        }
    }

    fn write_endpoint(&mut self, index: &Index, ifindex: u32) {
        let room = self.cut.is_none_or(|cut| ifindex < cut);
        let (Some(veth), true, true) = (index.veth(ifindex), room, self.endpoints.all.contains_key(&ifindex)) else {
            self.desired.endpoint(ifindex, None);
            self.stamps.give_back(ifindex);
            if let Some(Endpoint { closed, faults, .. }) = self.endpoints.all.get_mut(&ifindex) {
                *closed = None;
                faults.clear();
            }
            return;
        };
        self.endpoints.number(ifindex, self.limits.endpoints_max);
        let endpoint = self.endpoints.all.get_mut(&ifindex).expect("it was there just now");
        let mut own = Own::of(index, veth, endpoint.pod);
        let [ingress, egress] = endpoint.tables.map(|table| table.map(|id| self.decisions.reference(id)));
        endpoint.closed = match index.identity(ifindex) {
            Some(Identity::Unknown(unknown)) => Some(Closed::Unknown(unknown)),
            Some(Identity::Pod(_)) | None if !index.complete() => Some(Closed::Incomplete),
            Some(Identity::Pod(_)) | None if veth.pod_mac.is_none() => Some(Closed::MacUnknown),
            Some(Identity::Pod(_)) | None if ingress == Some(None) || egress == Some(None) => Some(Closed::Table),
            Some(Identity::Pod(_)) | None => own.too_many(),
        };
        endpoint.faults = std::mem::take(&mut own.faults);
        endpoint.note_isolation(self.second);
        let trusted = endpoint.pod.and_then(|id| index.pod(id)).is_some_and(|pod| {
            let namespace = index.namespace(&pod.name.namespace);
            namespace.and_then(|namespace| namespace.facts.as_ref()).is_some_and(|facts| facts.trusted)
        });
        let mut record = record::record(veth, endpoint, &own, trusted);
        if endpoint.tables == [None, None] {
            self.stamps.give_back(ifindex);
        } else {
            record.stamp = self.stamps.give(ifindex, self.limits.stamps_max).unwrap_or_default();
        }
        if endpoint.closed.is_none() {
            let reference = |table: Option<Option<TableRef>>| table.flatten().unwrap_or_default();
            record.ingress = reference(ingress);
            record.egress = reference(egress);
        }
        self.desired.endpoint(ifindex, Some(record));
    }
}
