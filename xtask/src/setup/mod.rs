//! What a machine needs beyond the checkout. Every step looks first, does only what is missing, and can be repeated.

mod debian;
mod go;
mod linker;
mod packages;
mod rust;
mod sources;

use std::path::PathBuf;

use anyhow::Result;

use crate::command::step;
pub use rust::Compiler;

/// What building the kernel programs needs.
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

pub fn toolchain() -> Result<Toolchain> {
    let compiler = step("Rust 1.95", rust::check)?;
    step("sources of Rust's core library", || sources::provide(&compiler))?;
    let linker = step("bpf-linker", || linker::provide(&compiler))?;
    Ok(Toolchain { compiler, linker })
}

/// The programs that the lab calls, and the folder with libcni's runner and the plugins.
pub fn lab() -> Result<PathBuf> {
    step("packages of the lab", packages::provide)?;
    step("Go 1.26", go::check)?;
    step("CNI runner and plugins", go::provide_cni)
}

/// The folder with etcd and kube-apiserver.
pub fn control_plane() -> Result<PathBuf> {
    step("etcd and kube-apiserver", go::provide_control_plane)
}

pub fn all() -> Result<()> {
    toolchain()?;
    lab()?;
    control_plane()?;
    Ok(())
}
