//! What an agent of another version has put on the node goes on with this one's programs and tables.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

use palisade_common::layout::{EndpointRecord, LAYOUT_VERSION, endpoint_flag};

use super::exits::program_of;
use super::flows::{MOMENT_NS, now};
use super::maps::Maps;
use super::pins::{EXITS, LINKS, PinDir};
use super::predecessors::{Inherited, Predecessors};
use super::{Copied, FROM_POD, Kernel, TO_POD, attach};
use crate::observe::state_dir;
use crate::tables::Tables;
use crate::tables::plan::Installed;

/// What earlier agents knew, of our version and of others.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// Records by interface, of whoever had one last.
    pub endpoints: BTreeMap<u32, EndpointRecord>,
    /// SERVICES and BACKENDS alone, of the last agent of another version.
    pub services: Option<Tables>,
    /// No generation up to this one is given again: something may be remembered for it.
    pub generation: u32,
    /// There was one of which nothing more is known.
    pub unknown: bool,
}

impl Earlier {
    /// `epoch` and `generation`: those of our own tables, as they were found.
    pub(super) fn new(
        (epoch, generation): (u32, u32),
        own: &BTreeMap<u32, EndpointRecord>,
        inherited: Vec<Inherited>,
        unknown: bool,
    ) -> Self {
        let generation = inherited.iter().map(|other| other.generation).fold(generation, u32::max);
        let (before, after): (Vec<_>, Vec<_>) = inherited.into_iter().partition(|other| other.epoch <= epoch);
        let mut earlier = Self { unknown, generation, ..Self::default() };
        before.iter().for_each(|other| earlier.endpoints.extend(&other.endpoints));
        earlier.endpoints.extend(own);
        after.iter().for_each(|other| earlier.endpoints.extend(&other.endpoints));
        earlier.services = before.into_iter().chain(after).next_back().map(|last| last.services);
        earlier
    }

    /// No agent has enforced anything on this node yet.
    pub fn is_none(&self) -> bool {
        let is_early = |record: &EndpointRecord| record.flags & endpoint_flag::EARLY != 0;
        self.endpoints.values().all(is_early) && !self.unknown
    }
}

/// What is paused by a version that was in use after ours (`found_at`: our epoch then) stays paused, and what has passed meanwhile is known
/// to have.
pub(super) fn take_pauses(maps: &mut Maps, inherited: &[Inherited], found_at: u32) -> anyhow::Result<()> {
    let inherited = || inherited.iter().filter(|other| other.epoch > found_at);
    inherited().for_each(|other| maps.config.raise_paused_until(other.paused_until));
    let (ours, now) = (maps.pauses()?, now());
    let all = inherited().flat_map(|other| &other.pauses);
    for (key, until) in all.filter(|(key, until)| **until > now && !ours.contains_key(key)) {
        maps.set_pause(*key, Some(*until))?;
    }
    Ok(())
}

/// Is there while programs of another version are being replaced, as our tables were whole when that began: in a file beside the catalog, which
/// goes with the pins at a boot as well.
fn mark(pins: &PinDir) -> PathBuf {
    state_dir(pins.root()).join(format!("v{LAYOUT_VERSION}.replacing"))
}

fn remove_mark(pins: &PinDir) -> anyhow::Result<()> {
    let mark = mark(pins);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", mark.display()))
        }
        _ => Ok(()),
    }
}

/// Whether an agent of ours was killed while it replaced programs of another version, and none of that version has written anything since.
/// `found_at`: our epoch as it was found.
pub(super) fn resumes(
    pins: &PinDir,
    (found_at, installed): (u32, &Installed),
    (predecessors, inherited): (&Predecessors, &[Inherited]),
) -> bool {
    let known = !predecessors.is_empty() && !predecessors.are_unknown();
    let is_last = inherited.iter().all(|other| other.epoch < found_at) && !installed.is_new();
    if known && is_last {
        return mark(pins).exists();
    }
    if let Err(error) = remove_mark(pins) {
        tracing::warn!(error = format!("{error:#}"), "what is long over may be taken for what was just begun");
    }
    false
}

impl Kernel {
    /// Agents of other versions have left programs or tables that were not taken over yet.
    pub fn has_predecessors(&self) -> bool {
        !self.predecessors.is_empty()
    }

    /// An agent has enforced here whose maps were lost: what its programs know nobody else does.
    pub fn is_remade(&self) -> bool {
        self.remade
    }

    /// What earlier agents of any version knew.
    pub fn earlier(&self) -> &Earlier {
        &self.earlier
    }

    /// Programs of some version are on the interface in both directions, so that it is judged by that version's tables.
    pub fn is_judged(&self, ifindex: u32) -> bool {
        attach::is_judged(&self.pins, ifindex).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), ifindex, "looking for programs of earlier agents");
            false
        })
    }

    /// Copies the flows of other versions' tables that ours does not have, or has from longer ago.
    ///
    /// # Errors
    ///
    /// Says why they cannot go on.
    pub fn copy_flows(&mut self) -> anyhow::Result<Copied> {
        self.predecessors.copy_flows(&self.pins, &mut self.maps, now())
    }

    /// Programs of other versions that are still in use meet answers to what ours have let through, for a moment.
    ///
    /// # Errors
    ///
    /// When they cannot be told so: these may then be refused.
    pub fn doubt_predecessors(&self) -> anyhow::Result<()> {
        let now = now();
        let second = u32::try_from(now / 1_000_000_000).unwrap_or(u32::MAX);
        self.predecessors.doubt((now + MOMENT_NS).max(self.maps.config.pressure().1), second)
    }

    /// What was paused by another version's command since we began.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn take_late_pauses(&mut self) -> anyhow::Result<()> {
        let inherited = self.predecessors.read(&self.pins);
        take_pauses(&mut self.maps, &inherited, self.found_at)
    }

    /// Our tables hold what an agent of ours had put in force when it was killed while it replaced another version's programs: these are
    /// replaced by tables as good as those of any agent's start.
    pub fn resumes(&self) -> bool {
        self.resumes
    }

    /// Our tables are whole, and programs of other versions are replaced from now on.
    ///
    /// # Errors
    ///
    /// When the next agent cannot be told so: it will wait for its first complete list.
    pub fn begin_replacing(&self) -> anyhow::Result<()> {
        let mark = mark(&self.pins);
        fs::write(&mark, "").with_context(|| format!("writing {}", mark.display()))
    }

    /// Everything goes on with our programs: removes what is left of the other versions.
    ///
    /// # Errors
    ///
    /// When something cannot be removed. The rest is for the next call, or the next agent.
    pub fn sweep_predecessors(&mut self) -> anyhow::Result<()> {
        self.predecessors.sweep(&self.pins)?;
        remove_mark(&self.pins)
    }

    pub(super) fn take_links(&self, ifindex: u32) -> std::io::Result<()> {
        [FROM_POD, TO_POD]
            .iter()
            .try_for_each(|name| self.predecessors.take_link(&self.pins.link(ifindex, name), LINKS))
    }

    pub(super) fn take_exit(&self, ifindex: u32, has_link_header: bool) -> std::io::Result<()> {
        self.predecessors.take_link(&self.pins.exit(ifindex, program_of(has_link_header)), EXITS)
    }

    pub(super) fn take_deliver(&self) -> std::io::Result<()> {
        self.predecessors.take_link(&self.pins.deliver(), EXITS)
    }
}
