//! Verdicts by direction, namespace and policy: what the programs count by numbers, added up under names.
//!
//! A pod's numbers begin anew with the next pod that has its place, and a rule's go when it has not been used for long. So they are read
//! every few seconds, and what they have grown by is added to totals, which only grow.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_common::Hook;
use palisade_common::layout::EndpointStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};

use crate::compile::Catalog;
use crate::kernel::{Maps, RunTime};

/// So many series there are at most, of all three kinds together; what comes beyond is counted under the namespace [`OTHERS`].
const SERIES_MAX: usize = 3000;
const OTHERS: &str = "(others)";

/// What one total is of. Of the policies that isolate a pod together there is one total for all, so that sums are right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    /// New flows of isolated pods that were let through.
    Admitted { direction: &'static str, namespace: String },
    /// Packets that were refused; `policies`: names that isolate the pod in the direction, with commas.
    Refused { direction: &'static str, namespace: String, policies: String },
    /// New flows that rules of one policy have admitted.
    ByPolicy { direction: String, namespace: String, policy: String },
}

/// Whose numbers an endpoint's are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Owner {
    generation: u32,
    namespace: String,
    /// By [`Hook`].
    policies: [String; 2],
}

#[derive(Debug, Default)]
struct Books {
    /// By the endpoint's number.
    owners: BTreeMap<u32, Owner>,
    /// By the rule's number: its policy's namespace and name, and its direction.
    rules: BTreeMap<u32, (String, String, String)>,
    /// As they were when they were last read.
    endpoints: BTreeMap<u32, EndpointStats>,
    hits: BTreeMap<u32, u64>,
    totals: BTreeMap<Of, u64>,
    evictions: u64,
    inserts: u64,
    run_times: BTreeMap<&'static str, RunTime>,
}

impl Books {
    fn set_names(&mut self, catalog: &Catalog) {
        let bare = |policies: &[String]| {
            let names: Vec<&str> =
                policies.iter().map(|name| name.split_once('/').map_or(name.as_str(), |(_, name)| name)).collect();
            names.join(",")
        };
        for entry in &catalog.endpoints {
            let (Some(number), Some(namespace)) = (entry.number, &entry.namespace) else { continue };
            let policies = [bare(&entry.egress_policies), bare(&entry.ingress_policies)];
            let owner = Owner { generation: entry.generation, namespace: namespace.clone(), policies };
            self.owners.insert(number, owner);
        }
        // Of those that are gone the last numbers are yet to be read.
        self.rules.retain(|rule, _| self.hits.contains_key(rule) || catalog.rules.contains_key(rule));
        for (rule, entry) in &catalog.rules {
            let (namespace, policy) = entry.policy.split_once('/').unwrap_or(("", &entry.policy));
            let names = (namespace.to_owned(), policy.to_owned(), entry.direction.clone());
            self.rules.insert(*rule, names);
        }
        if self.totals.len() > SERIES_MAX / 2 {
            let here = |namespace: &str| self.owners.values().any(|owner| owner.namespace == namespace);
            self.totals.retain(|of, _| here(of.namespace()) || of.namespace() == OTHERS);
        }
    }

    fn add_endpoint(&mut self, number: u32, now: EndpointStats) {
        let before = self.endpoints.insert(number, now).filter(|before| before.generation == now.generation);
        let before = before.unwrap_or_default();
        let Some(owner) = self.owners.get(&number).filter(|owner| owner.generation == now.generation).cloned() else {
            // Not known yet: it is counted once it is.
            self.endpoints.insert(number, EndpointStats { generation: now.generation, ..before });
            return;
        };
        for hook in Hook::ALL {
            let (place, direction) = (hook as usize, hook.name());
            let grown = |now: [u64; 2], before: [u64; 2]| now[place].saturating_sub(before[place]);
            let namespace = owner.namespace.clone();
            self.add(Of::Admitted { direction, namespace: namespace.clone() }, grown(now.admitted, before.admitted));
            let policies = owner.policies[place].clone();
            self.add(Of::Refused { direction, namespace, policies }, grown(now.refused, before.refused));
        }
    }

    fn add_hits(&mut self, now: BTreeMap<u32, u64>) {
        let mut added = BTreeMap::new();
        for (rule, hits) in now {
            let before = self.hits.get(&rule).copied().unwrap_or(0);
            // Not known yet: it is counted once it is.
            let Some((namespace, policy, direction)) = self.rules.get(&rule).cloned() else {
                added.insert(rule, before);
                continue;
            };
            // Fewer: it had gone and came back.
            let grown = if hits >= before { hits - before } else { hits };
            self.add(Of::ByPolicy { direction, namespace, policy }, grown);
            added.insert(rule, hits);
        }
        self.hits = added;
    }

