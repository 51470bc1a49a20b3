//! The agent's state between two events: index, compiler and kernel, and what has to be done with them.
//!
//! Everything here runs on one task and nothing waits: `run` brings the events.

mod account;
mod attachments;
mod captures;
mod drift;
mod exits;
mod handover;
mod marks;
mod notices;
mod objects;
mod pauses;
mod retry;
mod uplinks;
mod veths;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant as Clock;

use ipnet::IpNet;
use palisade_common::Reason;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::contact::Stale;
use crate::api::events::Events;
use crate::compile::{Catalog, Compiler, Limits};
use crate::config::AgentConfig;
use crate::facts::{Change, Fault, Kind, NodeChange, Update};
use crate::index::Index;
use crate::kernel::{FlowWatch, Kernel};
use crate::observe::accounts::Accounts;
use crate::observe::http::Readiness;
use crate::observe::metrics::{MapUse, Metrics};
use crate::observe::reporter::Reporter;
use crate::observe::{self, Fill};
use attachments::Attachments;
use captures::Captures;
pub use drift::{Drift, DriftCheck};
use exits::Exits;
use handover::Taken;
use marks::{Counts, Marks};
use notices::Noticed;
use objects::Kept;
use pauses::Pauses;
use retry::Retry;
use uplinks::Uplinks;
use waiting::Waiting;

/// Where the agent tells of itself.
pub struct Signals {
    pub metrics: Arc<Metrics>,
    pub fill: Fill,
    pub accounts: Accounts,
    pub reporter: Reporter,
    pub pod_cidrs: watch::Sender<Vec<IpNet>>,
    pub ready: watch::Sender<Readiness>,
    pub events: Events,
    /// Why the CNI plugin is not in the runtime's chain, or may not stay there.
    pub cni_trouble: watch::Receiver<Option<String>>,
}

pub struct Agent {
    node_name: String,
    pin_dir: PathBuf,
    kernel: Kernel,
    flows: FlowWatch,
    index: Index,
    compiler: Compiler,
    signals: Signals,
    attachments: Attachments,
    exits: Exits,
    uplinks: Uplinks,
    marks: Marks,
    /// Routing rules that use the stamp's bits.
    mark_rules: Vec<String>,
    /// Whose sockets are this node's.
    cgroup: PathBuf,
    /// Where the CNI plugin is kept in the chain: configurations, plugins.
    cni_folders: Option<[PathBuf; 2]>,
    state_dir: Option<PathBuf>,
    /// Kinds of objects that the API server does not tell of.
    stale: Vec<Stale>,
    /// An earlier agent ran here: whatever is new to us is younger than enforcement on this node.
    succeeded: bool,
    /// Faults of objects, by object.
    faults: BTreeMap<(Kind, String), Vec<Fault>>,
    /// Objects of a kind that had faults when its list began anew, and were not named since.
    relisted: BTreeMap<Kind, BTreeSet<String>>,
    compile_faults: Vec<Fault>,
    told_faults: BTreeSet<Fault>,
    /// Those that Events were told of.
    noticed: Noticed,
    /// The interfaces that were there at start are known.
    node_known: bool,
    /// The first complete list is in force.
    synced: bool,
    catalog: Catalog,
    catalog_is_old: bool,
    /// When policies were written that are not in force yet (Unix time, seconds).
    unsynced: Vec<i64>,
    /// The catalog cannot be written.
    unwritten: Option<Stuck>,
    /// A list was read since memory was last given back.
    listed: bool,
    stuck: Option<Stuck>,
    /// Pods whose start waits.
    waiting: Vec<Waiting>,
    pauses: Pauses,
    captures: Captures,
    flows_taken: Taken,
    kept: Kept,
}

/// Something that cannot be written.
struct Stuck {
    retry: Retry,
    error: String,
}

/// CLOCK_MONOTONIC, as the programs read it.
fn second() -> u32 {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec as u32
}

impl Agent {
    pub fn new(config: &AgentConfig, kernel: Kernel, signals: Signals) -> Self {
        let limits = Limits { stamps_max: config.settings.stamp_mask.stamps_max(), ..kernel.sizes().limits() };
        let compiler = handover::compiler(limits, &kernel);
        let first = kernel.earlier().is_none();
        let earlier_names = if first { None } else { observe::read_catalog(&config.pin_dir).ok() };
        let earlier_names = earlier_names.unwrap_or_default();
        Self {
            node_name: config.node_name.clone(),
            pin_dir: config.pin_dir.clone(),
            flows: FlowWatch::new(&config.pin_dir, &kernel),
            succeeded: !first,
            kernel,
            index: Index::new(&config.node_name),
            compiler,
            signals,
            attachments: Attachments::default(),
            exits: Exits::default(),
            uplinks: Uplinks::new(config.settings.xdp, &config.xdp_devices),
            marks: Marks::default(),
            mark_rules: Vec::new(),
            cgroup: config.cgroup.clone(),
            cni_folders: config.cni.as_ref().map(|(places, _)| [places.conf_dir.clone(), places.bin_dir.clone()]),
            state_dir: config.state_dir.clone(),
            stale: Vec::new(),
            faults: BTreeMap::new(),
            relisted: BTreeMap::new(),
            compile_faults: Vec::new(),
            told_faults: BTreeSet::new(),
            noticed: Noticed::default(),
            node_known: false,
            synced: false,
            catalog: earlier_names,
            catalog_is_old: true,
            unsynced: Vec::new(),
            unwritten: None,
            listed: false,
            stuck: None,
            waiting: Vec::new(),
            pauses: Pauses::default(),
            captures: Captures::default(),
            flows_taken: Taken::default(),
            kept: Kept::default(),
        }
    }

