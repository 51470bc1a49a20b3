//! What a machine needs beyond the checkout. Every step looks first, does only what is missing, and can be repeated.

mod cluster;
mod cross;
mod debian;
mod go;
mod linker;
mod packages;
mod rust;
mod sources;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::step;
use crate::machine::Platform;
use crate::paths;
pub use cross::Cross;
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

/// What building for another architecture needs, and running what was built.
pub fn cross(compiler: &Compiler, triple: &str, platform: Platform) -> Result<Cross> {
    step(&format!("Rust's library for {triple}"), || cross::provide_library(compiler, triple))?;
    let (gcc, archiver) = step("C compiler for it", || cross::provide_compiler(compiler, platform))?;
    let emulator = step("user-mode qemu", || cross::provide_emulator(platform))?;
    Ok(Cross { compiler: gcc, archiver, emulator })
}

/// The programs that the lab calls, and libcni's runner with the plugins as `target/lab/cni`.
pub fn lab() -> Result<()> {
    step("packages of the lab", || packages::provide(packages::LAB))?;
    step("Go 1.26", go::check)?;
    let folder = step("CNI runner and plugins", go::provide_cni)?;
    link("cni", &folder)
}

/// A C++ compiler, which only fuzzing needs.
pub fn cxx() -> Result<()> {
    step("C++ compiler", || packages::provide(packages::CXX))
}

/// etcd and kube-apiserver as `target/lab/control-plane`.
pub fn control_plane() -> Result<()> {
    let folder = step("etcd and kube-apiserver", go::provide_control_plane)?;
    link("control-plane", &folder)
}

/// kubectl and what stands for a kubelet as `target/lab/kubectl`.
pub fn kubectl() -> Result<()> {
    link("kubectl", &step("kubectl", go::provide_kubectl)?)
}

/// kube-proxy and a DNS server for tests of Services, as `target/lab/kube-proxy` and `target/lab/dns`.
pub fn services() -> Result<()> {
    step("packages of kube-proxy", || packages::provide(packages::KUBE_PROXY))?;
    link("kube-proxy", &step("kube-proxy", go::provide_kube_proxy)?)?;
    link("dns", &step("CoreDNS", go::provide_dns)?)
}

/// What whole nodes are made of, as `target/lab/kubernetes`, `target/lab/flannel` and `target/lab/containerd`.
pub fn cluster() -> Result<()> {
    link("kubernetes", &step("kubelet, controllers, scheduler, kubectl, agnhost", cluster::provide_kubernetes)?)?;
    link("flannel", &step("flanneld and its CNI plugin", cluster::provide_flannel)?)?;
    link("containerd", &step("containerd and runc", cluster::provide_containerd)?)
}

/// Helm as `target/lab/helm`.
pub fn chart() -> Result<()> {
    link("helm", &step("helm", go::provide_helm)?)
}

/// Whether [`cluster`] has nothing to do that takes long.
pub fn cluster_is_built() -> Result<bool> {
    cluster::is_built()
}

/// Kubernetes' end-to-end tests as `target/lab/e2e`.
pub fn e2e() -> Result<()> {
    link("e2e", &step("Kubernetes' end-to-end tests", cluster::provide_e2e)?)
}

/// Another enforcer of policies, as `target/lab/kube-router`.
pub fn kube_router() -> Result<()> {
    step("packages of kube-router", || packages::provide(packages::KUBE_ROUTER))?;
    link("kube-router", &step("kube-router", cluster::provide_kube_router)?)
}

/// Prometheus' linter, parsers and engine, as `target/lab/prom`.
pub fn prometheus() -> Result<()> {
    step("Go 1.26", go::check)?;
    link("prom", &step("promcheck", go::provide_promcheck)?)
}

/// Helm, the program.
pub fn helm() -> Result<PathBuf> {
    Ok(step("helm", go::provide_helm)?.join("helm"))
}

/// Beside what cargo builds, where the lab library looks for it.
fn link(name: &str, folder: &Path) -> Result<()> {
    let place = paths::target().join("lab").join(name);
    fs::create_dir_all(place.parent().expect("it lies in a folder"))?;
    if place.is_symlink() {
        fs::remove_file(&place)?;
    }
    symlink(folder, &place).with_context(|| format!("cannot link {}", place.display()))
}

pub fn all() -> Result<()> {
    toolchain()?;
    lab()?;
    control_plane()?;
    kubectl()?;
    services()?;
    prometheus()?;
    cxx()?;
    Ok(())
}
