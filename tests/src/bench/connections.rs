//! New connections per second from one pod to another on one node, under 1, 100 and 10,000 rules, against the same lab without an agent.
//!
//! With and without are measured by turns, and each turn is a pair whose ratio counts: what else goes on in the machine changes slowly.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::load::PORTS;
use super::machine;
use super::stats::{Ratio, Sample, ratio};
use super::table::Table;
use crate::lab::agent::{Agent, AgentOptions, palisade};
use crate::lab::probe::Probe;
use crate::lab::{Guard, Lab, Manifests, Node, Outcome, Pod, PodSpec, Transport, objects};

const RULES: [usize; 3] = [1, 100, 10_000];
const ALTERNATIONS: usize = 20;
/// Connections under way at a time.
const PARALLEL: usize = 32;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1000);
const GOAL: f64 = 0.95;

/// Prints the table.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let bench = Bench::new()?;
    let mut clients = Load::start(&bench)?;
    let mut table = Table::new(&["rules", "without agent", "with agent", "ratio", "95 % interval", "goal", ""]);
    for rules in RULES {
        bench.write_policy(rules)?;
        let mut pairs = Vec::new();
        for number in 0..ALTERNATIONS {
            pairs.push(bench.pair(&mut clients, number % 2 == 0)?);
        }
        let ratio = ratio(&pairs);
        let (with, without) = pairs.into_iter().unzip();
        table.row(row(rules, &Sample::new(without), &Sample::new(with), ratio));
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

fn row(rules: usize, without: &Sample, with: &Sample, ratio: Ratio) -> Vec<String> {
    let spread =
        |sample: &Sample| format!("{:.0} ({:.0} to {:.0})", sample.median(), sample.least(), sample.greatest());
    let verdict = if ratio.low >= GOAL {
        "met"
    } else if ratio.high < GOAL {
        "NOT met"
    } else {
        "not certain"
    };
    vec![
        rules.to_string(),
        spread(without),
        spread(with),
        format!("{:.1} %", ratio.value * 100.0),
        format!("{:.1} to {:.1} %", ratio.low * 100.0, ratio.high * 100.0),
        format!("≥ {:.0} %", GOAL * 100.0),
        verdict.into(),
    ]
}

struct Bench {
    node: Node,
    client: Pod,
    server: Pod,
    manifests: Manifests,
    /// Last, as it takes the rest away.
    lab: Lab,
}

impl Bench {
    fn new() -> Result<Self> {
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
        Ok(Self { node, client, server, manifests, lab })
    }

    fn write_policy(&self, rules: usize) -> Result<()> {
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

    /// Connections per second with and without the agent.
    fn pair(&self, clients: &mut Load, with_first: bool) -> Result<(f64, f64)> {
        if with_first {
            let with = self.with_agent(clients)?;
            Ok((with, self.without_agent(clients)?))
        } else {
            let without = self.without_agent(clients)?;
            Ok((self.with_agent(clients)?, without))
        }
    }

    fn without_agent(&self, clients: &mut Load) -> Result<f64> {
        // The kernel takes a program off a little after its link has gone; a SYN that is lost to it is repeated after a second.
        let outcome = self.probe().ask();
        ensure!(outcome == Outcome::Refused, "something enforces that should not be there: {outcome}");
        clients.measure()
    }

    fn with_agent(&self, clients: &mut Load) -> Result<f64> {
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
        let rate = clients.measure()?;
        ensure!(agent.stop()?.success(), "the agent did not end well");
        let uninstall = palisade(&self.node, &["uninstall"])?;
        ensure!(uninstall.status.success(), "uninstall: {}", String::from_utf8_lossy(&uninstall.stderr));
        Ok(rate)
    }

    /// A port that no rule admits and where nobody listens.
    fn probe(&self) -> Probe {
        Probe::new(&self.client.netns, Transport::Tcp, self.server.ipv4(), PORTS.end)
    }
}

/// The last one admits the client to the server's ports, each of the others another address to another port.
fn rule(number: usize, last: bool, client: IpAddr) -> Value {
    if last {
        return json!({
            "from": [{"ipBlock": {"cidr": format!("{client}/32")}}],
            "ports": [{"protocol": "TCP", "port": PORTS.start, "endPort": PORTS.end - 1}],
        });
    }
    let [high, low] = u16::try_from(number).expect("the figures need fewer rules").to_be_bytes();
    json!({
        "from": [{"ipBlock": {"cidr": format!("172.16.{high}.{low}/32")}}],
        "ports": [{"protocol": "TCP", "port": 10_000 + number}],
    })
}

/// Both ends' processes; see [`super::load`].
struct Load {
    _server: Process,
    client: Process,
}

impl Load {
    fn start(bench: &Bench) -> Result<Self> {
        let guard = bench.lab.guard();
        let server = Process::start(guard, &bench.server, &["serve"])?;
        let IpAddr::V4(address) = bench.server.ipv4() else { bail!("the first address of a pod is its IPv4 one") };
        let arguments = ["connect", &address.to_string(), &PARALLEL.to_string()];
        Ok(Self { _server: server, client: Process::start(guard, &bench.client, &arguments)? })
    }

    /// Connections per second.
    fn measure(&mut self) -> Result<f64> {
        self.client.ask(WARM_UP)?;
        Ok(self.client.ask(MEASURED)? as f64 / MEASURED.as_secs_f64())
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

    fn ask(&mut self, time: Duration) -> Result<u64> {
        writeln!(self.stdin, "{}", time.as_millis())?;
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
