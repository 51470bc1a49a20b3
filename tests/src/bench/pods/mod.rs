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
    /// That live at one time. Neighbour entries, about seven a pod, are limited for all network namespaces together (net.ipv4.neigh.default.gc_thresh3, 1,024): a node
    /// each would not notice.
    pub wave: usize,
    /// Before there is an agent: what a connection of a new pod takes on this machine.
    pub unenforced: usize,
    pub without_plugin: usize,
    pub without_agent: usize,
}

impl Size {
    const fn whole(pods: usize) -> Self {
        let few = pods / 10;
        Self { pods, wave: 100, unenforced: few, without_plugin: few, without_agent: few }
    }
}

/// Of all pods of a run.
#[derive(Default)]
pub struct Outcome {
    pub pods: usize,
    /// Pods that were sent something forbidden, and waves of which others were.
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

    fn row(&self, name: &str, goal: &str) -> Vec<String> {
        let delay = |delays: &[Duration]| match quantiles(delays) {
            Some([median, last]) => format!("{median:.2} / {last:.1}"),
            None => "-".to_owned(),
        };
        let mut cells = vec![name.to_owned()];
        cells.extend(
            [self.pods, self.not_started, self.leaking.min(self.pods), self.leaks].map(|count| count.to_string()),
        );
        cells.extend([&self.local, &self.block, &self.remote].map(|delays| delay(delays)));
        cells.extend([self.refused.to_string(), goal.to_owned()]);
        cells
    }

    /// Nothing leaked, every pod started, and what is allowed came about, no later than it may after what it took in `unenforced`.
    fn is_met(&self, size: Size, unenforced: &Self) -> bool {
        let within = |delays: &[Duration], before: &[Duration]| match (quantiles(delays), quantiles(before)) {
            (Some([median, last]), Some(before)) => median - before[0] <= 5.0 && last - before[1] <= 50.0,
            _ => false,
        };
        self.leaks == 0
            && self.refused == 0
            && self.pods == size.pods
            && within(&self.local, &unenforced.local)
            && within(&self.block, &unenforced.block)
    }
}

/// Half of them, and 99 of 100, in milliseconds.
fn quantiles(delays: &[Duration]) -> Option<[f64; 2]> {
    (!delays.is_empty()).then(|| {
        let sample = Sample::new(delays.iter().map(|delay| delay.as_secs_f64() * 1000.0).collect());
        [sample.median(), sample.quantile(0.99)]
    })
}

/// The goal: 0 leaks with the plugin, and allowed connections on the node and to an ipBlock delayed by 5 ms (p50) and 50 ms (p99) at most,
/// beside pods of which nothing is enforced.
pub fn run(pods: usize) -> Result<()> {
    let size = Size::whole(pods);
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
    let [unenforced, with, without, stopped] = measure(size)?;
    let said = |met| if met { "met" } else { "NOT met" };
    table.row(unenforced.row("nothing is enforced", "-"));
    table.row(with.row("in the chain", said(with.is_met(size, &unenforced))));
    table.row(without.row("not there", "reported"));
    table.row(stopped.row("in the chain, no agent", said(stopped.pods == 0 && stopped.leaks == 0)));
    println!("{table}\nLoad at the end: {}", machine::load());
    Ok(())
}

/// Without any agent, with the plugin, without it, and with it but without an agent.
pub fn measure(size: Size) -> Result<[Outcome; 4]> {
    let mut world = World::new()?;
    let unenforced = world.waves(size.unenforced, size.wave)?;
    world.start_agents()?;
    world.node().install_plugin()?;
    let with = world.waves(size.pods, size.wave)?;
    world.node().uninstall_plugin()?;
    let without = world.waves(size.without_plugin, size.wave)?;
    world.node().install_plugin()?;
    world.stop_agent()?;
    let stopped = world.waves(size.without_agent, size.wave)?;
    Ok([unenforced, with, without, stopped])
}
