//! Programs on pods' interfaces: put there, looked after, taken off.

use std::collections::BTreeSet;
use std::sync::Arc;

use palisade_common::layout::{EndpointRecord, endpoint_flag};

use super::Agent;
use crate::facts::VethChange;
use crate::kernel::Standing;
use crate::tables::Delta;

impl Agent {
    /// A veth that is new is closed here and now, before anything is known of it. One that was there before the first agent of this
    /// node stays as it is until the first complete list.
    pub(super) fn take_veth(&mut self, change: VethChange) {
        if let Some(veth) = &change.veth {
            self.attachments.renamed(veth.ifindex, &veth.name);
            let enforced = self.succeeded || self.kernel.is_remade();
            if (enforced || !veth.older) && !self.is_anothers(veth) {
                self.attach(veth.ifindex, veth.name.clone());
            }
        } else if let Some(name) = self.attachments.forget(change.ifindex)
            && let Err(error) = self.kernel.detach(change.ifindex)
        {
            tracing::warn!(interface = %name, error = format!("{error:#}"), "taking the programs off");
        }
        self.index.apply_veth(change);
    }

    pub(super) fn attach(&mut self, ifindex: u32, name: Arc<str>) {
        if !self.attachments.has(ifindex) {
            let result = self.kernel.attach(ifindex, &name);
            self.attachments.tried(ifindex, name, result);
        }
    }

    /// Until everything was listed once nobody knows which pod is behind a new interface. It is closed, but to its node: for that the programs
    /// have to know its addresses.
    pub(super) fn close_early(&mut self) {
        if self.synced || !self.node_known || self.kernel.has_predecessors() {
            return;
        }
        let is_early = |record: &EndpointRecord| record.flags & endpoint_flag::EARLY != 0;
        let written = self.kernel.endpoints();
        let mut used: BTreeSet<u32> = written.values().map(|record| record.number).collect();
        let mut delta = Delta::default();
        let gone = written.iter().filter(|(ifindex, record)| is_early(record) && !self.attachments.has(**ifindex));
        delta.endpoints.extend(gone.map(|(ifindex, _)| (*ifindex, None)));
        for veth in self.index.veths().filter(|veth| veth.pod_mac.is_some() && self.attachments.has(veth.ifindex)) {
            let before = written.get(&veth.ifindex);
            if before.is_none_or(is_early) {
                let number = (0..).find(|number| !used.contains(number)).unwrap_or_default();
                let record = self.compiler.early(&self.index, veth, before, number);
                used.insert(record.number);
                delta.endpoints.insert(veth.ifindex, Some(record));
            }
        }
        if let Err(error) = self.kernel.apply(&delta) {
            tracing::warn!(error = format!("{error:#}"), "new pods are closed to their node as well");
        }
    }

    /// Puts programs back that somebody took off an interface, and tells of programs that somebody put in front of them.
    pub fn verify_attached(&mut self) {
        for (ifindex, name) in self.attachments.all() {
            match self.kernel.standing(ifindex) {
                Ok(Standing::First) => self.attachments.found_behind(ifindex, None),
                Ok(Standing::Behind(program)) => self.attachments.found_behind(ifindex, Some(program)),
                Ok(Standing::Missing) => {
                    tracing::warn!(interface = %name, "somebody took a program off the interface; attached again");
                    let result = self.kernel.attach(ifindex, &name);
                    self.attachments.tried(ifindex, name, result);
                }
                // Most likely the interface is about to go.
                Err(error) => {
                    tracing::debug!(interface = %name, error = format!("{error:#}"), "looking at the programs")
                }
            }
        }
        self.verify_exits();
        self.look_at_marks();
        self.look_at_pauses();
        self.end_handover();
        self.after_attaching();
        self.tell_events_of_node();
    }

    /// Programs of interfaces that were not tried yet; at the first time those that are older than the agent, whose tables are in
    /// place now.
    pub(super) fn attach_all(&mut self) {
        let missing: Vec<(u32, Arc<str>)> = self
            .index
            .veths()
            .filter(|veth| {
                !self.attachments.has(veth.ifindex) && !self.attachments.failed().contains_key(&veth.ifindex)
            })
            .map(|veth| (veth.ifindex, veth.name.clone()))
            .collect();
        for (ifindex, name) in missing {
            self.attach(ifindex, name);
        }
    }
}
