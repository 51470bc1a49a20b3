//! What steady change costs the agent, whether it loses any of it, and whether it grows by it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::counters::Counters;
use super::objects::Moment;
use super::world::{Shape, World};
use super::{HARD, LARGE, TURN_GOAL};
use crate::bench::cluster::processor_time;
use crate::bench::machine;
use crate::bench::start::{memory, uninstall, verdict};
use crate::bench::table::Table;
use crate::lab::agent::palisade;
use crate::lab::recorded::{Event, RecordedKind};

/// Changes a second, and for so long.
const RATE: u64 = 100;
const STEADY: Duration = Duration::from_secs(60);
/// Of a core.
const PROCESSOR_GOAL: f64 = 5.0;
/// As many as in an hour at [`RATE`].
pub const HOUR: u64 = 360_000;
/// The hour is looked at in so many parts.
const PARTS: u64 = 10;
/// From the first of them to the last; MB.
const GROWTH_GOAL: f64 = 3.0;
/// Where there is a policy of a thousand peers, one in so many changes is its own.
const POLICY_EVERY: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(changes: u64) -> Result<()> {
    println!("{}\n", machine::description());
    let mut steady = Table::new(&[
        "cluster",
        "changes",
        "seconds",
        "lost",
        "% of a core",
        "goal",
        "",
        "turns over 100 ms",
        "none longer than, ms",
        "",
    ]);
    let columns = [
        "cluster",
        "changes",
        "seconds",
        "lost",
        "MB after a tenth",
        "at the end",
        "goal",
        "",
        "turns over 100 ms",
        "none longer than, ms",
        "",
    ];
    let mut hours = Table::new(&columns);
    for (name, shape) in [("20,000 pods", LARGE), ("20,000 pods of 50 labels, 10,000 policies", HARD)] {
        let mut life = Life::begin(shape)?;
        steady.row(life.steady(name)?);
        hours.row(life.hour(name, changes)?);
        life.compare()?;
        println!("{name}: done, load {}", machine::load());
    }
    println!("\nAt {RATE} changes a second:\n\n{steady}\nAs fast as the agent takes them:\n\n{hours}");
    println!("After all of it the tables were those of a fresh agent. Load at the end: {}", machine::load());
    Ok(())
}

/// A cluster in which pods live and die.
struct Life {
    world: World,
    agent: crate::lab::Agent,
    made: u64,
}

impl Life {
    fn begin(shape: Shape) -> Result<Self> {
        let world = World::new(shape)?;
        uninstall(&world.node)?;
        let agent = world.start_agent()?;
        // What the start leaves to be done later is done by then.
        std::thread::sleep(Duration::from_secs(3));
        Ok(Self { world, agent, made: 0 })
    }

    /// The next change: a pod is bound to a node, gets its address and is ready, is not, is again, and the oldest one goes. In between, the
    /// policy of a thousand peers goes, comes, and is changed.
    fn change(&mut self) {
        let number = self.made;
        self.made += 1;
        if self.world.shape.is_hard && number.is_multiple_of(POLICY_EVERY) {
            let (event, changed) = match number / POLICY_EVERY % 4 {
                0 => (Event::Deleted, false),
                1 => (Event::Added, false),
                2 => (Event::Modified, true),
                _ => (Event::Modified, false),
            };
            return self.world.tell_long_policy(event, changed);
        }
        let turn = if self.world.shape.is_hard { number - number / POLICY_EVERY - 1 } else { number };
        let oldest = usize::try_from(turn / 5).expect("fewer than memory");
        let newest = oldest + self.world.shape.pods;
        let (event, pod, moment) = match turn % 5 {
            0 => (Event::Added, newest, Moment::Pending),
            1 => (Event::Modified, newest, Moment::Ready),
            2 => (Event::Modified, newest, Moment::Unready),
            3 => (Event::Modified, newest, Moment::Ready),
            _ => (Event::Deleted, oldest, Moment::Ready),
        };
        self.world.server.store.change(event, self.world.pod(pod, moment));
    }

    fn steady(&mut self, name: &str) -> Result<Vec<String>> {
        let pid = self.agent.pid().context("the agent runs")?;
        let before = Counters::of(&self.agent)?;
        let (used, begun) = (processor_time(pid)?, Instant::now());
        let changes = RATE * STEADY.as_secs();
        for number in 0..changes {
            let at = begun + Duration::from_nanos(number * 1_000_000_000 / RATE);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            self.change();
        }
        let seconds = begun.elapsed().as_secs_f64();
        let used = processor_time(pid)? - used;
        let lost = self.lost(&before, changes);
        let (long, bound) = Counters::of(&self.agent)?.turns_since(&before, TURN_GOAL);
        let percent = used / seconds * 100.0;
        Ok(vec![
            name.into(),
            changes.to_string(),
            format!("{seconds:.0}"),
            lost?.to_string(),
            format!("{percent:.2}"),
            format!("≤ {PROCESSOR_GOAL}"),
            verdict(percent <= PROCESSOR_GOAL),
            long.to_string(),
            format!("{:.0}", bound * 1e3),
            verdict(long == 0),
        ])
    }

