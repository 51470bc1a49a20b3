//! P3 on the whole way from objects to writes: after every single write of every change, new flows get the verdicts of before the
//! change or those of after it, at both ends together.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use palisade::tables::plan::{Installed, Plan};
use palisade::tables::sim::{FrameBytes, Sim};
use palisade_common::decide::Meeting;
use palisade_common::{Hook, Verdict};
use palisade_tests::case::{self, Case, Endpoint, Judge, Judges, ObjectChange, PacketStep, Setup};
use palisade_tests::frame::Mac;
use palisade_tests::frame::text::{self, Names};
use palisade_tests::judges::Pipeline;

const RECORDS: u32 = 4096;
const ROUTER: Mac = [2, 0, 0, 0, 0, 1];
const STRANGERS: [&str; 4] = ["192.0.2.1", "10.9.9.9", "2001:db8::1", "fd09::9"];
const KINDS: [&str; 7] = ["tcp 80", "tcp 81", "tcp 443", "tcp 8080", "udp 53", "sctp 80", "icmp"];
/// Per change: new flows whose verdict changes, and others, that are asked about after each write.
const CHANGED_MAX: usize = 40;
const OTHERS_MAX: usize = 24;
/// New flows that these are chosen from.
const CANDIDATES_MAX: usize = 400;

/// What became of all the changes of some cases.
#[derive(Debug, Default)]
struct Tally {
    changes: usize,
    writes: usize,
    /// New flows whose verdict a change turned.
    turned: usize,
    /// Of these: at both ends at once.
    turned_at_both: usize,
    violations: Vec<String>,
}

/// A judge that is asked about no packet: it asks itself, after every write of every change.
struct Instant {
    pipeline: Pipeline,
    installed: Installed,
    sim: Sim,
    case: String,
    first: bool,
    endpoints: BTreeMap<u32, Endpoint>,
    addresses: BTreeSet<IpAddr>,
    tally: Rc<RefCell<Tally>>,
    seed: usize,
}

/// A new flow's first packet, and the hooks where this node meets it: egress of its source, ingress of its destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Probe {
    words: String,
    frame: Vec<u8>,
    source: Option<u32>,
    destination: Option<u32>,
}

type Pair = [Option<bool>; 2];

impl Instant {
    fn new(setup: &Setup, case: &str, tally: &Rc<RefCell<Tally>>) -> Self {
        Self {
            pipeline: Pipeline::new(&setup.node),
            installed: Installed::new(0, RECORDS),
            sim: Sim::default(),
            case: case.to_owned(),
            first: true,
            endpoints: BTreeMap::new(),
            addresses: STRANGERS.iter().map(|text| text.parse().expect("an address")).collect(),
            tally: tally.clone(),
            seed: 0,
        }
    }

    fn ask(&self, sim: &Sim, probe: &Probe) -> Pair {
        let judge = |hook, ifindex: Option<u32>| {
            let meeting = Meeting { hook, ifindex: ifindex?, from_node: false, stamp: 0 };
            Some(sim.judge(FrameBytes { bytes: &probe.frame, gso: false }, meeting).passes())
        };
        let pair = [judge(Hook::FromPod, probe.source), judge(Hook::ToPod, probe.destination)];
        sim.forget_flows();
        pair
    }

