//! Enforcement that an operator has paused (`palisade pause`): noticed, and told of as loudly as can be.

use std::collections::BTreeMap;
use std::time::Duration;

use palisade_common::layout::PauseKey;
use tokio::time::Instant;

use super::Agent;
use crate::api::events::{Notice, Regarding};
use crate::index::Identity;
use crate::pause::{EVERY_POD, name_of, now, wall_clock};

/// The programs' clock is read once a tick, so a pause may last that much longer.
const TICK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Pauses {
    holding: BTreeMap<PauseKey, Told>,
    /// When the first of them ends.
    pub(super) ends_at: Option<Instant>,
}

/// A pause that the log has told of. Its end is told of the same pod, whoever has the interface by then.
#[derive(Debug)]
struct Told {
    /// CLOCK_MONOTONIC, nanoseconds.
    until: u64,
    name: String,
    /// What an Event was told of; `None`: no object is known for it yet.
    object: Option<Regarding>,
}

impl Agent {
    /// Compares what the kernel has with what was told.
    pub fn look_at_pauses(&mut self) {
        let pauses = match self.kernel.maps().pauses() {
            Ok(pauses) => pauses,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "reading what is paused");
                return;
            }
        };
        let time = now();
        let mut holding = BTreeMap::new();
        for (key, until) in pauses {
            if until > time && self.is_present(key) {
                let told = self.tell_paused(key, until);
                holding.insert(key, told);
            } else if let Err(error) = self.kernel.maps_mut().set_pause(key, None) {
                tracing::warn!(error = format!("{error:#}"), "removing a pause that is over");
            }
        }
        let first = holding.values().map(|told| Duration::from_nanos(told.until - time)).min();
        self.pauses.ends_at = first.map(|left| Instant::now() + left + TICK);
        let node = holding.contains_key(&PauseKey::NODE);
        self.signals.metrics.set_paused(node, holding.len() - usize::from(node));
        let over = std::mem::replace(&mut self.pauses.holding, holding);
        for Told { name, object, .. } in over.into_values() {
            tracing::warn!(what = name, "enforcement goes on after a pause");
            let note = "network policies are enforced again".to_owned();
            self.tell_event(object, false, "EnforcementResumed", note);
        }
    }

    /// Its pod has not gone.
    fn is_present(&self, key: PauseKey) -> bool {
        // Before the first complete list of another version's successor ours has none.
        let earlier = || self.kernel.earlier().endpoints.get(&key.ifindex).filter(|_| !self.synced);
        let record = self.kernel.endpoints().get(&key.ifindex).or_else(earlier);
        key == PauseKey::NODE || record.is_some_and(|record| record.generation == key.generation)
    }

    /// Tells what was not told before: the log at once, and the API server as soon as the object is known.
    fn tell_paused(&mut self, key: PauseKey, until: u64) -> Told {
        let earlier = self.pauses.holding.remove(&key);
        let logged = earlier.as_ref().is_some_and(|told| told.until == until);
        let noted = earlier.as_ref().is_some_and(|told| told.until == until && told.object.is_some());
        let (name, object) = match earlier {
            Some(Told { name, object: Some(object), .. }) => (name, Some(object)),
            _ => self.paused_object(key),
        };
        let (end, _) = wall_clock(until);
        if !logged {
            tracing::warn!(what = name, until = end, "ENFORCEMENT IS PAUSED: nothing is refused on its account");
        }
        if !noted {
            let note = format!("an operator has paused the enforcement of network policies until {end}");
            self.tell_event(object.clone(), true, "EnforcementPaused", note);
        }
        Told { until, name, object }
    }

    /// Its name for the log, and the object itself.
    fn paused_object(&self, key: PauseKey) -> (String, Option<Regarding>) {
        if key == PauseKey::NODE {
            // As the kubelet names nodes in its Events.
            let (name, uid) = (self.node_name.clone(), Some(self.node_name.clone()));
            return (EVERY_POD.to_owned(), Some(Regarding { kind: "Node", namespace: None, name, uid }));
        }
        if let Some(Identity::Pod(id)) = self.index.identity(key.ifindex)
            && let (Some(pod), Some(uid)) = (self.index.pod(id), self.index.uid(id))
        {
            let (namespace, name) = (pod.name.namespace.to_string(), pod.name.name.to_string());
            let uid = Some(uid.to_string());
            return (pod.name.to_string(), Some(Regarding { kind: "Pod", namespace: Some(namespace), name, uid }));
        }
        // The objects may not be listed yet.
        let entry = self.catalog.endpoints.iter().find(|entry| entry.ifindex == key.ifindex);
        (entry.and_then(name_of).unwrap_or_else(|| format!("interface {}", key.ifindex)), None)
    }

    fn tell_event(&self, object: Option<Regarding>, warning: bool, reason: &'static str, note: String) {
        if let Some(regarding) = object {
            self.signals.events.tell(Notice { regarding, warning, reason, note, everywhere: false });
        }
    }
}
