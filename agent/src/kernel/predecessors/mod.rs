//! What agents with other layouts of the tables have left: records and flows are read field by field by their names, links go on with our
//! programs, and the rest is swept.
//!
//! Nothing here waits or decides when: see `agent::handover`.

mod btf;
mod conversion;
mod flows;
mod map;
mod types;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use palisade_common::layout::{
    Backends, Config, EndpointRecord, FlowKey, FlowStats, FlowValue, PauseKey, SERVICE_NONE, ServiceKey, Versioned,
};

pub use self::flows::Copied;
use self::map::Described;
pub(super) use self::types::keep as keep_types;

use super::flows::{generation, lasting_pressure};
use super::maps::{Maps, Plain};
use super::pins::{self, EXITS, MAPS, PinDir, QDISCS};
use crate::tables::Tables;

/// Folders of other versions.
#[derive(Debug, Default)]
pub(super) struct Predecessors {
    all: Vec<Predecessor>,
}

#[derive(Debug)]
struct Predecessor {
    folder: PathBuf,
    /// Its epochs and generations go on in our tables, so that its flows may.
    known: bool,
}

/// What an agent of another version knew.
#[derive(Clone, Debug, Default)]
pub(super) struct Inherited {
    pub(super) epoch: u32,
    /// By interface.
    pub(super) endpoints: BTreeMap<u32, EndpointRecord>,
    /// SERVICES and BACKENDS alone.
    pub(super) services: Tables,
    /// What is paused, and until when (nanoseconds, CLOCK_MONOTONIC).
    pub(super) pauses: BTreeMap<PauseKey, u64>,
    /// The highest generation that something is remembered for, so far as it can be taken over.
    pub(super) generation: u32,
    /// [`Config::paused_until`].
    pub(super) paused_until: u32,
    pub(super) exits_missing: bool,
    /// [`Config::pressure_until`], as its programs see it.
    pub(super) pressure_until: u64,
}

