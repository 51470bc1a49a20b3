//! Speed: `cargo xtask bench [NAME…]`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use palisade_tests::bench::{connections, in_kernel, load, policy, start};

const USAGE: &str = "\
usage: palisade-bench [NAME…]

  connections    new connections per second to a pod, with and without an agent
  policy         from the API server's answer to a policy write until it holds, with 10 and with 5,000 pods
  start          from an agent's start until it enforces, its memory and idle processor time, with 10 and with 5,000 pods
  in-kernel      what a packet costs in the kernel programs, by test runs

Without a name all are measured, which takes about twenty minutes.
";

type Bench = fn() -> Result<()>;

/// By name, in the order in which they are run: the last one moves its thread into a namespace of its own.
const BENCHES: [(&str, Bench); 4] =
    [("connections", connections::run), ("policy", policy::run), ("start", start::run), ("in-kernel", in_kernel::run)];

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
        // What `connections` starts in its pods.
        ["serve"] => return load::serve(),
        ["connect", server, parallel] => return load::connect(server.parse()?, parallel.parse()?),
        names => {
            for name in names {
                BENCHES.iter().find(|(known, _)| known == name).context(USAGE)?;
            }
        }
    }
    for (name, run) in BENCHES.iter().filter(|(name, _)| arguments.is_empty() || arguments.contains(name)) {
        println!("== {name}");
        run()?;
    }
    Ok(())
}
