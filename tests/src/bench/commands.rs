//! How long each command takes that shows something, on a node with 250 pods and 10,000 flows.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use palisade::tables::address_v6;
use palisade_common::layout::{Address, FlowKey, FlowValue};

use super::machine;
use super::stats::Sample;
use super::table::Table;
use crate::judges::Memory;
use crate::lab::agent::palisade_command;
use crate::lab::probe::{Probe, ask_all_within};
use crate::lab::{Agent, AgentOptions, Lab, Manifests, Node, Pod, PodSpec, Transport, objects};

const PODS: usize = 250;
const APPS: usize = 10;
const FLOWS: usize = 10_000;
const RUNS: usize = 11;
/// In milliseconds.
const GOAL: f64 = 1000.0;
/// Each app may be reached by the next, and reach the one before.
const POLICY: &str = "{podSelector: {matchLabels: {app: a-OWN}}, policyTypes: [Ingress, Egress],
    ingress: [{from: [{podSelector: {matchLabels: {app: a-NEXT}}}], ports: [{port: http}, {port: 9000, endPort: 9100}]}],
    egress: [{to: [{podSelector: {matchLabels: {app: a-LAST}}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}]}]}";

pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let lab = Lab::new("commands")?;
    let node = lab.node("node", 1)?;
    let manifests = Manifests::new(&lab.folder.join("manifests"))?;
    let specs: Vec<PodSpec> = (0..PODS)
        .map(|number| {
            let labels = [("app", &*format!("a-{}", number % APPS)), ("tier", "web")];
            PodSpec::new("shop", &format!("pod-{number}"), &labels).port("http", "TCP", 80)
        })
        .collect();
    let pods = node.start_pods(&lab, &specs)?;
    manifests.put(&objects::node(&node))?;
    manifests.put(&objects::namespace("shop", &[]))?;
    pods.iter().try_for_each(|pod| manifests.put(&objects::pod(pod, &node)))?;
    for number in 0..APPS {
        manifests.put(&objects::policy("shop", &format!("p-{number}"), &policy(number))?)?;
    }
    let agent = Agent::start(&lab, &node, &AgentOptions::manifests(&manifests.folder))?;
    remember(&node, &pods)?;
    refuse(&pods);
    let stricter = lab.folder.join("stricter.yaml");
    let spec = "{podSelector: {matchLabels: {app: a-0}}, policyTypes: [Ingress]}";
    fs::write(&stricter, objects::policy("shop", "p-0", spec)?.to_string())?;
    let stricter = stricter.display().to_string();
    let mut table = Table::new(&["command", "best, ms", "median, ms", "worst, ms", "goal", ""]);
    let mut slow = Vec::new();
    for line in [
        "status",
        "endpoints",
        "endpoints -o wide",
        "endpoints shop/pod-7",
        "policies",
        "policies -o wide",
        "flows",
        "flows --pod shop/pod-7",
        "drops",
        "explain shop/pod-1 shop/pod-0 tcp/80",
        "maps",
        "maps diff",
        "check -f FILE --against live",
    ] {
        let arguments: Vec<&str> = line.split(' ').map(|word| if word == "FILE" { &*stricter } else { word }).collect();
        let times = (0..RUNS).map(|_| time(&node, &arguments)).collect::<Result<Vec<_>>>()?;
        let times = Sample::new(times);
        let met = times.greatest() <= GOAL;
        if !met {
            slow.push(line);
        }
        let ms = |value: f64| format!("{value:.0}");
        let met = if met { "met" } else { "MISSED" };
        let cells =
            [ms(times.least()), ms(times.median()), ms(times.greatest()), format!("≤ {GOAL:.0}"), met.to_owned()];
        table.row(std::iter::once(line.to_owned()).chain(cells).collect());
    }
    println!("{table}\nLoad at the end: {}", machine::load());
    ensure!(agent.stop()?.success(), "the agent did not end well");
    ensure!(slow.is_empty(), "these take longer than a second: {}", slow.join("; "));
    Ok(())
}

fn policy(number: usize) -> String {
    let app = |number: usize| (number % APPS).to_string();
    let spec = POLICY.replace("OWN", &app(number)).replace("NEXT", &app(number + 1));
    spec.replace("LAST", &app(number + APPS - 1))
}

/// Puts flows into the table as pods that talk to each other leave them there.
fn remember(node: &Node, pods: &[Pod]) -> Result<()> {
    let mut memory = Memory::open(&node.pin_dir)?;
    let seen = palisade::pause::now();
    let address = |pod: &Pod| match pod.ipv4() {
        std::net::IpAddr::V4(address) => Address::v4(u32::from_ne_bytes(address.octets())),
        std::net::IpAddr::V6(address) => address_v6(address),
    };
    for number in 0..FLOWS {
        let (from, to) = (address(&pods[(number + 1) % PODS]), address(&pods[number % PODS]));
        let ports = [30_000 + (number / PODS) as u16, 80];
        let mut ends = [(from, ports[0]), (to, ports[1])];
        ends.sort();
        let [(low, low_port), (high, high_port)] = ends;
        let key = FlowKey { low, high, low_port, high_port, protocol: 6, family: 4, ..FlowKey::default() };
        memory.put_flow(key, FlowValue { seen, ..FlowValue::default() })?;
    }
    Ok(())
}

/// What `palisade drops` is to know.
fn refuse(pods: &[Pod]) {
    let probe = |number: usize| {
        let (from, to) = (&pods[number], &pods[(number + 5) % PODS]);
        (Probe::new(&from.netns, Transport::Tcp, to.ipv4(), 80), Duration::from_millis(300))
    };
    for start in (0..PODS).step_by(25) {
        ask_all_within(&(start..start + 25).map(probe).collect::<Vec<_>>());
    }
}

/// In milliseconds, from its start to its end. Its answer may be no.
fn time(node: &Node, arguments: &[&str]) -> Result<f64> {
    let mut command = palisade_command(node, arguments)?;
    let begun = Instant::now();
    let output = command.output()?;
    let taken = begun.elapsed();
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(matches!(code, Some(0 | 3)), "palisade {}: {code:?}: {said}", arguments.join(" "));
    Ok(taken.as_secs_f64() * 1e3)
}
