//! Pods that talk in their first millisecond, under default deny both ways, with an agent that is busy: what gets through that is
//! forbidden, and how soon what is allowed does. With `palisade-cni`, without it, and with it while no agent runs.

mod probe;
mod world;

use std::time::Duration;

use anyhow::Result;

use super::machine;
use super::stats::Sample;
use super::table::Table;
use probe::Report;
use world::World;

/// What was asked for, and how much of it.
#[derive(Clone, Copy)]
pub struct Size {
    pub pods: usize,
    /// Neighbour entries, about seven a pod, are limited for all network namespaces together (net.ipv4.neigh.default.gc_thresh3, 1,024): a node
    /// each would not notice.
    pub wave: usize,
    pub without_plugin: usize,
    pub without_agent: usize,
}

const WHOLE: Size = Size { pods: 10_000, wave: 100, without_plugin: 1_000, without_agent: 1_000 };

/// Of all pods of a run.
#[derive(Default)]
pub struct Outcome {
    pub pods: usize,
    /// Pods that exchanged something forbidden.
    pub leaking: usize,
    /// Forbidden packets and connections that arrived.
    pub leaks: usize,
    pub not_started: usize,
    /// From the end of ADD until connected, by whom it is to.
    local: Vec<Duration>,
    block: Vec<Duration>,
    remote: Vec<Duration>,
    /// Allowed connections that never came about.
    pub refused: usize,
}

impl Outcome {
    fn take(&mut self, report: &Report) {
        self.pods += 1;
        self.leaks += report.leaks;
        self.leaking += usize::from(report.leaks != 0);
        for (delay, delays) in
            [(report.local, &mut self.local), (report.block, &mut self.block), (report.remote, &mut self.remote)]
        {
            match delay {
                Some(delay) => delays.push(delay),
                None => self.refused += 1,
            }
        }
    }

    /// How many came about: on the node, by ipBlock, on another node.
    pub fn connected(&self) -> [usize; 3] {
        [&self.local, &self.block, &self.remote].map(Vec::len)
    }

    /// `started`: how many pods are to start, where there is a goal.
    fn row(&self, name: &str, started: Option<usize>) -> Vec<String> {
        let delay = |delays: &[Duration]| {
            if delays.is_empty() {
                return "-".to_owned();
            }
            let sample = Sample::new(delays.iter().map(|delay| delay.as_secs_f64() * 1000.0).collect());
            format!("{:.2} / {:.1}", sample.median(), sample.quantile(0.99))
        };
        let within = |delays: &[Duration]| {
            delays.is_empty() || {
                let sample = Sample::new(delays.iter().map(|delay| delay.as_secs_f64() * 1000.0).collect());
                sample.median() <= 5.0 && sample.quantile(0.99) <= 50.0
            }
        };
        let met = self.leaks == 0
            && self.refused == 0
            && started == Some(self.pods)
            && within(&self.local)
            && within(&self.block);
        vec![
            name.into(),
            self.pods.to_string(),
            self.not_started.to_string(),
            self.leaking.to_string(),
            self.leaks.to_string(),
            delay(&self.local),
            delay(&self.block),
            delay(&self.remote),
            self.refused.to_string(),
            match (started, met) {
                (None, _) => "reported",
                (Some(_), true) => "met",
                (Some(_), false) => "NOT met",
            }
            .into(),
        ]
    }
}

/// See the figures: 0 leaks with the plugin; p50 ≤ 5 ms, p99 ≤ 50 ms for allowed connections on the node and to an ipBlock.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let mut table = Table::new(&[
        "palisade-cni",
        "pods",
        "not started",
        "leaking",
        "leaks",
        "allowed on the node, ms (p50 / p99)",
        "by ipBlock",
        "on another node",
        "never connected",
        "goal",
    ]);
    let [with, without, stopped] = measure(WHOLE)?;
    table.row(with.row("in the chain", Some(WHOLE.pods)));
    table.row(without.row("not there", None));
    table.row(stopped.row("in the chain, no agent", Some(0)));
    println!("{table}\nLoad at the end: {}", machine::load());
    Ok(())
}

/// With the plugin, without it, and with it but without an agent.
pub fn measure(size: Size) -> Result<[Outcome; 3]> {
    let mut world = World::new()?;
    world.start_agents()?;
    world.node().install_plugin()?;
    let with = world.waves(size.pods, size.wave)?;
    world.node().uninstall_plugin()?;
    let without = world.waves(size.without_plugin, size.wave)?;
    world.node().install_plugin()?;
    world.stop_agent()?;
    let stopped = world.waves(size.without_agent, size.wave)?;
    Ok([with, without, stopped])
}
