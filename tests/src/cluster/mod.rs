//! A cluster of whole nodes on one machine: API server, controller manager and scheduler on a lab's underlay; on each node
//! containerd, kubelet, flanneld and kube-proxy. No registry: images are imported.
//!
//! Real is what a pod meets: sandboxes, cgroups, probes, accounts, the network plugin and its tunnel. Not real: the nodes have one
//! kernel, and flanneld and kube-proxy are processes of the node rather than pods. `cargo xtask cluster` builds the parts.

mod daemons;
pub mod deploy;
mod e2e;
pub mod init;
mod jobs;
mod kubectl;
mod moving;
mod node;
mod plane;
mod restart;
mod scene;
mod state;
mod traces;
pub mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::lab::{Lab, Mode};
pub use deploy::Install;
pub use kubectl::Kubectl;
pub use node::ClusterNode;
pub use state::State;

/// How a cluster is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub nodes: u8,
    pub backend: Backend,
    pub proxy: Proxy,
}

/// Flannel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    Vxlan,
    HostGw,
}

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proxy {
    Iptables,
    Nftables,
}

/// What goes into every node's runtime, and where what is built lies.
#[derive(Clone, Debug)]
pub struct Places {
    /// For the nodes' disks and what is known of a cluster that was left standing; not on an overlay, which containerd puts its own on.
    pub folder: PathBuf,
    /// Archives of images.
    pub images: PathBuf,
    /// Manifests and chart.
    pub deploy: PathBuf,
}

pub struct Cluster {
    pub settings: Settings,
    pub nodes: Vec<ClusterNode>,
    pub kubectl: Kubectl,
    pub places: Places,
    control_plane: Option<crate::lab::ControlPlane>,
    /// Last, as it takes the rest away.
    pub lab: Lab,
}

// === impl Cluster ===

impl Cluster {
    /// Returns when every node is ready.
    pub fn start(settings: Settings, places: Places) -> Result<Self> {
        let start = Instant::now();
        let lab = Lab::new("cluster")?;
        let (control_plane, kubectl) = plane::start(&lab)?;
        told(start, "the API server is ready");
        let mut cluster =
            Self { settings, nodes: Vec::new(), kubectl, places, control_plane: Some(control_plane), lab };
        for number in 1..=settings.nodes {
            let node = ClusterNode::create(&cluster, number)?;
            cluster.nodes.push(node);
        }
        for at in 0..cluster.nodes.len() {
            let init = cluster.nodes[at].boot(&cluster)?;
            cluster.nodes[at].set_up(init);
        }
        for node in &cluster.nodes {
            node.wait_ready(&cluster.kubectl)?;
            told(start, &format!("node {} is ready", node.name));
        }
        // Pods need one, and it comes after the namespace.
        cluster.kubectl.until(&["get", "serviceaccount", "default"], |said| !said.is_empty())?;
        Ok(cluster)
    }

    /// One that was left standing, if there is one.
    pub fn standing(places: &Places) -> Result<Option<Self>> {
        let Some(state) = State::read(&places.folder)? else { return Ok(None) };
        let lab = Lab::open(&state.lab).context("a cluster that is not there any more: `cargo xtask cluster down`")?;
        let kubectl = Kubectl::new(&lab.underlay, &state.kubeconfig)?;
        let settings = state.settings;
        Ok(Some(Self { settings, nodes: state.nodes, kubectl, places: places.clone(), control_plane: None, lab }))
    }

    /// Leaves everything standing when this process ends.
    pub fn keep_with_hint(self) -> Result<()> {
        let netns = self.lab.underlay.path();
        let hint = format!(
            "left standing; `cargo xtask cluster down` removes it\nexport KUBECONFIG={}\nnsenter --net={} {} get pods --all-namespaces",
            self.kubectl.kubeconfig.display(),
            netns.display(),
            self.kubectl.program.display(),
        );
        self.keep()?;
        println!("{hint}");
        Ok(())
    }

    fn keep(self) -> Result<()> {
        let kubeconfig = self.kubectl.kubeconfig.clone();
        let state = State { lab: self.lab.folder.clone(), settings: self.settings, nodes: self.nodes, kubeconfig };
        state.write(&self.places.folder)?;
        if let Some(control_plane) = self.control_plane {
            control_plane.keep();
        }
        self.lab.keep().map(drop)
    }

    /// With the control plane's keys, kubeconfigs and logs.
    pub fn plane_folder(&self) -> &Path {
        self.kubectl.kubeconfig.parent().expect("a kubeconfig lies in a folder")
    }

    pub fn node(&self, name: &str) -> Result<&ClusterNode> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }
}

/// Removes a cluster that was left standing. Whether there was one.
pub fn down(folder: &Path) -> Result<bool> {
    let Some(state) = State::read(folder)? else { return Ok(false) };
    if state.lab.exists() {
        crate::lab::guard::clean(&state.lab)?;
    }
    fs::remove_file(State::path(folder))?;
    Ok(true)
}

/// A line of a run's account.
pub fn told(start: Instant, what: &str) {
    println!("{:7.1} s  {what}", start.elapsed().as_secs_f64());
}

// === impl Backend, Proxy ===

impl Backend {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

impl FromStr for Backend {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "vxlan" => Ok(Self::Vxlan),
            "host-gw" => Ok(Self::HostGw),
            _ => bail!("`{text}` is neither vxlan nor host-gw"),
        }
    }
}

impl Proxy {
    pub const fn mode(self) -> Mode {
        match self {
            Self::Iptables => Mode::Iptables,
            Self::Nftables => Mode::Nftables,
        }
    }
}

impl FromStr for Proxy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "iptables" => Ok(Self::Iptables),
            "nftables" => Ok(Self::Nftables),
            _ => bail!("`{text}` is neither iptables nor nftables"),
        }
    }
}
