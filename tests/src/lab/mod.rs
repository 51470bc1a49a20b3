//! The lab: nodes as network namespaces laid out as Flannel lays them out, pods joined to them by CNI plugins, servers
//! in the pods and probes between them.
//!
//! Everything is made with root's rights on the machine at hand, under names that no other lab has, and is removed when
//! the [`Lab`] is dropped or its process ends in whatever way (see [`guard`]).

pub mod agent;
pub mod cgroup;
pub mod cni;
pub mod control_plane;
pub mod dns;
pub mod guard;
mod keys;
pub mod kubelet;
pub mod meddler;
pub mod netns;
pub mod node;
pub mod objects;
pub mod overlay;
pub mod pod;
pub mod probe;
pub mod programs;
pub mod proxy;
pub mod raw;
pub mod recorded;
pub mod server;
pub mod traffic;
pub mod tunnel;
pub mod versions;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

pub use agent::{Agent, AgentOptions, Source};
pub use cgroup::Cgroup;
pub use control_plane::ControlPlane;
pub use guard::Guard;
pub use kubelet::Kubelet;
pub use meddler::{Meddler, Meddling};
pub use netns::Netns;
pub use node::Node;
pub use objects::Manifests;
pub use pod::{Pod, PodSpec};
pub use probe::{Connection, Outcome, Transport};
pub use proxy::{KubeProxy, Mode};

/// Where all labs of the machine have their folders.
pub const ROOT: &str = "/run/palisade-lab";

/// A set of nodes on one underlay. Dropping it removes everything, unless [`Lab::keep`] was called.
pub struct Lab {
    /// What every name of this lab starts with.
    pub prefix: String,
    /// For sockets, pins, manifests and logs.
    pub folder: PathBuf,
    /// The bridge between the nodes; the control plane lives here too, at [`Lab::UNDERLAY`].
    pub underlay: Netns,
    guard: Guard,
}

impl Lab {
    /// The underlay's own addresses.
    pub const UNDERLAY: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1))];

    pub fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(rustix::process::geteuid().is_root(), "the lab makes network namespaces, which takes root");
        let prefix = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(ROOT).join(&prefix);
        let guard = Guard::start(&folder)?;
        let bpffs = folder.join("bpf");
        fs::create_dir(&bpffs)?;
        guard.mount(&bpffs);
        rustix::mount::mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).context("cannot mount a bpffs")?;
        let underlay = Netns::create(&guard, &format!("{prefix}-underlay"))?;
        let [v4, v6] = Self::UNDERLAY;
        underlay.ip(&[
            "link set lo up".into(),
            "link add br0 type bridge".into(),
            "link set br0 up".into(),
            format!("addr add {v4}/24 dev br0"),
            format!("addr add {v6}/64 dev br0 nodad"),
        ])?;
        // A router, as a machine outside of the cluster answers the pods through it.
        underlay.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/br0/rp_filter", "0"),
            ("net/ipv4/conf/br0/send_redirects", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
        ])?;
        Ok(Self { prefix, folder, underlay, guard })
    }

    /// One that was left standing.
    pub fn open(folder: &Path) -> Result<Self> {
        let prefix = folder.file_name().context("a lab's folder has a name")?.to_string_lossy().into_owned();
        let underlay = Netns::open(&format!("{prefix}-underlay"))?;
        let guard = Guard::start(folder)?;
        Ok(Self { prefix, folder: folder.to_owned(), underlay, guard })
    }

    /// The folder of the lab's own bpffs; agents get a folder each in it.
    pub fn bpffs(&self) -> PathBuf {
        self.folder.join("bpf")
    }

    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// A machine outside of the cluster, on the nodes' network, that reaches their pods by way of the underlay's router.
    pub fn outside(&self, name: &str, number: u8) -> Result<(Netns, [IpAddr; 2])> {
        let netns = Netns::create(&self.guard, &format!("{}-{name}", self.prefix))?;
        let addresses = node::underlay_addresses(number);
        self.join_underlay(&netns, name, &addresses)?;
        Ok((netns, addresses))
    }

    /// Gives a namespace an `eth0` on the underlay.
    fn join_underlay(&self, netns: &Netns, name: &str, addresses: &[IpAddr; 2]) -> Result<()> {
        self.underlay.ip(&[
            format!("link add {name} type veth peer name eth0 netns {}", netns.name()),
            format!("link set {name} master br0 up"),
        ])?;
        let [v4, v6] = addresses;
        let [gateway_v4, gateway_v6] = Self::UNDERLAY;
        netns.ip(&[
            "link set lo up".into(),
            "link set eth0 up".into(),
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {v6}/64 dev eth0 nodad"),
            format!("route add default via {gateway_v4}"),
            format!("route add default via {gateway_v6}"),
        ])
    }

    /// Leaves everything standing when this process ends; returns the command that removes it.
    pub fn keep(self) -> Result<String> {
        self.guard.keep()?;
        Ok(format!("{} clean {}", programs::helper()?.display(), self.folder.display()))
    }
}

impl Drop for Lab {
    /// Nodes hold the guard too, and may live on for a moment.
    fn drop(&mut self) {
        if let Err(error) = self.guard.finish() {
            eprintln!("{}: {error:#}", self.prefix);
        }
    }
}
