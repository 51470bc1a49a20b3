//! What building for the other architecture takes: Rust's standard library for it from rustup, a C compiler and linker
//! with a static libc (ring has parts in C), and qemu, which runs what was built.
//!
//! Programs of the machine's own are used where it has them; else those of its Debian are unpacked into the cache.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::debian;
use super::rust::Compiler;
use crate::command::{output, present};
use crate::machine::Platform;
use crate::paths;

#[derive(Debug)]
pub struct Cross {
    /// Of C, and what links.
    pub compiler: PathBuf,
    pub archiver: PathBuf,
    /// Runs one program of the other architecture.
    pub emulator: PathBuf,
}

pub fn provide_library(compiler: &Compiler, triple: &str) -> Result<((), String)> {
    let library = compiler.sysroot.join("lib/rustlib").join(triple).join("lib");
    if library.is_dir() {
        return Ok(((), "present".into()));
    }
    let by_hand = format!("Rust {} has no standard library for {triple}, and it needs one", compiler.release);
    ensure!(present("rustup"), "{by_hand}; there is no rustup to bring it");
    let toolchain = compiler.sysroot.file_name().context("the sysroot has no name")?;
    output(Command::new("rustup").args(["target", "add", triple, "--toolchain"]).arg(toolchain)).context(by_hand)?;
    Ok(((), "rustup".into()))
}

pub fn provide_compiler(compiler: &Compiler, platform: Platform) -> Result<((PathBuf, PathBuf), String)> {
    let prefix = format!("{}-linux-gnu", platform.architecture());
    let (gcc, ar) = (format!("{prefix}-gcc"), format!("{prefix}-ar"));
    if present(&gcc) && present(&ar) {
        return Ok(((gcc.into(), ar.into()), "present".into()));
    }
    let packages = [format!("gcc-{}", prefix.replace('_', "-")), format!("libc6-dev-{}-cross", platform.name())];
    let (folder, outcome) = unpacked(&format!("gcc-{prefix}"), &packages, |folder| {
        wrap(folder, compiler, &gcc, "\"--sysroot=$root\"")?;
        wrap(folder, compiler, &ar, "")
    })?;
    Ok(((folder.join(gcc), folder.join(ar)), outcome))
}

pub fn provide_emulator(platform: Platform) -> Result<(PathBuf, String)> {
    let dynamic = format!("qemu-{}", platform.architecture());
    let fixed = format!("{dynamic}-static");
    if let Some(program) = [&fixed, &dynamic].into_iter().find(|program| present(program)) {
        return Ok((program.into(), "present".into()));
    }
    let (folder, outcome) = unpacked(&dynamic, &["qemu-user-static".to_owned()], |folder| {
        // The package has one for each of some thirty architectures.
        fs::copy(folder.join("root/usr/bin").join(&fixed), folder.join(&fixed))?;
        Ok(fs::remove_dir_all(folder.join("root"))?)
    })?;
    Ok((folder.join(fixed), outcome))
}

/// A folder of the cache with what these packages hold below `root`, and what `finish` adds.
pub(super) fn unpacked(
    name: &str,
    packages: &[String],
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<(PathBuf, String)> {
    let by_hand = || format!("install these by hand: {}", packages.join(" "));
    let folder = paths::cache()?.join(format!("{name}-{}", debian::release().with_context(by_hand)?));
    if folder.exists() {
        return Ok((folder, "present".into()));
    }
    let part = folder.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let root = part.join("root");
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    debian::unpack_missing(packages, &root).with_context(by_hand)?;
    finish(&part)?;
    fs::rename(&part, &folder)?;
    Ok((folder, format!("unpacked {}", packages.join(" "))))
}

/// A program that finds the shared libraries which were unpacked with it: one that is not installed finds only the system's.
fn wrap(folder: &Path, compiler: &Compiler, program: &str, arguments: &str) -> Result<()> {
    let architecture = compiler.host.split('-').next().unwrap_or(env::consts::ARCH);
    let script = format!(
        r#"#!/bin/sh
root=$(dirname "$(realpath "$0")")/root
export LD_LIBRARY_PATH="$root/usr/lib/{architecture}-linux-gnu"
exec "$root/usr/bin/{program}" {arguments} "$@"
"#
    );
    let place = folder.join(program);
    fs::write(&place, script)?;
    fs::set_permissions(&place, Permissions::from_mode(0o755))?;
    Ok(())
}
