//! Endpoints: the subjects of this node, which policies isolate them, and their records.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use palisade_common::layout::{EndpointRecord, endpoint_flag};

use super::Direction;
use super::numbers::next;
use crate::facts::{Fault, ObjectName};
use crate::index::{Identity, Index, PodId, Unknown};

/// Why nothing passes but between the pod and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Not every kind of object was listed yet.
    Incomplete,
    Unknown(Unknown),
    /// The MAC address of the pod's side has not been read yet.
    MacUnknown,
    /// More addresses than a record holds.
    Addresses {
        count: usize,
    },
    /// No room for the rows of its policies.
    Table,
}

/// Flags of an endpoint whose flows are judged.
const BOUND: u32 = endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS | endpoint_flag::CLOSED;

/// What the compiler remembers of a veth.
#[derive(Debug, Default)]
pub(super) struct Endpoint {
    /// Given once there is room for a record.
    pub(super) number: Option<u32>,
    pub(super) generation: u32,
    /// UID of the pod that the generation is for, once known.
    uid: Option<Arc<str>>,
    /// There were or may have been connections that no program saw being opened.
    pub(super) midstream: bool,
    /// No policy isolates it so far.
    free: bool,
    /// [`EndpointRecord::isolated_at`].
    pub(super) isolated_at: u32,
    /// The pod, where it is known.
    pub(super) pod: Option<PodId>,
    pub(super) name: Option<ObjectName>,
    /// Policies that select it.
    pub(super) policies: BTreeSet<ObjectName>,
    /// By [`Direction`]; `None`: not isolated.
    pub(super) tables: [Option<u32>; 2],
    pub(super) closed: Option<Closed>,
    pub(super) faults: Vec<Fault>,
}

/// What an earlier agent said of an interface.
#[derive(Clone, Copy, Debug)]
struct Adopted {
    identity: u64,
    generation: u32,
    number: u32,
    midstream: bool,
    free: bool,
    isolated_at: u32,
}

#[derive(Debug, Default)]
pub(super) struct Endpoints {
    pub(super) all: BTreeMap<u32, Endpoint>,
    by_namespace: HashMap<Arc<str>, BTreeSet<u32>>,
    by_policy: BTreeMap<ObjectName, BTreeSet<u32>>,
    numbers: BTreeSet<u32>,
    adopted: BTreeMap<u32, Adopted>,
    /// Tables of endpoints that are gone, still to be released.
    left: Vec<u32>,
}

// === impl Endpoints ===

impl Endpoints {
    /// Returns the highest generation among the records.
    pub(super) fn adopt(&mut self, records: impl IntoIterator<Item = EndpointRecord>) -> u32 {
        let mut highest = 0;
        for record in records.into_iter().filter(|record| record.ifindex != 0) {
            highest = highest.max(record.generation);
            let adopted = Adopted {
                identity: u64::from(record.identity_hi) << 32 | u64::from(record.identity_lo),
                generation: record.generation,
                number: record.number,
                midstream: record.flags & endpoint_flag::MIDSTREAM != 0,
                free: record.flags & BOUND == 0,
                isolated_at: record.isolated_at,
            };
            self.adopted.insert(record.ifindex, adopted);
        }
        highest
    }

    /// Takes in who is behind a veth. Returns the policies whose subjects changed by that.
    pub(super) fn refresh(&mut self, index: &Index, ifindex: u32, generation: &mut u32) -> BTreeSet<ObjectName> {
        let Some(identity) = index.identity(ifindex) else { return self.remove(ifindex) };
        let endpoint = self.all.entry(ifindex).or_default();
        let pod = match identity {
            Identity::Pod(id) => index.pod(id).map(|pod| (id, pod)),
            Identity::Unknown(_) => None,
        };
        if let Some(uid) = pod.and_then(|(id, _)| index.uid(id)) {
            let older = index.veth(ifindex).is_some_and(|veth| veth.older);
            endpoint.begin_life(uid, older, self.adopted.get(&ifindex), generation);
        } else if endpoint.generation == 0 {
            endpoint.generation = next(generation);
        }
        let namespace = |name: &ObjectName| name.namespace.clone();
        let (old, new) = (endpoint.name.as_ref().map(namespace), pod.map(|(_, pod)| namespace(&pod.name)));
        endpoint.pod = pod.map(|(id, _)| id);
        endpoint.name = pod.map(|(_, pod)| pod.name.clone());
        if old != new {
            if let Some(old) = old {
                detach(&mut self.by_namespace, &old, ifindex);
            }
            if let Some(new) = new {
                self.by_namespace.entry(new).or_default().insert(ifindex);
            }
        }
        self.select(ifindex, policies_of(index, pod.map(|(id, _)| id)))
    }

