//! What one pod gets through to another on one node, under 1, 100 and 10,000 rules, against the same lab without an agent: bytes of
//! streams, exchanges, and new connections.
//!
//! With and without are measured by turns, and each turn is a pair whose ratios count: what else goes on in the machine changes slowly.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::load::{PORTS, Work};
use super::stats::{Estimate, Sample, ratio};
use super::table::Table;
use super::{machine, traffic};
use crate::lab::agent::{Agent, AgentOptions, palisade};
use crate::lab::probe::Probe;
use crate::lab::{Guard, Lab, Manifests, Node, Outcome, Pod, PodSpec, Transport, objects};

const RULES: [usize; 3] = [1, 100, 10_000];
const WARM_UP: Duration = Duration::from_millis(100);
/// Many short turns tell more than few long ones: what else goes on in the machine lasts longer than a turn.
pub(super) const ALTERNATIONS: usize = 40;
pub(super) const TIME: Duration = Duration::from_millis(300);

/// One thing that is measured in every turn.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) work: Work,
    pub(super) unit: &'static str,
    /// Counted units in one of `unit`.
    pub(super) scale: f64,
    /// Least ratio.
    pub(super) goal: f64,
}

pub(super) const CONNECTIONS: Kind = Kind {
    name: "connect and close, 32 at a time",
    work: Work::Connections(32),
    unit: "per second",
    scale: 1.0,
    goal: 0.95,
};

pub(super) const KINDS: [Kind; 5] = [
    Kind { name: "1 stream", work: Work::Streams(1), unit: "MB/s", scale: 1e6, goal: 0.97 },
    Kind { name: "8 streams", work: Work::Streams(8), unit: "MB/s", scale: 1e6, goal: 0.97 },
    Kind { name: "request and response", work: Work::Exchanges(1), unit: "per second", scale: 1.0, goal: 0.97 },
    Kind {
        name: "request and response, 16 at a time",
        work: Work::Exchanges(16),
        unit: "per second",
        scale: 1.0,
        goal: 0.97,
    },
    CONNECTIONS,
];

/// Prints the table of all kinds.
pub fn run() -> Result<()> {
    measure(&KINDS, ALTERNATIONS, TIME)
}

/// Prints the table of new connections alone.
pub fn run_connections() -> Result<()> {
    measure(&[CONNECTIONS], 60, TIME)
}

