//! `cargo xtask bench`: builds the agent, and the measuring program with the kernel programs inside of it; then measures.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{output, run};
use crate::machine::Machine;
use crate::{build, paths, setup};

pub fn bench(arguments: &[String]) -> Result<()> {
    ensure!(output(Command::new("id").arg("-u"))?.trim() == "0", "the lab makes network namespaces: run this as root");
    let object = build::kernel_programs(&Machine::this()?, build::Variant::Palisade)?;
    build::build(build::Variant::Palisade)?;
    setup::lab()?;
    setup::control_plane()?;
    run(Command::new("cargo")
        .current_dir(paths::workspace())
        .args(["build", "--package", "palisade-tests", "--bins", "--target-dir"])
        .arg(paths::target())
        .env("PALISADE_EBPF_OBJECT", object))?;
    // In our place, so that a signal reaches the program that has something to clean up.
    let program = paths::target().join("debug/palisade-bench");
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
