//! The kernel programs, and the agent with them inside as one static binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, run, step};
use crate::paths;
use crate::setup::{self, Toolchain};

/// The kernel runs eBPF in the machine's own byte order.
const TARGET: &str = if cfg!(target_endian = "little") { "bpfel-unknown-none" } else { "bpfeb-unknown-none" };

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
}

/// Builds an agent with its programs; returns its path.
pub fn build(variant: Variant) -> Result<PathBuf> {
    let toolchain = setup::toolchain()?;
    let object = step(&format!("kernel programs of {}", variant.name()), || {
        let object = kernel_programs(&toolchain, variant)?;
        let outcome = object.display().to_string();
        Ok((object, outcome))
    })?;
    step(variant.name(), || {
        let binary = agent(&toolchain, &object, variant)?;
        let megabytes = fs::metadata(&binary)?.len() / 1_000_000;
        let outcome = format!("{}, static, {megabytes} MB", binary.display());
        Ok((binary, outcome))
    })
}

/// Builds the eBPF crate with the stable compiler: `RUSTC_BOOTSTRAP=1` admits `-Z build-std`, for no published toolchain
/// has a core library for this target.
pub fn kernel_programs(toolchain: &Toolchain, variant: Variant) -> Result<PathBuf> {
    let folder = paths::target().join(variant.folder());
    let mut command = ebpf_cargo(toolchain, "build");
    command.args(["--release", "--bin", "palisade"]).args(variant.features()).arg("--target-dir").arg(&folder);
    run(&mut command)?;
    let object = folder.join(TARGET).join("release/palisade");
    ensure!(object.exists(), "cargo built no {}", object.display());
    Ok(object)
}

/// `cargo SUBCOMMAND` for the eBPF crate, with the flags of aya-build.
pub fn ebpf_cargo(toolchain: &Toolchain, subcommand: &str) -> Command {
    let host = &toolchain.compiler.host;
    let architecture = host.split('-').next().unwrap_or(host);
    // aya knows one name for all of RISC-V's 64-bit variants.
    let architecture = if architecture.starts_with("riscv64") { "riscv64" } else { architecture };
    let flags = [
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
    ];
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

fn agent(toolchain: &Toolchain, object: &Path, variant: Variant) -> Result<PathBuf> {
    let target = &toolchain.compiler.host;
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::workspace())
        // With `--target`, the flags are not those of build scripts and macros.
        .args(["build", "--release", "--package", "palisade", "--bins", "--target", target])
        .args(variant.features())
        .arg("--target-dir")
        .arg(paths::target())
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("PALISADE_EBPF_OBJECT", object);
    let git = ["rev-parse", "--short=12", "HEAD"];
    if let Ok(commit) = output(Command::new("git").args(git).current_dir(paths::workspace())) {
        command.env("PALISADE_COMMIT", commit.trim());
    }
    run(&mut command)?;
    for (program, name) in variant.programs() {
        let built = paths::target().join(target).join("release").join(program);
        ensure!(is_static(&built)?, "{} asks for a dynamic loader; it should be static", built.display());
        let place = paths::target().join("release").join(name);
        fs::create_dir_all(place.parent().expect("it lies in a folder"))?;
        // By a rename, as the old one may be running.
        let part = place.with_extension("part");
        fs::copy(&built, &part).with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, &place)?;
    }
    Ok(paths::target().join("release").join(variant.name()))
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
