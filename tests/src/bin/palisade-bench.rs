//! Speed: `cargo xtask bench [NAME…]`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use palisade_tests::bench::{
    commands, events, exits, in_kernel, load, pods, policy, restart, scale, service_traffic, size, start, throughput,
    xdp,
};

const USAGE: &str = "\
usage: palisade-bench [NAME…]

  throughput     streams, exchanges and new connections between two pods, with and without an agent
  connections    of that, new connections per second to a pod, with and without an agent
  services       streams, exchanges and new connections to a Service, among 1 and 5,000, with and without an agent
  policy         from the API server's answer to a policy write until it holds, with 10 and with 5,000 pods
  start          from an agent's start until it enforces, its memory and idle processor time, with 10 and with 5,000 pods
  pods           10,000 new pods that talk in their first millisecond, with the CNI plugin, and a tenth of that without it, and without an
                 agent; `pods --pods COUNT`: as many
  restart        what becomes of 50,000 connections and of new ones while agents are killed and started 100 times, and stopped and started
                 20 times while policies change; `restart --other PATH`: and exchanged with that agent, of another layout, by turns
  size           memory, start and what is asked of the API server, with 1,000, 20,000 and 150,000 pods, and with 10,000 policies;
                 `size --point NUMBER`: one of the four (0 to 3)
  churn          100 changes of pods a second, and as many as in an hour: processor time, growth, and whether any is lost;
                 `churn --changes COUNT`: so many instead
  apiserver      what one agent asks of the API server, and what the watches of 100 and of 1,000 cost it
  events         what it costs the agent to tell of 10,000 refused flows a second
  commands       how long each command takes that shows something, on a node with 250 pods
  in-kernel      what a packet costs in the kernel programs, by test runs
  xdp            a refused flood on one core: at the uplink (--xdp), at the pod's interface, and by netfilter
  exits          what a packet costs where it leaves the node, by test runs
  scale          how that grows with the number of rules, pods and ranges of ports

Without a name all are measured (`connections` as a part of `throughput`), which takes about half an hour.
";

type Bench = fn() -> Result<()>;

/// By name, in the order in which they are run: the last three move their thread into namespaces of its own.
const BENCHES: [(&str, Bench); 16] = [
    ("throughput", throughput::run),
    ("connections", throughput::run_connections),
    ("services", service_traffic::run),
    ("policy", policy::run),
    ("start", start::run),
    ("pods", || pods::run(10_000)),
    ("restart", || restart::run(None)),
    ("size", || size::run(None)),
    ("churn", || size::run_churn(size::HOUR)),
    ("apiserver", size::run_apiserver),
    ("events", events::run),
    ("xdp", xdp::run),
    ("commands", commands::run),
    ("in-kernel", in_kernel::run),
    ("exits", exits::run),
    ("scale", scale::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("palisade-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        // What `throughput` starts in its pods.
        ["serve"] => return load::serve(),
        ["client", server] => return load::client(server.parse()?),
        ["pods", "--pods", count] => {
            println!("== pods");
            return pods::run(count.parse().context("a number of pods")?);
        }
        ["size", "--point", number] => {
            println!("== size");
            return size::run(Some(number.parse().context("a number")?));
        }
        ["churn", "--changes", count] => {
            println!("== churn");
            return size::run_churn(count.parse().context("a number of changes")?);
        }
        ["restart", "--other", path] => {
            println!("== restart");
            return restart::run(Some(path.into()));
        }
        names => {
            for name in names {
                BENCHES.iter().find(|(known, _)| known == name).context(USAGE)?;
            }
        }
    }
    let wanted = |name: &str| if arguments.is_empty() { name != "connections" } else { arguments.contains(&name) };
    for (name, run) in BENCHES.iter().filter(|(name, _)| wanted(name)) {
        println!("== {name}");
        run()?;
    }
    Ok(())
}
