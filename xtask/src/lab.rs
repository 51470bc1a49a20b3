//! Programs of the tests crate that need the built agent and the lab: the demo and the benchmarks.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run};
use crate::{build, paths, setup};

/// What the lab library asks for (tests/src/lab/programs.rs).
pub const CNI_VARIABLE: &str = "PALISADE_LAB_CNI";
pub const HELPER_VARIABLE: &str = "PALISADE_LAB_HELPER";
pub const CONTROL_PLANE_VARIABLE: &str = "PALISADE_LAB_CONTROL_PLANE";
pub const AGENT_VARIABLE: &str = "PALISADE_LAB_AGENT";

pub fn run_program(program: &str, arguments: &[String]) -> Result<()> {
    ensure!(output(Command::new("id").arg("-u"))?.trim() == "0", "the lab makes network namespaces: run this as root");
    let agent = build::build()?;
    let cni = setup::lab()?;
    build_helpers()?;
    let folder = paths::target().join("debug");
    // In our place, so that a signal reaches the program that has something to clean up.
    let error = Command::new(folder.join(program))
        .args(arguments)
        .env(AGENT_VARIABLE, agent)
        .env(CNI_VARIABLE, cni)
        .env(HELPER_VARIABLE, folder.join("palisade-lab"))
        .exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

/// The programs of the tests crate.
pub fn build_helpers() -> Result<()> {
    run(Command::new("cargo")
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--package", "palisade-tests", "--bins", "--target-dir"])
        .arg(paths::target()))
}
