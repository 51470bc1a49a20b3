//! Plays a case: reads its steps one by one, tells every judge of the changes and asks every judge about each packet.
//!
//! The oracle decides how far a packet gets, so that what it drops at the first hook is not asked about at the second.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use palisade_common::decide::Place;
use palisade_common::{Hook, Reason};
use serde_json::Value;

use super::expectation::{Expectation, Fate, Stop};
use super::flows::{NamedFlow, Way};
use super::world::UPLINK_IFINDEX;
use super::{Answer, Case, Disagreement, Factory, Judges, Mark, ObjectChange, Outcome, PacketStep, World};
use crate::frame::text;
use crate::oracle::Oracle;

/// Time of the first packet, and from one packet to the next (ns).
const START: u64 = 1_000_000_000_000;
const TICK: u64 = 1_000_000;
/// Source ports of flows whose steps name none.
const FIRST_PORT: u16 = 20_000;

/// Plays `case` before the oracle and the judges made for it.
pub fn run(case: &Case, judges: Factory<'_>) -> Result<Outcome> {
    let case = case.whole()?;
    let setup = case.setup()?;
    let mut play = Play {
        oracle: Oracle::new(&setup),
        judges: judges(&setup),
        world: World::new(&setup.node),
        time: START,
        next_port: FIRST_PORT,
        flows: BTreeMap::new(),
        outcome: Outcome::default(),
        case: case.case.clone(),
        step: String::new(),
        step_number: 0,
        last: None,
        all_answered: false,
    };
    play.objects(&case).context("objects")?;
    for (index, step) in case.steps.iter().enumerate() {
        play.step_number = index + 1;
        play.step = serde_json::to_string(step)?;
        play.step(step).with_context(|| format!("step {}: {}", index + 1, play.step))?;
    }
    Ok(play.outcome)
}

/// One place where a packet is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) hook: Hook,
    pub(super) place: Place,
    pub(super) ifindex: u32,
    /// Where the node received it.
    pub(super) ingress: u32,
    /// [`PacketStep::by`].
    pub(super) by: Option<u32>,
}

pub(super) struct Play {
    oracle: Oracle,
    judges: Judges,
    pub(super) world: World,
    time: u64,
    pub(super) next_port: u16,
    flows: BTreeMap<String, NamedFlow>,
    pub(super) outcome: Outcome,
    case: String,
    step: String,
    step_number: usize,
    /// The packet that was judged last, for what is told of it.
    last: Option<PacketStep>,
    /// Every judge could be asked about it.
    pub(super) all_answered: bool,
}

impl Play {
    fn objects(&mut self, case: &Case) -> Result<()> {
        if !case.collapsed {
            return self.changes(&case.objects);
        }
        for item in &case.objects {
            self.world.change(item)?.with_context(|| format!("no change: {item}"))?;
        }
        let changes = self.world.snapshot();
        self.tell(&changes);
        self.settle();
        Ok(())
    }

    fn changes(&mut self, items: &[Value]) -> Result<()> {
        for item in items {
            let changes = self.world.change(item)?.with_context(|| format!("no change: {item}"))?;
            self.tell(&changes);
        }
        self.settle();
        Ok(())
    }

    fn tell(&mut self, changes: &[ObjectChange]) {
        for change in changes {
            self.oracle.apply(change);
            for (_, judge) in &mut self.judges {
                judge.apply(change);
            }
        }
    }

    fn settle(&mut self) {
        self.outcome.changes += 1;
        self.oracle.settle();
        for (_, judge) in &mut self.judges {
            judge.settle();
        }
    }

    fn step(&mut self, step: &Value) -> Result<()> {
        if let Value::Array(items) = step {
            return self.changes(items);
        }
        if let Some(changes) = self.world.change(step)? {
            self.tell(&changes);
            self.settle();
            return Ok(());
        }
        match step {
            Value::String(line) => self.line(line),
            Value::Object(members) => {
                let (key, value) = members.iter().next().context("an empty step")?;
                self.packets(key, value)
            }
            other => bail!("{other} is no step"),
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["wait", seconds] => {
                let seconds: u64 = seconds.strip_suffix('s').context("wait SECONDSs")?.parse()?;
                self.time += seconds * 1_000_000_000;
                Ok(())
            }
            ["flow", name, source, "->", destination, kind, ref rest @ ..] => {
                let way = Way::read(rest)?;
                let flow = self.named_flow(source, destination, kind, way.families() == [true], &way)?;
                self.flows.insert(name.to_owned(), flow);
                Ok(())
            }
            // A change of everything to nothing and back.
            ["empty"] => {
                let changes = self.world.emptying();
                self.tell(&changes);
                self.settle();
                let changes = self.world.snapshot();
                self.tell(&changes);
                self.settle();
                Ok(())
            }
            _ => bail!("{line:?} is no step"),
        }
    }

