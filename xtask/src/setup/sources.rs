//! The sources of Rust's standard library, which `-Z build-std=core` compiles for the kernel's target.
//!
//! Where rustup has them, rustup brings them. Where it has not (a mirror without the component, RUSTUP_AUTO_INSTALL=0),
//! Debian's package of exactly this release has them; and if both fail, a folder or archive that the user names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::debian;
use super::rust::Compiler;
use crate::command::{output, present, run};
use crate::paths;

const VARIABLE: &str = "PALISADE_RUST_SRC";

pub fn provide(compiler: &Compiler) -> Result<((), String)> {
    let place = compiler.sysroot.join("lib/rustlib/src/rust");
    if complete(&place) {
        return Ok(((), "present".into()));
    }
    let mut tried = Vec::new();
    for (way, provide) in WAYS {
        match provide(compiler, &place) {
            Ok(true) if complete(&place) => return Ok(((), (*way).into())),
            Ok(true) => tried.push(format!("{way}: {} is still without library/core", place.display())),
            Ok(false) => {}
            Err(error) => tried.push(format!("{way}: {error:#}")),
        }
    }
    bail!(
        "the sources of Rust {} are not in the sysroot and could not be brought there; set {VARIABLE} to a folder or a \
         .tar.xz that holds its library/\n  {}",
        compiler.release,
        tried.join("\n  ")
    )
}

/// Whether the way applies here at all, and what it came to.
type Way = fn(&Compiler, &Path) -> Result<bool>;

/// The user's own word goes first.
const WAYS: &[(&str, Way)] = &[(VARIABLE, by_variable), ("rustup", by_rustup), ("Debian's rust-src", by_debian)];

/// What cargo reads for `build-std=core`.
fn complete(place: &Path) -> bool {
    ["Cargo.lock", "core/src/lib.rs", "compiler-builtins"].iter().all(|part| place.join("library").join(part).exists())
}

fn by_variable(compiler: &Compiler, place: &Path) -> Result<bool> {
    let Some(given) = std::env::var_os(VARIABLE) else { return Ok(false) };
    let given = fs::canonicalize(&given).with_context(|| format!("{} cannot be read", Path::new(&given).display()))?;
    let holder = if given.is_dir() {
        given
    } else {
        let folder = fresh(compiler)?;
        run(Command::new("tar").arg("-xf").arg(&given).arg("-C").arg(&folder))?;
        keep(compiler, &folder)?
    };
    let holder = if holder.file_name().is_some_and(|name| name == "library") {
        holder.parent().expect("a folder named library has a parent").to_owned()
    } else {
        holder
    };
    ensure!(complete(&holder), "{} does not hold a complete library/", holder.display());
    link(&holder, place)?;
    Ok(true)
}

fn by_rustup(compiler: &Compiler, _place: &Path) -> Result<bool> {
    if !present("rustup") {
        return Ok(false);
    }
    let toolchain = compiler.sysroot.file_name().context("the sysroot has no name")?;
    output(Command::new("rustup").args(["component", "add", "rust-src", "--toolchain"]).arg(toolchain))?;
    Ok(true)
}

fn by_debian(compiler: &Compiler, place: &Path) -> Result<bool> {
    let kept = sources_folder(compiler)?;
    if !complete(&kept) {
        let work = fresh(compiler)?;
        let package = debian::download("rust-src", &compiler.release, &work)?;
        let member = format!("./usr/src/rustc-{}/library", compiler.release);
        debian::unpack(&package, &member, &work)?;
        fs::rename(work.join(member), work.join("library")).context("the package lies otherwise than it used to")?;
        fs::remove_dir_all(work.join("usr"))?;
        fs::remove_file(&package)?;
        keep(compiler, &work)?;
    }
    link(&kept, place)?;
    Ok(true)
}

fn sources_folder(compiler: &Compiler) -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("rust-src-{}", compiler.release)))
}

/// An empty folder beside the final one, so that what is half done never looks complete.
fn fresh(compiler: &Compiler) -> Result<PathBuf> {
    let folder = sources_folder(compiler)?.with_extension("part");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn keep(compiler: &Compiler, folder: &Path) -> Result<PathBuf> {
    let kept = sources_folder(compiler)?;
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::rename(folder, &kept)?;
    Ok(kept)
}

fn link(holder: &Path, place: &Path) -> Result<()> {
    let parent = place.parent().expect("the place lies in a sysroot");
    fs::create_dir_all(parent)?;
    // What is there is incomplete (`provide` asked); a link is replaced, a folder is somebody's and stays.
    if place.is_symlink() {
        fs::remove_file(place)?;
    }
    if place.is_dir() {
        let library = place.join("library");
        ensure!(
            !library.exists() || library.is_symlink(),
            "{} is there and incomplete; remove it and try again",
            library.display()
        );
        if library.is_symlink() {
            fs::remove_file(&library)?;
        }
        return symlink(holder.join("library"), &library).with_context(|| format!("cannot link {}", library.display()));
    }
    symlink(holder, place).with_context(|| format!("cannot link {}", place.display()))
}