fn measure(kinds: &[Kind], alternations: usize, time: Duration) -> Result<()> {
    println!("{}\n", machine::description());
    let bench = Bench::new()?;
    let mut load = Load::start(&bench, time)?;
    let head = ["traffic", "unit", "rules", "without agent", "with agent", "ratio", "95 % interval", "goal", ""];
    let mut table = Table::new(&head);
    for rules in RULES {
        bench.write_policy(rules)?;
        for row in bench.rows(&mut load, kinds, alternations, rules)? {
            table.row(row);
        }
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

fn row(kind: &Kind, many: usize, pairs: Vec<(f64, f64)>) -> Vec<String> {
    let Estimate { value, low, high } = ratio(&pairs);
    let (with, without) = pairs.into_iter().unzip();
    let spread = |values| {
        let sample = Sample::new(values);
        format!("{:.0} ({:.0} to {:.0})", sample.median(), sample.least(), sample.greatest())
    };
    let verdict = if low >= kind.goal {
        "met"
    } else if high < kind.goal {
        "NOT met"
    } else {
        "not certain"
    };
    vec![
        kind.name.into(),
        kind.unit.into(),
        many.to_string(),
        spread(without),
        spread(with),
        format!("{:.1} %", value * 100.0),
        format!("{:.1} to {:.1} %", low * 100.0, high * 100.0),
        format!("≥ {:.0} %", kind.goal * 100.0),
        verdict.into(),
    ]
}

pub(super) struct Bench {
    pub(super) node: Node,
    pub(super) client: Pod,
    pub(super) server: Pod,
    /// What the client connects to.
    pub(super) target: IpAddr,
    /// Why the agent lets a connection's first packet pass, somewhere.
    pub(super) reason: &'static str,
    pub(super) manifests: Manifests,
    /// Last, as it takes the rest away.
    pub(super) lab: Lab,
}

impl Bench {
    pub(super) fn new() -> Result<Self> {
        let lab = Lab::new("bench")?;
        let node = lab.node("node", 1)?;
        let specs = ["client", "server"].map(|name| PodSpec::new("bench", name, &[("app", name)]));
        let mut pods = node.start_pods(&lab, &specs)?.into_iter();
        let (client, server) = pods.next().zip(pods.next()).context("two pods were asked for")?;
        let manifests = Manifests::new(&lab.folder.join("manifests"))?;
        manifests.put(&objects::namespace("bench", &[]))?;
        manifests.put(&objects::node(&node))?;
        manifests.put(&objects::pod(&client, &node))?;
        manifests.put(&objects::pod(&server, &node))?;
        Ok(Self { target: server.ipv4(), reason: "allowed", node, client, server, manifests, lab })
    }

    pub(super) fn write_policy(&self, rules: usize) -> Result<()> {
        self.manifests.put(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": "bench", "name": "rules"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "policyTypes": ["Ingress"],
                "ingress": (1..=rules).map(|number| rule(number, number == rules, self.client.ipv4())).collect::<Vec<_>>(),
            },
        }))
    }

    /// Of each kind a row of the table; `many`: how many there are of what is varied.
    pub(super) fn rows(
        &self,
        load: &mut Load,
        kinds: &[Kind],
        alternations: usize,
        many: usize,
    ) -> Result<Vec<Vec<String>>> {
        let mut pairs = vec![Vec::new(); kinds.len()];
        for number in 0..alternations {
            let (with, without) = self.pair(load, kinds, number % 2 == 0)?;
            for (pairs, pair) in pairs.iter_mut().zip(with.into_iter().zip(without)) {
                pairs.push(pair);
            }
        }
        Ok(kinds.iter().zip(pairs).map(|(kind, pairs)| row(kind, many, pairs)).collect())
    }

    /// Of each kind, the rates with and without the agent.
    fn pair(&self, load: &mut Load, kinds: &[Kind], with_first: bool) -> Result<(Vec<f64>, Vec<f64>)> {
        if with_first {
            let with = self.with_agent(load, kinds)?;
            Ok((with, self.without_agent(load, kinds)?))
        } else {
            let without = self.without_agent(load, kinds)?;
            Ok((self.with_agent(load, kinds)?, without))
        }
    }

    fn without_agent(&self, load: &mut Load, kinds: &[Kind]) -> Result<Vec<f64>> {
        // The kernel takes a program off a little after its link has gone; a SYN that is lost to it is repeated after a second.
        let outcome = self.probe().ask();
        ensure!(outcome == Outcome::Refused, "something enforces that should not be there: {outcome}");
        kinds.iter().map(|kind| load.measure(kind)).collect()
    }

    fn with_agent(&self, load: &mut Load, kinds: &[Kind]) -> Result<Vec<f64>> {
        let agent = Agent::start(&self.lab, &self.node, &AgentOptions::manifests(&self.manifests.folder))?;
        let outcome = self.probe().ask_within(Duration::from_millis(300));
        if outcome != Outcome::TimedOut {
            let endpoints = palisade(&self.node, &["endpoints"])?;
            bail!(
                "the agent does not enforce: {outcome}\n{}{}",
                String::from_utf8_lossy(&endpoints.stdout),
                agent.log_text()
            );
        }
        let rates = kinds.iter().map(|kind| measure_judged(&agent, load, kind, self.reason)).collect::<Result<_>>()?;
        ensure!(agent.stop()?.success(), "the agent did not end well");
        let uninstall = palisade(&self.node, &["uninstall"])?;
        ensure!(uninstall.status.success(), "uninstall: {}", String::from_utf8_lossy(&uninstall.stderr));
        Ok(rates)
    }

    /// A port that no rule admits and where nobody listens.
    fn probe(&self) -> Probe {
        Probe::new(&self.client.netns, Transport::Tcp, self.server.ipv4(), PORTS.end)
    }
}

