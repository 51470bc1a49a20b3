//! What the agent takes in large clusters: memory, its start beside what a bare HTTP client needs for the same lists, how long it holds
//! its thread, and what it asks of the API server.
//!
//! Clusters of 20,000 pods and more are not filled into a real API server here but served by a recorded one (`lab::recorded`).

mod agents;
mod churn;
mod counters;
mod objects;
mod world;

pub use agents::run as run_apiserver;
pub use churn::{HOUR, run as run_churn};

use anyhow::{Context as _, Result, ensure};

use super::machine;
use super::start::{kernel_memory, lists, size, start, uninstall, verdict};
use super::stats::Sample;
use super::table::Table;
use crate::lab::control_plane::with_client;
use counters::Counters;
use world::{Shape, World};

const STARTS: usize = 5;
/// Longest turn of the agent's loop, once it enforces; seconds.
pub(super) const TURN_GOAL: f64 = 0.1;

struct Point {
    name: &'static str,
    shape: Shape,
    /// MB.
    resident: f64,
    /// Milliseconds beyond the lists alone.
    start: Option<f64>,
}

const SMALL: Shape =
    Shape { pods: 1_000, namespaces: 20, policies: 50, nodes: 20, labels: 4, local: 10, is_hard: false };
pub(super) const LARGE: Shape =
    Shape { pods: 20_000, namespaces: 200, policies: 500, nodes: 200, labels: 4, local: 10, is_hard: false };
const HUGE: Shape =
    Shape { pods: 150_000, namespaces: 1_500, policies: 3_000, nodes: 5_000, labels: 4, local: 10, is_hard: false };
pub(super) const HARD: Shape =
    Shape { pods: 20_000, namespaces: 5_000, policies: 10_000, nodes: 200, labels: 50, local: 110, is_hard: true };

const POINTS: [Point; 4] = [
    Point { name: "1,000 pods", shape: SMALL, resident: 20.0, start: None },
    Point { name: "20,000 pods, 200 namespaces, 500 policies", shape: LARGE, resident: 60.0, start: Some(2000.0) },
    Point { name: "150,000 pods, 1,500 namespaces, 3,000 policies", shape: HUGE, resident: 300.0, start: None },
    Point {
        name: "20,000 pods of 50 labels, 5,000 namespaces, 10,000 policies",
        shape: HARD,
        resident: 0.0,
        start: None,
    },
];

/// `only`: the point of that number alone.
pub fn run(only: Option<usize>) -> Result<()> {
    println!("{}\n", machine::description());
    let mut starts = Table::new(&["cluster", "pins", "enforced, ms", "lists alone, ms", "goal", ""]);
    let mut sizes = Table::new(&["cluster", "resident, MB", "goal", "", "highest", "idle, % of a core"]);
    let columns = ["cluster", "longest turn of the first list, ms", "requests", "watches", "MB received", "maps, MB"];
    let mut costs = Table::new(&columns);
    for (number, point) in POINTS.iter().enumerate().filter(|(number, _)| only.is_none_or(|only| only == *number)) {
        let world = World::new(point.shape).with_context(|| format!("cluster {number}"))?;
        let mut measured = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..STARTS {
            measured[0].push(with_client(&world.lab.underlay, &world.kubeconfig, lists)?);
            uninstall(&world.node)?;
            for times in &mut measured[1..] {
                times.push(start(&world.lab, &world.node, &world.options())?.enforced);
            }
        }
        let [alone, first, again] = measured.map(Sample::new);
        let spread =
            |sample: &Sample| format!("{:.0} ({:.0} to {:.0})", sample.median(), sample.least(), sample.greatest());
        for (pins, sample) in [("none", first), ("an earlier agent's", again)] {
            let goal = point.start.map(|start| alone.median() + start);
            starts.row(vec![
                point.name.into(),
                pins.into(),
                spread(&sample),
                spread(&alone),
                goal.map_or_else(String::new, |goal| format!("≤ {goal:.0}")),
                goal.map_or_else(String::new, |goal| verdict(sample.median() <= goal)),
            ]);
        }
        let agent = world.start_agent()?;
        let seen = Counters::of(&agent)?;
        let taken = size(&agent)?;
        let has_goal = point.resident > 0.0;
        sizes.row(vec![
            point.name.into(),
            format!("{:.1}", taken.resident),
            if has_goal { format!("≤ {}", point.resident) } else { String::new() },
            if has_goal { verdict(taken.resident <= point.resident) } else { String::new() },
            format!("{:.1}", taken.highest),
            format!("{:.3}", taken.idle),
        ]);
        costs.row(vec![
            point.name.into(),
            format!("{:.0}", seen.longest_turn * 1e3),
            seen.requests.to_string(),
            seen.watches.to_string(),
            format!("{:.1}", seen.received / 1e6),
            kernel_memory(&world.node)?.1,
        ]);
        ensure!(agent.stop()?.success(), "the agent did not end well");
        println!("{}: done, load {}", point.name, machine::load());
    }
    println!("\n{starts}\n{sizes}\n{costs}\nLoad at the end: {}", machine::load());
    Ok(())
}
