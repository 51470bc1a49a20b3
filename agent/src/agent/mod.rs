//! The agent's state between two events: index, compiler and kernel, and what has to be done with them.
//!
//! Everything here runs on one task and nothing waits: `run` brings the events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::compile::{Catalog, Compiler, Numbers};
use crate::config::AgentConfig;
use crate::facts::{Change, Fault, Kind, Update, VethChange};
use crate::index::Index;
use crate::kernel::{FlowWatch, Kernel};
use crate::memory;
use crate::observe::events::{Digest, Refused};
use crate::observe::http::Readiness;
use crate::observe::metrics::{EndpointState, Metrics};
use crate::observe::{self, Fill, refusal};

/// After a failed change: the first pause, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Where the agent tells of itself.
pub struct Signals {
    pub metrics: Arc<Metrics>,
    pub fill: Fill,
    pub pod_cidrs: watch::Sender<Vec<IpNet>>,
    pub ready: watch::Sender<Readiness>,
}

pub struct Agent {
    node_name: String,
    pin_dir: PathBuf,
    kernel: Kernel,
    flows: FlowWatch,
    index: Index,
    compiler: Compiler,
    signals: Signals,
    /// Interfaces that have their programs.
    attached: BTreeMap<u32, Arc<str>>,
    /// An earlier agent ran here: whatever is new to us is younger than enforcement on this node.
    succeeded: bool,
    /// Faults of objects, by object.
    faults: BTreeMap<(Kind, String), Vec<Fault>>,
    /// Objects of a kind that were named since its relist began.
    relisted: BTreeMap<Kind, BTreeSet<String>>,
    compile_faults: Vec<Fault>,
    told_faults: BTreeSet<Fault>,
    /// The interfaces that were there at start are known.
    node_known: bool,
    /// The first complete list is in force.
    synced: bool,
    digest: Digest,
    catalog: Catalog,
    catalog_is_old: bool,
    /// A list was read since memory was last given back.
    listed: bool,
    retry: Option<(Instant, Duration)>,
}

/// CLOCK_MONOTONIC, as the programs read it.
fn second() -> u32 {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec as u32
}

impl Agent {
    pub fn new(config: &AgentConfig, kernel: Kernel, signals: Signals) -> Self {
        let mut compiler = Compiler::new(kernel.sizes().limits()).start_above(Numbers::highest(kernel.tables()));
        compiler.adopt(kernel.endpoints().values().copied());
        Self {
            node_name: config.node_name.clone(),
            pin_dir: config.pin_dir.clone(),
            flows: FlowWatch::new(&config.pin_dir, &kernel),
            succeeded: !kernel.endpoints().is_empty(),
            kernel,
            index: Index::new(&config.node_name),
            compiler,
            signals,
            attached: BTreeMap::new(),
            faults: BTreeMap::new(),
            relisted: BTreeMap::new(),
            compile_faults: Vec::new(),
            told_faults: BTreeSet::new(),
            node_known: false,
            synced: false,
            digest: Digest::default(),
            catalog: Catalog::default(),
            catalog_is_old: false,
            listed: false,
            retry: None,
        }
    }

