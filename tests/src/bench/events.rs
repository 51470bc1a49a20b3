//! What it costs the agent to tell of refused flows: processor time while pods are refused 10,000 new flows a second.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::cluster::processor_time;
use super::machine;
use super::table::Table;
use crate::lab::{Agent, AgentOptions, Lab, Manifests, Node, Pod, PodSpec, objects};

const FLOWS_PER_SECOND: u32 = 10_000;
const TIME: Duration = Duration::from_secs(10);
/// Flows of one millisecond.
const AT_ONCE: u32 = FLOWS_PER_SECOND / 1000;
const PODS: usize = 20;
/// Percent of a core.
const GOAL: f64 = 1.0;
/// Every packet is reported.
const NO_BUDGET: [&str; 4] = ["--events-max", "1000000", "--events-per-pod-max", "1000000"];

pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let lab = Lab::new("bench-events")?;
    let node = lab.node("one", 1)?;
    let specs: Vec<PodSpec> =
        (0..=PODS).map(|number| PodSpec::new("web", &format!("p-{number}"), &[("app", "web")])).collect();
    let pods = node.start_pods(&lab, &specs)?;
    let (sender, receivers) = pods.split_first().context("pods were started")?;
    let manifests = Manifests::new(&node.folder.join("manifests"))?;
    manifests.put(&objects::node(&node))?;
    manifests.put(&objects::namespace("web", &[]))?;
    for pod in &pods {
        manifests.put(&objects::pod(pod, &node))?;
    }
    manifests.put(&objects::policy("web", "nobody", "{podSelector: {}}")?)?;
    let options = AgentOptions::manifests(&manifests.folder);
    let mut table = Table::new(&["refused to", "budgets", "flows/s", "reported/s", "agent, % of a core", "goal", ""]);
    for (receivers, budgets) in [(&receivers[..1], false), (receivers, false), (receivers, true)] {
        let extra: &[&str] = if budgets { &NO_BUDGET } else { &[] };
        let options = extra.iter().fold(options.clone(), |options, argument| options.argument(argument));
        let agent = Agent::start(&lab, &node, &options)?;
        let measured = measure(&node, &agent, sender, receivers)?;
        ensure!(agent.stop()?.success(), "the agent did not end well");
        table.row(vec![
            if receivers.len() == 1 { "one pod".into() } else { format!("{PODS} pods in turn") },
            if budgets { "none: all are reported" } else { "the defaults" }.into(),
            format!("{:.0}", measured.flows),
            format!("{:.0}", measured.reported),
            format!("{:.2}", measured.percent),
            format!("≤ {GOAL}"),
            if measured.percent <= GOAL { "met" } else { "NOT met" }.into(),
        ]);
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

struct Measured {
    flows: f64,
    reported: f64,
    percent: f64,
}

fn measure(node: &Node, agent: &Agent, sender: &Pod, receivers: &[Pod]) -> Result<Measured> {
    let pid = agent.pid().context("the agent runs")?;
    // As many source ports as make a new flow of each datagram for a while.
    let sockets = sender
        .netns
        .run(|| (0..500).map(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).collect::<std::io::Result<Vec<_>>>())?;
    let counted = |name: &str| -> Result<f64> {
        let (_, page) = agent.http("/metrics")?;
        let values = page
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum())
    };
    let (refused, lost) = ("palisade_packets_total{reason=\"no-rule\"}", "palisade_events_lost_total");
    let (refused_before, lost_before) = (counted(refused)?, counted(lost)?);
    let (begun, before) = (Instant::now(), processor_time(pid)?);
    let mut sent = 0_u32;
    while begun.elapsed() < TIME {
        for _ in 0..AT_ONCE {
            let to = receivers[sent as usize % receivers.len()].ipv4();
            let socket = &sockets[sent as usize % sockets.len()];
            let port = 1024 + (sent as usize / sockets.len() % 20_000) as u16;
            socket.send_to(b"x", SocketAddr::new(to, port))?;
            sent += 1;
        }
        let next = Duration::from_micros(u64::from(sent) * 1_000_000 / u64::from(FLOWS_PER_SECOND));
        std::thread::sleep(next.saturating_sub(begun.elapsed()));
    }
    let (time, used) = (begun.elapsed().as_secs_f64(), processor_time(pid)? - before);
    let refused = counted(refused)? - refused_before;
    ensure!(refused >= f64::from(sent) * 0.99, "{refused} of {sent} flows were refused on {}", node.name);
    Ok(Measured {
        flows: refused / time,
        reported: (refused - (counted(lost)? - lost_before)) / time,
        percent: used / time * 100.0,
    })
}
