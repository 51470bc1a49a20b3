//! What the agent tells of itself: readiness, faults, the catalog, and how each endpoint stands. Told is what the kernel enforces, which is
//! not what is wanted where a change cannot be written or a program not be attached.

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::layout::endpoint_flag;

use super::retry::Retry;
use super::{Agent, Stuck};
use crate::api::contact::Stale;
use crate::compile::{AgentEntry, Catalog, EndpointEntry};
use crate::facts::{Fault, Kind, Veth};
use crate::memory;
use crate::observe;
use crate::observe::events::Report;
use crate::observe::http::Readiness;
use crate::observe::metrics::EndpointState;
use crate::observe::record::pods_at;
use crate::observe::socket::{ADDRESSES_MAX, NamesAsked};

/// What follows from an API server that does not answer.
fn not_seen(kinds: &[Stale]) -> String {
    let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    format!("the API server does not tell of changes, what is known stays in force: {}", kinds.join("; "))
}

impl Agent {
    /// What keeps this node from being enforced as a whole.
    fn not_ready(&self) -> Option<String> {
        if let Some(stuck) = &self.stuck {
            return Some(format!("a change cannot be written: {}", stuck.error));
        }
        if !self.synced {
            return Some("no complete list of objects yet".to_owned());
        }
        if let Some(stand_in) = self.kept.not_ready() {
            return Some(stand_in);
        }
        if let Some(failed) = self.attachments.failed().values().next() {
            let count = self.attachments.failed().len();
            return Some(format!("the programs are not attached to {count} interfaces: {}", failed.error));
        }
        self.exits.missing().first().map(|missing| format!("Service traffic cannot be judged: {missing}"))
    }

