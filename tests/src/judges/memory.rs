//! What the loaded programs remember, to be forgotten or made older: a test's time passes by its memory's.

use std::path::Path;

use anyhow::Context as _;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use palisade::kernel::maps_folder;
use palisade_common::layout::{EndpointStats, FlowKey, FlowValue, FragmentKey, FragmentValue};

/// A table layout as plain bytes for aya.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
struct Plain<T>(T);

// SAFETY: only used below, with layouts of palisade_common::layout: `repr(C)`, without padding that is not a field, valid for every
// bit pattern.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

type Hash<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;

/// FLOWS, FRAGMENTS and ENDPOINT_STATS of an agent's pins.
pub struct Memory {
    flows: Hash<FlowKey, FlowValue>,
    fragments: Hash<FragmentKey, FragmentValue>,
    stats: Array<MapData, Plain<EndpointStats>>,
}

impl Memory {
    /// `root`: what the agent is given as `--pin-dir`.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let map = |name| -> anyhow::Result<Map> {
            let path = maps_folder(root).join(name);
            let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
            Ok(Map::from_map_data(data)?)
        };
        Ok(Self {
            flows: map("FLOWS")?.try_into()?,
            fragments: map("FRAGMENTS")?.try_into()?,
            stats: map("ENDPOINT_STATS")?.try_into()?,
        })
    }

    pub fn put_flow(&mut self, key: FlowKey, value: FlowValue) -> anyhow::Result<()> {
        Ok(self.flows.insert(Plain(key), Plain(value), 0)?)
    }

    pub fn forget(&mut self) -> anyhow::Result<()> {
        empty(&mut self.flows)?;
        empty(&mut self.fragments)?;
        for number in 0..self.stats.len() {
            self.stats.set(number, Plain(EndpointStats::default()), 0)?;
        }
        Ok(())
    }

    /// Makes everything older by so many nanoseconds, as if time had passed.
    pub fn age(&mut self, nanoseconds: u64) -> anyhow::Result<()> {
        let seconds = (nanoseconds / 1_000_000_000) as u32;
        each(&mut self.flows, |value| {
            value.seen = value.seen.saturating_sub(nanoseconds);
            if value.revoked != 0 {
                // The two lowest bits say what was revoked.
                value.revoked = value.revoked.wrapping_sub(seconds << 2);
            }
        })?;
        each(&mut self.fragments, |value| value.seen = value.seen.saturating_sub(nanoseconds))?;
        for number in 0..self.stats.len() {
            let mut stats = self.stats.get(&number, 0)?.0;
            if stats.midstream_count != 0 {
                stats.midstream_second = stats.midstream_second.wrapping_sub(seconds);
                self.stats.set(number, Plain(stats), 0)?;
            }
        }
        Ok(())
    }
}

fn empty<K: Copy + 'static, V: Copy + 'static>(map: &mut Hash<K, V>) -> anyhow::Result<()> {
    let keys: Vec<Plain<K>> = map.keys().collect::<Result<_, MapError>>()?;
    for key in keys {
        match map.remove(&key) {
            // An LRU map may have evicted it meanwhile.
            Err(MapError::KeyNotFound) => {}
            result => result?,
        }
    }
    Ok(())
}

fn each<K: Copy + 'static, V: Copy + 'static>(map: &mut Hash<K, V>, change: impl Fn(&mut V)) -> anyhow::Result<()> {
    let entries: Vec<(Plain<K>, Plain<V>)> = map.iter().collect::<Result<_, MapError>>()?;
    for (key, mut value) in entries {
        change(&mut value.0);
        map.insert(key, value, 0)?;
    }
    Ok(())
}
