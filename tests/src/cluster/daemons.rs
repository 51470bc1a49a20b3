//! What runs on a node beside its pods: container runtime, kubelet, flanneld, kube-proxy.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Cluster;
use super::init::has_version_1;
use super::node::{ClusterNode, enter};
use super::plane::{FLANNEL, POD_CIDR, PROXY};
use crate::lab::programs;

/// What the runtime takes for every sandbox.
const PAUSE: &str = "registry.k8s.io/pause:3.10.2";
/// The Service `kube-dns`.
const DNS: &str = "10.96.0.10";
const SOCKET: &str = "/run/containerd/containerd.sock";

pub(super) struct Daemons<'a> {
    pub node: &'a ClusterNode,
    pub init: u32,
    pub cluster: &'a Cluster,
}

impl Daemons<'_> {
    pub fn containerd(&self) -> Result<()> {
        let program = |name: &str| programs::of_cluster("containerd", name);
        let (containerd, runc) = (program("containerd")?, program("runc")?);
        let configuration = self.node.folder.join("containerd.toml");
        fs::write(&configuration, configuration_of_containerd(&runc))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = enter(self.init, &containerd);
        command.arg("--config").arg(&configuration);
        // Where it finds its shim.
        command.env("PATH", format!("{}:{path}", containerd.parent().expect("it lies in a folder").display()));
        self.spawn("containerd", &mut command)?;
        let socket = Path::new(&format!("/proc/{}/root", self.init)).join(&SOCKET[1..]);
        let end = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&socket).is_err() {
            ensure!(Instant::now() < end, "containerd does not answer:\n{}", self.node.said("containerd"));
            std::thread::sleep(Duration::from_millis(20));
        }
        self.import(&program("ctr")?)
    }

    /// Those that the node's disk does not have yet.
    fn import(&self, ctr: &Path) -> Result<()> {
        let images = &self.cluster.places.images;
        let mut archives: Vec<_> = fs::read_dir(images)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        archives.sort();
        for archive in archives.iter().filter(|path| path.extension().is_some_and(|extension| extension == "tar")) {
            let metadata = fs::metadata(archive)?;
            let name = archive.file_name().expect("it is a file").to_string_lossy();
            let mark = self.node.folder.join(format!("{name}.{}.{}", metadata.len(), metadata.mtime()));
            if mark.exists() {
                continue;
            }
            let output =
                enter(self.init, ctr).args(["--namespace", "k8s.io", "images", "import"]).arg(archive).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "importing {}: {}", archive.display(), said.trim_end());
            fs::write(mark, "")?;
        }
        Ok(())
    }

    pub fn kubelet(&self) -> Result<()> {
        let ClusterNode { name, address, folder, kubeconfig, cgroup, .. } = self.node;
        let configuration = folder.join("kubelet.json");
        let authority = self.cluster.plane_folder().join("ca.crt");
        let name_of_cgroup = cgroup.file_name().context("a node's cgroup has a name")?.to_string_lossy();
        // With version 2 alone the node's own folder is all that it sees.
        let root = if has_version_1() { format!("/{name_of_cgroup}") } else { "/".to_owned() };
        let resolver = folder.join("resolv.conf");
        fs::write(&resolver, "")?;
        let settings = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": authority},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": root,
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "enforceNodeAllocatable": ["pods"],
            // The disk is the machine's, and others fill it.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
            "failCgroupV1": false,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "kubeAPIBurst": 200,
            "kubeAPIQPS": 100,
            "maxOpenFiles": 10_000,
            // Lower scores are root's of the whole machine to give.
            "oomScoreAdj": 0,
            "resolvConf": resolver,
            "serializeImagePulls": false,
        });
        fs::write(&configuration, settings.to_string())?;
        let mut command = enter(self.init, programs::of_cluster("kubernetes", "kubelet")?);
        command.arg("--config").arg(configuration).arg("--kubeconfig").arg(kubeconfig);
        command.args([format!("--hostname-override={name}"), format!("--node-ip={address}")]);
        self.spawn("kubelet", command.args(["--root-dir=/var/lib/kubelet", "-v=2"]))
    }

    pub fn flanneld(&self) -> Result<()> {
        for plugin in ["bridge", "loopback", "host-local", "portmap"] {
            self.plugin(&programs::cni()?.join(plugin))?;
        }
        self.plugin(&programs::of_cluster("flannel", "flannel")?)?;
        let configuration = self.node.folder.join("net-conf.json");
        let backend = self.cluster.settings.backend.name();
        let network = json!({"Network": POD_CIDR, "EnableNFTables": false, "Backend": {"Type": backend}});
        fs::write(&configuration, network.to_string())?;
        let mut command = enter(self.init, programs::of_cluster("flannel", "flanneld")?);
        command.env("NODE_NAME", &self.node.name).args(["--kube-subnet-mgr", "--ip-masq", "--iface=eth0"]);
        command.arg("--net-config-path").arg(configuration);
        command.arg("--kubeconfig-file").arg(self.kubeconfig(FLANNEL));
        self.spawn("flanneld", &mut command)
    }

    /// To where the runtime looks for it.
    fn plugin(&self, program: &Path) -> Result<()> {
        let folder = self.node.own("/opt/cni/bin");
        fs::create_dir_all(&folder)?;
        let place = folder.join(program.file_name().expect("it is a file"));
        if !place.exists() {
            fs::copy(program, &place).with_context(|| format!("copying {}", program.display()))?;
        }
        Ok(())
    }

    pub fn kube_proxy(&self) -> Result<()> {
        let mut command = enter(self.init, programs::kube_proxy()?);
        command.arg("--kubeconfig").arg(self.kubeconfig(PROXY)).args([
            format!("--hostname-override={}", self.node.name),
            format!("--proxy-mode={}", self.cluster.settings.proxy.mode().name()),
            format!("--cluster-cidr={POD_CIDR}"),
            // The table's size is the machine's.
            "--conntrack-max-per-core=0".to_owned(),
            "--oom-score-adj=0".to_owned(),
            "--healthz-bind-address=127.0.0.1:10256".to_owned(),
            "--metrics-bind-address=127.0.0.1:10249".to_owned(),
        ]);
        self.spawn("kube-proxy", &mut command)
    }

    fn kubeconfig(&self, user: &str) -> std::path::PathBuf {
        self.cluster.plane_folder().join(format!("{user}.kubeconfig"))
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Result<()> {
        self.node.spawn(self.cluster, name, command).map(drop)
    }
}

fn configuration_of_containerd(runc: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # A score cannot be lowered by who lacks CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{}"
"#,
        runc.display()
    )
}
