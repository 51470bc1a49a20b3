//! From one state of the tables to another: the writes, in order.
//!
//! 1. new rows of RULES, PORTS and BACKENDS, new RECORDS and STAMPS (nothing refers to them yet);
//! 2. every reference that changes (endpoint → record, address and prefix → class, Service → row), as a [`Versioned`] that changes at the next
//!    epoch; what is added says what the look-up gave before, what goes says what it will give after;
//! 3. the epoch: the instant at which all of it holds;
//! 4. removal of references that have gone, then of rows that nothing refers to any longer.
//!
//! Until step 3 every look-up gives the old state, from step 3 on the new one, whatever has been written. If a write of the
//! first two steps fails, [`Plan::undo`] gives back what there was.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use palisade_common::layout::{
    Address, Backends, CLASS_ASK_CIDR, CLASS_NONE, EndpointRecord, PortKey, PortValue, RECORD_NONE, RuleKey, RuleValue,
    SERVICE_NONE, ServiceKey, Versioned,
};

use super::{Delta, Tables};

/// One write to one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Record(u32, EndpointRecord),
    Rule(RuleKey, Option<RuleValue>),
    /// Key and prefix length in bits.
    Port(PortKey, u32, Option<PortValue>),
    ExactV4(u32, Option<Versioned>),
    ExactV6(Address, Option<Versioned>),
    CidrV4(Ipv4Net, Option<Versioned>),
    CidrV6(Ipv6Net, Option<Versioned>),
    Service(ServiceKey, Option<Versioned>),
    Backends(u32, Option<Backends>),
    /// A port (host order) that some key of SERVICES has from now on, or none any longer.
    ServicePort(u16, bool),
    /// Stamp → interface index. It stays when the endpoint has gone, as packets are under way; no two endpoints have it at one epoch.
    Stamp(u32, u32),
    /// Interface index → record index.
    Endpoint(u32, Option<Versioned>),
    Epoch(u32),
}

/// The ordered writes of one change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub writes: Vec<Write>,
    undo: Vec<Option<Write>>,
    delta: Delta,
    records: BTreeMap<u32, Option<u32>>,
}

/// There are more endpoints than records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordsExhausted;

/// What the kernel holds, as far as writes have succeeded.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    tables: Tables,
    epoch: u32,
    records: BTreeMap<u32, u32>,
    free: Vec<u32>,
    /// How many keys of SERVICES have each port.
    service_ports: BTreeMap<u16, u32>,
    /// Whose each stamp is, or was last.
    stamps: BTreeMap<u32, u32>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The writes that take back the first `done` ones, none of which is the epoch's.
    pub fn undo(&self, done: usize) -> Vec<Write> {
        self.undo[..done].iter().rev().flatten().copied().collect()
    }

    /// How many writes come before the change holds, the epoch's own included.
    pub fn commit_len(&self) -> usize {
        self.writes.iter().position(|write| matches!(write, Write::Epoch(_))).map_or(0, |at| at + 1)
    }

    fn push(&mut self, write: Write, undo: Option<Write>) {
        self.writes.push(write);
        self.undo.push(undo);
    }
}

impl Installed {
    /// Empty maps at `epoch`, with records `0..records_max`.
    pub fn new(epoch: u32, records_max: u32) -> Self {
        Self::adopt(epoch, records_max, Tables::default(), BTreeMap::new())
    }