    /// Tries a policy that changed on the pods of its namespace. Returns the endpoints that it selects or ceases to.
    pub(super) fn try_policy(&mut self, index: &Index, policy: &ObjectName) -> BTreeSet<u32> {
        let here = self.by_namespace.get(&policy.namespace).cloned().unwrap_or_default();
        let mut changed = BTreeSet::new();
        for ifindex in here {
            let Some(endpoint) = self.all.get_mut(&ifindex) else { continue };
            let selected = endpoint.pod.is_some_and(|id| selects(index, policy, id));
            if selected != endpoint.policies.contains(policy) {
                changed.insert(ifindex);
                if selected {
                    endpoint.policies.insert(policy.clone());
                    self.by_policy.entry(policy.clone()).or_default().insert(ifindex);
                } else {
                    endpoint.policies.remove(policy);
                    self.unselect(policy, ifindex);
                }
            }
        }
        changed
    }

    pub(super) fn selected_by(&self, policy: &ObjectName) -> impl Iterator<Item = u32> {
        self.by_policy.get(policy).into_iter().flatten().copied()
    }

    pub(super) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = u32> {
        self.by_namespace.get(namespace).into_iter().flatten().copied()
    }

    /// Gives the endpoint a number that it keeps: that of its earlier record, or the smallest that is free.
    pub(super) fn number(&mut self, ifindex: u32, endpoints_max: usize) -> u32 {
        if let Some(number) = self.all.get(&ifindex).and_then(|endpoint| endpoint.number) {
            return number;
        }
        let limit = u32::try_from(endpoints_max).unwrap_or(u32::MAX);
        let own = self.adopted.get(&ifindex).map(|adopted| adopted.number);
        let own = own.filter(|number| *number < limit && !self.numbers.contains(number));
        // Interfaces of earlier records may still show up; their numbers are the last to be taken.
        let reserved: BTreeSet<u32> = self.adopted.values().map(|adopted| adopted.number).collect();
        let free = |number: &u32| !self.numbers.contains(number);
        let number = own
            .or_else(|| (0..limit).filter(free).find(|number| !reserved.contains(number)))
            .or_else(|| (0..).find(free))
            .expect("there are fewer endpoints than numbers");
        self.numbers.insert(number);
        if let Some(endpoint) = self.all.get_mut(&ifindex) {
            endpoint.number = Some(number);
        }
        number
    }

    pub(super) fn forget_number(&mut self, ifindex: u32) {
        if let Some(number) = self.all.get_mut(&ifindex).and_then(|endpoint| endpoint.number.take()) {
            self.numbers.remove(&number);
        }
    }

