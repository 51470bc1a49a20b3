//! What an earlier agent left in the maps, made whole: a change that was cut off before its epoch is taken back.
//!
//! A decision about values; `kernel` reads the maps and carries the writes out.

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::layout::{
    Backends, CLASS_ASK_CIDR, EndpointRecord, PortValue, RuleValue, SERVICE_NONE, Versioned,
};

use super::plan::Write;
use super::{ByTable, Tables};

/// The maps as they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub epoch: u32,
    pub records: BTreeMap<u32, EndpointRecord>,
    pub tables: ByTable<Versioned, Versioned, RuleValue, PortValue, Backends>,
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
    let Found { epoch, records: found_records, tables: found } = found;
    let mut writes = Vec::new();
    let mut tables = Tables { rules: found.rules, ports: found.ports, backends: found.backends, ..Tables::default() };
    let mut records = BTreeMap::new();
    for (ifindex, value) in found.endpoints {
        let index = value.at(epoch);
        let record = found_records.get(&index).filter(|record| record.ifindex == ifindex);
        let settled = record.map(|_| Versioned::constant(index));
        writes.extend(repair(value, settled, epoch).map(|value| Write::Endpoint(ifindex, value)));
        if let Some(record) = record {
            tables.endpoints.insert(ifindex, *record);
            records.insert(ifindex, index);
        }
    }
    tables.exact_v4 = numbers(found.exact_v4, epoch, CLASS_ASK_CIDR, &mut writes, Write::ExactV4);
    tables.exact_v6 = numbers(found.exact_v6, epoch, CLASS_ASK_CIDR, &mut writes, Write::ExactV6);
    tables.cidr_v4 = numbers(found.cidr_v4, epoch, CLASS_ASK_CIDR, &mut writes, Write::CidrV4);
    tables.cidr_v6 = numbers(found.cidr_v6, epoch, CLASS_ASK_CIDR, &mut writes, Write::CidrV6);
    tables.services = numbers(found.services, epoch, SERVICE_NONE, &mut writes, Write::Service);
    let ports: BTreeSet<u16> = tables.services.keys().map(|key| key.port).collect();
    writes.extend(ports.into_iter().map(|port| Write::ServicePort(port, true)));
    // Flows judged by a process that was killed between a change's writes and its epoch are judged again.
    let next = epoch.wrapping_add(1);
    writes.push(Write::Epoch(next));
    Adopted { writes, epoch: next, tables, records }
}

/// The numbers in force. What gives `none` is as good as not there (by now): an address that is to ask the trie has no class of its own,
/// a prefix always has one.
fn numbers<K: Ord + Copy>(
    found: BTreeMap<K, Versioned>,
    epoch: u32,
    none: u32,
    writes: &mut Vec<Write>,
    write: impl Fn(K, Option<Versioned>) -> Write,
) -> BTreeMap<K, u32> {
    let mut numbers = BTreeMap::new();
    for (key, value) in found {
        let number = Some(value.at(epoch)).filter(|number| *number != none);
        writes.extend(repair(value, number.map(Versioned::constant), epoch).map(|value| write(key, value)));
        numbers.extend(number.map(|number| (key, number)));
    }
    numbers
}

/// The settled value to write, where the entry is gone by now or waits for an epoch to come.
fn repair(found: Versioned, settled: Option<Versioned>, epoch: u32) -> Option<Option<Versioned>> {
    let pending = (epoch.wrapping_sub(found.since) as i32) < 0 && found.before != found.after;
    (pending || settled.is_none()).then_some(settled)
}
