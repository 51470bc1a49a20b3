//! The first process of a node: a machine of its own as far as the kubelet, containerd and the network plugin can tell.
//!
//! It is started in new process, mount, host name and network namespaces. What a node keeps on its disk is in its folder;
//! what a boot takes away (/run, the bpffs) is mounted anew each time.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_move,
    unmount,
};
use serde::{Deserialize, Serialize};

/// Folders that are the node's own, below its folder of the same path.
pub const OWN: [&str; 7] = [
    "/etc/cni",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/palisade",
    "/var/log",
];

/// Of version 1 where the machine has them: the kubelet makes pods' cgroups below the node's.
const CONTROLLERS: [&str; 9] = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"];

/// The kubelet sets these for the whole machine; a node gets copies.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    pub host_name: String,
    /// The node's disk.
    pub folder: PathBuf,
    /// Of the lab, with the keys; it lies in /run and is the only part of it that is seen in the node.
    pub lab: PathBuf,
    /// The node's folder of cgroup v2, which is the root of that hierarchy in the node.
    pub cgroup: PathBuf,
}

/// Whether the machine has version 1 beside version 2.
pub fn has_version_1() -> bool {
    Path::new("/sys/fs/cgroup/cpu").is_dir()
}

/// Cgroups of version 1 that are made for a node of this name.
pub fn version_1_cgroups(name: &str) -> Vec<PathBuf> {
    let folders = CONTROLLERS.iter().map(|controller| Path::new("/sys/fs/cgroup").join(controller));
    folders.filter(|folder| folder.is_dir()).map(|folder| folder.join(name)).collect()
}

/// Does not return but by an error: the node is down when this process ends. Says its process id, as the machine numbers it, on stdout.
pub fn run(spec: &Spec) -> Result<()> {
    // Orphans of the whole node end here, and the kernel buries the children of who ignores their end.
    // SAFETY: no handler is installed, and no other thread runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    // The machine's /proc is still mounted.
    let id = fs::read_link("/proc/self").context("/proc/self")?;
    rustix::system::sethostname(spec.host_name.as_bytes()).context("the host name")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("mounts are private")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("/proc")?;
    mount_sys(spec)?;
    mount_run(spec)?;
    for folder in OWN {
        let own = spec.folder.join(&folder[1..]);
        fs::create_dir_all(&own)?;
        mount_bind(&own, folder).with_context(|| format!("the node's own {folder}"))?;
    }
    for (name, value) in SETTINGS {
        let (setting, copy) = (Path::new("/proc/sys").join(name), spec.folder.join(name.replace('/', "-")));
        if setting.exists() {
            fs::write(&copy, value)?;
            mount_bind(&copy, &setting).with_context(|| format!("a copy of {name}"))?;
        }
    }
    // Volumes of pods are mounted by the kubelet and seen by the runtime.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("mounts are shared")?;
    println!("{}", id.display());
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

/// A new sysfs, as it shows the devices of the network namespace that it is mounted in, and below it what the machine has
/// there: its cgroups, but for version 2, of which only the node's part is seen.
fn mount_sys(spec: &Spec) -> Result<()> {
    let aside = spec.folder.join("cgroup");
    fs::create_dir_all(&aside)?;
    mount_bind_recursive("/sys/fs/cgroup", &aside).context("keeping the cgroups")?;
    let own = spec.folder.join("cgroup2");
    fs::create_dir_all(&own)?;
    mount_bind(&spec.cgroup, &own).context("the node's cgroup")?;
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("/sys")?;
    mount_bind_recursive(&aside, "/sys/fs/cgroup").context("the cgroups")?;
    unmount(&aside, UnmountFlags::DETACH)?;
    let place = if has_version_1() { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" };
    mount_move(&own, place).with_context(|| format!("cgroup v2 at {place}"))?;
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).context("the bpffs")?;
    Ok(())
}

fn mount_run(spec: &Spec) -> Result<()> {
    let aside = spec.folder.join("lab");
    fs::create_dir_all(&aside)?;
    mount_bind(&spec.lab, &aside).context("keeping the lab's folder")?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).context("/run")?;
    for folder in ["/run/netns", "/run/flannel", "/run/lock"].map(Path::new).into_iter().chain([spec.lab.as_path()]) {
        fs::create_dir_all(folder)?;
    }
    mount_move(&aside, &spec.lab).context("the lab's folder")?;
    Ok(())
}
