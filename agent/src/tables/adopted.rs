//! What an earlier agent left in the maps, made whole: a change that was cut off before its epoch is taken back.
//!
//! A decision about values; `kernel` reads the maps and carries the writes out.

use std::collections::BTreeMap;

use ipnet::{Ipv4Net, Ipv6Net};
use palisade_common::layout::{
    Address, CLASS_ASK_CIDR, EndpointRecord, PortKey, PortValue, RECORD_NONE, RuleKey, RuleValue, Versioned,
};

use super::Tables;
use super::plan::Write;

/// The maps as they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub epoch: u32,
    pub endpoints: BTreeMap<u32, Versioned>,
    pub records: BTreeMap<u32, EndpointRecord>,
    pub exact_v4: BTreeMap<u32, Versioned>,
    pub exact_v6: BTreeMap<Address, Versioned>,
    pub cidr_v4: BTreeMap<Ipv4Net, Versioned>,
    pub cidr_v6: BTreeMap<Ipv6Net, Versioned>,
    pub rules: BTreeMap<RuleKey, RuleValue>,
    pub ports: BTreeMap<(PortKey, u32), PortValue>,
}

/// What is in force in them, and the writes after which nothing waits for an epoch to come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// In order; the last one is the epoch's.
    pub writes: Vec<Write>,
    pub epoch: u32,
    pub tables: Tables,
    /// Which record each endpoint refers to.
    pub records: BTreeMap<u32, u32>,
}

/// Every look-up gives the same before, between and after the writes.
pub fn adopted(found: Found) -> Adopted {
    let epoch = found.epoch;
    let mut writes = Vec::new();
    let mut tables = Tables { rules: found.rules, ports: found.ports, ..Tables::default() };
    let mut records = BTreeMap::new();
    for (ifindex, value) in found.endpoints {
        let index = value.at(epoch);
        let record = found.records.get(&index).filter(|record| index != RECORD_NONE && record.ifindex == ifindex);
        let settled = record.map(|_| Versioned::constant(index));
        writes.extend(repair(value, settled, epoch).map(|value| Write::Endpoint(ifindex, value)));
        if let Some(record) = record {
            tables.endpoints.insert(ifindex, *record);
            records.insert(ifindex, index);
        }
    }
    for (address, value) in found.exact_v4 {
        let class = class_of(value, epoch);
        writes.extend(repair(value, constant(class), epoch).map(|value| Write::ExactV4(address, value)));
        tables.exact_v4.extend(class.map(|class| (address, class)));
    }
    for (address, value) in found.exact_v6 {
        let class = class_of(value, epoch);
        writes.extend(repair(value, constant(class), epoch).map(|value| Write::ExactV6(address, value)));
        tables.exact_v6.extend(class.map(|class| (address, class)));
    }
    for (prefix, value) in found.cidr_v4 {
        let class = value.at(epoch);
        writes.extend(repair(value, constant(Some(class)), epoch).map(|value| Write::CidrV4(prefix, value)));
        tables.cidr_v4.insert(prefix, class);
    }
    for (prefix, value) in found.cidr_v6 {
        let class = value.at(epoch);
        writes.extend(repair(value, constant(Some(class)), epoch).map(|value| Write::CidrV6(prefix, value)));
        tables.cidr_v6.insert(prefix, class);
    }
    // Flows judged by a process that was killed between a change's writes and its epoch are judged again.
    let next = epoch.wrapping_add(1);
    writes.push(Write::Epoch(next));
    Adopted { writes, epoch: next, tables, records }
}

/// `None`: the address has no class of its own (by now).
fn class_of(value: Versioned, epoch: u32) -> Option<u32> {
    let class = value.at(epoch);
    (class != CLASS_ASK_CIDR).then_some(class)
}

fn constant(class: Option<u32>) -> Option<Versioned> {
    class.map(Versioned::constant)
}

/// The settled value to write, where the entry is gone by now or waits for an epoch to come.
fn repair(found: Versioned, settled: Option<Versioned>, epoch: u32) -> Option<Option<Versioned>> {
    let pending = (epoch.wrapping_sub(found.since) as i32) < 0 && found.before != found.after;
    (pending || settled.is_none()).then_some(settled)
}