    fn add(&mut self, of: Of, grown: u64) {
        if grown == 0 {
            return;
        }
        let of = if self.totals.len() < SERIES_MAX || self.totals.contains_key(&of) { of } else { of.among_others() };
        *self.totals.entry(of).or_default() += grown;
    }
}

impl Of {
    fn namespace(&self) -> &str {
        match self {
            Self::Admitted { namespace, .. } | Self::Refused { namespace, .. } | Self::ByPolicy { namespace, .. } => {
                namespace
            }
        }
    }

    fn among_others(self) -> Self {
        let (namespace, none) = (OTHERS.to_owned(), String::new());
        match self {
            Self::Admitted { direction, .. } => Self::Admitted { direction, namespace },
            Self::Refused { direction, .. } => Self::Refused { direction, namespace, policies: none },
            Self::ByPolicy { direction, .. } => Self::ByPolicy { direction, namespace, policy: none },
        }
    }
}

/// The totals, for the agent and for whoever scrapes.
#[derive(Clone)]
pub struct Accounts {
    books: Arc<Mutex<Books>>,
    maps: Arc<Mutex<Maps>>,
}

impl Accounts {
    /// # Errors
    ///
    /// When the maps cannot be opened.
    pub fn new(pin_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { books: Arc::default(), maps: Arc::new(Mutex::new(Maps::open_pinned(pin_dir)?)) })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_names(&self, catalog: &Catalog) {
        self.books().set_names(catalog);
    }

    pub fn set_evictions(&self, evictions: u64) {
        self.books().evictions = evictions;
    }

    pub fn set_run_times(&self, times: BTreeMap<&'static str, RunTime>) {
        self.books().run_times = times;
    }

    /// Adds what was counted since the last time.
    pub fn read(&self, maps: &Maps) -> anyhow::Result<()> {
        let mut books = self.books();
        let numbers: Vec<u32> = books.owners.keys().copied().collect();
        for number in numbers {
            books.add_endpoint(number, maps.endpoint_stats(number)?);
        }
        books.add_hits(maps.rule_hits()?);
        books.inserts = maps.flow_stats()?.inserts;
        Ok(())
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").finish_non_exhaustive()
    }
}

impl Collector for Accounts {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.read(&maps) {
            tracing::warn!(error = format!("{error:#}"), "what was counted of pods cannot be read for a scrape");
        }
        self.books().encode(encoder)
    }
}

