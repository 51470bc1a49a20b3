//! kube-proxy in a node's namespace: it really translates what is sent to Services.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{ControlPlane, Lab, Netns, Node, programs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Iptables,
    Nftables,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// A running kube-proxy. Dropping it kills it and leaves its rules, which are the namespace's and go with it.
pub struct KubeProxy {
    child: Child,
    netns: Netns,
    log: PathBuf,
}

impl KubeProxy {
    /// On the loopback of the node's namespace.
    const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

    /// Returns when its rules have been written for the first time. The node's object has to be there.
    pub fn start(lab: &Lab, node: &Node, plane: &ControlPlane, mode: Mode) -> Result<Self> {
        let configuration = node.folder.join("kube-proxy.yaml");
        fs::write(&configuration, serde_norway::to_string(&configuration_of(node, plane, mode))?)?;
        let log = node.folder.join("kube-proxy.log");
        let said = File::create(&log)?;
        let child = node
            .command(programs::kube_proxy()?)
            .arg("--config")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()
            .context("cannot run kube-proxy")?;
        lab.guard().process(child.id());
        let mut proxy = Self { child, netns: node.netns.clone(), log };
        proxy.wait_healthy(Duration::from_secs(30))?;
        Ok(proxy)
    }

    fn wait_healthy(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while !self.healthy().unwrap_or(false) {
            if let Some(status) = self.child.try_wait()? {
                bail!("kube-proxy ended with {status}:\n{}", self.log_text());
            }
            ensure!(Instant::now() < end, "kube-proxy is not healthy after {deadline:?}:\n{}", self.log_text());
            // There is no event to wait for from outside.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn healthy(&self) -> std::io::Result<bool> {
        self.netns.run(|| {
            let mut stream = TcpStream::connect_timeout(&Self::HEALTH, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET /healthz HTTP/1.0\r\nHost: kube-proxy\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.split_whitespace().nth(1) == Some("200"))
        })
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration_of(node: &Node, plane: &ControlPlane, mode: Mode) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": plane.kubeconfig},
        "hostnameOverride": node.name,
        "mode": mode.name(),
        "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
        // The table's size is the machine's, and cannot be written in another than the first network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": KubeProxy::HEALTH.to_string(),
        "metricsBindAddress": "127.0.0.1:10249",
        "iptables": {"minSyncPeriod": "0s"},
        "nftables": {"minSyncPeriod": "0s"},
    })
}