impl Predecessors {
    pub(super) fn find(pins: &PinDir) -> anyhow::Result<Self> {
        let all = pins::others(pins.root())?.into_iter().map(|folder| Predecessor { folder, known: false });
        Ok(Self { all: all.collect() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Nothing is known of what one of them did.
    pub(super) fn are_unknown(&self) -> bool {
        self.all.iter().any(|version| !version.known && has_maps(&version.folder))
    }

    /// Devices that have a link pinned, whatever has become of them.
    pub(super) fn exits(&self) -> anyhow::Result<Vec<u32>> {
        let mut exits = Vec::new();
        for Predecessor { folder, .. } in &self.all {
            let pins = pins::entries(&folder.join(EXITS))?;
            exits.extend(pins.iter().filter(|pin| !pins::is_uplink(pin)).filter_map(|pin| pins::ifindex_of(pin)));
        }
        Ok(exits)
    }

    /// What they knew, the latest last. What cannot be read is told of, and is not known then.
    pub(super) fn read(&mut self, pins: &PinDir) -> Vec<Inherited> {
        let mut all = Vec::new();
        for Predecessor { folder, known } in &mut self.all {
            match inherited(folder, pins) {
                Ok(inherited) => {
                    *known = inherited.is_some();
                    all.extend(inherited);
                }
                Err(error) => tracing::warn!(
                    folder = %folder.display(),
                    error = format!("{error:#}"),
                    "what an agent of another version knew cannot be taken over: pods and connections are met as by a first agent"
                ),
            }
        }
        // Epochs only grow, from one agent to the next as well.
        all.sort_by_key(|inherited: &Inherited| inherited.epoch);
        all
    }

    /// Makes the link of an interface ours, which goes on with the program that it has until it is given another one. Not where we have
    /// one: that is then the one in use.
    pub(super) fn take_link(&self, ours: &Path, folder: &str) -> io::Result<()> {
        let Some(name) = ours.file_name() else { return Ok(()) };
        for theirs in self.all.iter().map(|version| version.folder.join(folder).join(name)) {
            if theirs.exists() && !ours.exists() {
                fs::rename(&theirs, ours)?;
            }
        }
        Ok(())
    }

    /// Copies the flows of all.
    ///
    /// # Errors
    ///
    /// Says why the flows of one cannot go on.
    pub(super) fn copy_flows(&self, pins: &PinDir, ours: &mut Maps, now: u64) -> anyhow::Result<Copied> {
        let described = Described::open(&pins.map("FLOWS"))?;
        let mut all = Copied::default();
        for Predecessor { folder, known } in self.all.iter().filter(|version| has_maps(&version.folder)) {
            ensure!(known, "it is not known for which pods the flows below {} were admitted", folder.display());
            let theirs = Described::open(&folder.join(MAPS).join("FLOWS"))?;
            let Copied { found, taken } = flows::copy(&theirs, &theirs.conversions(&described)?, ours, now)?;
            all = Copied { found: all.found + found, taken: all.taken + taken };
        }
        Ok(all)
    }

    /// What its programs meet that they do not know may be known to ours: has them give connections the benefit of the doubt until then
    /// (nanoseconds, CLOCK_MONOTONIC), and other flows as from `second`, as if pods had been isolated then.
    pub(super) fn doubt(&self, until: u64, second: u32) -> anyhow::Result<()> {
        for Predecessor { folder, .. } in self.all.iter().filter(|version| version.known) {
            let map = |name: &str| Described::open(&folder.join(MAPS).join(name));
            map("CONFIG")?.set("pressure_until", until, "epoch").context("CONFIG")?;
            map("RECORDS")?.set("isolated_at", second.into(), "ifindex").context("RECORDS")?;
        }
        Ok(())
    }

    /// Removes their folders, and with them the programs that are still somewhere.
    pub(super) fn sweep(&mut self, pins: &PinDir) -> anyhow::Result<()> {
        while let Some(Predecessor { folder, .. }) = self.all.last() {
            let owned = folder.join(QDISCS);
            for marker in pins::entries(&owned)? {
                if let Some(ifindex) = pins::ifindex_of(&marker) {
                    pins.own_qdisc(ifindex)?;
                }
            }
            types::forget(&folder.join(MAPS))?;
            pins::remove_version(folder, pins::remove_pin, |marker| Ok(fs::remove_dir(marker)?))?;
            self.all.pop();
        }
        Ok(())
    }
}

/// One whose maps are being removed has no CONFIG any longer.
fn has_maps(folder: &Path) -> bool {
    folder.join(MAPS).join("CONFIG").exists()
}

/// `None`: its maps are gone.
fn inherited(folder: &Path, pins: &PinDir) -> anyhow::Result<Option<Inherited>> {
    if !has_maps(folder) {
        return Ok(None);
    }
    let both = |name: &str| (folder.join(MAPS).join(name), pins.map(name));
    let config: Config = first(both("CONFIG"))?;
    let stats: FlowStats = first(both("FLOW_STATS"))?;
    let records: BTreeMap<u32, EndpointRecord> = all(both("RECORDS"))?;
    let indices: BTreeMap<u32, Versioned> = all(both("ENDPOINTS"))?;
    let endpoints = indices.into_iter().filter_map(|(ifindex, index)| {
        let record = records.get(&index.at(config.epoch))?;
        (record.ifindex == ifindex).then_some((ifindex, *record))
    });
    let mut inherited = Inherited {
        epoch: config.epoch,
        endpoints: endpoints.collect(),
        services: Tables::default(),
        pauses: BTreeMap::new(),
        // Flows that cannot be read are not taken over.
        generation: last_generation(both("FLOWS")).unwrap_or_default(),
        paused_until: config.paused_until,
        exits_missing: config.exits_missing != 0,
        pressure_until: pressure_until(&config, &stats),
    };
    let services: BTreeMap<ServiceKey, Versioned> = all(both("SERVICES"))?;
    let rows: BTreeMap<u32, Backends> = all(both("BACKENDS"))?;
    let numbers = services.into_iter().map(|(key, number)| (key, number.at(config.epoch)));
    inherited.services.services = numbers.filter(|(_, number)| *number != SERVICE_NONE).collect();
    inherited.services.backends = rows;
    // Since layout 4.
    if folder.join(MAPS).join("PAUSES").exists() {
        inherited.pauses = all(both("PAUSES"))?;
        let paused = inherited.pauses.keys().map(|key| key.generation);
        inherited.generation = paused.fold(inherited.generation, u32::max);
    }
    Ok(Some(inherited))
}

/// Where the table may have evicted something since it was last counted, the benefit of the doubt begins now.
fn pressure_until(config: &Config, stats: &FlowStats) -> u64 {
    let begun = if stats.inserts > config.inserts_safe { lasting_pressure() } else { 0 };
    config.pressure_until.max(begun)
}

/// The highest one that a flow of another version's was judged for.
fn last_generation((theirs, ours): (PathBuf, PathBuf)) -> anyhow::Result<u32> {
    let (theirs, ours) = (Described::open(&theirs)?, Described::open(&ours)?);
    let mut last = 0;
    theirs.for_each(&theirs.conversions(&ours)?, |_: Plain<FlowKey>, Plain(value): Plain<FlowValue>| {
        last = last.max(generation(&value));
    })?;
    Ok(last)
}

/// The entries of another version's map, as ours has them.
fn all<K, V>((theirs, ours): (PathBuf, PathBuf)) -> anyhow::Result<BTreeMap<K, V>>
where
    K: Copy + Default + Ord + 'static,
    V: Copy + Default + 'static,
{
    let read = || -> anyhow::Result<_> {
        let (theirs, ours) = (Described::open(&theirs)?, Described::open(&ours)?);
        let mut entries = BTreeMap::new();
        theirs.for_each(&theirs.conversions(&ours)?, |key: Plain<K>, value: Plain<V>| {
            entries.insert(key.0, value.0);
        })?;
        Ok(entries)
    };
    read().with_context(|| format!("reading {}", theirs.display()))
}

fn first<V: Copy + Default + 'static>(both: (PathBuf, PathBuf)) -> anyhow::Result<V> {
    let mut entries: BTreeMap<u32, V> = all(both)?;
    entries.remove(&0).context("an array without an element")
}