    /// What an earlier agent left: `records` says which record each endpoint refers to.
    pub fn adopt(epoch: u32, records_max: u32, tables: Tables, records: BTreeMap<u32, u32>) -> Self {
        let mut used: Vec<bool> = vec![false; records_max as usize];
        for index in records.values() {
            if let Some(used) = used.get_mut(*index as usize) {
                *used = true;
            }
        }
        let free = (0..records_max).rev().filter(|index| !used[*index as usize]).collect();
        let mut service_ports = BTreeMap::new();
        for key in tables.services.keys() {
            *service_ports.entry(key.port).or_default() += 1;
        }
        let stamps = tables.endpoints.iter().map(|(ifindex, record)| (record.stamp, *ifindex));
        let stamps = stamps.filter(|(stamp, _)| *stamp != 0).collect();
        Self { tables, epoch, records, free, service_ports, stamps }
    }

    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Nothing was ever written.
    pub fn is_new(&self) -> bool {
        self.tables == Tables::default()
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The plan for `delta`; entries of it that are there already are left out.
    pub fn plan(&self, delta: &Delta) -> Result<Plan, RecordsExhausted> {
        let mut plan = Plan { delta: self.tables.without_known(delta), ..Plan::default() };
        let delta = plan.delta.clone();
        if delta == Delta::default() {
            return Ok(plan);
        }
        let next = self.epoch.wrapping_add(1);
        for (key, value) in &delta.rules {
            if value.is_some() {
                plan.push(Write::Rule(*key, *value), Some(Write::Rule(*key, self.tables.rules.get(key).copied())));
            }
        }
        for ((key, length), value) in &delta.ports {
            if value.is_some() {
                let old = self.tables.ports.get(&(*key, *length)).copied();
                plan.push(Write::Port(*key, *length, *value), Some(Write::Port(*key, *length, old)));
            }
        }
        for (row, value) in &delta.backends {
            if value.is_some() {
                let old = self.tables.backends.get(row).copied();
                plan.push(Write::Backends(*row, *value), Some(Write::Backends(*row, old)));
            }
        }
        let ports = self.port_changes(&delta);
        let appear = ports.iter().filter(|(port, count)| **count > 0 && !self.service_ports.contains_key(port));
        for (port, _) in appear {
            plan.push(Write::ServicePort(*port, true), None);
        }
        self.references(&mut plan, &delta, next)?;
        plan.push(Write::Epoch(next), None);
        removals(&mut plan, &delta);
        // Where more is said to be there than is, a look-up finds nothing.
        let known = |port| self.service_ports.get(port).copied().map_or(0, i64::from);
        for (port, _) in ports.iter().filter(|(port, count)| **count < 0 && known(port) + **count == 0) {
            plan.push(Write::ServicePort(*port, false), None);
        }
        Ok(plan)
    }

    /// Raises the epoch by itself: every flow is judged anew.
    pub fn raise_epoch(&mut self) -> Write {
        self.epoch = self.epoch.wrapping_add(1);
        Write::Epoch(self.epoch)
    }

    /// The plan's writes have all succeeded (those before and including the epoch's, at least).
    pub fn commit(&mut self, plan: &Plan) {
        if plan.is_empty() {
            return;
        }
        self.epoch = self.epoch.wrapping_add(1);
        for (ifindex, index) in &plan.records {
            let old = match index {
                Some(index) => {
                    self.free.retain(|free| free != index);
                    self.records.insert(*ifindex, *index)
                }
                None => self.records.remove(ifindex),
            };
            self.free.extend(old);
        }
        for (port, change) in self.port_changes(&plan.delta) {
            let count = self.service_ports.get(&port).copied().map_or(0, i64::from) + change;
            match u32::try_from(count).ok().filter(|count| *count != 0) {
                Some(count) => self.service_ports.insert(port, count),
                None => self.service_ports.remove(&port),
            };
        }
        let records =
            plan.delta.endpoints.iter().filter_map(|(ifindex, record)| Some((record.as_ref()?.stamp, *ifindex)));
        self.stamps.extend(records.filter(|(stamp, _)| *stamp != 0));
        self.tables.apply(&plan.delta);
    }

    /// By how many keys of SERVICES each port gains or loses.
    fn port_changes(&self, delta: &Delta) -> BTreeMap<u16, i64> {
        let mut changes = BTreeMap::new();
        for (key, number) in &delta.services {
            let change: &mut i64 = changes.entry(key.port).or_default();
            *change += i64::from(number.is_some()) - i64::from(self.tables.services.contains_key(key));
        }
        changes
    }

    fn references(&self, plan: &mut Plan, delta: &Delta, next: u32) -> Result<(), RecordsExhausted> {
        let tables = &self.tables;
        exact(plan, &tables.exact_v4, &delta.exact_v4, next, CLASS_ASK_CIDR, Write::ExactV4);
        exact(plan, &tables.exact_v6, &delta.exact_v6, next, CLASS_ASK_CIDR, Write::ExactV6);
        exact(plan, &tables.services, &delta.services, next, SERVICE_NONE, Write::Service);
        cidr(plan, &tables.cidr_v4, &delta.cidr_v4, next, covering_v4, Write::CidrV4);
        cidr(plan, &tables.cidr_v6, &delta.cidr_v6, next, covering_v6, Write::CidrV6);
        let mut free = self.free.iter().rev();
        for (ifindex, record) in &delta.endpoints {
            let old = self.records.get(ifindex).copied();
            let new = match record {
                Some(record) => {
                    let index = *free.next().ok_or(RecordsExhausted)?;
                    plan.push(Write::Record(index, *record), None);
                    if record.stamp != 0 {
                        // 0 is nobody's index.
                        let was = self.stamps.get(&record.stamp).copied().unwrap_or_default();
                        plan.push(Write::Stamp(record.stamp, *ifindex), Some(Write::Stamp(record.stamp, was)));
                    }
                    Some(index)
                }
                None => None,
            };
            plan.records.insert(*ifindex, new);
            let (before, after) = (old.unwrap_or(RECORD_NONE), new.unwrap_or(RECORD_NONE));
            let undo = Write::Endpoint(*ifindex, old.map(Versioned::constant));
            plan.push(Write::Endpoint(*ifindex, Some(Versioned { since: next, before, after })), Some(undo));
        }
        Ok(())
    }
}

/// Step 4.
fn removals(plan: &mut Plan, delta: &Delta) {
    let mut gone = Vec::new();
    gone.extend(delta.endpoints.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::Endpoint(*k, None)));
    gone.extend(delta.exact_v4.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::ExactV4(*k, None)));
    gone.extend(delta.exact_v6.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::ExactV6(*k, None)));
    gone.extend(delta.cidr_v4.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::CidrV4(*k, None)));
    gone.extend(delta.cidr_v6.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::CidrV6(*k, None)));
    gone.extend(delta.services.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::Service(*k, None)));
    gone.extend(delta.backends.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::Backends(*k, None)));
    gone.extend(delta.rules.iter().filter(|(_, v)| v.is_none()).map(|(k, _)| Write::Rule(*k, None)));
    gone.extend(delta.ports.iter().filter(|(_, v)| v.is_none()).map(|((k, l), _)| Write::Port(*k, *l, None)));
    for write in gone {
        plan.push(write, None);
    }
}

