//! Where the objects come from that are enforced: the API server's complete lists, or, until they come, the objects that were last known.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Agent;
use crate::api::contact::StaleKinds;
use crate::facts::Kind;
use crate::last_known::{Keeper, LastKnown, Written};

/// How long the API server has for complete lists before the last known objects are enforced: where it answers, these are seldom needed.
const PATIENCE: Duration = Duration::from_secs(3);

/// The objects that were last known stand in for a complete list.
#[derive(Debug)]
pub(super) struct StandIn {
    taken: String,
    /// Kinds of which there has been no complete list since.
    awaited: BTreeSet<Kind>,
    /// They are enforced from then on; `None`: it is so.
    from: Option<Instant>,
}

/// What is kept of objects on the node's disk.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub keeper: Option<Keeper>,
    /// They are not kept, or could not be read.
    pub trouble: Option<String>,
    pub stand_in: Option<StandIn>,
}

impl Kept {
    /// There are objects, and they are not to be enforced yet.
    pub(super) fn is_held(&self) -> bool {
        self.held_until().is_some()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.keeper.as_ref()?.due
    }

    pub(super) fn held_until(&self) -> Option<Instant> {
        self.stand_in.as_ref()?.from
    }

    /// Whether they may be enforced from now on.
    pub(super) fn release(&mut self, now: Instant) -> bool {
        let Some(from) = self.stand_in.as_mut().and_then(|stand_in| stand_in.from.take_if(|from| *from <= now)) else {
            return false;
        };
        tracing::debug!(late = ?now.duration_since(from), "the API server had its time");
        true
    }

    /// There is a complete list of the kind.
    pub(super) fn listed(&mut self, kind: Kind) {
        if let Some(stand_in) = &mut self.stand_in {
            stand_in.awaited.remove(&kind);
            if stand_in.awaited.is_empty() {
                tracing::info!(taken = stand_in.taken, "complete lists have taken the place of the objects last known");
                self.stand_in = None;
            }
        }
    }

    /// Why what is enforced may not be what the cluster wants.
    pub(super) fn not_ready(&self) -> Option<String> {
        let StandIn { taken, awaited, .. } = self.stand_in.as_ref()?;
        let awaited: Vec<&str> = awaited.iter().map(|kind| kind.name()).collect();
        Some(format!(
            "what was last known, at {taken}, is enforced: there has been no complete list of {} since",
            awaited.join(", ")
        ))
    }

    pub(super) fn changed(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.changed();
        }
    }
}

impl Agent {
    /// The objects that were last known are enforced if complete lists do not come soon. Called before anything is taken in.
    pub fn begin_with(&mut self, known: LastKnown) {
        let taken = known.taken.clone();
        self.take_updates(known.into_updates());
        let awaited = Kind::ALL.into_iter().filter(|kind| kind.is_needed()).collect();
        self.kept.stand_in = Some(StandIn { taken, awaited, from: Some(Instant::now() + PATIENCE) });
    }

    /// Which kinds of objects the API server does not tell of.
    pub fn take_stale(&mut self, stale: &StaleKinds) {
        self.stale = stale.values().cloned().collect();
        self.signals.metrics.set_stale(stale);
        self.after_attaching();
    }

    /// From now on objects are kept.
    pub fn keep_objects(&mut self, keeper: Keeper, trouble: Option<String>) {
        self.kept.keeper = Some(keeper);
        self.kept.trouble = trouble;
    }

    /// When the objects are to be handed to who writes them.
    pub fn keep_at(&self) -> Option<Instant> {
        self.kept.due().filter(|_| self.synced && self.kept.stand_in.is_none())
    }

    /// Hands them over; returns whether there was anything to hand over.
    pub fn keep_now(&mut self) -> bool {
        if self.keep_at().is_none() {
            return false;
        }
        let now = Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| Timestamp::now());
        let faults = self.faults.values().flatten();
        let known = LastKnown::of(&self.node_name, now.to_string(), &self.index, self.compiler.tables(), faults);
        if let Some(keeper) = &mut self.kept.keeper {
            keeper.give(known);
        }
        true
    }

    /// They are on the disk, or cannot be put there.
    pub fn kept_until(&mut self, written: &Written) {
        if let Some(keeper) = &mut self.kept.keeper {
            keeper.written(written);
        }
        self.kept.trouble = written.as_ref().err().cloned();
        self.after_attaching();
    }
}