    fn packets(&mut self, key: &str, value: &Value) -> Result<()> {
        let words: Vec<&str> = key.split_whitespace().collect();
        match words[..] {
            ["only", way @ ("to" | "from"), pod, kind] => {
                self.only(way == "to", pod, kind, value.as_str().context("a list of ends")?)
            }
            [way @ ("from" | "to" | "out" | "in"), endpoint, ..] => {
                let rest = key.split_once(endpoint).map_or("", |(_, rest)| rest).trim();
                let expectation = Expectation::read(value)?;
                self.raw(way, endpoint, rest, &expectation)
            }
            [flow, way @ (">" | "<"), ref rest @ ..] if self.flows.contains_key(flow) => {
                let expectation = Expectation::read(value)?;
                let flow = self.flows[flow].clone();
                let fate = self.flow_packet(&flow, usize::from(way == "<"), rest, &expectation)?;
                self.compare(fate, &expectation, key)
            }
            [sources, "->", destinations, kinds, ref rest @ ..] => {
                let (expectation, way) = (Expectation::read(value)?, Way::read(rest)?);
                for kind in kinds.split(',') {
                    for source in sources.split(',') {
                        for destination in destinations.split(',') {
                            self.probe(source, destination, kind, &way, &expectation)?;
                        }
                    }
                }
                Ok(())
            }
            _ => bail!("{key:?} is no packet"),
        }
    }

    /// Exactly the listed pods reach (are reached by) this one.
    fn only(&mut self, to: bool, pod: &str, kind: &str, list: &str) -> Result<()> {
        let listed: Vec<&str> = list.split_whitespace().collect();
        let all: Vec<String> = self.world.pods().map(str::to_owned).collect();
        for name in &listed {
            ensure!(all.iter().any(|other| other == name), "there is no pod {name}");
        }
        for other in all.iter().filter(|other| *other != pod) {
            let expectation = Expectation { pass: Some(listed.contains(&other.as_str())), reason: None, at: None };
            let (source, destination) = if to { (other.as_str(), pod) } else { (pod, other.as_str()) };
            for kind in kind.split(',') {
                self.probe(source, destination, kind, &Way::default(), &expectation)?;
            }
        }
        Ok(())
    }

    /// A packet as it stands, at one hook, or (`out`, `in`) where a pod's packet leaves the node or reaches a process of it.
    fn raw(&mut self, way: &str, endpoint: &str, line: &str, wanted: &Expectation) -> Result<()> {
        let ifindex = self.ifindex(endpoint)?;
        let (mut ingress, mut by) = (UPLINK_IFINDEX, None);
        let mut words = Vec::new();
        for word in line.split_whitespace() {
            match (word.strip_prefix("by="), word.strip_prefix("mark=")) {
                (Some("node"), _) => ingress = 0,
                (Some("net"), _) => ingress = UPLINK_IFINDEX,
                (Some(name), _) => ingress = self.ifindex(name)?,
                (None, Some(name)) => by = Some(self.ifindex(name)?),
                (None, None) => words.push(word),
            }
        }
        let (hook, place) = match way {
            "to" => (Hook::ToPod, Place::Pod),
            "out" => (Hook::FromPod, Place::Device),
            "in" => (Hook::FromPod, Place::Process),
            _ => (Hook::FromPod, Place::Pod),
        };
        if hook == Hook::FromPod {
            ingress = ifindex;
            by = (place != Place::Pod).then_some(ifindex);
        }
        let line = words.join(" ");
        let pass = self.packet(Hop { hook, place, ifindex, ingress, by }, &line, wanted)?;
        let fate = match pass {
            Some(true) => Fate::Passed,
            Some(false) => Fate::Dropped(Stop::of(hook, place)),
            None => Fate::Open,
        };
        self.compare(fate, wanted, &line)
    }

    /// Of a pod, or `if10`, which need not be there any longer.
    fn ifindex(&self, name: &str) -> Result<u32> {
        match name.strip_prefix("if").and_then(|number| number.parse().ok()) {
            Some(ifindex) => Ok(ifindex),
            None => Ok(self.world.endpoint(name).with_context(|| format!("endpoint {name}"))?.ifindex),
        }
    }