    /// When something that failed is to be tried again.
    pub fn retry_at(&self) -> Option<Instant> {
        let stuck = [&self.stuck, &self.unwritten].map(|stuck| stuck.as_ref().map(|stuck| stuck.retry.at));
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        let failed = self.attachments.retry_at().into_iter().chain(self.exits.retry_at());
        stuck
            .into_iter()
            .flatten()
            .chain(failed)
            .chain(waiting)
            .chain(self.pauses.ends_at)
            .chain(self.captures.renew_at)
            .chain(self.kept.held_until())
            .min()
    }

    /// No agent ran here before.
    pub fn is_first(&self) -> bool {
        !self.succeeded
    }

    pub fn has_new_catalog(&self) -> bool {
        self.catalog_is_old
    }

    pub fn take_node(&mut self, changes: Vec<NodeChange>) {
        // The first batch is all that is there.
        let begins = !std::mem::replace(&mut self.node_known, true);
        if begins && self.kernel.resumes() {
            self.begin_handover();
        }
        let mut resynced = false;
        for change in changes {
            match change {
                NodeChange::Veth(change) => self.take_veth(change),
                NodeChange::Devices(devices) => {
                    self.take_uplink_devices(&devices);
                    self.take_devices(devices);
                }
                NodeChange::PodGateways(gateways) => self.take_gateways(gateways),
                NodeChange::Addresses(addresses) => self.index.apply_addresses(addresses),
                NodeChange::Resynced(source) => {
                    self.signals.metrics.resynced(source);
                    resynced = true;
                }
            }
        }
        if begins {
            self.end_handover();
        }
        if resynced {
            // An interface that is there may be another than the one that had programs under its index.
            self.verify_attached();
        }
        self.after_attaching();
    }

    /// Tries again what failed: programs that could not be attached, and then a change that could not be written.
    pub fn retry(&mut self) {
        let now = Instant::now();
        if self.attachments.retry_at().is_some_and(|at| at <= now) {
            for (ifindex, failed) in self.attachments.failed().clone() {
                self.attach(ifindex, failed.name);
            }
            self.after_attaching();
        }
        if self.exits.retry_at().is_some_and(|at| at <= now) {
            self.retry_exits(now);
            self.after_attaching();
        }
        self.end_handover();
        if self.kept.release(now) || self.stuck.as_ref().is_some_and(|stuck| stuck.retry.at <= now) {
            self.settle();
        }
        if self.unwritten.as_ref().is_some_and(|unwritten| unwritten.retry.at <= now) {
            self.catalog_is_old = true;
            self.write_catalog();
        }
        if self.pauses.ends_at.is_some_and(|at| at <= now) {
            self.look_at_pauses();
        }
        if self.captures.renew_at.is_some_and(|at| at <= now) {
            self.renew_captures();
        }
        self.answer_waiting();
    }

