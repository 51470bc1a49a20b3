//! What a packet costs in the loaded programs as rules, pods and ranges of ports grow in number, by test runs: gross, and against the
//! smallest number in the same round. IPv4, to the pod.
//!
//! *Hot*: the same peer again and again. *Cold*: every packet from another of the peers, far from the last one's in the order in which they
//! were put into the tables; for established flows, every packet of another of 65,536 flows.

use anyhow::{Context as _, Result, ensure};
use palisade::tables::Tables;
use palisade_common::{Hook, Reason};

use super::machine;
use super::programs::Programs;
use super::ranges::{self, PORT_REFUSED, Point, RANGES};
use super::scene::{Family, Packet, Subject};
use super::stats::{Estimate, Sample, difference, ratio};
use super::table::Table;
use super::vary::Cycle;

/// Every point once in each, so that what disturbs the machine for a while disturbs all alike.
const ROUNDS: usize = 10;
const REPEAT: u32 = 300_000;
/// New flows in one run, each from a port of its own.
const REPEAT_NEW: u32 = 60_000;
/// Flows that there are when established ones are measured: one of every source port.
const FLOWS: u32 = 65_536;
/// Raises a port so that all come by, and neighbours seldom follow each other.
const PORT_STRIDE: u16 = 40_503;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    WithoutPolicy,
    Established,
    Refused,
    Admitted,
}

/// What is held against the smallest number's.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// Times as much.
    Ratio(f64),
    /// Nanoseconds more.
    Growth(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Hot,
    Cold,
}

/// No key of a pod without policy can be cold: its interface is the only one.
const MEASURED: [(Kind, Keys); 7] = [
    (Kind::WithoutPolicy, Keys::Hot),
    (Kind::Established, Keys::Hot),
    (Kind::Established, Keys::Cold),
    (Kind::Refused, Keys::Hot),
    (Kind::Refused, Keys::Cold),
    (Kind::Admitted, Keys::Hot),
    (Kind::Admitted, Keys::Cold),
];

/// Prints the tables.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let mut programs = Programs::new()?;
    programs.set_events_budget(0);
    for (name, points) in RANGES {
        println!("### {name}\n\n{}", range(&mut programs, points)?);
    }
    println!("Load at the end: {}", machine::load());
    Ok(())
}

fn range(programs: &mut Programs, points: &[Point]) -> Result<Table> {
    let mut worlds: Vec<(Point, Tables)> = Vec::new();
    for point in points {
        programs.make_world(&point.world())?;
        worlds.push((*point, programs.kernel.tables().clone()));
    }
    // By point, then by kind; a value for each round.
    let mut measured = vec![vec![Vec::new(); MEASURED.len()]; points.len()];
    for _ in 0..ROUNDS {
        for ((point, tables), measured) in worlds.iter().zip(&mut measured) {
            programs.change(tables)?;
            for ((kind, keys), values) in MEASURED.into_iter().zip(measured) {
                let context = || format!("{point:?}, {kind:?}, {keys:?}");
                values.push(measure(programs, *point, kind, keys).with_context(context)?);
            }
        }
    }
    let mut table = Table::new(&["packet", "keys", "number", "ns", "against the least", "95 % interval", "goal", ""]);
    for (place, (kind, keys)) in MEASURED.into_iter().enumerate() {
        let least = &measured[0][place];
        for (point, measured) in points.iter().zip(&measured) {
            let values = &measured[place];
            let pairs: Vec<_> = values.iter().copied().zip(least.iter().copied()).collect();
            let sample = Sample::new(values.clone());
            let ns = format!("{:.0} ({:.0} to {:.0})", sample.median(), sample.least(), sample.greatest());
            let mut cells = vec![kind.name().into(), keys.name().into(), point.number().to_string(), ns];
            cells.extend(if point.number() == points[0].number() {
                Default::default()
            } else {
                kind.goal().judge(&pairs)
            });
            table.row(cells);
        }
    }
    Ok(table)
}

