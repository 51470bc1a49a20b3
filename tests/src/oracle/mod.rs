//! The first judge: SEMANTICS read literally, slow, and sharing no selector, CIDR, port or defaulting code with the compiler.
//!
//! It keeps the raw objects and asks them anew for every packet; of the past it remembers the connections that were opened
//! ([`flow`]) and the first fragments that passed. Where the text leaves a verdict open it says so ([`Opinion::pass`]).

mod asking;
pub mod cidr;
mod client;
pub mod cluster;
mod connectionless;
pub mod flow;
pub mod guard;
mod leaving;
mod meaning;
mod midstream;
pub mod packet;
pub mod policy;
mod related;
mod services;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use palisade_common::decide::Place;
use palisade_common::{Hook, Reason};
use serde_json::Value;

use self::cluster::{Cluster, text};
use self::flow::{Flow, Tuple};
use self::leaving::Marked;
use self::policy::Direction;
use crate::case::{Endpoint, ObjectChange, PacketStep, Services, Setup};

/// What the oracle says about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// `None`: both are right.
    pub pass: Option<bool>,
    /// The reasons that a judge may give; empty: any that fits the verdict.
    pub reasons: BTreeSet<Reason>,
    /// Where a pod sends: whether the packet goes on with the pod's mark. `None`: both are right.
    pub marked: Option<bool>,
}

#[derive(Clone, Debug)]
pub struct Oracle {
    setup: Setup,
    cluster: Cluster,
    endpoints: BTreeMap<u32, Endpoint>,
    /// The node's own addresses.
    own: BTreeSet<IpAddr>,
    /// Of the last packet that each interface let through.
    marks: BTreeMap<u32, Marked>,
    /// Pods (by uid and interface) that were known and not isolated once: they may have connections that nobody saw being opened.
    unisolated: BTreeSet<(String, u32)>,
    flows: Vec<Flow>,
    /// Flows of which a verdict was left open: what is remembered of them is the judge's business from then on.
    undecided: BTreeSet<Tuple>,
    fragments: Vec<FirstFragment>,
    /// Mid-stream admissions: endpoint and second.
    midstream: Vec<(u32, u64)>,
    /// How many instants of change there have been.
    epoch: u64,
    changed: bool,
}

/// Of a first fragment whose verdict was left open: as if it were from before a change.
const NO_EPOCH: u64 = u64::MAX;

/// A first fragment that passed, or may have.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FirstFragment {
    hook: Hook,
    /// Judged by its mark, where it ended up.
    leaving: bool,
    ifindex: u32,
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    epoch: u64,
    time: u64,
    /// [`Opinion::marked`].
    marked: Option<bool>,
}

/// An endpoint whose pod is known.
struct Subject<'a> {
    pod: &'a Value,
    uid: String,
    egress: bool,
    ingress: bool,
}

// === impl Opinion ===

impl Opinion {
    fn of(reasons: impl IntoIterator<Item = Reason>) -> Self {
        let reasons: BTreeSet<Reason> = reasons.into_iter().collect();
        let pass = reasons.first().map(|reason| reason.passes());
        let any = |list: &[Reason]| list.iter().any(|reason| reasons.contains(reason));
        let forward = any(&[Reason::Allowed, Reason::Established, Reason::Service]);
        let marked = if any(&[Reason::Reply, Reason::Midstream]) && forward { None } else { Some(forward) };
        Self { pass, reasons, marked }
    }

    fn either() -> Self {
        Self { pass: None, reasons: BTreeSet::new(), marked: None }
    }

    /// Whether a judge that says `reason` agrees.
    pub fn admits(&self, reason: Reason) -> bool {
        let pass = self.pass.is_none_or(|pass| pass == reason.passes());
        pass && (self.reasons.is_empty() || self.reasons.contains(&reason))
    }

    pub fn describe(&self) -> String {
        let verdict = match self.pass {
            Some(true) => "pass",
            Some(false) => "drop",
            None => "either",
        };
        let names: Vec<&str> = self.reasons.iter().map(|reason| reason.name()).collect();
        let mark = if self.marked == Some(true) { ", marked" } else { "" };
        if names.is_empty() { verdict.to_owned() } else { format!("{verdict} ({}){mark}", names.join(" or ")) }
    }
}

// === impl Oracle ===

impl Oracle {
    pub fn new(setup: &Setup) -> Self {
        Self {
            setup: setup.clone(),
            cluster: Cluster::default(),
            endpoints: BTreeMap::new(),
            own: BTreeSet::new(),
            marks: BTreeMap::new(),
            unisolated: BTreeSet::new(),
            flows: Vec::new(),
            undecided: BTreeSet::new(),
            fragments: Vec::new(),
            midstream: Vec::new(),
            epoch: 0,
            changed: false,
        }
    }

    pub fn apply(&mut self, change: &ObjectChange) {
        self.changed = true;
        match change {
            ObjectChange::Put(object) => self.cluster.put(object),
            ObjectChange::Delete(object) => self.cluster.delete(object),
            ObjectChange::Endpoint(endpoint) => {
                self.cluster.give(endpoint.clone());
                self.endpoints.insert(endpoint.ifindex, endpoint.clone());
            }
            ObjectChange::EndpointGone(ifindex) => {
                self.cluster.take_back(*ifindex);
                self.endpoints.remove(ifindex);
            }
            ObjectChange::Own(addresses) => self.own.clone_from(addresses),
        }
    }

    /// Everything applied so far holds from now on.
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.epoch += 1;
        let free: Vec<(String, u32)> = self
            .endpoints
            .values()
            .filter_map(|endpoint| Some((self.subject(endpoint)?, endpoint.ifindex)))
            .filter(|(subject, _)| !subject.egress && !subject.ingress)
            .map(|(subject, ifindex)| (subject.uid, ifindex))
            .collect();
        self.unisolated.extend(free);
    }

    pub fn packet(&mut self, step: &PacketStep) -> Opinion {
        self.settle();
        if step.place != Place::Pod {
            return self.leave_node(step);
        }
        let mut opinion = self.judge(step);
        if step.hook == Hook::FromPod && opinion.pass != Some(false) {
            if self.setup.services == Services::NoMarks {
                opinion.marked = Some(false);
            }
            self.take_mark(step, &opinion);
        }
        opinion
    }

    /// `None`: which pod this is, is not known; the endpoint is closed.
    fn subject<'a>(&'a self, endpoint: &'a Endpoint) -> Option<Subject<'a>> {
        let pod = match &endpoint.uid {
            Some(uid) => self.cluster.pod(uid),
            None => self.cluster.pod_named(&endpoint.namespace, &endpoint.pod),
        }?;
        Some(Subject {
            pod,
            uid: cluster::uid(pod),
            egress: policy::isolated(&self.cluster, pod, Direction::Egress),
            ingress: policy::isolated(&self.cluster, pod, Direction::Ingress),
        })
    }

    /// Which pod has this address as a label, for messages.
    pub fn isolating(&self, ifindex: u32) -> String {
        let subject = self.endpoints.get(&ifindex).and_then(|endpoint| self.subject(endpoint));
        match subject {
            None => "closed".to_owned(),
            Some(subject) => {
                let namespace = text(subject.pod, "metadata.namespace");
                let name = text(subject.pod, "metadata.name");
                let how = match (subject.egress, subject.ingress) {
                    (false, false) => "not isolated",
                    (true, false) => "isolated for egress",
                    (false, true) => "isolated for ingress",
                    (true, true) => "isolated both ways",
                };
                format!("{namespace}/{name}, {how}")
            }
        }
    }
}
