//! Speed: `cargo xtask bench [in-kernel | connections]`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use palisade_tests::bench::{connections, in_kernel, load};

const USAGE: &str = "\
usage: palisade-bench [in-kernel | connections]

  in-kernel      what a packet costs in the kernel programs, by test runs
  connections    new connections per second to a pod, with and without an agent

Without an argument both are measured, which takes about ten minutes.
";

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
        [] => {
            connections::run()?;
            // Last, as it moves this thread into a namespace of its own.
            in_kernel::run()
        }
        ["in-kernel"] => in_kernel::run(),
        ["connections"] => connections::run(),
        // What `connections` starts in its pods.
        ["serve"] => load::serve(),
        ["connect", server, parallel] => load::connect(server.parse()?, parallel.parse()?),
        _ => bail!("{USAGE}"),
    }
}