    /// Tables that endpoints had which are gone now.
    pub(super) fn take_left(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.left)
    }

    fn remove(&mut self, ifindex: u32) -> BTreeSet<ObjectName> {
        let touched = self.select(ifindex, BTreeSet::new());
        self.forget_number(ifindex);
        if let Some(Endpoint { name, tables, .. }) = self.all.remove(&ifindex) {
            self.left.extend(tables.into_iter().flatten());
            if let Some(name) = name {
                detach(&mut self.by_namespace, &name.namespace, ifindex);
            }
        }
        // Another interface may get the index; the earlier record is not its.
        self.adopted.remove(&ifindex);
        touched
    }

    fn select(&mut self, ifindex: u32, policies: BTreeSet<ObjectName>) -> BTreeSet<ObjectName> {
        let Some(endpoint) = self.all.get_mut(&ifindex) else { return BTreeSet::new() };
        let before = std::mem::replace(&mut endpoint.policies, policies.clone());
        for gone in before.difference(&policies) {
            self.unselect(gone, ifindex);
        }
        for new in policies.difference(&before) {
            self.by_policy.entry(new.clone()).or_default().insert(ifindex);
        }
        before.symmetric_difference(&policies).cloned().collect()
    }

    fn unselect(&mut self, policy: &ObjectName, ifindex: u32) {
        if let Some(endpoints) = self.by_policy.get_mut(policy) {
            endpoints.remove(&ifindex);
            if endpoints.is_empty() {
                self.by_policy.remove(policy);
            }
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Of which nothing is known yet.
    pub(super) fn early(number: u32, generation: u32) -> Self {
        Self { number: Some(number), generation, closed: Some(Closed::Incomplete), ..Self::default() }
    }

    /// A generation is for one pod: what was remembered of flows is not the next pod's.
    fn begin_life(&mut self, uid: &Arc<str>, older: bool, adopted: Option<&Adopted>, generation: &mut u32) {
        if self.uid.as_ref() == Some(uid) {
            return;
        }
        let first = self.uid.is_none();
        match adopted.filter(|adopted| first && adopted.identity == fingerprint(uid) && adopted.generation != 0) {
            Some(adopted) => {
                self.generation = adopted.generation;
                self.midstream = adopted.midstream;
                self.free = adopted.free;
                self.isolated_at = adopted.isolated_at;
            }
            None => {
                // The number it had while it was closed and unknown is still its own.
                if !first || self.generation == 0 {
                    self.generation = next(generation);
                }
                self.midstream = false;
                self.free = older;
                self.isolated_at = 0;
            }
        }
        self.uid = Some(uid.clone());
    }

    /// Takes note of whether a policy isolates it, from `second` (CLOCK_MONOTONIC) on. Nothing is remembered of the flows of a pod
    /// that none does.
    pub(super) fn note_isolation(&mut self, second: u32) {
        if self.closed.is_some() {
            return;
        }
        let free = self.tables == [None, None];
        self.midstream |= free;
        if self.free && !free {
            self.isolated_at = second.max(1);
        }
        self.free = free;
    }

    /// Fingerprint of the pod's identity, 0 where it is unknown.
    pub(super) fn identity(&self) -> u64 {
        self.uid.as_deref().filter(|_| self.pod.is_some()).map_or(0, fingerprint)
    }

    pub(super) fn is_isolated(&self, direction: Direction) -> bool {
        self.tables[direction as usize].is_some()
    }
}

/// The policies that select a pod. A finished pod is no subject (SEMANTICS 9.3).
fn policies_of(index: &Index, pod: Option<PodId>) -> BTreeSet<ObjectName> {
    let Some(pod) = pod.and_then(|id| index.pod(id)).filter(|pod| !pod.finished && !pod.host_network) else {
        return BTreeSet::new();
    };
    let namespace = &pod.name.namespace;
    let policies = index.namespace(namespace).into_iter().flat_map(|entry| &entry.policies);
    let selecting = policies.filter(|(_, policy)| policy.subject.matches(&pod.labels));
    selecting.map(|(name, _)| ObjectName { namespace: namespace.clone(), name: name.clone() }).collect()
}

fn selects(index: &Index, policy: &ObjectName, pod: PodId) -> bool {
    let (Some(policy), Some(pod)) = (index.policy(policy), index.pod(pod)) else { return false };
    !pod.finished && !pod.host_network && policy.subject.matches(&pod.labels)
}

fn detach(by_namespace: &mut HashMap<Arc<str>, BTreeSet<u32>>, namespace: &Arc<str>, ifindex: u32) {
    if let Some(endpoints) = by_namespace.get_mut(namespace) {
        endpoints.remove(&ifindex);
        if endpoints.is_empty() {
            by_namespace.remove(namespace);
        }
    }
}

/// FNV-1a, as it must be the same in the next agent.
pub(super) fn fingerprint(uid: &str) -> u64 {
    uid.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("the API objects have not been listed completely yet"),
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::MacUnknown => f.write_str("the MAC address of the pod's interface is not known yet"),
            Self::Addresses { count } => write!(f, "it has {count} addresses of one family, which is too many"),
            Self::Table => f.write_str("there is no room for the rows of its policies"),
        }
    }
}