/// What is added gave `none` before (an address: ask the trie), what goes gives it after.
fn exact<K: Ord + Copy>(
    plan: &mut Plan,
    old: &BTreeMap<K, u32>,
    changes: &BTreeMap<K, Option<u32>>,
    next: u32,
    none: u32,
    write: impl Fn(K, Option<Versioned>) -> Write,
) {
    for (key, number) in changes {
        let old = old.get(key).copied();
        let (before, after) = (old.unwrap_or(none), number.unwrap_or(none));
        let undo = write(*key, old.map(Versioned::constant));
        plan.push(write(*key, Some(Versioned { since: next, before, after })), Some(undo));
    }
}

/// What is added gave the class of the prefix around it before, what goes gives that after.
fn cidr<K: Ord + Copy>(
    plan: &mut Plan,
    old: &BTreeMap<K, u32>,
    changes: &BTreeMap<K, Option<u32>>,
    next: u32,
    covering: impl Fn(K, &dyn Fn(&K) -> Option<u32>) -> u32,
    write: impl Fn(K, Option<Versioned>) -> Write,
) {
    for prefix in changes.keys() {
        let before = covering(*prefix, &|net| old.get(net).copied());
        let after = covering(*prefix, &|net| changes.get(net).copied().unwrap_or_else(|| old.get(net).copied()));
        let undo = write(*prefix, old.get(prefix).copied().map(Versioned::constant));
        plan.push(write(*prefix, Some(Versioned { since: next, before, after })), Some(undo));
    }
}

/// The class that a look-up inside `prefix` finds: the longest of `prefix` itself and the shorter ones that cover it.
pub(super) fn covering_v4(prefix: Ipv4Net, class: &dyn Fn(&Ipv4Net) -> Option<u32>) -> u32 {
    let bits = u32::from(prefix.network());
    (0..=prefix.prefix_len())
        .rev()
        .find_map(|length| {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            class(&Ipv4Net::new(Ipv4Addr::from(bits & mask), length).expect("a length of at most 32"))
        })
        .unwrap_or(CLASS_NONE)
}

/// As [`covering_v4`].
pub(super) fn covering_v6(prefix: Ipv6Net, class: &dyn Fn(&Ipv6Net) -> Option<u32>) -> u32 {
    let bits = u128::from(prefix.network());
    (0..=prefix.prefix_len())
        .rev()
        .find_map(|length| {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            class(&Ipv6Net::new(Ipv6Addr::from(bits & mask), length).expect("a length of at most 128"))
        })
        .unwrap_or(CLASS_NONE)
}