    /// New flows between all addresses that there are and have been, by all veths that there are and have been.
    fn probes(&mut self) -> Vec<Probe> {
        let mut owners: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        let mut macs = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            macs.insert(endpoint.ifindex, endpoint.mac);
            for (address, _) in &endpoint.addresses {
                owners.entry(*address).or_default().insert(endpoint.ifindex);
            }
        }
        self.addresses.extend(owners.keys());
        let mut all = Vec::new();
        for &source in &self.addresses {
            for &destination in &self.addresses {
                let local = owners.contains_key(&source) || owners.contains_key(&destination);
                if source != destination && source.is_ipv4() == destination.is_ipv4() && local {
                    all.extend(KINDS.map(|kind| (source, destination, kind)));
                }
            }
        }
        // Spread over all of them, others each time.
        self.seed += 1;
        let stride = all.len().div_ceil(CANDIDATES_MAX).max(1);
        let chosen = all.into_iter().skip(self.seed % stride).step_by(stride);
        chosen.flat_map(|(source, destination, kind)| probe(&owners, &macs, source, destination, kind)).collect()
    }

    fn check(&mut self, plan: &Plan, probes: Vec<Probe>) {
        let mut after = self.sim.clone();
        plan.writes.iter().for_each(|write| after.write(write));
        let asked: Vec<(Pair, Pair, Probe)> =
            probes.into_iter().map(|probe| (self.ask(&self.sim, &probe), self.ask(&after, &probe), probe)).collect();
        let (changed, others): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(old, new, _)| old != new);
        let mut tally = self.tally.borrow_mut();
        tally.changes += 1;
        tally.writes += plan.writes.len();
        tally.turned += changed.len();
        tally.turned_at_both += changed.iter().filter(|(old, new, _)| old[0] != new[0] && old[1] != new[1]).count();
        let spread = |list: Vec<(Pair, Pair, Probe)>, most: usize| {
            let stride = list.len().div_ceil(most).max(1);
            list.into_iter().step_by(stride)
        };
        let watched: Vec<_> = spread(changed, CHANGED_MAX).chain(spread(others, OTHERS_MAX)).collect();
        let commit = plan.commit_len();
        for (position, write) in plan.writes.iter().enumerate() {
            self.sim.write(write);
            for (old, new, probe) in &watched {
                let expected = if position + 1 < commit { old } else { new };
                let pair = self.ask(&self.sim, probe);
                if pair != *expected {
                    let Probe { words, source, destination, .. } = probe;
                    tally.violations.push(format!(
                        "{}: {words} ({source:?} to {destination:?}): {pair:?} after write {position} ({write:?}; the epoch \
                         is {commit}), before {old:?}, after {new:?}",
                        self.case
                    ));
                }
            }
        }
    }
}

fn probe(
    owners: &BTreeMap<IpAddr, BTreeSet<u32>>,
    macs: &BTreeMap<u32, Mac>,
    source: IpAddr,
    destination: IpAddr,
    kind: &str,
) -> Vec<Probe> {
    let ends = |address: &IpAddr| match owners.get(address) {
        Some(owners) => owners.iter().copied().map(Some).collect(),
        None => vec![None],
    };
    let end = |address: IpAddr, port: &str| {
        if address.is_ipv4() { format!("{address}:{port}") } else { format!("[{address}]:{port}") }
    };
    let words = match kind.split_once(' ') {
        Some((kind, port)) => {
            let options = match kind {
                "tcp" => "flags=S",
                "sctp" => "chunk=1",
                _ => "data=10",
            };
            format!("{kind} {} > {} {options}", end(source, "40000"), end(destination, port))
        }
        None => format!("icmp {source} > {destination} type={}", if source.is_ipv4() { 8 } else { 128 }),
    };
    let mut all = Vec::new();
    for from in ends(&source) {
        for to in ends(&destination) {
            let mac = |ifindex: Option<u32>| ifindex.map_or(ROUTER, |ifindex| macs[&ifindex]);
            let names = Link { source, macs: [mac(from), mac(to)] };
            let frame = text::frame(&words, &names).expect("the words are legal").bytes();
            all.push(Probe { words: words.clone(), frame, source: from, destination: to });
        }
    }
    all
}

/// Who is at the ends of a probe.
struct Link {
    source: IpAddr,
    macs: [Mac; 2],
}

impl Names for Link {
    fn address(&self, _name: &str) -> Option<IpAddr> {
        None
    }

    fn mac(&self, _name: &str) -> Option<Mac> {
        None
    }

    fn mac_of(&self, address: IpAddr) -> Mac {
        self.macs[usize::from(address != self.source)]
    }
}

