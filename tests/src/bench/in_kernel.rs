//! What a packet costs in the loaded programs, by test runs: gross, that is with what a test run itself costs, which the empty
//! program tells.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use palisade::kernel::{FROM_POD, Sizes, TO_POD};
use palisade_common::{Hook, Reason};

use super::machine;
use super::programs::{Programs, program_name};
use super::scene::{self, ADMITTED, Family, Packet, REFUSED, Subject};
use super::stats::Sample;
use super::table::Table;
use super::vary::{Cycle, FIRST_BYTE};

/// Runs of each kind of packet, one after another in turns, so that what disturbs the machine for a while disturbs all alike.
const ROUNDS: usize = 9;
const REPEAT: u32 = 1_000_000;
/// New flows in one run that all find room in the flow table.
const REPEAT_WITH_ROOM: u32 = 100_000;
/// New flows in one run that each take an old one's place.
const REPEAT_EVICTING: u32 = 300_000;
/// As many events as the ring holds (256 KiB, 72 bytes each), and some runs of them.
const REPEAT_EVENTS: u32 = 3_600;
const RUNS_EVENTS: u32 = 50;

/// What is there before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Nothing,
    /// The packet's flow was opened by one packet of the right end.
    Flow,
    /// Every packet is of another flow, and the flow table is empty.
    NewFlows,
    /// Every packet is of another flow, and the flow table is full.
    NewFlowsEvicting,
    /// Each packet is reported; the ring is emptied between runs.
    Events,
}

/// One kind of packet.
struct Kind {
    name: &'static str,
    packet: Packet,
    given: Given,
    /// What every packet must come to, or something else was measured.
    reason: Reason,
    /// Nanoseconds, gross.
    goal: Option<f64>,
}

/// Prints the tables.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    println!("{}", Bench::new()?.report()?);
    Ok(())
}

