//! Palisade in the cluster: put there and taken away as docs/install.md says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Cluster, ClusterNode};
use crate::lab::programs;

pub const NAMESPACE: &str = "palisade";
pub const DAEMON_SET: &str = "daemonset/palisade";

/// What it is installed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    Manifest,
    Kustomize,
    Chart,
}

/// Returns when every node's agent enforces.
pub fn install(cluster: &Cluster, how: Install) -> Result<()> {
    let (kubectl, deploy) = (&cluster.kubectl, &cluster.places.deploy);
    match how {
        Install::Manifest => kubectl.run(&["apply", "--filename", &text(&deploy.join("palisade.yaml"))?])?,
        Install::Kustomize => kubectl.run(&["apply", "--kustomize", &text(deploy)?])?,
        Install::Chart => {
            kubectl.run(&["create", "namespace", NAMESPACE])?;
            let level = "pod-security.kubernetes.io/enforce=privileged";
            kubectl.run(&["label", "namespace", NAMESPACE, level])?;
            helm(cluster, &["install", "palisade", &text(&chart(cluster))?])?
        }
    };
    kubectl.rolled_out(NAMESPACE, DAEMON_SET)
}

/// Returns when every node is clean and the last object is gone.
pub fn uninstall(cluster: &Cluster, how: Install) -> Result<()> {
    let (kubectl, deploy) = (&cluster.kubectl, &cluster.places.deploy);
    match how {
        Install::Manifest | Install::Kustomize => {
            let file = text(&deploy.join("uninstall.yaml"))?;
            kubectl.run(&["apply", "--filename", &file])?;
            kubectl.rolled_out(NAMESPACE, DAEMON_SET)?;
            kubectl.run(&["delete", "--filename", &file])?;
        }
        Install::Chart => {
            helm(cluster, &["uninstall", "palisade", "--wait"])?;
            kubectl.run(&["delete", "namespace", NAMESPACE])?;
        }
    }
    Ok(())
}

fn chart(cluster: &Cluster) -> PathBuf {
    cluster.places.deploy.join("helm/palisade")
}

pub fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command = cluster.kubectl.tool(&programs::of_cluster("helm", "helm")?);
    let output = command.args(["--namespace", NAMESPACE]).args(arguments).output().context("cannot run helm")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {}", arguments.join(" "), said.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("the path is UTF-8")?.to_owned())
}

/// `palisade COMMAND` in the agent's own pod of a node.
pub fn palisade(cluster: &Cluster, node: &ClusterNode, arguments: &[&str]) -> Result<String> {
    let pod = agent_pod(cluster, node)?;
    let start = ["--namespace", NAMESPACE, "exec", &pod, "--", "/palisade"];
    cluster.kubectl.run(&[&start, arguments].concat())
}

/// Name of the agent's pod of a node.
pub fn agent_pod(cluster: &Cluster, node: &ClusterNode) -> Result<String> {
    let selector = format!("--field-selector=spec.nodeName={}", node.name);
    let asked = ["--namespace", NAMESPACE, "get", "pods", "--selector=app.kubernetes.io/name=palisade", &selector];
    let said = cluster.kubectl.run(&[asked.as_slice(), &["--output", "name"]].concat())?;
    let mut names = said.lines();
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.to_owned()),
        _ => bail!("node {} has not one agent but these: {said:?}", node.name),
    }
}

/// What the kernel lets the agent of a node do, which is what the manifest asks for and no more: the four capabilities, no new privileges, a
/// filter of system calls, and a root that cannot be written to. A sentence for each that is not so.
pub fn confinement(node: &ClusterNode) -> Result<Vec<String>> {
    // CAP_NET_BROADCAST, CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF (linux/capability.h).
    let expected: u64 = 1 << 11 | 1 << 12 | 1 << 38 | 1 << 39;
    let process = agent_process(node)?;
    let status = fs::read_to_string(process.join("status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("no {name} in the agent's status"))
    };
    let mut wrong = Vec::new();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let found = u64::from_str_radix(field(set)?, 16)?;
        if found != expected {
            wrong.push(format!("{set} is {found:#x}, not {expected:#x}"));
        }
    }
    // From linux/seccomp.h: 2 is a filter.
    for (name, value) in [("CapAmb", "0000000000000000"), ("NoNewPrivs", "1"), ("Seccomp", "2")] {
        if field(name)? != value {
            wrong.push(format!("{name} is {}, not {value}", field(name)?));
        }
    }
    let mounts = fs::read_to_string(process.join("mounts"))?;
    let root = mounts.lines().find_map(|line| line.split(' ').nth(1)?.eq("/").then_some(line));
    let options = root.and_then(|line| line.split(' ').nth(3)).context("the agent has a root")?;
    if !options.split(',').any(|option| option == "ro") {
        wrong.push(format!("its root is {options}"));
    }
    Ok(wrong)
}

/// Its folder in /proc.
pub fn agent_process(node: &ClusterNode) -> Result<PathBuf> {
    let own = fs::read_link(node.path("/proc/1/ns/net")?)?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let is_agent = command.starts_with(b"/palisade\0agent\0");
        if is_agent && fs::read_link(path.join("ns/net")).is_ok_and(|network| network == own) {
            return Ok(path);
        }
    }
    bail!("no agent runs on {}", node.name)
}
