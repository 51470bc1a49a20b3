//! One flow as people read it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use palisade_common::Reason;
use palisade_common::decide::{OPEN_EGRESS, OPEN_INGRESS, Question, REACH_EGRESS, ask};
use palisade_common::flow::is_over;
use palisade_common::layout::{Address, EndpointRecord, FlowKey, FlowValue, PauseKey, endpoint_flag, flow_flag};
use palisade_common::parse::V4;
use palisade_common::pause::holds;
use serde::Serialize;

use crate::compile::{Catalog, EndpointEntry};
use crate::kernel::Snapshot;
use crate::observe::events::protocol_name;
use crate::observe::record::end;
use crate::pause::name_of;
use crate::tables::sim::{Sim, bytes_of};

/// Field names are part of the output of `-o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub protocol: String,
    /// Who opened it.
    pub source: FlowEnd,
    pub destination: FlowEnd,
    /// What the flow's next packet is to expect: `admitted`; `refused`: the tables do not admit it any longer, and it is cut; `kept`: the same,
    /// with `--existing-flows keep`; `paused`: the same, and enforcement is paused; `service`: to a Service, judged where it ends up; `node`:
    /// opened by the node itself.
    pub verdict: &'static str,
    /// By the policies of the pod that opened it; none: it is no pod of this node, or none isolates it.
    pub egress: Option<Side>,
    /// By the policies of the pod that it was opened to.
    pub ingress: Option<Side>,
    /// `open`, `closing`, `closed`, `reset`, or `doubtful`: taken up in its middle and not confirmed yet.
    pub state: &'static str,
    /// Since its last packet; the programs note it about once a second.
    pub idle_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlowEnd {
    /// `namespace/name` of the pod or pods that have the address.
    pub name: Option<String>,
    pub address: IpAddr,
    pub port: u16,
}

/// What one pod's policies say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    pub admits: bool,
    /// The rule that does: `namespace/policy direction rule N`.
    pub rule: Option<String>,
    /// Why, or why not.
    pub reason: &'static str,
    /// It was judged since the last change of the tables; if not, its next packet is.
    pub judged: bool,
}

impl fmt::Display for FlowEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.port) {
            (Some(name), 0) => write!(f, "{name}"),
            (Some(name), port) => write!(f, "{name}:{port}"),
            (None, port) => write!(f, "{}", end(self.address, port)),
        }
    }
}

impl Row {
    /// The rules that admit it.
    pub fn by(&self) -> String {
        let rules = [&self.egress, &self.ingress].into_iter().flatten().filter_map(|side| side.rule.clone());
        rules.collect::<Vec<_>>().join(", ")
    }
}

pub fn address(family: u8, address: &Address) -> IpAddr {
    if family == V4 {
        Ipv4Addr::from(u32::from_be(address.v4_word())).into()
    } else {
        Ipv6Addr::from(bytes_of(address)).into()
    }
}

/// What changes without the tables.
pub struct Moment<'a> {
    /// Nanoseconds, CLOCK_MONOTONIC.
    pub now: u64,
    /// Of addresses that are none of this node's pods'.
    pub names: &'a BTreeMap<IpAddr, Option<String>>,
    /// What is paused, and until when.
    pub pauses: &'a BTreeMap<PauseKey, u64>,
}

impl Moment<'_> {
    /// Nothing is refused on the pod's account.
    fn is_paused(&self, record: &EndpointRecord) -> bool {
        let own = PauseKey { ifindex: record.ifindex, generation: record.generation };
        holds([own, PauseKey::NODE].map(|key| self.pauses.get(&key).copied()), self.now)
    }
}

/// The tables, and names.
pub struct Scene {
    sim: Sim,
    keeps_existing: bool,
    catalog: Catalog,
    /// By interface.
    pods: BTreeMap<u32, String>,
    /// Of this node's pods, by their addresses.
    owners: BTreeMap<IpAddr, EndpointRecord>,
    by_interface: BTreeMap<u32, EndpointRecord>,
}

impl Scene {
    pub fn new(snapshot: Snapshot, catalog: Catalog) -> Self {
        let (epoch, found) = (snapshot.config.epoch, &snapshot.found);
        let mut owners = BTreeMap::new();
        let mut by_interface = BTreeMap::new();
        for (ifindex, index) in &found.tables.endpoints {
            let record = found.records.get(&index.at(epoch)).filter(|record| record.ifindex == *ifindex);
            let Some(record) = record.copied() else { continue };
            by_interface.insert(*ifindex, record);
            let v4 = record.v4.iter().take(record.v4_count as usize).map(|word| Ipv4Addr::from(u32::from_be(*word)));
            let v6 = record.v6.iter().take(record.v6_count as usize).map(|own| Ipv6Addr::from(bytes_of(own)));
            // Every pod has its own of these, and they say nothing of who it is.
            let v6 = v6.filter(|own| !own.is_unicast_link_local());
            owners.extend(v4.map(IpAddr::from).chain(v6.map(IpAddr::from)).map(|own| (own, record)));
        }
        let is_here = |entry: &&EndpointEntry| {
            by_interface
                .get(&entry.ifindex)
                .is_some_and(|record: &EndpointRecord| record.generation == entry.generation)
        };
        let named = catalog.endpoints.iter().filter(is_here).filter_map(|entry| Some((entry.ifindex, name_of(entry)?)));
        let pods = named.collect();
        let keeps_existing = snapshot.config.keep_existing != 0;
        let sim = Sim::of(snapshot.found, &snapshot.config);
        Self { sim, keeps_existing, catalog, pods, owners, by_interface }
    }

