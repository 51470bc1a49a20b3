//! `cargo xtask mutants`: mutation testing, by a program of the tests crate.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::run;
use crate::paths;

const PROGRAM: &str = "palisade-mutants";

pub fn mutants(arguments: &[String]) -> Result<()> {
    run(Command::new("cargo")
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--package", "palisade-tests", "--bin", PROGRAM, "--target-dir"])
        .arg(paths::target()))?;
    let error = Command::new(paths::target().join("debug").join(PROGRAM)).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {PROGRAM}"))
}
