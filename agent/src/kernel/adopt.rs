//! What an earlier agent left in the pinned maps, made whole: a change that was cut off before its epoch is taken back.

use std::collections::BTreeMap;

use palisade_common::layout::{CLASS_ASK_CIDR, RECORD_NONE, Versioned};

use super::maps::Maps;
use crate::tables::Tables;
use crate::tables::plan::{Installed, Write};

/// Reads the maps and repairs references that would change at an epoch that never came.
pub(super) fn installed(maps: &mut Maps) -> anyhow::Result<Installed> {
    let found = maps.snapshot(false)?;
    let epoch = maps.config.epoch();
    let mut tables = Tables { rules: found.rules, ports: found.ports, ..Tables::default() };
    let mut records = BTreeMap::new();
    for (ifindex, value) in found.endpoints {
        let index = value.at(epoch);
        let record = found.records.get(&index).filter(|record| record.ifindex == ifindex);
        let settled = record.filter(|_| index != RECORD_NONE).map(|_| Versioned::constant(index));
        repair(maps, value, settled, epoch, |value| Write::Endpoint(ifindex, value))?;
        if let (Some(record), Some(_)) = (record, settled) {
            tables.endpoints.insert(ifindex, *record);
            records.insert(ifindex, index);
        }
    }
    for (address, value) in found.exact_v4 {
        let class = value.at(epoch);
        let settled = (class != CLASS_ASK_CIDR).then(|| Versioned::constant(class));
        repair(maps, value, settled, epoch, |value| Write::ExactV4(address, value))?;
        if settled.is_some() {
            tables.exact_v4.insert(address, class);
        }
    }
    for (address, value) in found.exact_v6 {
        let class = value.at(epoch);
        let settled = (class != CLASS_ASK_CIDR).then(|| Versioned::constant(class));
        repair(maps, value, settled, epoch, |value| Write::ExactV6(address, value))?;
        if settled.is_some() {
            tables.exact_v6.insert(address, class);
        }
    }
    for (prefix, value) in found.cidr_v4 {
        let class = value.at(epoch);
        repair(maps, value, Some(Versioned::constant(class)), epoch, |value| Write::CidrV4(prefix, value))?;
        tables.cidr_v4.insert(prefix, class);
    }
    for (prefix, value) in found.cidr_v6 {
        let class = value.at(epoch);
        repair(maps, value, Some(Versioned::constant(class)), epoch, |value| Write::CidrV6(prefix, value))?;
        tables.cidr_v6.insert(prefix, class);
    }
    // Flows judged by a process that was killed between a change's writes and its epoch are judged again.
    let next = epoch.wrapping_add(1);
    maps.write(&Write::Epoch(next))?;
    Ok(Installed::adopt(next, maps.records_len(), tables, records))
}

/// Writes the settled value where the entry is gone by now, or waits for an epoch to come.
fn repair(
    maps: &mut Maps,
    found: Versioned,
    settled: Option<Versioned>,
    epoch: u32,
    write: impl Fn(Option<Versioned>) -> Write,
) -> anyhow::Result<()> {
    let pending = (epoch.wrapping_sub(found.since) as i32) < 0 && found.before != found.after;
    if pending || settled.is_none() { maps.write(&write(settled)) } else { Ok(()) }
}
