//! The pinned maps before they are used: each has to be the map that the programs take it for, and either all of them are there or none.
//!
//! Programs of an earlier agent go on with the maps that they were loaded with, whatever becomes of the pins. So maps of which a part is
//! new must not be shared with them: a row that is written for the new part would be read beside the old one.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, bail};
use aya_obj::Object;

use super::EBPF_OBJECT;
use super::pinned::{self, MapShape, Pinned};
use super::pins::PinDir;
use super::sizes::{Sizes, pinned};

/// Maps that say nothing of policy, each of which may be made anew beside the others.
const INDEPENDENT: [&str; 6] = ["COUNTERS", "EARLY", "ENDPOINT_STATS", "EVENT_BUDGET", "FRAGMENTS", "RULE_HITS"];
/// What the programs remember of flows, likewise; connections are then met mid-stream.
const MEMORY: [&str; 2] = ["FLOWS", "FLOW_STATS"];

/// What there is at the maps' pins.
#[derive(Debug, Default)]
pub(super) struct FoundMaps {
    /// How many entries the maps hold whose size is a flag: a pinned one as many as it was made for.
    pub(super) held: BTreeMap<&'static str, u32>,
    /// What the programs remembered is gone, so that what they meet may be older than they know.
    pub(super) forgetful: bool,
    /// All of them, as a part was missing that the rest could not do without.
    pub(super) remade: bool,
}

/// Looks at every pin; where a part is missing that the rest cannot do without, takes away the rest.
///
/// # Errors
///
/// When something else is pinned where a map should be, or the kernel does not let us look.
pub(super) fn maps(pins: &PinDir, sizes: Sizes) -> anyhow::Result<FoundMaps> {
    let object = Object::parse(EBPF_OBJECT).context("reading the kernel programs")?;
    let mut shapes = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, wanted) in pinned(sizes) {
        let map = object.maps.get(name).with_context(|| format!("no map {name} in the object"))?;
        let entries_max = wanted.unwrap_or(map.max_entries());
        let (kind, flags) = (map.map_type(), map.map_flags());
        let should = MapShape { kind, key_size: map.key_size(), value_size: map.value_size(), flags, entries_max };
        match one(pins, name, should, wanted.is_some())? {
            Some(shape) => _ = shapes.insert(name, shape),
            None => missing.push(name),
        }
    }
    let (mut forgetful, mut remade) = (false, false);
    if !shapes.is_empty() && !missing.is_empty() {
        forgetful = missing.iter().any(|name| !INDEPENDENT.contains(name));
        let whole = missing.iter().all(|name| INDEPENDENT.contains(name) || MEMORY.contains(name));
        tell(&missing, whole);
        if !whole {
            remade = true;
            for name in std::mem::take(&mut shapes).into_keys() {
                let pin = pins.map(name);
                fs::remove_file(&pin).with_context(|| format!("removing {}", pin.display()))?;
            }
        }
    }
    let held = |(name, wanted): (&'static str, Option<u32>)| {
        Some((name, shapes.get(name).map_or(wanted?, |shape| shape.entries_max))).filter(|_| wanted.is_some())
    };
    Ok(FoundMaps { held: pinned(sizes).into_iter().filter_map(held).collect(), forgetful, remade })
}

/// What is pinned as this map, if anything is.
fn one(pins: &PinDir, name: &str, should: MapShape, any_size: bool) -> anyhow::Result<Option<MapShape>> {
    let pin = pins.map(name);
    match pinned::look(&pin).with_context(|| format!("opening {}", pin.display()))? {
        Pinned::Nothing => Ok(None),
        Pinned::Map(is)
            if is == should || (any_size && MapShape { entries_max: should.entries_max, ..is } == should) =>
        {
            Ok(Some(is))
        }
        other => bail!(
            "{} is {other}, and should be {should}: it was not made by an agent with this layout. What an earlier agent attached goes on \
             as it is; `palisade uninstall` takes programs, maps and pins away, so that the next agent makes them anew",
            pin.display()
        ),
    }
}

fn tell(missing: &[&str], whole: bool) {
    let names = missing.join(", ");
    if whole {
        tracing::warn!("of the pinned maps {names} are missing: made anew, the others are used as they are");
    } else {
        tracing::warn!(
            "of the pinned maps {names} are missing, without which the others say nothing: all are made anew, and what an earlier agent \
             attached goes on with those that it has until the first complete list is written"
        );
    }
}