/// With the agent's counters before and after, or something may have been measured that no program saw.
fn measure_judged(agent: &Agent, load: &mut Load, kind: &Kind, reason: &str) -> Result<f64> {
    let counter = |reason| packets(agent, reason);
    let (allowed, established) = (counter(reason)?, counter("established")?);
    let rate = load.measure(kind)?;
    let (allowed, established) = (counter(reason)? - allowed, counter("established")? - established);
    let expected = match kind.work {
        // Every connection, of which at least the handshake's last segment follows the first.
        Work::Connections(_) => (rate * load.time.as_secs_f64(), rate * load.time.as_secs_f64()),
        Work::Exchanges(parallel) => (parallel as f64, rate * load.time.as_secs_f64()),
        // A segment of a stream may be as large as 64 KiB, or larger with BIG TCP, which is off by default.
        Work::Streams(parallel) => (parallel as f64, rate * kind.scale * load.time.as_secs_f64() / 65_536.0),
    };
    ensure!(
        allowed >= expected.0 && established >= expected.1,
        "{}: {allowed} packets were allowed and {established} established, of {expected:?} at least",
        kind.name
    );
    Ok(rate)
}

/// Packets that came to this end so far.
fn packets(agent: &Agent, reason: &str) -> Result<f64> {
    let (status, body) = agent.http("/metrics")?;
    ensure!(status == 200, "/metrics answers {status}");
    let label = format!("reason=\"{reason}\"");
    let mut lines = body.lines().filter(|line| line.starts_with("palisade_packets_total{") && line.contains(&label));
    let value = lines.next().and_then(|line| line.rsplit(' ').next()).context("no such counter in /metrics")?;
    Ok(value.parse()?)
}

/// The last one admits the client to the server's ports, each of the others another address to another port.
fn rule(number: usize, last: bool, client: IpAddr) -> Value {
    if last {
        return json!({
            "from": [{"ipBlock": {"cidr": format!("{client}/32")}}],
            "ports": [{"protocol": "TCP", "port": traffic::PORT, "endPort": PORTS.end - 1}],
        });
    }
    let [high, low] = u16::try_from(number).expect("the figures need fewer rules").to_be_bytes();
    json!({
        "from": [{"ipBlock": {"cidr": format!("172.16.{high}.{low}/32")}}],
        "ports": [{"protocol": "TCP", "port": 10_000 + number}],
    })
}

/// Both ends' processes; see [`super::load`].
pub(super) struct Load {
    /// How long each kind is measured.
    time: Duration,
    _server: Process,
    client: Process,
}

impl Load {
    pub(super) fn start(bench: &Bench, time: Duration) -> Result<Self> {
        let guard = bench.lab.guard();
        let server = Process::start(guard, &bench.server, &["serve"])?;
        let address = bench.target.to_string();
        Ok(Self { time, _server: server, client: Process::start(guard, &bench.client, &["client", &address])? })
    }

    /// In the kind's unit, per second.
    fn measure(&mut self, kind: &Kind) -> Result<f64> {
        let count = self.client.ask(kind.work, WARM_UP, self.time).with_context(|| kind.name)?;
        ensure!(count > 0, "{}: nothing got through", kind.name);
        Ok(count as f64 / self.time.as_secs_f64() / kind.scale)
    }
}

/// This program once more, inside of a pod; ends with what it is held by.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(guard: &Guard, pod: &Pod, arguments: &[&str]) -> Result<Self> {
        let mut command: Command = pod.netns.command(std::env::current_exe()?);
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn()?;
        guard.process(child.id());
        let stdin = child.stdin.take().expect("stdin was asked for above");
        let stdout = BufReader::new(child.stdout.take().expect("stdout was asked for above"));
        let mut process = Self { child, stdin, stdout };
        let line = process.line()?;
        ensure!(line == "ready", "{arguments:?} said `{line}`");
        Ok(process)
    }

    fn ask(&mut self, work: Work, warm_up: Duration, measured: Duration) -> Result<u64> {
        writeln!(self.stdin, "{} {} {}", work.order(), warm_up.as_millis(), measured.as_millis())?;
        Ok(self.line()?.parse()?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a process of the benchmark has ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