impl Books {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "admitted_flows",
            "New flows of isolated pods that were let through, by direction and by the pods' namespace. None while others are refused: \
             `palisade drops` says what; compare `kubectl describe networkpolicy`",
            None,
            MetricType::Counter,
        )?;
        for (of, count) in &self.totals {
            if let Of::Admitted { direction, namespace } = of {
                let labels = [("direction", *direction), ("namespace", namespace)];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "refused_packets",
            "Packets refused to pods, by direction, the pods' namespace, and the policies that isolate them in the direction (none: for \
             another reason than a policy). Rising after a change of these policies: they may forbid what is needed; `palisade drops \
             --namespace` names pods and peers",
            None,
            MetricType::Counter,
        )?;
        for (of, count) in &self.totals {
            if let Of::Refused { direction, namespace, policies } = of {
                let labels = [("direction", *direction), ("namespace", namespace), ("policies", policies)];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "policy_admitted_flows",
            "New flows that rules of the policy have admitted on this node. Never rising on any node: nobody needs the policy's rules, or \
             they do not say what was meant",
            None,
            MetricType::Counter,
        )?;
        for (of, count) in &self.totals {
            if let Of::ByPolicy { direction, namespace, policy } = of {
                let labels = [("direction", direction), ("namespace", namespace), ("policy", policy)];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        self.encode_flows(encoder)
    }

    fn encode_flows(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let flows = [
            (
                "flow_insertions",
                "Flows that were put into the flow table. Its rate is that of new flows of isolated pods",
                self.inserts,
            ),
            (
                "flow_evictions",
                "Flows that the full flow table may have forgotten while they were in use, at most. Rising: raise --flows-max, or find who \
                 opens so many flows (`palisade flows`); connections that are forgotten are taken up in their middle",
                self.evictions,
            ),
        ];
        for (name, help, count) in flows {
            ConstCounter::new(count).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "program_run",
            "Time that the kernel program has run, while kernel.bpf_stats_enabled is 1 (`sysctl`; it costs some nanoseconds per packet). Divide \
             by palisade_program_runs_total; docs/benchmarks.md says what to expect",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        for (program, time) in &self.run_times {
            ConstCounter::new(time.nanoseconds as f64 / 1e9).encode(family.encode_family(&[("program", *program)])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "program_runs",
            "Times that the kernel program has run, while kernel.bpf_stats_enabled is 1",
            None,
            MetricType::Counter,
        )?;
        for (program, time) in &self.run_times {
            ConstCounter::new(time.runs).encode(family.encode_family(&[("program", *program)])?)?;
        }
        Ok(())
    }
}

/// One of each, for the page that tells of them.
#[cfg(test)]
pub(super) fn sample() -> Box<dyn Collector> {
    #[derive(Debug)]
    struct Sample(Books);
    impl Collector for Sample {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            self.0.encode(encoder)
        }
    }
    let (namespace, direction) = ("shop".to_owned(), "ingress");
    let mut books = Books::default();
    books.add(Of::Admitted { direction, namespace: namespace.clone() }, 1);
    books.add(Of::Refused { direction, namespace: namespace.clone(), policies: "db".to_owned() }, 1);
    books.add(Of::ByPolicy { direction: direction.to_owned(), namespace, policy: "db".to_owned() }, 1);
    books.run_times.insert("from_pod", RunTime { nanoseconds: 1, runs: 1 });
    Box::new(Sample(books))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{EndpointEntry, RuleEntry};

    fn catalog(generation: u32, namespace: &str) -> Catalog {
        Catalog {
            endpoints: vec![EndpointEntry {
                number: Some(3),
                generation,
                namespace: Some(namespace.to_owned()),
                ingress_policies: vec!["shop/a".to_owned(), "shop/b".to_owned()],
                ..EndpointEntry::default()
            }],
            rules: BTreeMap::from([(
                7,
                RuleEntry {
                    policy: "shop/a".to_owned(),
                    direction: "ingress".to_owned(),
                    index: 0,
                    peers: None,
                    ports: None,
                },
            )]),
            ..Catalog::default()
        }
    }

    fn stats(generation: u32, admitted: u64, refused: u64) -> EndpointStats {
        EndpointStats { generation, admitted: [0, admitted], refused: [0, refused], ..EndpointStats::default() }
    }

    fn refused(namespace: &str) -> Of {
        Of::Refused { direction: "ingress", namespace: namespace.to_owned(), policies: "a,b".to_owned() }
    }

    fn admitted(namespace: &str) -> Of {
        Of::Admitted { direction: "ingress", namespace: namespace.to_owned() }
    }

    #[test]
    fn numbers_that_begin_anew_only_add() {
        let mut books = Books::default();
        books.set_names(&catalog(1, "shop"));
        books.add_endpoint(3, stats(1, 5, 10));
        books.add_endpoint(3, stats(1, 6, 10));
        assert_eq!(books.totals, BTreeMap::from([(admitted("shop"), 6), (refused("shop"), 10)]));
        // Another pod has the number; what it has counted waits until its name is known.
        books.add_endpoint(3, stats(2, 4, 0));
        books.add_endpoint(3, stats(2, 5, 0));
        assert_eq!(books.totals[&admitted("shop")], 6);
        books.set_names(&catalog(2, "ops"));
        books.add_endpoint(3, stats(2, 6, 1));
        assert_eq!((books.totals[&admitted("ops")], books.totals[&refused("ops")]), (6, 1));
        assert_eq!(books.totals[&refused("shop")], 10);
    }

    #[test]
    fn hits_of_a_rule_are_its_policys() {
        let mut books = Books::default();
        books.set_names(&catalog(1, "shop"));
        for (hits, total) in [(4, 4), (6, 6), (1, 7)] {
            books.add_hits(BTreeMap::from([(7, hits), (9, 100)]));
            let of = Of::ByPolicy { direction: "ingress".into(), namespace: "shop".into(), policy: "a".into() };
            assert_eq!(books.totals, BTreeMap::from([(of, total)]));
        }
        // A rule that is gone is known by its name as long as it has hits.
        books.set_names(&Catalog::default());
        books.add_hits(BTreeMap::from([(7, 3)]));
        assert_eq!(books.totals.values().sum::<u64>(), 9);
        books.add_hits(BTreeMap::new());
        books.set_names(&Catalog::default());
        assert!(books.rules.is_empty());
    }

    #[test]
    fn there_are_only_so_many_series() {
        let mut books = Books::default();
        for number in 0..2 * SERIES_MAX {
            let namespace = format!("ci-{number}");
            books.add(admitted(&namespace), 1);
        }
        assert_eq!(books.totals.len(), SERIES_MAX + 1);
        assert_eq!(books.totals[&admitted(OTHERS)], SERIES_MAX as u64);
        // Those of namespaces that have no pod here go.
        books.set_names(&catalog(1, "ci-5"));
        assert_eq!(books.totals.keys().map(Of::namespace).collect::<Vec<_>>(), [OTHERS, "ci-5"]);
    }
}