    pub fn epoch(&self) -> u32 {
        self.sim.found().epoch
    }

    pub fn knows(&self, address: IpAddr) -> bool {
        self.owners.contains_key(&address)
    }

    /// For each end (0: low, 1: high) that opened it; none for what the programs have forgotten.
    pub fn rows(&self, key: &FlowKey, value: &FlowValue, moment: &Moment<'_>) -> Vec<(usize, Row)> {
        if is_over(key, value, moment.now) {
            return Vec::new();
        }
        let opened = (0..2).filter(|opener| value.flags & (flow_flag::OPENED << opener) != 0);
        opened.map(|opener| (opener, self.row(key, value, opener, moment))).collect()
    }

    fn row(&self, key: &FlowKey, value: &FlowValue, opener: usize, moment: &Moment<'_>) -> Row {
        let ends = [(&key.low, key.low_port), (&key.high, key.high_port)];
        let at = |end: usize| address(key.family, ends[end].0);
        let (from, to) = (at(opener), at(1 - opener));
        let client = self.by_interface.get(&value.client).filter(|it| it.generation == value.client_generation);
        let node = value.flags & flow_flag::NODE != 0;
        let sender = if node { None } else { client.or_else(|| self.owners.get(&from)) };
        let receiver = self.owners.get(&to);
        let leaving = client.is_some() || value.flags & flow_flag::LEAVING != 0;
        let judged = |record: &EndpointRecord, role: usize| {
            let judgement = value.judged[opener][role];
            judgement.epoch == self.epoch() && judgement.generation == record.generation
        };
        let question = |peer, client, what| Question {
            peer,
            client,
            epoch: self.epoch(),
            what,
            port: ends[1 - opener].1,
            protocol: key.protocol,
            family: key.family,
        };
        let egress = sender.filter(|it| it.flags & endpoint_flag::ISOLATED_EGRESS != 0).map(|record| {
            let what = if leaving { REACH_EGRESS } else { OPEN_EGRESS };
            self.side(record, &question(ends[1 - opener].0, (0, 0), what), judged(record, 0))
        });
        let ingress = receiver.filter(|it| !node && it.flags & endpoint_flag::ISOLATED_INGRESS != 0).map(|record| {
            let client = (value.client, value.client_generation);
            self.side(record, &question(ends[opener].0, client, OPEN_INGRESS), judged(record, 1))
        });
        let name = |record: Option<&EndpointRecord>, address: IpAddr| {
            record
                .and_then(|record| self.pods.get(&record.ifindex).cloned())
                .or_else(|| moment.names.get(&address).cloned().flatten())
        };
        let sides = || [&egress, &ingress].into_iter().flatten();
        let passes = |side: &Option<Side>, pod: Option<&EndpointRecord>| {
            side.as_ref().is_none_or(|side| side.admits) || pod.is_some_and(|pod| moment.is_paused(pod))
        };
        let verdict = match () {
            () if node => "node",
            () if sides().all(|side| side.admits) && sides().any(|side| side.reason == Reason::Service.name()) => {
                "service"
            }
            () if sides().all(|side| side.admits) => "admitted",
            () if self.keeps_existing => "kept",
            () if passes(&egress, sender) && passes(&ingress, receiver) => "paused",
            () => "refused",
        };
        Row {
            protocol: protocol_name(key.protocol),
            source: FlowEnd { name: name(sender, from), address: from, port: ends[opener].1 },
            destination: FlowEnd { name: name(receiver, to), address: to, port: ends[1 - opener].1 },
            verdict,
            egress,
            ingress,
            state: state(value.flags),
            idle_seconds: moment.now.saturating_sub(value.seen) / 1_000_000_000,
        }
    }

    fn side(&self, record: &EndpointRecord, question: &Question<'_>, judged: bool) -> Side {
        let answer = ask(&self.sim, record, question);
        let rule = answer.rule().filter(|rule| *rule != 0);
        Side {
            admits: answer.is_allowed(),
            rule: rule
                .map(|rule| self.catalog.rules.get(&rule).map_or_else(|| format!("rule {rule}"), ToString::to_string)),
            reason: answer.reason().name(),
            judged,
        }
    }
}

fn state(flags: u32) -> &'static str {
    match flags {
        flags if flags & flow_flag::RESET != 0 => "reset",
        flags if flags & (flow_flag::FIN_ACKED * 3) == flow_flag::FIN_ACKED * 3 => "closed",
        flags if flags & (flow_flag::FIN * 3) != 0 => "closing",
        flags if flags & flow_flag::UNCONFIRMED != 0 => "doubtful",
        _ => "open",
    }
}
