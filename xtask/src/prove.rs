//! `cargo xtask prove`: builds the program that puts random cases before the judges, with the kernel programs inside of it; then
//! runs it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{output, run};
use crate::machine::Machine;
use crate::{build, paths};

/// A profile of its own in Cargo.toml.
const PROFILE: &str = "prove";

pub fn prove(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument.starts_with("--loaded")) {
        let user = output(Command::new("id").arg("-u"))?;
        ensure!(user.trim() == "0", "--loaded loads the kernel programs: run this as root");
    }
    let object = build::kernel_programs(&Machine::this()?, build::Variant::Palisade)?;
    run(Command::new("cargo")
        .current_dir(paths::workspace())
        .args(["build", "--profile", PROFILE, "--package", "palisade-tests", "--bin", "palisade-prove", "--target-dir"])
        .arg(paths::target())
        .env("PALISADE_EBPF_OBJECT", object))?;
    // In our place, so that a signal reaches it and its exit code is ours.
    let program = paths::target().join(PROFILE).join("palisade-prove");
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
