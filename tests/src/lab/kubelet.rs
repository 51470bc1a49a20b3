//! A node's kubelet as far as `kubectl exec` needs one: it runs the agent's binary for the agent's pod, as the API server asks.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{fs, net};

use anyhow::{Context, Result, ensure};

use super::{ControlPlane, Lab, Node, programs};

/// Where kubelets listen.
const PORT: u16 = 10250;

/// Ends when dropped.
pub struct Kubelet {
    child: Child,
}

impl Kubelet {
    /// Returns when it listens. `pod`: NAMESPACE/NAME of the agent's pod; `binary`: the agent's path in it.
    pub fn start(lab: &Lab, plane: &ControlPlane, node: &Node, pod: &str, binary: &str) -> Result<Self> {
        let name = format!("kubelet-{}", node.name);
        let address = node.addresses[0];
        let [key, certificate] =
            plane.server_keys(&name, &format!("/O=system:nodes/CN=system:node:{}", node.name), address)?;
        let to = SocketAddr::new(address, PORT);
        let log = fs::File::create(plane.folder().join(format!("{name}.log")))?;
        let child = node
            .netns
            .command(programs::kubelet_stub()?)
            .args(["-listen", &to.to_string(), "-pod", pod, "-binary", binary])
            .arg("-key")
            .arg(key)
            .arg("-cert")
            .arg(certificate)
            .arg("-client-ca")
            .arg(plane.folder().join("ca.crt"))
            .arg("-program")
            .arg(programs::agent()?)
            .arg("--")
            .arg("--pin-dir")
            .arg(&node.pin_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start a kubelet")?;
        lab.guard().process(child.id());
        let mut kubelet = Self { child };
        let end = Instant::now() + Duration::from_secs(20);
        while node.netns.run(|| net::TcpStream::connect_timeout(&to, Duration::from_secs(1))).is_err() {
            let ended = kubelet.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < end, "the kubelet of {} does not listen: {ended:?}", node.name);
            // There is no event to wait for from outside.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(kubelet)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
