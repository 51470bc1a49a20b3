//! What becomes of live traffic while agents are killed, stopped, started and exchanged: connections that are open, and new ones that are
//! permitted or forbidden. The goal is that nothing becomes of it: no verdict is wrong, no connection is cut.
//!
//! A refused packet of a permitted connection would be repeated by TCP and so go unnoticed at the sockets. So what the programs have refused
//! is compared with what had to be refused: one SYN for each forbidden attempt.

pub mod attempts;
mod churn;
pub mod ends;
mod held;
mod refused;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use palisade_common::Reason;

use self::attempts::{AttemptCounts, Attempts, Kind};
use self::churn::Churn;
pub use self::held::Extent;
use self::held::{Held, HeldCounts};
use self::refused::Refused;
use super::machine;
use super::table::Table;
use crate::lab::server::Server;
use crate::lab::{Agent, AgentOptions, Lab, Manifests, Node, Pod, PodSpec, objects};
use crate::random::Dice;

/// From which on connections are held, at which they are opened anew, and at which no policy admits any.
const HELD: u16 = 8000;
const PERMITTED: u16 = 80;
const FORBIDDEN: u16 = 81;
const READY: Duration = Duration::from_secs(20);
/// From a restart to the next: a pod that was forgotten would be noticed by then.
const PAUSE_MS: usize = 1500;

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Size {
    pub held: Extent,
    /// New connections per second, half of them permitted.
    pub rate: u32,
    /// SIGKILL at any moment, a start included.
    pub kills: usize,
    /// SIGTERM, while policies change ten times a second.
    pub stops: usize,
    /// Starts of one program after the other by turns, and of which other one.
    pub swaps: usize,
    pub other: Option<PathBuf>,
}

/// What happened in one phase.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    pub name: String,
    pub restarts: usize,
    pub seconds: f64,
    pub held: HeldCounts,
    pub attempts: AttemptCounts,
    /// Packets that the programs refused, by reason, without those that had to be.
    pub refused_beyond: BTreeMap<&'static str, i64>,
}

impl Phase {
    /// Nothing that was permitted was refused, and the other way round.
    pub fn is_clean(&self) -> bool {
        let Self { held, attempts, refused_beyond, .. } = self;
        let wrong = attempts.wrongly_refused + attempts.wrongly_admitted;
        held.resets == 0 && held.cut == 0 && wrong == 0 && refused_beyond.is_empty()
    }
}

/// `cargo xtask bench restart [--other PATH]`.
pub fn run(other: Option<PathBuf>) -> Result<()> {
    println!("{}\n", machine::description());
    let held = Extent { connections: 50_000, period: Duration::from_secs(5) };
    let size = Size { held, rate: 1000, kills: 100, stops: 20, swaps: 20, other };
    let phases = measure(&size)?;
    let head = [
        "what",
        "restarts",
        "s",
        "exchanges",
        "late",
        "resets",
        "cut",
        "permitted",
        "refused",
        "forbidden",
        "admitted",
        "packets refused beyond",
        "goal",
        "",
    ];
    let mut table = Table::new(&head);
    for phase in &phases {
        table.row(row(phase));
    }
    println!("{} connections held; new ones: {} a second\n\n{table}", size.held.connections, size.rate);
    println!("Load at the end: {}", machine::load());
    ensure!(phases.iter().all(Phase::is_clean), "something was judged wrongly");
    Ok(())
}

fn row(phase: &Phase) -> Vec<String> {
    let Phase { name, restarts, seconds, held, attempts, refused_beyond } = phase;
    let HeldCounts { exchanges, late, resets, cut } = held;
    let AttemptCounts { permitted, wrongly_refused, forbidden, wrongly_admitted } = attempts;
    let mut cells = vec![name.clone(), restarts.to_string(), format!("{seconds:.0}")];
    cells.extend([exchanges, late, resets, cut].map(u64::to_string));
    cells.extend([permitted, wrongly_refused, forbidden, wrongly_admitted].map(u64::to_string));
    let beyond: Vec<String> = refused_beyond.iter().map(|(reason, packets)| format!("{packets} {reason}")).collect();
    cells.push(if beyond.is_empty() { "0".to_owned() } else { beyond.join(", ") });
    cells.push("all 0".into());
    cells.push(if phase.is_clean() { "met" } else { "NOT met" }.into());
    cells
}

/// All phases, the first of which is without any restart.
pub fn measure(size: &Size) -> Result<Vec<Phase>> {
    let bench = Bench::new()?;
    let mut agent = bench.start(None)?;
    let [client, server, _] = &bench.pods;
    let held = &mut Held::open(bench.lab.guard(), client, server, HELD, size.held)?;
    let mut dice = Dice::new(1);
    let mut phases = Vec::new();
    let quiet = |_: usize| {
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    };
    phases.push(Phase { restarts: 0, ..bench.phase("no restart", held, size, 1, quiet)? });
    phases.push(bench.phase("kill", held, size, size.kills, |_| {
        // The next one takes its place whether or not this one was ready.
        let mut next = bench.replace(&mut agent, None, Agent::kill)?;
        let moment = Duration::from_millis(dice.below(PAUSE_MS) as u64);
        let begun = Instant::now();
        if dice.percent(50) {
            next.wait_ready(READY)?;
        }
        std::thread::sleep(moment.saturating_sub(begun.elapsed()));
        agent = Some(next);
        Ok(())
    })?);
    agent.as_mut().context("an agent runs")?.wait_ready(READY)?;
    let churn = Churn::start(&bench.manifests, Duration::from_millis(100));
    phases.push(bench.phase("stop, while policies change", held, size, size.stops, |_| {
        let mut next = bench.replace(&mut agent, None, Agent::stop)?;
        next.wait_ready(READY)?;
        std::thread::sleep(Duration::from_millis(dice.below(PAUSE_MS) as u64));
        agent = Some(next);
        Ok(())
    })?);
    if let Some(other) = &size.other {
        phases.push(bench.phase("another layout by turns", held, size, size.swaps, |turn| {
            let program = turn.is_multiple_of(2).then_some(other.as_path());
            let mut next = bench.replace(&mut agent, program, Agent::stop)?;
            next.wait_ready(READY)?;
            std::thread::sleep(Duration::from_millis(dice.below(PAUSE_MS) as u64));
            agent = Some(next);
            Ok(())
        })?);
    }
    churn.finish()?;
    Ok(phases)
}