impl Judge for Instant {
    fn apply(&mut self, change: &ObjectChange) {
        self.pipeline.apply(change);
        match change {
            ObjectChange::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.ifindex, endpoint.clone())),
            // Kept, as packets still come by a veth that is about to go.
            ObjectChange::EndpointGone(_) | ObjectChange::Own(_) => {}
            ObjectChange::Put(object) | ObjectChange::Delete(object) => {
                let list = object["status"]["podIPs"].as_array().into_iter().flatten();
                self.addresses.extend(list.filter_map(|entry| entry["ip"].as_str()?.parse::<IpAddr>().ok()));
            }
        }
    }

    fn settle(&mut self) {
        let delta = self.pipeline.compile();
        let plan = self.installed.plan(&delta).expect("fewer endpoints than records");
        if std::mem::take(&mut self.first) {
            plan.writes.iter().for_each(|write| self.sim.write(write));
        } else if !plan.is_empty() {
            let probes = self.probes();
            self.check(&plan, probes);
        }
        self.installed.commit(&plan);
    }

    fn packet(&mut self, _packet: &PacketStep) -> Option<Verdict> {
        None
    }
}

fn play(cases: impl IntoIterator<Item = Case>) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::default()));
    for case in cases {
        let name = case.case.clone();
        let judges = |setup: &Setup| -> Judges { vec![("instant", Box::new(Instant::new(setup, &name, &tally)))] };
        if let Err(error) = case::run(&case, &judges) {
            tally.borrow_mut().violations.push(format!("{name}: {error:#}"));
        }
    }
    let tally = tally.take();
    assert!(
        tally.violations.is_empty(),
        "{} violations:\n{}",
        tally.violations.len(),
        tally.violations[..tally.violations.len().min(10)].join("\n")
    );
    println!("{tally:?}");
    tally
}

#[test]
fn written_cases() {
    let cases = case::written().expect("the files of cases can be read");
    let tally = play(cases.into_iter().flat_map(|(_, cases)| cases));
    assert!(tally.changes > 200 && tally.turned > 2_000 && tally.turned_at_both > 50, "too little happened: {tally:?}");
}

/// What is hardest to do at one instant.
const NASTY: &str = include_str!("instant.yaml");

#[test]
fn nasty_changes() {
    let cases: Vec<Case> = serde_norway::from_str(NASTY).expect("the cases can be read");
    for case in cases {
        let tally = play([case.clone()]);
        assert!(tally.changes >= 2 && tally.turned > 0, "{}: nothing turned: {tally:?}", case.case);
    }
}

/// A thousand blocks with a port of their own each, exchanged for a thousand others.
#[test]
fn thousand_rows() {
    let rules = |shift: u32| -> Vec<serde_json::Value> {
        let rule = |n: u32| {
            let (high, low) = ((n + shift) / 200, (n + shift) % 200);
            serde_json::json!({
                "from": [{"ipBlock": {"cidr": format!("10.{}.{low}.0/24", 100 + high), "except": [format!("10.{}.{low}.8/29", 100 + high)]}}],
                "ports": [{"port": 80 + n % 3}]
            })
        };
        let others = [
            serde_json::json!({"from": [{"podSelector": {"matchLabels": {"pod": if shift == 0 { "b" } else { "r" }}}}]}),
            serde_json::json!({"from": [{"ipBlock": {"cidr": if shift == 0 { "192.0.2.0/24" } else { "2001:db8::/32" }}}]}),
        ];
        (0..1_000).map(rule).chain(others).collect()
    };
    let policy = |shift| serde_json::json!({"policy x/p": {"podSelector": {"matchLabels": {"pod": "a"}}, "ingress": rules(shift)}});
    let case = Case {
        case: "a thousand rows".to_owned(),
        text: String::new(),
        world: "pair".to_owned(),
        existing: "cut".to_owned(),
        budget: 0,
        services: "judged".to_owned(),
        collapsed: false,
        objects: vec![policy(0)],
        steps: vec![policy(500), "delete policy x/p".into()],
    };
    let tally = play([case]);
    assert!(tally.writes > 2_000 && tally.turned > 10, "too little happened: {tally:?}");
}
