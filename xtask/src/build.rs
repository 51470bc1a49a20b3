//! The kernel programs, and the agent with them inside as one static binary.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run, step};
use crate::machine::Machine;
use crate::paths;

/// The kernel runs eBPF in the machine's own byte order.
pub const TARGET: &str = if cfg!(target_endian = "little") { "bpfel-unknown-none" } else { "bpfeb-unknown-none" };

/// Which of the two agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Palisade,
    /// With another layout of its tables, for tests of the change between two versions.
    LayoutTest,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Palisade => "palisade",
            Self::LayoutTest => "palisade-layout-test",
        }
    }

    /// What cargo builds and is kept, by cargo's name and the one that it gets.
    const fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Palisade => &[("palisade-cni", "palisade-cni"), ("palisade", "palisade")],
            Self::LayoutTest => &[("palisade", "palisade-layout-test")],
        }
    }

    /// Where the kernel programs are built, below the target folder.
    const fn folder(self) -> &'static str {
        match self {
            Self::Palisade => "bpf",
            Self::LayoutTest => "bpf-layout-test",
        }
    }

    const fn features(self) -> &'static [&'static str] {
        match self {
            Self::Palisade => &[],
            Self::LayoutTest => &["--features", "layout-test"],
        }
    }

    /// For the agent itself. What exists for tests alone need not be fast; the crates below it are those of the other.
    const fn profile(self) -> &'static [&'static str] {
        match self {
            Self::Palisade => &[],
            Self::LayoutTest => &["--config", "profile.release.package.palisade.opt-level=1"],
        }
    }
}

/// Builds an agent with its programs for this machine; returns its path.
pub fn build(variant: Variant) -> Result<PathBuf> {
    build_for(&Machine::this()?, variant)
}

/// As `build`, for any machine.
pub fn build_for(machine: &Machine, variant: Variant) -> Result<PathBuf> {
    let object = step(&format!("kernel programs of {}", variant.name()), || {
        let object = kernel_programs(machine, variant)?;
        let outcome = object.display().to_string();
        Ok((object, outcome))
    })?;
    step(variant.name(), || {
        let binary = agent(machine, &object, variant)?;
        let megabytes = fs::metadata(&binary)?.len() / 1_000_000;
        let outcome = format!("{}, static, {megabytes} MB", binary.display());
        Ok((binary, outcome))
    })
}

/// What was built, as `--version` says it: PALISADE_COMMIT, for where the sources come without git's folder; else the
/// commit, with `-dirty` where files differ from it.
pub fn commit() -> String {
    if let Some(given) = env::var("PALISADE_COMMIT").ok().filter(|given| !given.is_empty()) {
        return given;
    }
    let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    output(Command::new("git").args(describe).current_dir(paths::workspace()))
        .map_or_else(|_| "unknown".to_owned(), |commit| commit.trim().to_owned())
}

/// Builds the eBPF crate with the stable compiler: `RUSTC_BOOTSTRAP=1` admits `-Z build-std`, for no published toolchain
/// has a core library for this target.
pub fn kernel_programs(machine: &Machine, variant: Variant) -> Result<PathBuf> {
    let folder = machine.folder(variant.folder());
    let mut command = ebpf_cargo(machine, "build");
    command.args(["--release", "--bin", "palisade"]).args(variant.features()).arg("--target-dir").arg(&folder);
    run(&mut command)?;
    let object = folder.join(TARGET).join("release/palisade");
    ensure!(object.exists(), "cargo built no {}", object.display());
    Ok(object)
}

/// `cargo SUBCOMMAND` for the eBPF crate, with the flags of aya-build.
pub fn ebpf_cargo(machine: &Machine, subcommand: &str) -> Command {
    let architecture = machine.architecture();
    // aya knows one name for all of RISC-V's 64-bit variants.
    let architecture = if architecture.starts_with("riscv64") { "riscv64" } else { architecture };
    let mut flags = unnamed_folders(machine);
    flags.extend([
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", machine.toolchain.linker.display()),
    ]);
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::workspace())
        .args([subcommand, "--package", "palisade-ebpf", "--target", TARGET, "-Z", "build-std=core"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // The workspace's release profile is the agent's; a kernel program wants one unit and its BTF kept.
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    command
}

fn agent(machine: &Machine, object: &Path, variant: Variant) -> Result<PathBuf> {
    let mut flags = unnamed_folders(machine);
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::workspace())
        // With `--target`, the flags are not those of build scripts and macros.
        .args(["build", "--release", "--package", "palisade", "--bins", "--target", &machine.triple])
        .args(variant.profile())
        .args(variant.features())
        .arg("--target-dir")
        .arg(paths::target())
        .env("PALISADE_EBPF_OBJECT", object)
        .env("PALISADE_COMMIT", commit());
    if let Some(cross) = &machine.cross {
        flags.push(format!("-Clinker={}", cross.compiler.display()));
        // By these names the crate `cc` is told, with which ring is built.
        let triple = machine.triple.replace('-', "_");
        command.env(format!("CC_{triple}"), &cross.compiler).env(format!("AR_{triple}"), &cross.archiver);
    }
    run(command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    let folder = machine.folder("release");
    fs::create_dir_all(&folder)?;
    for (program, name) in variant.programs() {
        let built = paths::target().join(&machine.triple).join("release").join(program);
        ensure!(is_static(&built)?, "{} asks for a dynamic loader; it should be static", built.display());
        let place = folder.join(name);
        // By a rename, as the old one may be running.
        let part = place.with_extension("part");
        fs::copy(&built, &part).with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, &place)?;
    }
    Ok(folder.join(variant.name()))
}

/// Flags by which the programs name no folder of whoever builds them, and are the same wherever they are built.
fn unnamed_folders(machine: &Machine) -> Vec<String> {
    let remap = |from: PathBuf, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    // Where several match, the last one holds: a home may lie above or below the sources.
    let mut flags = Vec::new();
    flags.extend(paths::cargo_home().map(|home| remap(home, "/cargo")));
    flags.push(remap(machine.toolchain.compiler.sysroot.join("lib/rustlib/src/rust"), "/rust"));
    flags.push(remap(paths::workspace(), "/palisade"));
    flags
}

/// A 64-bit ELF file is static when it has no PT_INTERP program header.
fn is_static(binary: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(binary)?;
    let word = |offset: usize, size: usize| -> Result<usize> {
        let field = bytes.get(offset..offset + size).context("the file is too short to be an ELF file")?;
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(field);
        if cfg!(target_endian = "big") {
            wide[..size].reverse();
        }
        Ok(usize::try_from(u64::from_le_bytes(wide))?)
    };
    ensure!(bytes.starts_with(b"\x7fELF\x02"), "{} is no 64-bit ELF file", binary.display());
    let (table, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
    for number in 0..count {
        if word(table + number * size, 4)? == PT_INTERP as usize {
            return Ok(false);
        }
    }
    Ok(true)
}
