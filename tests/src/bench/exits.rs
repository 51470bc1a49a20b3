//! What a packet costs where it leaves the node, by test runs: unmarked, as most are, and marked as a pod's own. And how soon after its
//! birth a device has its program.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use palisade::kernel::{EXIT_LINK, EXIT_RAW};
use palisade_common::{Hook, Reason};

use super::machine;
use super::marked::Marked;
use super::programs::Programs;
use super::scene::{self, ADMITTED, Family, Packet, Subject};
use super::stats::Sample;
use super::table::Table;
use super::test_run::test_run;
use crate::lab::{Agent, AgentOptions, Lab, Manifests, objects};

const ROUNDS: usize = 9;
const REPEAT: u32 = 1_000_000;
const ETHERNET: usize = 14;
const BIRTHS: usize = 40;

/// Prints the table.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    // Before the thread moves into a namespace of its own.
    println!("{}", births()?);
    let mut bench = Bench { programs: Programs::new()?, mark: 0 };
    bench.programs.make_world(&scene::world(1))?;
    bench.programs.set_events_budget(0);
    let record = bench.programs.kernel.endpoints().get(&Subject::Isolated.ifindex()).context("the isolated pod")?;
    ensure!(record.stamp != 0, "the isolated pod has no stamp");
    bench.mark = record.stamp << palisade::kernel::StampMask::default().shift();
    let mut table = Table::new(&["packet", "family", "best", "median", "worst", "goal", ""]);
    for family in Family::ALL {
        for row in bench.family(family)? {
            table.row(row);
        }
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

/// From the moment at which a device is up until its program is attached.
fn births() -> Result<Table> {
    let lab = Lab::new("exits")?;
    let node = lab.node("node", 1)?;
    let manifests = Manifests::new(&lab.folder.join("manifests"))?;
    manifests.put(&objects::node(&node))?;
    let agent = Agent::start(&lab, &node, &AgentOptions::manifests(&manifests.folder))?;
    let mut times = Vec::new();
    for number in 0..BIRTHS {
        let name = format!("new{number}");
        node.netns.ip(&[format!("link add {name} up type bridge")])?;
        let born = Instant::now();
        node.netns.run(|| -> Result<()> {
            while SchedClassifier::query_tcx(&name, TcAttachType::Egress)?.1.is_empty() {
                ensure!(born.elapsed() < Duration::from_secs(5), "{name} gets no program");
                std::thread::yield_now();
            }
            Ok(())
        })?;
        times.push(born.elapsed().as_secs_f64() * 1e3);
    }
    ensure!(agent.stop()?.success(), "the agent did not end well");
    let sample = Sample::new(times);
    let mut table = Table::new(&["from a device's birth to its program, ms", "best", "median", "worst"]);
    let cells = [sample.least(), sample.median(), sample.greatest()].map(|value| format!("{value:.1}"));
    table.row([vec![format!("{BIRTHS} devices")], cells.to_vec()].concat());
    Ok(table)
}

struct Bench {
    programs: Programs,
    mark: u32,
}

/// A row of the table.
struct Kind {
    name: &'static str,
    program: &'static str,
    marked: bool,
    goal: Option<f64>,
}

const KINDS: [Kind; 5] = [
    Kind { name: "empty program", program: "empty", marked: false, goal: None },
    Kind { name: "unmarked", program: EXIT_LINK, marked: false, goal: Some(60.0) },
    Kind { name: "unmarked, without link header", program: EXIT_RAW, marked: false, goal: Some(60.0) },
    Kind { name: "marked, of an established flow", program: EXIT_LINK, marked: true, goal: Some(150.0) },
    Kind {
        name: "marked, of an established flow, without link header",
        program: EXIT_RAW,
        marked: true,
        goal: Some(150.0),
    },
];

impl Bench {
    fn family(&mut self, family: Family) -> Result<Vec<Vec<String>>> {
        let mut measured = vec![Vec::new(); KINDS.len()];
        for _ in 0..ROUNDS {
            for (kind, measured) in KINDS.iter().zip(&mut measured) {
                measured.push(self.measure(kind, family)?);
            }
        }
        let rows = KINDS.iter().zip(measured).map(|(kind, measured)| {
            let sample = Sample::new(measured);
            let met = kind.goal.map_or("", |goal| if sample.median() <= goal { "met" } else { "NOT met" });
            vec![
                kind.name.into(),
                family.name().into(),
                format!("{:.0}", sample.least()),
                format!("{:.0}", sample.median()),
                format!("{:.0}", sample.greatest()),
                kind.goal.map(|goal| format!("≤ {goal:.0}")).unwrap_or_default(),
                met.into(),
            ]
        });
        Ok(rows.collect())
    }

    /// Nanoseconds, gross of a test run and net of what giving the mark costs.
    fn measure(&mut self, kind: &Kind, family: Family) -> Result<f64> {
        let hook = Hook::FromPod;
        let later = Packet { subject: Subject::Isolated, family, hook, port: ADMITTED, opens: false, forward: true };
        let frame = |packet: Packet| {
            let frame = packet.frame();
            if kind.program == EXIT_RAW { frame[ETHERNET..].to_vec() } else { frame }
        };
        if !kind.marked {
            return Ok(f64::from(self.run(kind.program, &frame(later), 0, REPEAT)?));
        }
        // Judged once, where it leaves.
        self.programs.memory.forget()?;
        self.run(kind.program, &frame(later.opener()), self.mark, 1)?;
        let before = self.programs.packets(Reason::Established)?;
        let gross = self.run(kind.program, &frame(later), self.mark, REPEAT)?;
        let judged = self.programs.packets(Reason::Established)? - before;
        ensure!(judged == u64::from(REPEAT), "{}: {judged} of {REPEAT} were established", kind.name);
        let marking = self.run("empty", &frame(later), self.mark, REPEAT)?;
        let empty = self.run("empty", &frame(later), 0, REPEAT)?;
        Ok(f64::from(gross) - f64::from(marking) + f64::from(empty))
    }

    fn run(&mut self, name: &str, frame: &[u8], mark: u32, repeat: u32) -> Result<u32> {
        let ifindex = Subject::Isolated.ifindex();
        let program = self.programs.kernel.program_mut(name)?;
        let run = if mark == 0 {
            test_run(program.fd()?.as_fd(), frame, ifindex, repeat)?
        } else {
            let marked = Marked::new(program.fd()?.as_fd(), mark)?;
            test_run(marked.program(), frame, ifindex, repeat)?
        };
        ensure!(run.returned == -1, "{name} refuses the packet");
        Ok(run.nanoseconds)
    }
}
