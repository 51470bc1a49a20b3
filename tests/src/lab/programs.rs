//! Where the programs are that the lab runs: beside the running one, where cargo and `cargo xtask setup` put them.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The lab's own helper: servers, the guard, probes by hand.
pub fn helper() -> Result<PathBuf> {
    find("palisade-lab").context("palisade-lab is not built: `cargo build -p palisade-tests --bins`")
}

/// Folder of libcni's runner and the plugins.
pub fn cni() -> Result<PathBuf> {
    find("lab/cni").context("the CNI plugins are not built: `cargo xtask setup`")
}

/// Folder of etcd and kube-apiserver.
pub fn control_plane() -> Result<PathBuf> {
    find("lab/control-plane").context("etcd and kube-apiserver are not built: `cargo xtask setup`")
}

pub fn kube_proxy() -> Result<PathBuf> {
    find("lab/kube-proxy/kube-proxy").context("kube-proxy is not built: `cargo xtask setup`")
}

pub fn dns() -> Result<PathBuf> {
    find("lab/dns/coredns").context("CoreDNS is not built: `cargo xtask setup`")
}

/// Folder of kubectl.
pub fn kubectl() -> Result<PathBuf> {
    find("lab/kubectl").context("kubectl is not built: `cargo xtask setup`")
}

/// What stands for a kubelet.
pub fn kubelet_stub() -> Result<PathBuf> {
    Ok(kubectl()?.join("kubelet-stub"))
}

/// A program of a cluster's nodes: of folder `part` of `cargo xtask cluster`.
pub fn of_cluster(part: &str, name: &str) -> Result<PathBuf> {
    find(&format!("lab/{part}/{name}")).with_context(|| format!("{name} is not built: `cargo xtask cluster`"))
}

/// Prometheus' linter, parsers and engine.
pub fn promcheck() -> Result<PathBuf> {
    find("lab/prom/promcheck").context("promcheck is not built: `cargo xtask setup`")
}

/// The static agent.
pub fn agent() -> Result<PathBuf> {
    find("release/palisade").context("the agent is not built: `cargo xtask build`")
}

/// The same with another layout of its tables.
pub fn agent_of_another_layout() -> Result<PathBuf> {
    find("release/palisade-layout-test")
        .context("the agent for tests of layouts is not built: `cargo xtask build --layout-test`")
}

/// Tests lie in target/debug/deps, programs in target/debug, the rest in target.
fn find(name: &str) -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    program.ancestors().skip(1).take(4).map(|folder| folder.join(name)).find(|path| path.exists())
}
