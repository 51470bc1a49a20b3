//! Programs of the tests crate that need the built agent and the lab: the demo and the benchmarks.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run};
use crate::{build, paths, setup};

pub fn run_program(program: &str, arguments: &[String]) -> Result<()> {
    ensure!(output(Command::new("id").arg("-u"))?.trim() == "0", "the lab makes network namespaces: run this as root");
    build::build(build::Variant::Palisade)?;
    setup::lab()?;
    build_helpers()?;
    // In our place, so that a signal reaches the program that has something to clean up.
    let error = Command::new(paths::target().join("debug").join(program)).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// The programs of the tests crate.
pub fn build_helpers() -> Result<()> {
    run(Command::new("cargo")
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--package", "palisade-tests", "--bins", "--target-dir"])
        .arg(paths::target()))
}
