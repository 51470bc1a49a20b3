//! What Prometheus is told. Every HELP text says what to do about the number.
//!
//! What the kernel programs count is read when somebody asks ([`Snapshot`]); what the agent does is counted here as it happens.
//! [`super::http`] serves it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use palisade_common::Reason;
use palisade_common::layout::FlowStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::api::contact::{Requests, StaleKinds};
use crate::facts::{EventSource, Kind};
use crate::kernel::XdpMode;
use crate::observe::turns::Turns;

/// The Content-Type of [`Metrics::encode`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The Content-Type of [`as_text`].
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One label with its value.
type Label = [(&'static str, &'static str); 1];

/// What the kernel's maps say at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By reason; one that is missing counts as 0.
    pub packets: BTreeMap<Reason, u64>,
    /// Of these, refused before there was an skb.
    pub refused_early: u64,
    /// Refused packets that found no room in EVENTS.
    pub events_lost: u64,
    /// Connections that were taken up in their middle.
    pub midstream: u64,
    /// Flows to Services.
    pub services: FlowStats,
    /// By the map's name.
    pub maps: BTreeMap<&'static str, MapUse>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapUse {
    pub entries: u64,
    pub entries_max: u64,
}

/// How a pod of this node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointState {
    /// No policy selects it.
    Open,
    /// A policy isolates it for one direction at least.
    Isolated,
    /// Not known yet, or cannot be enforced: nothing passes but from and to its node.
    Closed,
    /// A program is missing on its interface: not enforced, or for one direction only.
    NotAttached,
}

impl EndpointState {
    pub const ALL: [Self; 4] = [Self::Open, Self::Isolated, Self::Closed, Self::NotAttached];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Isolated => "isolated",
            Self::Closed => "closed",
            Self::NotAttached => "not-attached",
        }
    }
}

pub struct Metrics {
    registry: Registry,
    faults: Family<Label, Gauge>,
    endpoints: Family<Label, Gauge>,
    updates: Family<Label, Counter>,
    epoch: Gauge,
    apply: Histogram,
    sync: Histogram,
    apply_failures: Counter,
    paused_node: Gauge,
    paused_endpoints: Gauge,
    failed_writes: Counter,
    resyncs: Family<Label, Counter>,
    stale: Family<Label, Gauge>,
    drift: Gauge,
    xdp_devices: Family<Label, Gauge>,
}