    fn look_at_marks(&mut self) {
        let maps = self.kernel.maps();
        let hairpins = |counters: Vec<(Reason, u64)>| {
            counters.into_iter().find(|(reason, _)| *reason == Reason::Hairpin).map_or(0, |(_, packets)| packets)
        };
        match maps.flow_stats().and_then(|stats| Ok(Counts::new(&stats, hairpins(maps.counters()?)))) {
            Ok(counts) => self.marks.look(counts),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "reading what was counted of marks"),
        }
        match self.kernel.routing_rules() {
            Ok(rules) => self.mark_rules = rules,
            Err(error) => tracing::debug!(error = format!("{error:#}"), "whether others use the mark"),
        }
    }

    pub fn after_attaching(&mut self) {
        self.attachments.schedule(Instant::now());
        self.tell_faults();
        self.tell_readiness();
    }

    pub fn take_updates(&mut self, updates: Vec<Update>) {
        let told = updates.iter().any(|update| !matches!(update.change, Change::Relist(_)));
        for Update { change, faults, written } in updates {
            self.unsynced.extend(written);
            self.take_faults(&change, faults);
            if let Change::Node(name, facts) = &change
                && **name == *self.node_name
            {
                let cidrs = facts.as_ref().map(|facts| facts.pod_cidrs.clone()).unwrap_or_default();
                self.signals.pod_cidrs.send_if_modified(|now| {
                    let changed = *now != cidrs;
                    *now = cidrs;
                    changed
                });
            }
            self.index.apply(change);
        }
        if told && self.index.has_other_objects() {
            self.kept.changed();
        }
    }

    fn take_faults(&mut self, change: &Change, faults: Vec<Fault>) {
        let (kind, object): (Kind, &dyn ToString) = match change {
            Change::Namespace(name, _) => (Kind::Namespace, name),
            Change::Pod { name, .. } => (Kind::Pod, name),
            Change::Policy(name, _) => (Kind::Policy, name),
            Change::Node(name, _) => (Kind::Node, name),
            Change::Service(name, _) => (Kind::Service, name),
            Change::Relist(kind) => {
                let of_kind = self.faults.keys().filter(|(of, _)| of == kind);
                let objects = of_kind.map(|(_, object)| object.clone()).collect();
                self.relisted.insert(*kind, objects);
                return;
            }
            Change::Relisted(kind) => {
                self.listed = true;
                self.kept.listed(*kind);
                for object in self.relisted.remove(kind).unwrap_or_default() {
                    self.faults.remove(&(*kind, object));
                }
                return;
            }
        };
        self.signals.metrics.updated(kind);
        if faults.is_empty() && self.faults.is_empty() {
            return;
        }
        let object = object.to_string();
        if let Some(unnamed) = self.relisted.get_mut(&kind) {
            unnamed.remove(&object);
        }
        if faults.is_empty() {
            self.faults.remove(&(kind, object));
        } else {
            self.faults.insert((kind, object), faults);
        }
    }

    /// Compiles what has changed and writes it. Before the first complete list, of objects and of interfaces, there is nothing to
    /// compile from.
    pub fn settle(&mut self) {
        if !self.index.complete() || !self.node_known || self.kept.is_held() {
            return self.close_early();
        }
        let first = !self.synced;
        let started = Clock::now();
        let compiled = self.compiler.update(&mut self.index, second());
        // After a failure, and at first, the difference to what is there counts, not the last step alone.
        let delta = if first || self.stuck.is_some() {
            self.kernel.tables().delta_to(self.compiler.tables())
        } else {
            compiled.delta
        };
        self.compile_faults = compiled.faults;
        match self.kernel.apply(&delta) {
            Ok(applied) => {
                self.stuck = None;
                self.signals.metrics.synced(self.unsynced.drain(..));
                if applied.writes != 0 {
                    self.signals.metrics.applied(applied.epoch, started.elapsed());
                    tracing::debug!(
                        writes = applied.writes,
                        epoch = applied.epoch,
                        micros = started.elapsed().as_micros(),
                        "change in force"
                    );
                }
            }
            Err(error) => {
                self.compiler.hold();
                let retry = Retry::after(self.stuck.take().map(|stuck| stuck.retry), Instant::now());
                let error = format!("{error:#}");
                self.signals.metrics.apply_failed();
                tracing::error!(
                    error,
                    retry_ms = retry.pause.as_millis(),
                    "cannot write a change; what was in force stays"
                );
                self.stuck = Some(Stuck { retry, error });
            }
        }
        self.signals.metrics.set_failed_writes(self.kernel.failed_writes());
        if self.synced || self.stuck.is_none() || !self.kernel.has_predecessors() {
            self.put_in_force(first);
        }
        self.after_attaching();
        self.answer_waiting();
        self.signals.fill.set(self.kernel.tables());
    }

    /// Programs go where they are missing. Where packets end up first, as these have to know whom others mark there.
    fn put_in_force(&mut self, first: bool) {
        self.begin_handover();
        if first || self.synced {
            self.attach_exits();
        }
        self.attach_all();
        if first && self.stuck.is_none() {
            self.begin_awaited();
            self.first_sync();
            self.end_handover();
        }
    }

    /// The first complete list is in force: sweep what an earlier agent left on interfaces that have gone.
    fn first_sync(&mut self) {
        self.synced = true;
        match self.kernel.attached() {
            Ok(pinned) => {
                for ifindex in pinned
                    .into_iter()
                    .filter(|ifindex| self.index.veth(*ifindex).is_none() && !self.exits.has(*ifindex))
                {
                    if let Err(error) = self.kernel.detach(ifindex) {
                        tracing::warn!(ifindex, error = format!("{error:#}"), "sweeping an earlier agent's link");
                    }
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "reading pinned links"),
        }
        self.sweep_exits();
        self.look_at_marks();
        self.look_at_pauses();
        tracing::info!(
            endpoints = self.attachments.len(),
            epoch = self.kernel.epoch(),
            "enforcing: {} is in force",
            self.kept.not_ready().as_deref().unwrap_or("the first complete list")
        );
    }

    /// Keeps the flow table's fill and the programs' notion of pressure.
    pub fn look_at_flows(&mut self) {
        match self.flows.look(self.kernel.maps()) {
            Ok(fill) => {
                self.signals.fill.set_flows(MapUse { entries: fill.entries, entries_max: fill.entries_max });
                self.signals.accounts.set_evictions(fill.evictions);
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "looking at the flow table"),
        }
        // What endpoints have counted that go before anybody asks.
        if let Err(error) = self.signals.accounts.read(self.kernel.maps()) {
            tracing::warn!(error = format!("{error:#}"), "reading what was counted of pods");
        }
        match self.kernel.run_times() {
            Ok(times) => self.signals.accounts.set_run_times(times),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "reading the programs' run times"),
        }
    }
}