/// One run; nanoseconds.
fn measure(programs: &mut Programs, point: Point, kind: Kind, keys: Keys) -> Result<f64> {
    let packet = kind.packet(point);
    let (frame, cold) = (point.frame(packet), keys == Keys::Cold);
    programs.memory.forget()?;
    if kind == Kind::Established {
        // Every source port opens a flow, so that the table is as full for hot keys as it is for cold ones.
        let opener = point.frame(packet.opener());
        let before = programs.packets(Reason::Allowed)?;
        programs.varied(packet.opener(), &opener, cycle(point, false, 1), FLOWS, true)?;
        let opened = programs.packets(Reason::Allowed)? - before;
        ensure!(opened == u64::from(FLOWS), "{opened} of {FLOWS} flows were opened");
    }
    let before = programs.packets(kind.reason())?;
    let (cycle, repeat) = match (kind, keys) {
        (Kind::Admitted, _) => (cycle(point, cold, PORT_STRIDE), REPEAT_NEW),
        (Kind::Established | Kind::Refused, Keys::Cold) => {
            (cycle(point, cold && kind == Kind::Refused, PORT_STRIDE), REPEAT)
        }
        (_, _) => (cycle(point, false, 0), REPEAT),
    };
    let nanoseconds = programs.varied(packet, &frame, cycle, repeat, kind != Kind::Refused)?;
    let judged = programs.packets(kind.reason())? - before;
    ensure!(judged == u64::from(repeat), "{judged} of {repeat} came to {}", kind.reason().name());
    Ok(nanoseconds)
}

/// Every port in its turn, and every peer or only the first.
fn cycle(point: Point, all_peers: bool, port_step: u16) -> Cycle {
    let count = if all_peers { point.peers() } else { 1 };
    Cycle {
        offset: Family::V4.peer_offset(Hook::ToPod),
        first: ranges::PEERS.to_bits(),
        count,
        step: stride(count),
        ports_offset: Family::V4.ports_offset(),
        port_step,
    }
}

/// About three fifths of `count`, such that steps of it lead to all numbers below.
fn stride(count: u32) -> u32 {
    let divisor = |mut a: u32, mut b: u32| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (0..=count * 3 / 5).rev().find(|step| divisor(*step, count) == 1).unwrap_or(0)
}

// === impl Kind ===

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::WithoutPolicy => "pod without policy",
            Self::Established => "established flow",
            Self::Refused => "refused new flow",
            Self::Admitted => "admitted new flow",
        }
    }

    const fn reason(self) -> Reason {
        match self {
            Self::WithoutPolicy => Reason::NotIsolated,
            Self::Established => Reason::Established,
            Self::Refused => Reason::NoRule,
            Self::Admitted => Reason::Allowed,
        }
    }

    const fn goal(self) -> Goal {
        match self {
            Self::WithoutPolicy | Self::Established => Goal::Ratio(1.15),
            Self::Refused | Self::Admitted => Goal::Growth(150.0),
        }
    }

    const fn packet(self, point: Point) -> Packet {
        Packet {
            subject: if matches!(self, Self::WithoutPolicy) { Subject::Free } else { Subject::Isolated },
            family: Family::V4,
            hook: Hook::ToPod,
            port: if matches!(self, Self::Refused) { PORT_REFUSED } else { point.port_admitted() },
            opens: matches!(self, Self::Refused | Self::Admitted),
            forward: true,
        }
    }
}

// === impl Keys ===

impl Keys {
    const fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }
}

// === impl Goal ===

impl Goal {
    /// Estimate, interval, goal and verdict. The first of each pair is held against the second.
    fn judge(self, pairs: &[(f64, f64)]) -> [String; 4] {
        let verdict = |Estimate { low, high, .. }: Estimate, most: f64| {
            let verdict = if high <= most {
                "met"
            } else if low > most {
                "NOT met"
            } else {
                "not certain"
            };
            verdict.to_owned()
        };
        match self {
            Self::Ratio(most) => {
                let found = ratio(pairs);
                let Estimate { value, low, high } = found;
                let percent = |value: f64| format!("{:.0}", value * 100.0);
                let interval = format!("{} to {} %", percent(low), percent(high));
                [format!("{} %", percent(value)), interval, format!("≤ {} %", percent(most)), verdict(found, most)]
            }
            Self::Growth(most) => {
                let found = difference(pairs);
                let Estimate { value, low, high } = found;
                let interval = format!("{low:+.0} to {high:+.0} ns");
                [format!("{value:+.0} ns"), interval, format!("≤ +{most:.0} ns"), verdict(found, most)]
            }
        }
    }
}