    fn hour(&mut self, name: &str, changes: u64) -> Result<Vec<String>> {
        let pid = self.agent.pid().context("the agent runs")?;
        let before = Counters::of(&self.agent)?;
        let begun = Instant::now();
        let mut sizes = Vec::new();
        for part in 1..=PARTS {
            for _ in changes * (part - 1) / PARTS..changes * part / PARTS {
                self.change();
            }
            self.agent.wait_updates(before.updates + changes * part / PARTS, PATIENCE)?;
            // Until the catalog is written, after which memory is given back.
            std::thread::sleep(Duration::from_millis(500));
            sizes.push(memory(pid, "VmRSS:")?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let lost = self.lost(&before, changes)?;
        let (long, bound) = Counters::of(&self.agent)?.turns_since(&before, TURN_GOAL);
        let list: Vec<String> = sizes.iter().map(|size| format!("{size:.1}")).collect();
        println!("{name}: resident after each tenth, MB: {}", list.join(" "));
        let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
        Ok(vec![
            name.into(),
            changes.to_string(),
            format!("{seconds:.0}"),
            lost.to_string(),
            format!("{first:.1}"),
            format!("{last:.1}"),
            format!("≤ +{GROWTH_GOAL}"),
            verdict(last - first <= GROWTH_GOAL),
            long.to_string(),
            format!("{:.0}", bound * 1e3),
            verdict(long == 0),
        ])
    }

    /// How many of the changes the agent has not taken in, after some time for it.
    fn lost(&self, before: &Counters, changes: u64) -> Result<u64> {
        let wanted = before.updates + changes;
        self.agent.wait_updates(wanted, PATIENCE)?;
        let seen = self.agent.updates()?;
        ensure!(seen == wanted, "{seen} changes were taken in, {wanted} made");
        Ok(wanted - seen)
    }

    /// What is enforced is what an agent that starts anew enforces.
    fn compare(self) -> Result<()> {
        let Self { world, agent, .. } = self;
        let pods = world.server.store.len(RecordedKind::Pod);
        let old = Enforced::of(&world)?;
        ensure!(agent.stop()?.success(), "the agent did not end well");
        uninstall(&world.node)?;
        let agent = world.start_agent()?;
        let fresh = Enforced::of(&world)?;
        ensure!(agent.stop()?.success(), "the agent did not end well");
        ensure!(!fresh.addresses.is_empty(), "no pod has a class");
        for (name, old, fresh) in [
            ("addresses", old.addresses, fresh.addresses),
            ("prefixes", old.prefixes, fresh.prefixes),
            ("rules", old.rules, fresh.rules),
        ] {
            let differ: Vec<_> = old.symmetric_difference(&fresh).take(5).collect();
            ensure!(differ.is_empty(), "{pods} pods: {name} are others than a fresh agent's: {differ:?}");
        }
        Ok(())
    }
}

/// Without the numbers, which depend on the way there.
struct Enforced {
    addresses: BTreeSet<String>,
    prefixes: BTreeSet<String>,
    rules: BTreeSet<String>,
}

impl Enforced {
    fn of(world: &World) -> Result<Self> {
        // The catalog, by which numbers are named, is written a moment after a change.
        std::thread::sleep(Duration::from_secs(1));
        let said = palisade(&world.node, &["maps", "-o", "json"])?;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let maps: Value = serde_json::from_slice(&said.stdout)?;
        let rows = |table: &str| maps[table].as_array().cloned().unwrap_or_default();
        let mut classes = std::collections::BTreeMap::new();
        let mut named = |table: &str, key: &str| -> BTreeSet<String> {
            let rows = rows(table);
            for row in &rows {
                classes.insert(row["class"].to_string(), row["peers"].to_string());
            }
            rows.iter().map(|row| format!("{} {}", row[key], row["peers"])).collect()
        };
        let addresses = named("CLASS_EXACT", "address");
        let prefixes = named("CLASS_CIDR", "prefix");
        let rule = |row: &Value| {
            let peers = classes.get(&row["class"].to_string());
            format!("{} {peers:?} {}", row["what"], row["rule"])
        };
        let rules = rows("RULES").iter().map(rule).collect();
        Ok(Self { addresses, prefixes, rules })
    }
}
