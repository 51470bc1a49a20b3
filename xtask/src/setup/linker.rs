//! bpf-linker, which turns the compiler's output into an object that the kernel loads. It is built against the very
//! libLLVM that the compiler brings, since both must speak the same version of LLVM's bitcode.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::rust::Compiler;
use crate::command::{output, run};
use crate::paths;

const VERSION: &str = "0.13.0";

pub fn provide(compiler: &Compiler) -> Result<(PathBuf, String)> {
    let root = paths::cache()?.join(format!("bpf-linker-{VERSION}-rust-{}", compiler.release));
    let linker = root.join("bin/bpf-linker");
    // It is run, as a toolchain that moved takes the library away from a linker that is still there.
    if output(Command::new(&linker).arg("--version")).is_ok() {
        return Ok((linker, format!("{VERSION} present")));
    }
    println!("  building bpf-linker {VERSION} into {} (about a minute)", root.display());
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let libraries = compiler.sysroot.join("lib");
    let llvm = llvm_prefix(&root, &libraries, compiler.llvm_major)?;
    run(Command::new("cargo")
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--quiet",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{}", compiler.llvm_major), "--root"])
        .arg(&root)
        .current_dir(paths::workspace())
        .env("LLVM_PREFIX", llvm)
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", libraries.display()))
        .env_remove("CARGO_TARGET_DIR"))?;
    output(Command::new(&linker).arg("--version")).context("the linker was built and does not run")?;
    Ok((linker, format!("{VERSION} built")))
}

/// A folder that looks like LLVM's own installation: bpf-linker's build looks for `lib/libLLVM.so` in it.
fn llvm_prefix(root: &Path, libraries: &Path, major: u32) -> Result<PathBuf> {
    let library = fs::read_dir(libraries)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&format!("libLLVM.so.{major}."))
        })
        .with_context(|| format!("{} has no libLLVM.so.{major}.*", libraries.display()))?;
    let prefix = root.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    let link = prefix.join("lib/libLLVM.so");
    if link.is_symlink() {
        fs::remove_file(&link)?;
    }
    symlink(&library, &link)?;
    ensure!(link.exists(), "{} cannot be read", library.display());
    Ok(prefix)
}
