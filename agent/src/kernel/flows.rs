//! The flow table's fill: an LRU map evicts without a word, so what may have been evicted is reckoned from insertions.
//!
//! The programs compare FLOW_STATS.inserts with CONFIG.inserts_safe themselves, so that the benefit of the doubt begins with the
//! insertion that may have evicted; here the threshold is moved on after each count, and flows that are over are removed so that
//! they crowd nobody out.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use anyhow::Context as _;
use palisade_common::flow::is_over;
use palisade_common::layout::FlowValue;
use rustix::time::{ClockId, clock_gettime};

use super::Kernel;
use super::maps::Maps;

/// How long evicted flows may still be wanted: as long as a silent connection is remembered.
const PRESSURE_NS: u64 = 5 * 24 * 3600 * 1_000_000_000;

/// How long what was under way while flows were taken over from another table may be met.
pub(super) const MOMENT_NS: u64 = 30 * 1_000_000_000;

/// Entries that an LRU map may hold back per CPU on its local free lists.
const HELD_BACK_PER_CPU: u64 = 256;

/// What a count found.
struct Counted {
    flows: u64,
    /// FLOW_STATS.inserts before the count began.
    inserts: u64,
}

/// Watches the fill. Counting reads the whole table, so it happens on a thread of its own and only when insertions call for it.
pub struct FlowWatch {
    pin_dir: PathBuf,
    capacity: u64,
    /// `inserts` at the last count.
    counted_at: Option<u64>,
    counting: Option<Receiver<anyhow::Result<Counted>>>,
    inserts_safe: u64,
    pressure_until: u64,
    /// Flows that the last count found.
    flows: u64,
    /// `inserts` at the last look.
    looked_at: u64,
    fill: FlowFill,
}

/// How full the table is, at most: it is counted only now and then, and evicts without a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowFill {
    pub entries: u64,
    pub entries_max: u64,
    /// Flows that may have been evicted since the agent's start.
    pub evictions: u64,
}

/// Nanoseconds, CLOCK_MONOTONIC.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// [`Config::pressure_until`](palisade_common::layout::Config::pressure_until) where flows were lost just now.
pub(super) fn lasting_pressure() -> u64 {
    now() + PRESSURE_NS
}

/// The highest generation that a flow was judged for.
pub(super) fn generation(value: &FlowValue) -> u32 {
    let judged = value.judged.iter().flatten().map(|judgement| judgement.generation);
    judged.fold(value.client_generation, u32::max)
}

impl FlowWatch {
    /// Goes on where an earlier agent's watch ended.
    pub fn new(pin_dir: &Path, kernel: &Kernel) -> Self {
        let flows_max = kernel.sizes().flows;
        let (inserts_safe, pressure_until) = kernel.maps().config.pressure();
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let held_back = (HELD_BACK_PER_CPU * cpus).min(u64::from(flows_max) / 2);
        Self {
            pin_dir: pin_dir.to_owned(),
            capacity: u64::from(flows_max) - held_back,
            counted_at: None,
            counting: None,
            inserts_safe,
            pressure_until,
            flows: 0,
            looked_at: kernel.maps().flow_stats().map_or(0, |stats| stats.inserts),
            fill: FlowFill { entries_max: flows_max.into(), ..FlowFill::default() },
        }
    }

    /// Flows may be unknown though they were opened and admitted, as so many were taken over from another table while it was in use, or
    /// none at all: connections get the benefit of the doubt for a moment, or for as long as an evicted one does.
    pub fn doubt(&mut self, maps: &Maps, taken_over: Option<u64>) {
        let complete = taken_over.is_some_and(|flows| flows <= self.capacity);
        self.pressure_until = self.pressure_until.max(if complete { now() + MOMENT_NS } else { lasting_pressure() });
        maps.config.store_pressure(self.inserts_safe, self.pressure_until);
    }

    /// Takes a finished count, begins one if it is time, and tells the programs.
    pub fn look(&mut self, maps: &Maps) -> anyhow::Result<FlowFill> {
        let inserts = maps.flow_stats()?.inserts;
        self.fill.evictions += inserts.saturating_sub(self.inserts_safe.max(self.looked_at));
        self.looked_at = inserts;
        if inserts > self.inserts_safe {
            self.pressure_until = lasting_pressure();
        }
        if let Some(counting) = &self.counting {
            match counting.try_recv() {
                Ok(counted) => {
                    self.counting = None;
                    let counted = counted?;
                    self.counted_at = Some(counted.inserts);
                    self.flows = counted.flows;
                    self.inserts_safe = counted.inserts + self.capacity.saturating_sub(counted.flows);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.counting = None,
            }
        }
        maps.config.store_pressure(self.inserts_safe, self.pressure_until);
        let due = match self.counted_at {
            None => true,
            Some(counted) => inserts.wrapping_sub(counted) > self.capacity / 4,
        };
        if due && self.counting.is_none() {
            self.begin()?;
        }
        let since = inserts.wrapping_sub(self.counted_at.unwrap_or(inserts));
        self.fill.entries = (self.flows + since).min(self.fill.entries_max);
        Ok(self.fill)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let (sender, receiver) = channel();
        let pin_dir = self.pin_dir.clone();
        std::thread::Builder::new()
            .name("flow-count".to_owned())
            .spawn(move || sender.send(count(&pin_dir)))
            .context("starting a thread to count flows")?;
        self.counting = Some(receiver);
        Ok(())
    }
}

fn count(pin_dir: &Path) -> anyhow::Result<Counted> {
    let mut maps = Maps::open_pinned(pin_dir)?;
    let inserts = maps.flow_stats()?.inserts;
    let now = now();
    let (flows, over) = maps.partition_flows(|key, value| is_over(key, value, now))?;
    for key in over {
        maps.remove_flow(&key)?;
    }
    Ok(Counted { flows, inserts })
}
