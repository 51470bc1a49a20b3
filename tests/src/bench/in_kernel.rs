//! What a packet costs in the loaded programs, by test runs: gross, that is with what a test run itself costs, which the empty
//! program tells.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use palisade::kernel::{AttachMode, FROM_POD, Kernel, PinDir, Settings, Sizes, TO_POD};
use palisade::tables::Tables;
use palisade_common::layout::Config;
use palisade_common::{Hook, Reason};

use super::machine;
use super::scene::{self, ADMITTED, Family, Packet, REFUSED, Subject};
use super::stats::Sample;
use super::table::Table;
use super::test_run::{Run, test_run};
use super::vary::Varied;
use crate::judges::{Bpffs, Memory, Pipeline, bpffs};

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
    kernel: Kernel,
    memory: Memory,
    ring: RingBuf<MapData>,
    loading: Duration,
    _pins: Bpffs,
}

impl Bench {
    fn new() -> Result<Self> {
        // SAFETY: only this thread changes its namespace; it shares no file system state that matters.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .context("a network namespace")?;
        for subject in Subject::ALL {
            let index = subject.ifindex().to_string();
            let status = Command::new("ip")
                .args(["link", "add", &format!("t{index}"), "index", &index, "type", "bridge"])
                .status()
                .context("running ip")?;
            ensure!(status.success(), "no interface with index {index}");
        }
        let pins = bpffs("bench")?;
        let folder = pins.path().join("agent");
        let pin_dir = PinDir::open(&folder)?;
        let started = Instant::now();
        let mut kernel = Kernel::open(pin_dir, Sizes::default(), Settings::default(), AttachMode::Auto)?;
        let loading = started.elapsed();
        kernel.program_mut("empty")?.load()?;
        let ring = kernel.ebpf_mut().take_map("EVENTS").context("no map EVENTS")?.try_into()?;
        let memory = Memory::open(&folder)?;
        Ok(Self { kernel, memory, ring, loading, _pins: pins })
    }

    /// What the verifier had to read, and how long loading took in all.
    fn loading(&mut self) -> Result<String> {
        let mut report = format!("Loading took {} ms, maps included.", self.loading.as_millis());
        for name in [FROM_POD, TO_POD] {
            let read = self.kernel.program_mut(name)?.info()?.verified_instruction_count();
            let read = read.context("the kernel does not count verified instructions (before 5.16)")?;
            write!(report, " The verifier read {read} instructions for `{name}`.")?;
        }
        Ok(report)
    }

    fn report(&mut self) -> Result<String> {
        let mut report = String::new();
        for rules in [1, 10_000] {
            self.make_world(rules)?;
            for family in Family::ALL {
                writeln!(report, "### {}, {rules} rule{}\n", family.name(), if rules == 1 { "" } else { "s" })?;
                writeln!(report, "{}", self.family(family, rules > 1)?)?;
            }
        }
        writeln!(report, "{}", self.loading()?)?;
        writeln!(report, "Load at the end: {}", machine::load())?;
        Ok(report)
    }

    fn make_world(&mut self, rules: usize) -> Result<()> {
        let nothing = self.kernel.tables().delta_to(&Tables::default());
        self.kernel.apply(&nothing)?;
        let mut pipeline = Pipeline::new(scene::NODE);
        for change in scene::world(rules) {
            pipeline.apply(&change);
        }
        self.kernel.apply(&pipeline.compile())?;
        Ok(())
    }

    fn family(&mut self, family: Family, many: bool) -> Result<Table> {
        // Rules are asked for new flows only.
        let kinds: Vec<Kind> = kinds(family).into_iter().filter(|kind| !many || kind.packet.opens).collect();
        let mut empty = Vec::new();
        let mut measured = vec![Vec::new(); kinds.len()];
        for _ in 0..ROUNDS {
            let packet = kinds[0].packet;
            empty.push(f64::from(self.plain("empty", packet, REPEAT)?.nanoseconds));
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
        let before = self.packets(kind.reason)?;
        let (nanoseconds, count) = match kind.given {
            Given::Nothing | Given::Flow => (f64::from(self.plain(program, kind.packet, REPEAT)?.nanoseconds), REPEAT),
            Given::NewFlows => (self.varied(program, kind.packet, 0, REPEAT_WITH_ROOM)?, REPEAT_WITH_ROOM),
            Given::NewFlowsEvicting => (self.varied(program, kind.packet, 0, REPEAT_EVICTING)?, REPEAT_EVICTING),
            Given::Events => {
                let mut sum = 0;
                for _ in 0..RUNS_EVENTS {
                    self.drain()?;
                    sum += self.plain(program, kind.packet, REPEAT_EVENTS)?.nanoseconds;
                }
                let taken = self.drain()?;
                ensure!(taken == REPEAT_EVENTS, "{taken} of {REPEAT_EVENTS} events were sent");
                (f64::from(sum) / f64::from(RUNS_EVENTS), REPEAT_EVENTS * RUNS_EVENTS)
            }
        };
        let judged = self.packets(kind.reason)? - before;
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
        let settings = Config { events_budget, inserts_safe: u64::MAX, ..Config::default() };
        self.kernel.maps().config.store_settings(&settings);
        match kind.given {
            Given::Nothing | Given::Events => {}
            Given::Flow => {
                let opener = kind.packet.opener();
                self.plain(program_name(opener.hook), opener, 1)?;
            }
            Given::NewFlows => self.memory.forget()?,
            Given::NewFlowsEvicting => {
                // From addresses that the measured run does not come to.
                let full = Sizes::default().flows * 2;
                self.varied(program_name(kind.packet.hook), kind.packet, 2 * REPEAT, full)?;
            }
        }
        Ok(())
    }

    fn plain(&mut self, program: &str, packet: Packet, repeat: u32) -> Result<Run> {
        let program = self.kernel.program_mut(program)?;
        let run = test_run(program.fd()?.as_fd(), &packet.frame(), packet.subject.ifindex(), repeat)?;
        ensure!(matches!(run.returned, -1 | 2), "{packet:?} came to {}", run.returned);
        Ok(run)
    }

    /// Every packet from, or to, another address, from the one after `start` on; without what the varying costs.
    fn varied(&mut self, program: &str, packet: Packet, start: u32, repeat: u32) -> Result<f64> {
        let offset = packet.family.peer_offset(packet.hook);
        let mut frame = packet.frame();
        let place = usize::try_from(offset)?;
        frame[place..place + 4].copy_from_slice(&start.to_be_bytes());
        let run = |bench: &mut Self, name: &str| -> Result<f64> {
            let program = bench.kernel.program_mut(name)?;
            let varied = Varied::new(program.fd()?.as_fd(), offset)?;
            let run = test_run(varied.program(), &frame, packet.subject.ifindex(), repeat)?;
            ensure!(run.returned == -1, "{packet:?}, varied, came to {}", run.returned);
            Ok(f64::from(run.nanoseconds))
        };
        let gross = run(self, program)?;
        let varying = run(self, "empty")?;
        let empty = f64::from(self.plain("empty", packet, REPEAT)?.nanoseconds);
        Ok(gross - varying + empty)
    }

    fn packets(&self, reason: Reason) -> Result<u64> {
        let counters = self.kernel.maps().counters()?;
        counters.iter().find(|(other, _)| *other == reason).map(|(_, count)| *count).context("every reason is counted")
    }

    fn drain(&mut self) -> Result<u32> {
        let mut taken = 0;
        while self.ring.next().is_some() {
            taken += 1;
        }
        Ok(taken)
    }
}

const fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => FROM_POD,
        Hook::ToPod => TO_POD,
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
