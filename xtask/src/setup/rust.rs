//! Which Rust compiler there is. Its release chooses the sources of core, its LLVM the feature of bpf-linker.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::output;

/// The newest aya that is published builds from this release on, and newer aya needs a newer compiler.
const MINOR: u32 = 95;

pub struct Compiler {
    /// As in `1.95.0`.
    pub release: String,
    /// As in 22.
    pub llvm_major: u32,
    /// As in `x86_64-unknown-linux-gnu`.
    pub host: String,
    pub sysroot: PathBuf,
}

pub fn check() -> Result<(Compiler, String)> {
    let said = output(Command::new("rustc").arg("-vV"))
        .context("no Rust compiler was found: install rustup, then `rustup toolchain install 1.95.0`")?;
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let compiler = Compiler::parse(&said, PathBuf::from(sysroot.trim()))?;
    ensure!(
        compiler.release.split('.').nth(1).and_then(|minor| minor.parse().ok()) == Some(MINOR),
        "this is Rust {}, and the kernel programs are built with 1.{MINOR}: `rustup toolchain install 1.{MINOR}.0`",
        compiler.release
    );
    let outcome = format!("{} with LLVM {}", compiler.release, compiler.llvm_major);
    Ok((compiler, outcome))
}

// === impl Compiler ===

impl Compiler {
    fn parse(said: &str, sysroot: PathBuf) -> Result<Self> {
        let field = |name: &str| {
            said.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("`rustc -vV` does not say `{name}`"))
        };
        let llvm = field("LLVM version")?;
        let llvm_major = llvm.split('.').next().and_then(|major| major.parse().ok());
        Ok(Self {
            release: field("release")?.to_owned(),
            llvm_major: llvm_major.with_context(|| format!("LLVM version `{llvm}` is not a number"))?,
            host: field("host")?.to_owned(),
            sysroot,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rustc_says() {
        let said = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.95.0\nLLVM version: 22.1.2\n";
        let compiler = Compiler::parse(said, PathBuf::new()).expect("this is what rustc prints");
        assert_eq!(
            (compiler.release.as_str(), compiler.llvm_major, compiler.host.as_str()),
            ("1.95.0", 22, "x86_64-unknown-linux-gnu")
        );
        assert!(Compiler::parse("release: 1.95.0\nhost: h\n", PathBuf::new()).is_err());
    }
}
