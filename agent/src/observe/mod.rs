//! What people see: refused flows, metrics, and the catalog of names for the numbers in the tables.

pub mod accounts;
pub mod capture;
pub mod events;
pub mod history;
pub mod http;
pub mod metrics;
pub mod record;
#[cfg(test)]
mod reference;
pub mod reporter;
pub mod sinks;
pub mod socket;
pub mod turns;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;

use crate::compile::Catalog;
use crate::kernel::{Maps, Sizes};
use crate::tables::Tables;
use metrics::{MapUse, Snapshot};

/// Folder of an agent's state: found from the pin folder alone, so that commands need no second flag.
pub fn state_dir(pin_dir: &Path) -> PathBuf {
    Path::new("/run/palisade").join(flat_name(pin_dir))
}

/// A pin folder's path as the name of one folder.
pub fn flat_name(pin_dir: &Path) -> String {
    pin_dir.to_string_lossy().trim_matches('/').replace('/', "-")
}

fn catalog_path(pin_dir: &Path) -> PathBuf {
    state_dir(pin_dir).join("catalog.json")
}

/// Writes the catalog so that a reader sees the old one or the new one.
pub fn write_catalog(pin_dir: &Path, catalog: &Catalog) -> anyhow::Result<()> {
    let path = catalog_path(pin_dir);
    let folder = state_dir(pin_dir);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new).with_context(|| format!("writing {}", new.display()))?;
    file.write_all(&serde_json::to_vec(catalog)?).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("writing {}", path.display()))
}

/// The catalog that the agent of `pin_dir` wrote last.
pub fn read_catalog(pin_dir: &Path) -> anyhow::Result<Catalog> {
    let path = catalog_path(pin_dir);
    let bytes = fs::read(&path).with_context(|| {
        format!("reading {} (no agent with --pin-dir {} has compiled anything yet)", path.display(), pin_dir.display())
    })?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

/// How full the tables are, for whoever scrapes.
#[derive(Clone, Debug, Default)]
pub struct Fill {
    entries: Arc<Mutex<Vec<(&'static str, usize)>>>,
    flows: Arc<Mutex<MapUse>>,
}

impl Fill {
    pub fn set(&self, tables: &Tables) {
        let entries = tables.lens();
        *self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = entries;
    }

    /// Of the flow table, which the programs fill.
    pub fn set_flows(&self, flows: MapUse) {
        *self.flows.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = flows;
    }
}

/// Reads, at each scrape, what the kernel counts.
pub fn snapshot_of(
    pin_dir: &Path,
    fill: Fill,
    sizes: Sizes,
) -> anyhow::Result<impl Fn() -> anyhow::Result<Snapshot> + Send + Sync + use<>> {
    let maps = Mutex::new(Maps::open_pinned(pin_dir)?);
    Ok(move || {
        let maps = maps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let entries = fill.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let packets: BTreeMap<_, _> = maps.counters()?.into_iter().collect();
        Ok(Snapshot {
            events_lost: maps.events_lost()?,
            refused_early: maps.refused_early()?,
            midstream: packets.get(&palisade_common::Reason::Midstream).copied().unwrap_or(0),
            services: maps.flow_stats()?,
            packets,
            maps: entries
                .iter()
                .map(|(name, entries)| {
                    (*name, MapUse { entries: *entries as u64, entries_max: sizes.room(name).unwrap_or(0).into() })
                })
                .chain([("FLOWS", *fill.flows.lock().unwrap_or_else(std::sync::PoisonError::into_inner))])
                .collect(),
        })
    })
}