    /// Whoever waits for readiness may ask for names at once: they are written before.
    pub(super) fn tell_readiness(&mut self) {
        let current = || match &self.stale[..] {
            [] => Readiness::Ready,
            kinds => Readiness::Stale(not_seen(kinds)),
        };
        let now = match (self.not_ready(), &self.stale[..]) {
            (None, _) => current(),
            (Some(reason), []) => Readiness::NotYet(reason),
            (Some(reason), kinds) => Readiness::NotYet(format!("{reason}; {}", not_seen(kinds))),
        };
        self.catalog_is_old = true;
        let is_ready = |readiness: &Readiness| !matches!(readiness, Readiness::NotYet(_));
        if is_ready(&now) && !is_ready(&self.signals.ready.borrow()) {
            self.write_catalog();
        }
        self.signals.ready.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    fn own_fault(&self, message: String) -> Fault {
        Fault { kind: Kind::Node, object: self.node_name.clone(), field: String::new(), message }
    }

    /// What is wrong with the node and not with an object.
    pub(super) fn own_faults(&self) -> impl Iterator<Item = Fault> {
        let fault = |message: String| self.own_fault(message);
        let stuck = self.stuck.iter().map(move |stuck| {
            fault(format!("a change cannot be written to the kernel, what was in force before stays: {}", stuck.error))
        });
        let failed = self.attachments.failed().values().map(move |failed| {
            fault(format!("{} has not both of its programs, its pod is not enforced: {}", failed.name, failed.error))
        });
        let behind = self.attachments.behind().chain(self.exits.attachments.behind()).map(move |(interface, program)| {
            fault(format!(
                "the program {program:?} stands in front of ours on {interface} and can let pass what ours would refuse"
            ))
        });
        let exits = self.exits.missing();
        let exits = exits.into_iter().filter(|_| self.synced).map(move |missing| {
            fault(format!("what pods with an egress policy send to Services is refused: {missing}"))
        });
        let uplinks = self.uplinks.faults().into_iter().map(fault);
        let marks = self.marks.faults(&self.mark_rules).into_iter().map(fault);
        let cni = self.signals.cni_trouble.borrow().clone().into_iter().map(move |trouble| {
            fault(format!(
                "new pods may be started before they are enforced, palisade-cni is not in their way: {trouble}"
            ))
        });
        let unwritten = self.unwritten.iter().map(move |unwritten| {
            fault(format!(
                "what `palisade` shows is not up to date, policies are enforced nevertheless: {}",
                unwritten.error
            ))
        });
        let not_kept = self.kept.trouble.iter().map(move |trouble| {
            fault(format!("there is nothing to enforce after a boot without an API server: {trouble}"))
        });
        unwritten
            .chain(not_kept)
            .chain(stuck)
            .chain(failed)
            .chain(behind)
            .chain(exits)
            .chain(marks)
            .chain(uplinks)
            .chain(cni)
            .chain(self.misnamed().map(fault))
    }

    pub(super) fn tell_faults(&mut self) {
        let objects = self.faults.values().flatten().chain(&self.compile_faults).cloned();
        let mut now: BTreeSet<Fault> = objects.collect();
        if self.synced {
            let noticed = std::mem::take(&mut self.noticed.objects);
            self.noticed.objects = self.tell_events_of(&now, noticed);
        }
        now.extend(self.own_faults().chain(self.stale_fault()));
        for fault in now.difference(&self.told_faults) {
            tracing::warn!(
                kind = fault.kind.name(),
                object = fault.object,
                field = fault.field,
                "cannot be enforced as written: {}",
                fault.message
            );
        }
        if now != self.told_faults {
            let counts = Kind::ALL.iter().map(|kind| (*kind, now.iter().filter(|fault| fault.kind == *kind).count()));
            self.signals.metrics.set_faults(&counts.collect());
            self.told_faults = now;
        }
    }

    pub fn write_catalog(&mut self) {
        if !self.catalog_is_old {
            return;
        }
        self.catalog_is_old = false;
        let unwritten = self.unwritten.take().map(|unwritten| unwritten.retry);
        let faults = self.faults.values().flatten().cloned().chain(self.own_faults());
        let faults: Vec<Fault> = faults.chain(self.stale_fault()).collect();
        let mut catalog = self.compiler.catalog(&self.index, &faults);
        catalog.agent = AgentEntry {
            node: self.node_name.to_string(),
            version: crate::VERSION.to_owned(),
            not_ready: self.not_ready(),
            exits: self.exits.judged(),
            exits_missing: self.exits.missing(),
            cni: self.cni_folders.clone(),
            state_dir: self.state_dir.clone(),
            stale: self.stale.iter().map(ToString::to_string).collect(),
            xdp: self.uplinks.entries(),
        };
        let old = std::mem::take(&mut self.catalog);
        if !self.synced || self.stuck.is_some() {
            keep_names(&mut catalog, old);
        }
        let compiled: BTreeSet<u32> = catalog.endpoints.iter().map(|entry| entry.ifindex).collect();
        let waiting = self.index.veths().filter(|veth| !compiled.contains(&veth.ifindex));
        catalog.endpoints.extend(waiting.map(|veth| self.before_the_list(veth)));
        for entry in &mut catalog.endpoints {
            entry.not_attached = self.attachments.failed().get(&entry.ifindex).map(|failed| failed.error.clone());
            if entry.not_attached.is_none() && !self.attachments.has(entry.ifindex) {
                entry.not_attached = Some("older than the agent, waits for the first complete list".to_owned());
            }
        }
        self.catalog = catalog;
        let mut counts: BTreeMap<EndpointState, usize> = EndpointState::ALL.iter().map(|state| (*state, 0)).collect();
        for entry in &self.catalog.endpoints {
            *counts.entry(self.state(entry)).or_default() += 1;
        }
        self.signals.metrics.set_endpoints(&counts);
        self.signals.accounts.set_names(&self.catalog);
        if let Err(error) = observe::write_catalog(&self.pin_dir, &self.catalog) {
            let retry = Retry::after(unwritten, tokio::time::Instant::now());
            self.unwritten = Some(Stuck { retry, error: format!("{error:#}") });
        }
        self.tell_faults();
        if std::mem::take(&mut self.listed) {
            memory::give_back();
        }
    }

    /// A veth that nothing was compiled for yet.
    fn before_the_list(&self, veth: &Veth) -> EndpointEntry {
        let record = self.kernel.endpoints().get(&veth.ifindex);
        let is_closed = record.is_none_or(|record| record.flags & endpoint_flag::CLOSED != 0);
        let closed = is_closed.then(|| "no complete list of objects yet".to_owned());
        let name = veth.pod.as_ref().map(|(name, _)| name);
        EndpointEntry {
            ifindex: veth.ifindex,
            interface: veth.name.to_string(),
            number: record.map(|record| record.number),
            generation: record.map_or(0, |record| record.generation),
            namespace: name.map(|name| name.namespace.to_string()),
            pod: name.map(|name| name.name.to_string()),
            addresses: veth.addresses.iter().map(|(address, _)| *address).collect(),
            closed,
            ..EndpointEntry::default()
        }
    }

    /// As the kernel's record has it.
    fn state(&self, entry: &EndpointEntry) -> EndpointState {
        const ISOLATED: u32 = endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS;
        if entry.not_attached.is_some() {
            return EndpointState::NotAttached;
        }
        match self.kernel.endpoints().get(&entry.ifindex) {
            None => EndpointState::Closed,
            Some(record) if record.flags & endpoint_flag::CLOSED != 0 => EndpointState::Closed,
            Some(record) if record.flags & ISOLATED != 0 => EndpointState::Isolated,
            Some(_) => EndpointState::Open,
        }
    }

    /// Tells of refused and admitted flows, with names on both ends.
    pub fn take_reports(&mut self, reports: &[Report]) {
        if reports.is_empty() {
            return;
        }
        self.write_catalog();
        self.signals.reporter.take(reports, &self.index, &self.catalog);
    }

    /// Which pods have these addresses.
    pub fn take_names_asked(&self, asked: NamesAsked) {
        let named = |address| Some((address, pods_at(address, &self.index)?));
        // Whoever asked may be gone.
        let _ = asked.answer.send(asked.addresses.into_iter().take(ADDRESSES_MAX).filter_map(named).collect());
    }

    /// Whom could an Event of it be told?
    fn stale_fault(&self) -> Option<Fault> {
        self.stale.first().map(|_| self.own_fault(not_seen(&self.stale)))
    }

    /// Why the name that the agent was given may be another node's, or nobody's.
    fn misnamed(&self) -> Option<String> {
        if !self.synced {
            return None;
        }
        let name = &self.node_name;
        let Some(node) = self.index.node(name) else {
            let has_pods = self.index.pods().any(|(_, pod)| pod.node.as_deref() == Some(&**name));
            return (!has_pods).then(|| {
                format!(
                    "no Node is named {name:?} and no pod's spec.nodeName is, so pods that no CNI result names by UID are closed: is \
                     --node-name right? (A node that is renamed is another one.)"
                )
            });
        };
        let own = self.index.own_addresses();
        if node.addresses.is_empty() || own.is_empty() || node.addresses.iter().any(|address| own.contains(address)) {
            return None;
        }
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        Some(format!(
            "this machine has none of the addresses of the Node {name:?} ({}): --node-name is another node's, or the node has new \
             addresses that its object does not tell of yet; if it is another's, pods that no CNI result names by UID are closed",
            addresses.join(", ")
        ))
    }
}

/// Numbers are never used again: names of those that the kernel's tables still hold stay true.
fn keep_names(catalog: &mut Catalog, old: Catalog) {
    for (id, entry) in old.rules {
        catalog.rules.entry(id).or_insert(entry);
    }
    for (id, entry) in old.tables {
        catalog.tables.entry(id).or_insert(entry);
    }
    for (id, entry) in old.classes {
        catalog.classes.entry(id).or_insert(entry);
    }
}