impl Metrics {
    /// `snapshot` is asked at each scrape. If it fails, what it would tell is left out and the failure counted.
    pub fn new(snapshot: impl Fn() -> anyhow::Result<Snapshot> + Send + Sync + 'static) -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("palisade"),
            faults: Family::default(),
            endpoints: Family::default(),
            updates: Family::default(),
            epoch: Gauge::default(),
            // 0.25 ms to 8 s: from a pod's birth to a full rebuild of a large node.
            apply: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            // 0.5 s, as the API server writes whole seconds, to 17 minutes.
            sync: Histogram::new(exponential_buckets(0.5, 2.0, 12)),
            apply_failures: Counter::default(),
            paused_node: Gauge::default(),
            paused_endpoints: Gauge::default(),
            failed_writes: Counter::default(),
            resyncs: Family::default(),
            stale: Family::default(),
            drift: Gauge::default(),
            xdp_devices: Family::default(),
        };
        // They are there from the start, so that a rate can be taken over the first change too.
        metrics.set_faults(&BTreeMap::new());
        metrics.set_endpoints(&BTreeMap::new());
        metrics.set_stale(&StaleKinds::new());
        metrics.set_xdp_devices([(Some(XdpMode::Native), 0), (Some(XdpMode::Generic), 0), (None, 0)]);
        for kind in Kind::ALL {
            drop(metrics.updates.get_or_create(&[("kind", kind.name())]));
        }
        for source in EventSource::ALL {
            drop(metrics.resyncs.get_or_create(&[("source", source.name())]));
        }
        metrics.registered(snapshot)
    }

    /// Which palisade this is.
    fn register_version(registry: &mut Registry) {
        let version: Family<Label, Gauge> = Family::default();
        version.get_or_create(&[("version", crate::VERSION)]).set(1);
        registry.register("build_info", "Always 1. The version of the agent, to see which nodes have which", version);
    }

    fn registered(mut self, snapshot: impl Fn() -> anyhow::Result<Snapshot> + Send + Sync + 'static) -> Self {
        let registry = &mut self.registry;
        Self::register_version(registry);
        registry.register(
            "drift_entries",
            "Entries of the loaded tables that are not what a compilation from nothing makes of the objects that are known, at the last \
             comparison. Not 0: `palisade maps diff` and the log name them; somebody has written to the maps, or this is a bug to report. \
             Starting the agent anew writes the tables again",
            self.drift.clone(),
        );
        registry.register(
            "faults",
            "Things in objects of this kind that cannot be enforced as written and are closed instead. \
             Not 0: `palisade endpoints` and the log name object and field; correct the object",
            self.faults.clone(),
        );
        registry.register(
            "endpoints",
            "Pods of this node by how they stand: open (no policy selects them), isolated, closed (not known yet or cannot be \
             enforced), not-attached (a program is missing, policies do not hold). One of the last two for more than seconds: \
             `palisade endpoints` says why",
            self.endpoints.clone(),
        );
        registry.register(
            "updates",
            "Changes of objects of this kind that were taken in. Steadily high: find out who rewrites these objects",
            self.updates.clone(),
        );
        registry.register(
            "xdp_devices",
            "Devices of --xdp by how the program is there; missing: it is not, as another XDP program is there or the driver cannot. Not 0 for \
             missing: `palisade status` says why; policies are enforced nevertheless",
            self.xdp_devices.clone(),
        );
        registry.register(
            "epoch",
            "Number of the state that the kernel's tables hold, one more with each change. It does not move while objects \
             change: look at palisade_apply_failures_total",
            self.epoch.clone(),
        );
        registry.register(
            "paused_node",
            "1: an operator has paused enforcement on this whole node (`palisade pause --all`). It ends by itself; `palisade status` \
             says when",
            self.paused_node.clone(),
        );
        registry.register(
            "paused_endpoints",
            "Pods of this node whose enforcement an operator has paused (`palisade pause`). It ends by itself; `palisade status` says \
             which and when",
            self.paused_endpoints.clone(),
        );
        registry.register_with_unit(
            "apply",
            "Time from taking a batch of changes to its enforcement. Above a second: the node is short of CPU, or rules are \
             very many; policies come late",
            Unit::Seconds,
            self.apply.clone(),
        );
        registry.register_with_unit(
            "policy_sync",
            "Time from a policy's last write, which the API server notes in whole seconds, to its enforcement on this node, by the two \
             machines' clocks. Above some seconds: compare palisade_apply_seconds; if that is low, the API server or its watch is late, or a \
             clock is wrong",
            Unit::Seconds,
            self.sync.clone(),
        );
        registry.register(
            "apply_failures",
            "Changes that could not be written to the kernel's tables and are tried again. Rising: what was enforced before \
             still is, new policies are not; the log says which map, compare palisade_map_entries with its maximum",
            self.apply_failures.clone(),
        );
        registry.register(
            "failed_writes",
            "Single writes that the kernel's tables did not take, those that undo a change or clean up after one included; all are \
             tried again. Rising: the node is short of memory, or a map is full; the log says which",
            self.failed_writes.clone(),
        );
        registry.register(
            "resyncs",
            "Times that events were lost, of the node's links, of the pods' sides of them or of CNI results, and all was listed anew. \
             Rising: the node is short of CPU; new pods may have waited for their policies",
            self.resyncs.clone(),
        );
        registry.register_with_unit(
            "stale_since_timestamp",
            "Since when objects of this kind are not seen to change, as the API server does not answer or refuses (Unix time); 0: they are \
             seen. What is known stays enforced. Not 0 for minutes: `palisade status` has the error; look at the API server, and at the \
             rights of the agent's account",
            Unit::Seconds,
            self.stale.clone(),
        );
        let failures = Counter::default();
        registry.register(
            "snapshot_failures",
            "Scrapes at which the kernel's maps could not be read, so that packets, events and maps are missing. Rising: see the \
             log; the agent may have lost CAP_BPF, or its pins were removed",
            failures.clone(),
        );
        registry.register_collector(Box::new(KernelMaps { snapshot: Box::new(snapshot), failures }));
        self
    }

    /// How many faults there are now, by kind of object.
    pub fn set_faults(&self, counts: &BTreeMap<Kind, usize>) {
        for kind in Kind::ALL {
            set(&self.faults, [("kind", kind.name())], counts.get(&kind));
        }
    }

    pub fn set_endpoints(&self, counts: &BTreeMap<EndpointState, usize>) {
        for state in EndpointState::ALL {
            set(&self.endpoints, [("state", state.name())], counts.get(&state));
        }
    }

    /// How long tasks hold the thread, measured by whoever spawns them.
    pub fn register_turns(&mut self, turns: &Turns) {
        turns.register(&mut self.registry);
    }

    /// For those who count by themselves.
    pub fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// What was asked of the API server, counted by whoever asks.
    pub fn register_requests(&mut self, requests: Requests) {
        self.registry.register(
            "api_requests",
            "Requests to the API server by what was asked for and how it was answered (code none: not at all). Codes other than 200 rising: \
             401 and 403, the account lacks a right; 410, the server was restarted or is behind; 429 and 5xx, it is short of room",
            requests.answers,
        );
        self.registry.register_with_unit(
            "api_received",
            "What the API server has sent, headers and encryption aside. list rising steadily: watches break and everything is read anew, \
             see palisade_api_requests_total; watch: the cluster's pods change so much, see docs/scale.md",
            Unit::Bytes,
            requests.received,
        );
    }

    pub fn set_stale(&self, stale: &StaleKinds) {
        for kind in Kind::ALL {
            let since = stale.get(&kind).map_or(0, |stale| stale.since.as_second());
            self.stale.get_or_create(&[("kind", kind.name())]).set(since);
        }
    }

    pub fn updated(&self, kind: Kind) {
        self.updates.get_or_create(&[("kind", kind.name())]).inc();
    }

    pub fn applied(&self, epoch: u32, time: Duration) {
        self.epoch.set(epoch.into());
        self.apply.observe(time.as_secs_f64());
    }

    /// How many entries of tables are not what they should be.
    pub fn set_drift(&self, entries: usize) {
        self.drift.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// Policies written at these times (Unix time, seconds) are in force.
    pub fn synced(&self, written: impl Iterator<Item = i64>) {
        for written in written {
            let age =
                Timestamp::now().duration_since(Timestamp::from_second(written).unwrap_or_default()).as_secs_f64();
            self.sync.observe(age.max(0.0));
        }
    }

    /// How many devices of `--xdp` have the program in which mode, or (`None`) have it not.
    pub fn set_xdp_devices(&self, counts: [(Option<XdpMode>, usize); 3]) {
        for (mode, count) in counts {
            set(&self.xdp_devices, [("mode", mode.map_or("missing", XdpMode::name))], Some(&count));
        }
    }

    pub fn set_paused(&self, node: bool, endpoints: usize) {
        self.paused_node.set(node.into());
        self.paused_endpoints.set(i64::try_from(endpoints).unwrap_or(i64::MAX));
    }

    /// How many writes have failed since the agent's start.
    pub fn set_failed_writes(&self, total: u64) {
        self.failed_writes.inc_by(total.saturating_sub(self.failed_writes.get()));
    }

    pub fn resynced(&self, source: EventSource) {
        self.resyncs.get_or_create(&[("source", source.name())]).inc();
    }

    pub fn apply_failed(&self) {
        self.apply_failures.inc();
    }

    /// Everything in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("a String takes everything");
        page
    }
}

