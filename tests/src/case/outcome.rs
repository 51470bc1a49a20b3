//! What came of a case: how often which reason was given, and where judges disagree, told readably.

use std::collections::BTreeMap;
use std::fmt;

use palisade_common::{Hook, Reason, Verdict};

use super::Mark;
use super::expectation::Stop;

/// What one judge said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub judge: &'static str,
    pub verdict: Verdict,
    /// [`super::Judge::mark`].
    pub mark: Option<Mark>,
}

/// A packet about which a judge differs from the oracle, or the oracle from what is written.
#[derive(Clone, Debug)]
pub struct Disagreement {
    pub case: String,
    /// The step as written, and which it is (from 1; 0: the objects).
    pub step: String,
    pub step_number: usize,
    pub stop: Stop,
    /// The pod of the hook, elsewhere the sender, and whether it is isolated.
    pub endpoint: String,
    pub packet: String,
    /// What the step says should happen, where it says so.
    pub written: String,
    pub oracle: String,
    pub answers: Vec<Answer>,
    pub frame: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub disagreements: Vec<Disagreement>,
    /// New flows with a verdict that the text settles, about which every judge could be asked.
    pub cases: u64,
    /// Instants of change, the first state among them.
    pub changes: u64,
    /// Probes by their result.
    pub flows_admitted: u64,
    pub flows_refused: u64,
    pub packets: u64,
    /// How often each reason was among what the oracle expects (the only one it expects).
    pub reasons: BTreeMap<Reason, u64>,
    /// How often each reason was given, by judge.
    pub given: BTreeMap<&'static str, BTreeMap<Reason, u64>>,
    /// How often the text leaves the verdict open.
    pub open: u64,
}

impl Outcome {
    pub fn add(&mut self, other: Self) {
        let Self { disagreements, cases, changes, flows_admitted, flows_refused, packets, reasons, given, open } =
            other;
        self.cases += cases;
        self.changes += changes;
        self.disagreements.extend(disagreements);
        self.flows_admitted += flows_admitted;
        self.flows_refused += flows_refused;
        self.packets += packets;
        self.open += open;
        for (reason, count) in reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        for (judge, reasons) in given {
            let own = self.given.entry(judge).or_default();
            for (reason, count) in reasons {
                *own.entry(reason).or_default() += count;
            }
        }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "case     {}", self.case)?;
        writeln!(f, "step {:<3} {}", self.step_number, self.step)?;
        let way = match self.stop {
            Stop::Hook(Hook::FromPod) => "sent by",
            Stop::Hook(Hook::ToPod) => "sent to",
            Stop::Exit => "leaving, sent by",
        };
        writeln!(f, "packet   {way} {}: {}", self.endpoint, self.packet)?;
        if !self.written.is_empty() {
            writeln!(f, "written  {}", self.written)?;
        }
        writeln!(f, "oracle   {}", self.oracle)?;
        for Answer { judge, verdict, mark } in &self.answers {
            let word = if verdict.pass { "pass" } else { "drop" };
            let mark = match mark {
                Some(Mark::Pod(ifindex)) => format!(", marked as that of interface {ifindex}"),
                Some(Mark::Nobody) | None => String::new(),
            };
            writeln!(f, "{judge:<8} {word} ({}){mark}", verdict.reason.name())?;
        }
        let hex: String = self.frame.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(f, "frame    {hex}")
    }
}