    /// When a failed change is to be tried again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    pub fn has_new_catalog(&self) -> bool {
        self.catalog_is_old
    }

    /// A veth that is new is closed here and now, before anything is known of it. One that was there before the first agent of this
    /// node stays as it is until the first complete list.
    pub fn take_veths(&mut self, changes: Vec<VethChange>) {
        // The first batch is all that is there.
        self.node_known = true;
        for change in changes {
            if let Some(veth) = &change.veth {
                if self.succeeded || !veth.older {
                    self.attach(veth.ifindex, veth.name.clone());
                }
            } else if let Some(name) = self.attached.remove(&change.ifindex)
                && let Err(error) = self.kernel.detach(change.ifindex, &name)
            {
                tracing::warn!(interface = %name, error = format!("{error:#}"), "taking the programs off");
            }
            self.index.apply_veth(change);
        }
    }

    fn attach(&mut self, ifindex: u32, name: Arc<str>) {
        if self.attached.contains_key(&ifindex) {
            return;
        }
        match self.kernel.attach(ifindex, &name) {
            Ok(()) => {
                tracing::debug!(interface = %name, ifindex, "programs attached");
                self.attached.insert(ifindex, name);
            }
            Err(error) => {
                // The interface may have gone already; if not, it is tried again with the next change.
                tracing::warn!(interface = %name, error = format!("{error:#}"), "cannot attach the programs");
                self.signals.metrics.apply_failed();
            }
        }
    }

    pub fn take_updates(&mut self, updates: Vec<Update>) {
        for Update { change, faults } in updates {
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
    }

    fn take_faults(&mut self, change: &Change, faults: Vec<Fault>) {
        let (kind, object) = match change {
            Change::Namespace(name, _) => (Kind::Namespace, name.to_string()),
            Change::Pod { name, .. } => (Kind::Pod, name.to_string()),
            Change::Policy(name, _) => (Kind::Policy, name.to_string()),
            Change::Node(name, _) => (Kind::Node, name.to_string()),
            Change::Relist(kind) => {
                self.relisted.insert(*kind, BTreeSet::new());
                return;
            }
            Change::Relisted(kind) => {
                self.listed = true;
                if let Some(named) = self.relisted.remove(kind) {
                    self.faults.retain(|(of, object), _| of != kind || named.contains(object));
                }
                return;
            }
        };
        self.signals.metrics.updated(kind);
        if let Some(named) = self.relisted.get_mut(&kind) {
            named.insert(object.clone());
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
        if !self.index.complete() || !self.node_known {
            return;
        }
        let first = !self.synced;
        let started = Clock::now();
        let compiled = self.compiler.update(&mut self.index, second());
        // After a failure, and at first, the difference to what is there counts, not the last step alone.
        let delta = if first || self.retry.is_some() {
            self.kernel.tables().delta_to(self.compiler.tables())
        } else {
            compiled.delta
        };
        self.compile_faults = compiled.faults;
        match self.kernel.apply(&delta) {
            Ok(applied) => {
                self.retry = None;
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
                let pause = self.retry.map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_LAST));
                self.retry = Some((Instant::now() + pause, pause));
                self.signals.metrics.apply_failed();
                tracing::error!(
                    error = format!("{error:#}"),
                    retry_ms = pause.as_millis(),
                    "cannot write a change; what was in force stays"
                );
            }
        }
        self.attach_all();
        if first && self.retry.is_none() {
            self.first_sync();
        }
        self.tell_faults();
        self.signals.fill.set(self.kernel.tables());
        self.catalog_is_old = true;
    }

    /// Programs of interfaces that are not attached yet; at the first time those that are older than the agent, whose tables are in
    /// place now.
    fn attach_all(&mut self) {
        let missing: Vec<(u32, Arc<str>)> = self
            .index
            .veths()
            .filter(|veth| !self.attached.contains_key(&veth.ifindex))
            .map(|veth| (veth.ifindex, veth.name.clone()))
            .collect();
        for (ifindex, name) in missing {
            self.attach(ifindex, name);
        }
    }

    /// The first complete list is in force: sweep what an earlier agent left on interfaces that have gone.
    fn first_sync(&mut self) {
        self.synced = true;
        match self.kernel.attached() {
            Ok(pinned) => {
                for ifindex in pinned.into_iter().filter(|ifindex| self.index.veth(*ifindex).is_none()) {
                    if let Err(error) = self.kernel.detach(ifindex, "") {
                        tracing::warn!(ifindex, error = format!("{error:#}"), "sweeping an earlier agent's link");
                    }
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "reading pinned links"),
        }
        let _ = self.signals.ready.send(Readiness::Ready);
        tracing::info!(
            endpoints = self.attached.len(),
            epoch = self.kernel.epoch(),
            "enforcing: the first complete list is in force"
        );
    }

    fn tell_faults(&mut self) {
        let now: BTreeSet<Fault> = self.faults.values().flatten().chain(&self.compile_faults).cloned().collect();
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
        let faults: Vec<Fault> = self.faults.values().flatten().cloned().collect();
        self.catalog = self.compiler.catalog(&self.index, &faults);
        let mut counts: BTreeMap<EndpointState, usize> = EndpointState::ALL.iter().map(|state| (*state, 0)).collect();
        for entry in &self.catalog.endpoints {
            let state = if entry.closed.is_some() {
                EndpointState::Closed
            } else if entry.isolated_ingress || entry.isolated_egress {
                EndpointState::Isolated
            } else {
                EndpointState::Open
            };
            *counts.entry(state).or_default() += 1;
        }
        self.signals.metrics.set_endpoints(&counts);
        if let Err(error) = observe::write_catalog(&self.pin_dir, &self.catalog) {
            tracing::warn!(error = format!("{error:#}"), "writing the catalog of names");
        }
        if std::mem::take(&mut self.listed) {
            memory::give_back();
        }
    }

    /// One line for each refused flow, with names on both ends.
    pub fn tell_refused(&mut self, refused: &[Refused]) {
        if refused.is_empty() {
            return;
        }
        self.write_catalog();
        for event in refused {
            if let Some(more) = self.digest.tell(*event, Clock::now()) {
                refusal::tell(event, more, &self.index, &self.catalog);
            }
        }
    }

    /// Keeps the flow table's fill and the programs' notion of pressure.
    pub fn look_at_flows(&mut self) {
        if let Err(error) = self.flows.look(self.kernel.maps()) {
            tracing::warn!(error = format!("{error:#}"), "looking at the flow table");
        }
    }
}