/// The same page in Prometheus' own text format, which promtool and older scrapers read: there a counter's family is named like its samples.
pub fn as_text(openmetrics: &str) -> String {
    let is_counter = |name: &str| openmetrics.contains(&format!("# TYPE {name} counter\n"));
    let mut page = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let total = if is_counter(name) { "_total" } else { "" };
                page.push_str(&format!("# {what} {name}{total} {rest}"));
            }
            (Some("#"), ..) => continue,
            _ => page.push_str(line),
        }
        page.push('\n');
    }
    page
}

fn set(family: &Family<Label, Gauge>, label: Label, count: Option<&usize>) {
    let count = count.map_or(0, |&count| i64::try_from(count).unwrap_or(i64::MAX));
    family.get_or_create(&label).set(count);
}

struct KernelMaps {
    snapshot: Box<dyn Fn() -> anyhow::Result<Snapshot> + Send + Sync>,
    failures: Counter,
}

impl fmt::Debug for KernelMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelMaps").finish_non_exhaustive()
    }
}

impl Collector for KernelMaps {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Snapshot { packets, refused_early, events_lost, midstream, services, maps } = match (self.snapshot)() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.failures.inc();
                tracing::warn!(error = format!("{error:#}"), "the kernel's maps cannot be read for a scrape");
                return Ok(());
            }
        };
        let mut family = encoder.encode_descriptor(
            "packets",
            "Packets of this node's pods by reason; docs/events.md says which pass and which refuse. Spoofed addresses \
             rising: a pod forges its source; malformed or unsettled: report it; no-rule: `palisade endpoints` names the policies",
            None,
            MetricType::Counter,
        )?;
        for reason in Reason::ALL {
            let label: Label = [("reason", reason.name())];
            let count = packets.get(reason).copied().unwrap_or(0);
            ConstCounter::new(count).encode(family.encode_family(&label)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "refused_early",
            "Of palisade_packets_total, those that were refused where they came in, before the kernel had built an skb (--xdp, hook xdp). \
             Rising: a flood from outside is being refused; `palisade drops` names who sends it",
            None,
            MetricType::Counter,
        )?;
        let hook: Label = [("hook", "xdp")];
        ConstCounter::new(refused_early).encode(family.encode_family(&hook)?)?;
        counter(
            &mut encoder,
            "events_lost",
            "Refused packets that are counted but not told of one by one, as a budget was used up (--events-max, --events-per-pod-max) or the \
             ring was full. Rising: a flood is being refused, or the agent is short of CPU; the verdicts are not affected",
            events_lost,
        )?;
        counter(
            &mut encoder,
            "midstream",
            "Connections that were taken up in their middle, because they are older than the agent or had left the flow table. \
             Rising long after the start: the flow table is too small, raise its size",
            midstream,
        )?;
        counter(
            &mut encoder,
            "service_flows_answered",
            "Flows to Services that were let go on to be judged where they end up, and that were answered. Rising faster than \
             palisade_service_flows_judged_total for minutes: somebody erases the marks of packets, egress policies do not hold for \
             Services; find who sets whole marks (iptables -j MARK without a mask)",
            services.service_answered,
        )?;
        let hairpins = packets.get(&Reason::Hairpin).copied().unwrap_or(0);
        counter(
            &mut encoder,
            "service_flows_judged",
            "Flows admitted by their mark where they ended up: at a pod, a device or a process of the node",
            services.service_judged + hairpins,
        )?;
        counter(
            &mut encoder,
            "foreign_marks",
            "Packets of the node's own that bear bits of --stamp-mask. Rising: somebody else uses these bits; choose another mask",
            services.foreign_marks,
        )?;
        let entries = maps.iter().map(|(&map, usage)| (map, usage.entries));
        gauges(
            &mut encoder,
            "map_entries",
            "Entries in the kernel map. Near palisade_map_entries_max: raise that map's size; at the maximum what does not fit is \
             closed (the flow table forgets its oldest instead)",
            entries,
        )?;
        let entries_max = maps.iter().map(|(&map, usage)| (map, usage.entries_max));
        gauges(
            &mut encoder,
            "map_entries_max",
            "Entries for which the kernel map has room (beside as many that a change replaces); a flag sets it when the map is \
             made. Less than the flag says: an earlier agent made the map; the log names the remedy",
            entries_max,
        )
    }
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, count: u64) -> fmt::Result {
    ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauges(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (map, value) in values {
        let label: Label = [("map", map)];
        ConstGauge::new(value).encode(family.encode_family(&label)?)?;
    }
    Ok(())
}
