//! What the programs have refused, whichever agent's: each layout version counts in a map of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use palisade_common::Reason;

/// Maps of versions that are gone are kept open: what was refused in the last moment of their use would not be counted.
#[derive(Default)]
pub struct Refused {
    counters: BTreeMap<u32, PerCpuArray<MapData, u64>>,
}

impl Refused {
    /// Takes in the counters of every version that has pinned some. To be called after each change of version.
    pub fn look(&mut self, pin_dir: &Path) -> Result<()> {
        for version in fs::read_dir(pin_dir).with_context(|| format!("reading {}", pin_dir.display()))? {
            let path = version?.path().join("maps/COUNTERS");
            if !path.exists() {
                continue;
            }
            let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
            let id = data.info()?.id();
            self.counters.insert(id, Map::from_map_data(data)?.try_into()?);
        }
        Ok(())
    }

    /// Packets by reason, of all versions, since the first of them began to count.
    pub fn packets(&self) -> Result<BTreeMap<&'static str, i64>> {
        let mut packets = BTreeMap::new();
        for counters in self.counters.values() {
            for reason in Reason::ALL.iter().filter(|reason| !reason.passes()) {
                let cpus = counters.get(&(*reason as u32), 0)?;
                *packets.entry(reason.name()).or_default() += i64::try_from(cpus.iter().sum::<u64>())?;
            }
        }
        Ok(packets)
    }
}