struct Bench {
    lab: Lab,
    node: Node,
    /// Client, server, and one that may reach nobody.
    pods: [Pod; 3],
    manifests: Manifests,
    refused: RefCell<Refused>,
    _servers: Vec<Server>,
}

impl Bench {
    fn new() -> Result<Self> {
        let lab = Lab::new("restart")?;
        let node = lab.node("one", 1)?;
        let specs = ["client", "server", "stranger"].map(|name| PodSpec::new("bench", name, &[("app", name)]));
        let pods: [Pod; 3] = node.start_pods(&lab, &specs)?.try_into().ok().context("as many as there are specs")?;
        let server = Server::start(lab.guard(), &pods[1].netns, "server", &[PERMITTED, FORBIDDEN], &[])?;
        let manifests = Manifests::new(&node.folder.join("manifests"))?;
        manifests.put(&objects::node(&node))?;
        manifests.put(&objects::namespace("bench", &[]))?;
        for pod in &pods {
            manifests.put(&objects::pod(pod, &node))?;
        }
        for pod in &pods {
            // More ports than there are local ones by default would not be needed, but every connection that was reset keeps none.
            pod.netns.sysctl(&[("net/ipv4/ip_local_port_range", "10000 65000")])?;
        }
        for (name, spec) in [
            (
                "server",
                "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress],
                  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}, {port: 8000, endPort: 8063}]}]}",
            ),
            (
                "client",
                "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress],
                  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}",
            ),
        ] {
            manifests.put(&objects::policy("bench", name, spec)?)?;
        }
        Ok(Self { lab, node, pods, manifests, refused: RefCell::default(), _servers: vec![server] })
    }

    fn options(&self, program: Option<&Path>) -> AgentOptions {
        let mut options = AgentOptions::manifests(&self.manifests.folder);
        options.program = program.map(Path::to_owned);
        options
    }

    fn start(&self, program: Option<&Path>) -> Result<Option<Agent>> {
        Agent::start(&self.lab, &self.node, &self.options(program)).map(Some)
    }

    /// Ends the agent and starts the next, without waiting for it.
    fn replace<T>(
        &self,
        agent: &mut Option<Agent>,
        program: Option<&Path>,
        end: impl Fn(Agent) -> Result<T>,
    ) -> Result<Agent> {
        if let Some(agent) = agent.take() {
            end(agent)?;
        }
        Agent::spawn(&self.lab, &self.node, &self.options(program))
    }

    fn kinds(&self, rate: u32) -> Vec<Kind> {
        let [client, server, stranger] = &self.pods;
        let to = |port| server.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        let kind = |pod: &Pod, port, permitted, rate| Kind { from: pod.netns.clone(), to: to(port), permitted, rate };
        vec![
            kind(client, PERMITTED, true, rate / 2),
            kind(client, FORBIDDEN, false, rate / 4),
            kind(stranger, PERMITTED, false, rate / 4),
        ]
    }

    /// Packets that the programs have refused so far.
    fn refused(&self) -> Result<BTreeMap<&'static str, i64>> {
        let mut refused = self.refused.borrow_mut();
        refused.look(&self.node.pin_dir)?;
        refused.packets()
    }

    fn phase(
        &self,
        name: &str,
        held: &mut Held,
        size: &Size,
        restarts: usize,
        mut restart: impl FnMut(usize) -> Result<()>,
    ) -> Result<Phase> {
        let (begun, counts, refused) = (Instant::now(), held.counts()?, self.refused()?);
        let attempts = Attempts::start(&self.kinds(size.rate));
        for number in 0..restarts {
            restart(number)?;
            self.refused.borrow_mut().look(&self.node.pin_dir)?;
        }
        let attempts = attempts.finish()?;
        let mut beyond = self.refused()?;
        for (reason, packets) in &mut beyond {
            *packets -= refused.get(reason).copied().unwrap_or_default();
        }
        *beyond.entry(Reason::NoRule.name()).or_default() -= i64::try_from(attempts.forbidden)?;
        beyond.retain(|_, packets| *packets != 0);
        // Whoever is cut last is known to be some seconds after.
        std::thread::sleep(held.known_after());
        Ok(Phase {
            name: name.to_owned(),
            restarts,
            seconds: begun.elapsed().as_secs_f64(),
            held: held.counts()?.since(counts),
            attempts,
            refused_beyond: beyond,
        })
    }
}
