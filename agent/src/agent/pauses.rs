//! Enforcement that an operator has paused (`palisade pause`): noticed, and told of as loudly as can be.

use std::collections::BTreeMap;
use std::time::Duration;

use palisade_common::layout::PauseKey;
use tokio::time::Instant;

use super::Agent;
use crate::api::events::{Notice, Regarding};
use crate::index::Identity;
use crate::pause::{forget_past, now, wall_clock};

/// The programs' clock is read once a tick, so a pause may last that much longer.
const TICK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Pauses {
    holding: BTreeMap<PauseKey, u64>,
    /// When the first of them ends.
    pub(super) ends_at: Option<Instant>,
}

impl Agent {
    /// Compares what the kernel has with what was told.
    pub fn look_at_pauses(&mut self) {
        let read = self.kernel.maps().pauses();
        let mut holding = match read {
            Ok(pauses) => pauses,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "reading what is paused");
                return;
            }
        };
        let time = now();
        if holding.values().any(|until| *until <= time)
            && let Err(error) = forget_past(self.kernel.maps_mut())
        {
            tracing::warn!(error = format!("{error:#}"), "removing a pause that is over");
        }
        holding.retain(|_, until| *until > time);
        let told = std::mem::replace(&mut self.pauses.holding, holding.clone());
        for (key, until) in holding.iter().filter(|(key, until)| told.get(key) != Some(until)) {
            let what = self.paused_pod(*key);
            let (until, _) = wall_clock(*until);
            tracing::warn!(what = what.name, until, "ENFORCEMENT IS PAUSED: nothing is refused to it and from it");
            let note = format!("an operator has paused the enforcement of network policies until {until}");
            self.signals.events.tell(Notice { regarding: what, warning: true, reason: "EnforcementPaused", note });
        }
        for key in told.keys().filter(|key| !holding.contains_key(key)) {
            let what = self.paused_pod(*key);
            tracing::warn!(what = what.name, "enforcement goes on after a pause");
            let note = "network policies are enforced again".to_owned();
            self.signals.events.tell(Notice { regarding: what, warning: false, reason: "EnforcementResumed", note });
        }
        let first = holding.values().min().map(|until| Duration::from_nanos(until - time));
        self.pauses.ends_at = first.map(|left| Instant::now() + left + TICK);
        let node = holding.contains_key(&PauseKey::NODE);
        self.signals.metrics.set_paused(node, holding.len() - usize::from(node));
    }

    fn paused_pod(&self, key: PauseKey) -> Regarding {
        let node =
            Regarding { kind: "Node", namespace: None, name: self.node_name.clone(), uid: self.node_name.clone() };
        let Some(Identity::Pod(id)) = self.index.identity(key.ifindex) else { return node };
        let (Some(pod), Some(uid)) = (self.index.pod(id), self.index.uid(id)) else { return node };
        let (namespace, name) = (pod.name.namespace.to_string(), pod.name.name.to_string());
        Regarding { kind: "Pod", namespace: Some(namespace), name, uid: uid.to_string() }
    }
}
