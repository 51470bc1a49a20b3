//! A node from outside: its first process, and what runs on it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::daemons::Daemons;
use super::init::{OWN, Spec, has_version_1, version_1_cgroups};
use super::kubectl::PATIENCE;
use super::{Cluster, Kubectl};
use crate::lab::{Cgroup, Netns};

/// As the network plugin's own manifest has it. CNI plugins 0.9.1, whose flannel this is, know no later version.
const CONFLIST: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Folder of the node's cgroup for what is no pod.
const DAEMONS: &str = "daemons";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterNode {
    pub name: String,
    number: u8,
    pub address: IpAddr,
    /// Its name.
    netns: String,
    /// Its disk.
    pub folder: PathBuf,
    pub(super) kubeconfig: PathBuf,
    pub(super) cgroup: PathBuf,
    /// Its first process; `None`: it is down.
    init: Option<u32>,
}

// === impl ClusterNode ===

impl ClusterNode {
    /// Its disk and its place in the network; it is down.
    pub fn create(cluster: &Cluster, number: u8) -> Result<Self> {
        let (lab, name) = (&cluster.lab, format!("n{number}"));
        let prefix = format!("{}-{name}", lab.prefix);
        let folder = cluster.places.folder.join(&prefix);
        lab.guard().folder(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for place in OWN.map(Path::new).into_iter().filter(|place| !place.exists()) {
            lab.guard().mount_point(place);
            fs::create_dir_all(place)?;
        }
        for path in version_1_cgroups(&prefix) {
            lab.guard().cgroup(&path);
            fs::create_dir(&path)?;
            // A new one has no processors and no memory of its own.
            for setting in
                ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| path.starts_with("/sys/fs/cgroup/cpuset"))
            {
                fs::copy(path.with_file_name(setting), path.join(setting))?;
            }
        }
        let cgroup = Cgroup::create(lab.guard(), &prefix, &folder.join("cgroup-v2"))?.path;
        if !has_version_1() {
            // What the kubelet wants for pods; what the kernel lacks is for it to tell.
            for controller in ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"] {
                let _ = fs::write(cgroup.with_file_name("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        // In a folder of their own: one with processes cannot have others with controllers below it.
        fs::create_dir(cgroup.join(DAEMONS))?;
        let (netns, [address, _]) = lab.outside(&name, 10 + number)?;
        let plane = cluster.control_plane.as_ref().context("the control plane was started")?;
        let kubeconfig = plane.credentials(&name, &format!("/O=system:nodes/CN=system:node:{name}"))?;
        Ok(Self { name, number, address, netns: netns.name().to_owned(), folder, kubeconfig, cgroup, init: None })
    }

    /// From power on to the network plugin's configuration. Returns the first process's id, before the node is ready.
    pub fn boot(&self, cluster: &Cluster) -> Result<u32> {
        let init = self.start_init(cluster)?;
        let daemons = Daemons { node: self, init, cluster };
        daemons.containerd()?;
        daemons.kubelet()?;
        let template = "jsonpath={.spec.podCIDR}";
        cluster.kubectl.until(&["get", "node", &self.name, "--output", template], |said| said.contains('/'))?;
        daemons.flanneld()?;
        daemons.kube_proxy()?;
        let path = self.own("/etc/cni/net.d/10-flannel.conflist");
        fs::create_dir_all(path.parent().expect("it lies in a folder"))?;
        fs::write(path, CONFLIST)?;
        Ok(init)
    }

    fn start_init(&self, cluster: &Cluster) -> Result<u32> {
        let netns = self.netns()?;
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables"] {
            netns.sysctl(&[(setting, "1")])?;
        }
        netns.sysctl(&[("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/default/rp_filter", "0")])?;
        let spec = Spec {
            host_name: self.name.clone(),
            folder: self.folder.clone(),
            lab: cluster.lab.folder.clone(),
            cgroup: self.cgroup.clone(),
        };
        let path = self.folder.join("node.json");
        fs::write(&path, serde_json::to_vec(&spec)?)?;
        let mut command = netns.command("unshare");
        command.args(["--fork", "--kill-child", "--pid", "--mount", "--uts", "--propagation", "slave", "--"]);
        command.arg(std::env::current_exe()?).arg("node").arg(path);
        Cgroup::open(&self.cgroup.join(DAEMONS))?.admit(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(self.log("init")?).process_group(0);
        let mut child = command.spawn().context("cannot run unshare")?;
        cluster.lab.guard().process(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout was asked for above")).read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the node did not start:\n{}", self.said("init")))
    }

    pub fn wait_ready(&self, kubectl: &Kubectl) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let waited = kubectl.run(&["wait", "--for=condition=Ready", &format!("node/{}", self.name), &timeout]);
        waited.map(drop).with_context(|| {
            let logs = ["containerd", "kubelet", "flanneld", "kube-proxy"];
            logs.map(|name| format!("{name}:\n{}", self.said(name))).join("\n")
        })
    }

    /// As by a power cut, with its network; its disk stays.
    pub fn cut_power(&mut self, cluster: &Cluster) -> Result<()> {
        let init = self.init.take().context("it is down already")?;
        let process = Pid::from_raw(i32::try_from(init)?).context("a process has an id")?;
        kill_process(process, Signal::KILL)?;
        let end = Instant::now() + Duration::from_secs(20);
        while Path::new(&format!("/proc/{init}")).exists() {
            ensure!(Instant::now() < end, "the node does not go down");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.netns()?.remove()?;
        // The device at the other end goes with the last who is in the namespace, a moment later.
        let underlay = &cluster.lab.underlay;
        let gone = || {
            Ok::<_, anyhow::Error>(
                !underlay.command("ip").args(["link", "show", &self.name]).output()?.status.success(),
            )
        };
        while !gone()? {
            ensure!(Instant::now() < end, "the node's network does not go");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster.lab.outside(&self.name, 10 + self.number)?;
        Ok(())
    }

    pub fn set_up(&mut self, init: u32) {
        self.init = Some(init);
    }

    pub fn netns(&self) -> Result<Netns> {
        Netns::open(&self.netns)
    }

    /// A command that will run on the node.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        Ok(enter(self.init.with_context(|| format!("{} is down", self.name))?, program))
    }

    /// Starts what goes on until the node is down, and logs to NAME.log of its folder. The process's id, which is its group's.
    pub fn spawn(&self, cluster: &Cluster, name: &str, command: &mut Command) -> Result<u32> {
        let log = self.log(name)?;
        Cgroup::open(&self.cgroup.join(DAEMONS))?.admit(command);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        cluster.lab.guard().process(child.id());
        Ok(child.id())
    }

    /// Where a path of the node is for us, while it is up.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        let init = self.init.with_context(|| format!("{} is down", self.name))?;
        Ok(Path::new(&format!("/proc/{init}/root")).join(path.trim_start_matches('/')))
    }

    /// Where a path of the node's disk is for us, also while it is down.
    pub fn own(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// The network namespace of one of its pods, by what libcni keeps of it.
    pub fn pod_netns(&self, namespace: &str, name: &str) -> Result<Netns> {
        let folder = self.own("/var/lib/cni/results");
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let text = fs::read(entry?.path())?;
            let Ok(result) = serde_json::from_slice::<Value>(&text) else { continue };
            let of = |key: &str| {
                let all = result["cniArgs"].as_array().into_iter().flatten();
                all.filter(|pair| pair[0] == key).find_map(|pair| pair[1].as_str())
            };
            let mut sandboxes = result["result"]["interfaces"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| one["sandbox"].as_str());
            if (of("K8S_POD_NAMESPACE"), of("K8S_POD_NAME")) == (Some(namespace), Some(name))
                && result["ifName"] != "lo"
                && let Some(sandbox) = sandboxes.find(|sandbox| !sandbox.is_empty())
            {
                // /var/run is a link, and would be followed in our own root.
                let path = sandbox.replacen("/var/run/", "/run/", 1);
                return Netns::at(name, &self.path(&path)?);
            }
        }
        anyhow::bail!("{} has no CNI result of {namespace}/{name}", self.name)
    }

    pub fn log(&self, name: &str) -> Result<File> {
        let path = self.folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&path);
        file.with_context(|| format!("writing {}", path.display()))
    }

    /// The last lines of a log.
    pub fn said(&self, name: &str) -> String {
        let text = fs::read(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

pub(super) fn enter(init: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &init.to_string(), "--mount", "--net", "--pid", "--uts", "--"]).arg(program);
    command.stdin(Stdio::null());
    command
}
