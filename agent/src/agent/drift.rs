//! Whether the tables are what a compilation from nothing would make of what is known: asked every so often, away from the agent's loop.

use std::path::PathBuf;

use super::Agent;
use crate::compile::Catalog;
use crate::drift::{Difference, Ingredients, differences};
use crate::kernel::Maps;
use crate::last_known::LastKnown;

/// Of more pods than this only those are looked at that are the node's or have a class, so that a second index stays small: that another
/// should have a class is then not noticed here.
const PODS_MAX: usize = 20_000;
/// As many differences are logged.
const TOLD: usize = 5;

/// A comparison to be made on a thread of its own.
pub struct DriftCheck {
    pin_dir: PathBuf,
    epoch: u32,
    ingredients: Ingredients,
    catalog: Catalog,
}

/// What came of one.
#[derive(Debug)]
pub enum Drift {
    Found(Vec<Difference>),
    /// The tables were changed meanwhile.
    Overtaken,
    Failed(String),
}

impl DriftCheck {
    pub fn run(self) -> Drift {
        let Self { pin_dir, epoch, ingredients, catalog } = self;
        let read = || {
            let maps = Maps::open_pinned(&pin_dir)?;
            let found = maps.found()?;
            anyhow::Ok((maps.config.epoch() == epoch && found.epoch == epoch).then_some(found))
        };
        match read() {
            Ok(Some(found)) => Drift::Found(differences(&found, &catalog, ingredients)),
            Ok(None) => Drift::Overtaken,
            Err(error) => Drift::Failed(format!("{error:#}")),
        }
    }
}

impl Agent {
    /// All that the tables are made of.
    pub(super) fn ingredients(&self) -> Ingredients {
        let objects = LastKnown::all(&self.node_name, String::new(), &self.index, self.faults.values().flatten());
        self.made_of(objects)
    }

    fn made_of(&self, objects: LastKnown) -> Ingredients {
        let veths = self.index.veths().cloned().collect();
        Ingredients { objects, veths, own: self.index.own_addresses().clone(), limits: self.compiler.limits() }
    }

    /// `None`: there is nothing to compare yet, or a change waits to be written.
    pub fn drift_check(&self) -> Option<DriftCheck> {
        if !self.synced || self.stuck.is_some() || self.kept.is_held() {
            return None;
        }
        let ingredients = if self.index.pods().count() <= PODS_MAX {
            self.ingredients()
        } else {
            let (faults, tables) = (self.faults.values().flatten(), self.compiler.tables());
            self.made_of(LastKnown::of(&self.node_name, String::new(), &self.index, tables, faults))
        };
        Some(DriftCheck {
            pin_dir: self.pin_dir.clone(),
            epoch: self.kernel.epoch(),
            ingredients,
            catalog: self.compiler.catalog(&self.index, &[]),
        })
    }

    pub fn take_drift(&mut self, drift: Drift) {
        match drift {
            Drift::Overtaken => {}
            Drift::Failed(error) => tracing::warn!(error, "the tables cannot be compared with what they should be"),
            Drift::Found(found) => {
                self.signals.metrics.set_drift(found.len());
                for Difference { map, entry, loaded, compiled } in found.iter().take(TOLD) {
                    tracing::error!(
                        map,
                        entry,
                        loaded,
                        compiled,
                        "a table is not what it should be; `palisade maps diff` has all differences, and starting the agent anew writes the tables again"
                    );
                }
            }
        }
    }
}
