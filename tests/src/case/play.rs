//! Plays a case: reads its steps one by one, tells every judge of the changes and asks every judge about each packet.
//!
//! The oracle decides how far a packet gets, so that what it drops at the first hook is not asked about at the second.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use palisade_common::{Hook, Reason};
use serde_json::Value;

use super::expectation::{Expectation, Fate};
use super::flows::NamedFlow;
use super::world::UPLINK_IFINDEX;
use super::{Answer, Case, Disagreement, Factory, Judges, ObjectChange, Outcome, PacketStep, World};
use crate::frame::text;
use crate::oracle::Oracle;

/// Time of the first packet, and from one packet to the next (ns).
const START: u64 = 100_000_000_000;
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
                let six = rest.contains(&"v6");
                let flow = self.named_flow(source, destination, kind, six)?;
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
            [way @ ("from" | "to"), endpoint, ..] => {
                let hook = if way == "from" { Hook::FromPod } else { Hook::ToPod };
                let rest = key.split_once(endpoint).map_or("", |(_, rest)| rest).trim();
                let expectation = Expectation::read(value)?;
                self.raw(hook, endpoint, rest, &expectation)
            }
            [flow, way @ (">" | "<"), ref rest @ ..] if self.flows.contains_key(flow) => {
                let expectation = Expectation::read(value)?;
                let flow = self.flows[flow].clone();
                let fate = self.flow_packet(&flow, usize::from(way == "<"), rest, &expectation)?;
                self.compare(fate, &expectation, key)
            }
            [sources, "->", destinations, kinds, ref rest @ ..] => {
                let expectation = Expectation::read(value)?;
                for kind in kinds.split(',') {
                    for source in sources.split(',') {
                        for destination in destinations.split(',') {
                            self.probe(source, destination, kind, rest.first().copied(), &expectation)?;
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
                self.probe(source, destination, kind, None, &expectation)?;
            }
        }
        Ok(())
    }

    /// A packet as it stands, at one hook.
    fn raw(&mut self, hook: Hook, endpoint: &str, line: &str, wanted: &Expectation) -> Result<()> {
        let ifindex = match endpoint.strip_prefix("if").and_then(|number| number.parse().ok()) {
            Some(ifindex) => ifindex,
            None => self.world.endpoint(endpoint).with_context(|| format!("endpoint {endpoint}"))?.ifindex,
        };
        let mut ingress = None;
        let mut words = Vec::new();
        for word in line.split_whitespace() {
            match word.strip_prefix("by=") {
                Some("node") => ingress = Some(0),
                Some("net") => ingress = Some(UPLINK_IFINDEX),
                Some(name) => ingress = Some(self.world.endpoint(name).context("by=POD")?.ifindex),
                None => words.push(word),
            }
        }
        let line = words.join(" ");
        let ingress = match (hook, ingress) {
            (Hook::FromPod, _) => ifindex,
            (Hook::ToPod, Some(ingress)) => ingress,
            (Hook::ToPod, None) => UPLINK_IFINDEX,
        };
        let pass = self.packet(hook, ifindex, ingress, &line, wanted)?;
        let fate = match pass {
            Some(true) => Fate::Passed,
            Some(false) => Fate::Dropped(hook),
            None => Fate::Open,
        };
        self.compare(fate, wanted, &line)
    }

    /// Asks everybody. `None`: the text leaves it open.
    pub(super) fn packet(
        &mut self,
        hook: Hook,
        ifindex: u32,
        ingress_ifindex: u32,
        line: &str,
        wanted: &Expectation,
    ) -> Result<Option<bool>> {
        let words = line.replace(" gso", "");
        let frame = text::frame(&words, &self.world).with_context(|| line.to_owned())?.bytes();
        self.time += TICK;
        let gso = words.len() != line.len();
        let packet = PacketStep { hook, ifindex, ingress_ifindex, time: self.time, gso, frame, words: line.to_owned() };
        let opinion = self.oracle.packet(&packet);
        self.outcome.packets += 1;
        self.outcome.open += u64::from(opinion.pass.is_none());
        if let [reason] = opinion.reasons.iter().copied().collect::<Vec<_>>()[..] {
            *self.outcome.reasons.entry(reason).or_default() += 1;
        }
        let answers: Vec<Answer> = self
            .judges
            .iter_mut()
            .filter_map(|(name, judge)| Some(Answer { judge: name, verdict: judge.packet(&packet)? }))
            .collect();
        for Answer { judge, verdict } in &answers {
            *self.outcome.given.entry(judge).or_default().entry(verdict.reason).or_default() += 1;
        }
        self.all_answered = answers.len() == self.judges.len();
        let dropped_here = opinion.pass == Some(false) && wanted.at.is_none_or(|at| at == hook);
        let reason = wanted.reason.filter(|reason| reason.passes() == (opinion.pass == Some(true)) || dropped_here);
        let reason_fits = |given: Reason| reason.is_none_or(|reason| reason == given);
        let oracle_fits = reason.is_none_or(|reason| opinion.admits(reason));
        let differs = answers.iter().any(|Answer { verdict, .. }| {
            !opinion.admits(verdict.reason) || verdict.pass != verdict.reason.passes() || !reason_fits(verdict.reason)
        });
        if differs || !oracle_fits {
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
            hook: packet.hook,
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
            Fate::Dropped(hook) => !pass && wanted.at.is_none_or(|at| at == hook),
            Fate::Open => true,
        };
        if !right {
            let written = format!("{} {}", if pass { "pass" } else { "drop" }, wanted.at.map_or("", Hook::name));
            let oracle = match fate {
                Fate::Passed => "passes".to_owned(),
                Fate::Dropped(hook) => format!("dropped at {}", hook.name()),
                Fate::Open => "open".to_owned(),
            };
            let mut packet = self.last.clone().context("a packet was judged")?;
            packet.words = format!("{} ({what})", packet.words);
            self.disagree(&packet, written, oracle, Vec::new());
        }
        Ok(())
    }
}