    /// Asks everybody. `None`: the text leaves it open.
    pub(super) fn packet(&mut self, hop: Hop, line: &str, wanted: &Expectation) -> Result<Option<bool>> {
        self.time += TICK;
        let mut words = line.replace(" gso", "");
        let gso = words.len() != line.len();
        let Hop { hook, place, ifindex, ingress, by } = hop;
        if place != Place::Pod {
            words = untagged(&words);
        }
        let frame = text::frame(&words, &self.world).with_context(|| line.to_owned())?.bytes();
        let (time, ingress_ifindex, words) = (self.time, ingress, line.to_owned());
        let packet = PacketStep { hook, place, ifindex, ingress_ifindex, by, time, gso, frame, words };
        let opinion = self.oracle.packet(&packet);
        self.outcome.packets += 1;
        self.outcome.open += u64::from(opinion.pass.is_none());
        if let [reason] = opinion.reasons.iter().copied().collect::<Vec<_>>()[..] {
            *self.outcome.reasons.entry(reason).or_default() += 1;
        }
        let answers: Vec<Answer> = self
            .judges
            .iter_mut()
            .filter_map(|(name, judge)| {
                Some(Answer { judge: name, verdict: judge.packet(&packet)?, mark: judge.mark() })
            })
            .collect();
        for Answer { judge, verdict, .. } in &answers {
            *self.outcome.given.entry(judge).or_default().entry(verdict.reason).or_default() += 1;
        }
        self.all_answered = answers.len() == self.judges.len();
        let stop = Stop::of(hook, place);
        let here = wanted.at.is_none_or(|at| at == stop);
        let dropped_here = opinion.pass == Some(false) && here;
        // Where a packet leaves the node it passes for reasons of its own.
        let passed_here = opinion.pass == Some(true) && here && (stop != Stop::Exit || wanted.at.is_some());
        let fits = |reason: Reason| if reason.passes() { passed_here } else { dropped_here };
        let reason = wanted.reason.filter(|reason| fits(*reason));
        let reason_fits = |given: Reason| reason.is_none_or(|reason| reason == given);
        let oracle_fits = reason.is_none_or(|reason| opinion.admits(reason));
        let differs = answers.iter().any(|Answer { verdict, .. }| {
            !opinion.admits(verdict.reason) || verdict.pass != verdict.reason.passes() || !reason_fits(verdict.reason)
        });
        let expected = opinion.marked.map(|marked| if marked { Mark::Pod(ifindex) } else { Mark::Nobody });
        let mismarked = stop == Stop::Hook(Hook::FromPod)
            && answers.iter().any(|Answer { verdict, mark, .. }| {
                let (Some(expected), Some(mark)) = (expected, mark) else { return false };
                verdict.pass && expected != *mark
            });
        if differs || mismarked || !oracle_fits {
            let written = reason.map_or_else(String::new, |reason| reason.name().to_owned());
            self.disagree(&packet, written, opinion.describe(), answers);
        }
        self.last = Some(packet);
        Ok(opinion.pass)
    }

    fn disagree(&mut self, packet: &PacketStep, written: String, oracle: String, answers: Vec<Answer>) {
        self.outcome.disagreements.push(Disagreement {
            case: self.case.clone(),
            step: self.step.clone(),
            step_number: self.step_number,
            stop: Stop::of(packet.hook, packet.place),
            endpoint: self.oracle.isolating(packet.ifindex),
            packet: packet.words.clone(),
            written,
            oracle,
            answers,
            frame: packet.frame.clone(),
        });
    }

    /// What the oracle let happen against what is written.
    pub(super) fn compare(&mut self, fate: Fate, wanted: &Expectation, what: &str) -> Result<()> {
        let Some(pass) = wanted.pass else { return Ok(()) };
        let right = match fate {
            Fate::Passed => pass,
            Fate::Dropped(stop) => !pass && wanted.at.is_none_or(|at| at == stop),
            Fate::Open => true,
        };
        if !right {
            let written = format!("{} {}", if pass { "pass" } else { "drop" }, wanted.at.map_or("", Stop::name));
            let oracle = match fate {
                Fate::Passed => "passes".to_owned(),
                Fate::Dropped(stop) => format!("dropped at {}", stop.name()),
                Fate::Open => "open".to_owned(),
            };
            let mut packet = self.last.clone().context("a packet was judged")?;
            packet.words = format!("{} ({what})", packet.words);
            self.disagree(&packet, written, oracle, Vec::new());
        }
        Ok(())
    }
}

/// A packet that is routed leaves the link that it came by, and so its tags.
fn untagged(words: &str) -> String {
    let tag = |word: &&str| !word.starts_with("vlan=") && !word.starts_with("svlan=");
    words.split(' ').filter(tag).collect::<Vec<_>>().join(" ")
}