struct Bench {
    programs: Programs,
    ring: RingBuf<MapData>,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut programs = Programs::new()?;
        let ring = programs.kernel.ebpf_mut().take_map("EVENTS").context("no map EVENTS")?.try_into()?;
        Ok(Self { programs, ring })
    }

    /// What the verifier had to read, and how long loading took in all.
    fn loading(&mut self) -> Result<String> {
        let mut report = format!("Loading took {} ms, maps included.", self.programs.loading.as_millis());
        for name in [FROM_POD, TO_POD] {
            let read = self.programs.kernel.program_mut(name)?.info()?.verified_instruction_count();
            let read = read.context("the kernel does not count verified instructions (before 5.16)")?;
            write!(report, " The verifier read {read} instructions for `{name}`.")?;
        }
        Ok(report)
    }

    fn report(&mut self) -> Result<String> {
        let mut report = String::new();
        for rules in [1, 10_000] {
            self.programs.make_world(&scene::world(rules))?;
            for family in Family::ALL {
                writeln!(report, "### {}, {rules} rule{}\n", family.name(), if rules == 1 { "" } else { "s" })?;
                writeln!(report, "{}", self.family(family, rules > 1)?)?;
            }
        }
        writeln!(report, "{}", self.loading()?)?;
        writeln!(report, "Load at the end: {}", machine::load())?;
        Ok(report)
    }

    fn family(&mut self, family: Family, many: bool) -> Result<Table> {
        // Rules are asked for new flows only.
        let kinds: Vec<Kind> = kinds(family).into_iter().filter(|kind| !many || kind.packet.opens).collect();
        let mut empty = Vec::new();
        let mut measured = vec![Vec::new(); kinds.len()];
        for _ in 0..ROUNDS {
            let packet = kinds[0].packet;
            empty.push(f64::from(self.programs.plain("empty", packet, REPEAT)?.nanoseconds));
            for (kind, measured) in kinds.iter().zip(&mut measured) {
                measured.push(self.measure(kind)?);
            }
        }
        let mut table = Table::new(&["packet", "hook", "best", "median", "worst", "goal", ""]);
        let empty = Sample::new(empty);
        table.row(row("empty program", "", &empty, None));
        for (kind, measured) in kinds.iter().zip(measured) {
            let hook = match kind.packet.hook {
                Hook::FromPod => "from pod",
                Hook::ToPod => "to pod",
            };
            table.row(row(kind.name, hook, &Sample::new(measured), kind.goal));
        }
        Ok(table)
    }

    /// One run; nanoseconds.
    fn measure(&mut self, kind: &Kind) -> Result<f64> {
        self.prepare(kind)?;
        let program = program_name(kind.packet.hook);
        let before = self.programs.packets(kind.reason)?;
        let (nanoseconds, count) = match kind.given {
            Given::Nothing | Given::Flow => {
                (f64::from(self.programs.plain(program, kind.packet, REPEAT)?.nanoseconds), REPEAT)
            }
            Given::NewFlows => (self.varied(kind.packet, 0, REPEAT_WITH_ROOM)?, REPEAT_WITH_ROOM),
            Given::NewFlowsEvicting => (self.varied(kind.packet, 0, REPEAT_EVICTING)?, REPEAT_EVICTING),
            Given::Events => {
                let mut sum = 0;
                for _ in 0..RUNS_EVENTS {
                    self.drain()?;
                    sum += self.programs.plain(program, kind.packet, REPEAT_EVENTS)?.nanoseconds;
                }
                let taken = self.drain()?;
                ensure!(taken == REPEAT_EVENTS, "{taken} of {REPEAT_EVENTS} events were sent");
                (f64::from(sum) / f64::from(RUNS_EVENTS), REPEAT_EVENTS * RUNS_EVENTS)
            }
        };
        let judged = self.programs.packets(kind.reason)? - before;
        // An LRU map evicts only about in order, so a few old flows may be met again.
        let known = if kind.given == Given::NewFlowsEvicting { u64::from(count) / 1000 } else { 0 };
        ensure!(
            u64::from(count) - judged <= known,
            "{}: {judged} of {count} came to {}",
            kind.name,
            kind.reason.name()
        );
        Ok(nanoseconds)
    }

    fn prepare(&mut self, kind: &Kind) -> Result<()> {
        let events_budget = if kind.given == Given::Events { u32::MAX } else { 0 };
        self.programs.set_events_budget(events_budget);
        match kind.given {
            Given::Nothing | Given::Events => {}
            Given::Flow => {
                let opener = kind.packet.opener();
                self.programs.plain(program_name(opener.hook), opener, 1)?;
            }
            Given::NewFlows => self.programs.memory.forget()?,
            Given::NewFlowsEvicting => {
                // From addresses that the measured run does not come to.
                let full = Sizes::default().flows * 2;
                self.varied(kind.packet, 2 * REPEAT, full)?;
            }
        }
        Ok(())
    }

    /// Every packet from, or to, another address, from the one after `start` on.
    fn varied(&mut self, packet: Packet, start: u32, repeat: u32) -> Result<f64> {
        let family = packet.family;
        let offset = family.peer_offset(packet.hook);
        let first = u32::from(FIRST_BYTE) << 24;
        let mut frame = packet.frame();
        let place = usize::try_from(offset)?;
        frame[place..place + 4].copy_from_slice(&(first + start).to_be_bytes());
        let ports_offset = family.ports_offset();
        let cycle = Cycle { offset, first, count: 1 << 24, step: 1, ports_offset, port_step: 0 };
        self.programs.varied(packet, &frame, cycle, repeat, true)
    }

    fn drain(&mut self) -> Result<u32> {
        let mut taken = 0;
        while self.ring.next().is_some() {
            taken += 1;
        }
        Ok(taken)
    }
}

fn kinds(family: Family) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for hook in [Hook::ToPod, Hook::FromPod] {
        let free = Packet { subject: Subject::Free, family, hook, port: ADMITTED, opens: false, forward: true };
        let later = Packet { subject: Subject::Isolated, ..free };
        let answer = Packet { forward: false, ..later };
        let first = Packet { opens: true, ..later };
        let refused = Packet { port: REFUSED, ..first };
        let mut kind = |name, packet, given, reason, goal| kinds.push(Kind { name, packet, given, reason, goal });
        kind("pod without policy", free, Given::Nothing, Reason::NotIsolated, Some(80.0));
        kind("established flow", later, Given::Flow, Reason::Established, Some(200.0));
        kind("reply", answer, Given::Flow, Reason::Reply, Some(200.0));
        kind("refused new flow, not reported", refused, Given::Nothing, Reason::NoRule, Some(300.0));
        kind("refused new flow, reported", refused, Given::Events, Reason::NoRule, Some(300.0));
        kind("admitted new flow", first, Given::NewFlows, Reason::Allowed, Some(1000.0));
        kind("admitted new flow, table full", first, Given::NewFlowsEvicting, Reason::Allowed, Some(1000.0));
    }
    kinds
}

fn row(name: &str, hook: &str, sample: &Sample, goal: Option<f64>) -> Vec<String> {
    let met = goal.map_or("", |goal| if sample.median() <= goal { "met" } else { "NOT met" });
    vec![
        name.into(),
        hook.into(),
        format!("{:.0}", sample.least()),
        format!("{:.0}", sample.median()),
        format!("{:.0}", sample.greatest()),
        goal.map(|goal| format!("≤ {goal:.0}")).unwrap_or_default(),
        met.into(),
    ]
}
