//! A node: uplink, the CNI's network configuration, forwarding, and the pods that CNI plugins join to its bridge.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::cni::{Call, Runner};
use super::pod::{Pod, PodSpec};
use super::{Cgroup, Lab, Netns};

pub struct Node {
    pub name: String,
    pub number: u8,
    pub netns: Netns,
    /// On the underlay: IPv4, IPv6.
    pub addresses: [IpAddr; 2],
    pub folder: PathBuf,
    /// For the agent's pins, in the lab's bpffs.
    pub pin_dir: PathBuf,
    /// For what runs on the node itself.
    pub cgroup: Cgroup,
    runner: Runner,
}

/// Addresses on the underlay of a node (or another machine) by its number.
pub fn underlay_addresses(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(172, 30, 0, number).into(), Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, number.into()).into()]
}

impl Lab {
    /// A node by its number (1 to 200), which is in its addresses: pods get 10.244.NUMBER.0/24, fd00:244:NUMBER::/64.
    pub fn node(&self, name: &str, number: u8) -> Result<Node> {
        ensure!((1..=200).contains(&number), "a node's number is 1 to 200");
        let netns = Netns::create(self.guard(), &format!("{}-{name}", self.prefix))?;
        // A kernel's name for an interface holds 15 characters.
        let addresses = underlay_addresses(10 + number);
        self.join_underlay(&netns, &format!("node{number}"), &addresses)?;
        netns.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        let folder = self.folder.join(name);
        fs::create_dir_all(folder.join("net.d"))?;
        let runner = Runner::new(self.guard(), &netns, &folder)?;
        let cgroup = Cgroup::create(self.guard(), &format!("{}-{name}", self.prefix), &folder.join("cgroup"))?;
        let pin_dir = self.bpffs().join(name);
        let node = Node { name: name.into(), number, netns, addresses, folder, pin_dir, cgroup, runner };
        node.write_network()?;
        let [v4, v6] = node.pod_cidrs();
        let [via_v4, via_v6] = node.addresses;
        self.underlay.ip(&[format!("route add {v4} via {via_v4}"), format!("route add {v6} via {via_v6}")])?;
        Ok(node)
    }
}

impl Node {
    pub fn pod_cidrs(&self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.number), format!("fd00:244:{}::/64", self.number)]
    }

    /// A command that will run as a process of the node: in its network namespace and in its cgroup.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.netns.command(program);
        self.cgroup.admit(&mut command);
        command
    }

    /// What the agent is given as `--cni-cache-dir`; libcni keeps its results in `results` below it.
    pub fn cni_cache(&self) -> PathBuf {
        self.folder.join("cni-cache")
    }

    /// The network as the flannel plugin would delegate it to the bridge plugin, and the loopback that a container
    /// runtime adds.
    fn write_network(&self) -> Result<()> {
        let [v4, v6] = self.pod_cidrs();
        let network = json!({
            "name": "cbr0",
            "cniVersion": "1.0.0",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "hairpinMode": true,
                    "isGateway": true,
                    "isDefaultGateway": true,
                    "ipMasq": false,
                    "mtu": 1450,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.folder.join("ipam"),
                        "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
                        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:244::/32"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        let loopback = json!({"name": "cni-loopback", "cniVersion": "1.0.0", "plugins": [{"type": "loopback"}]});
        fs::write(self.conflist(), serde_json::to_vec_pretty(&network)?)?;
        fs::write(self.loopback(), serde_json::to_vec_pretty(&loopback)?)?;
        Ok(())
    }

    /// The file that Flannel would put there.
    pub fn conflist(&self) -> PathBuf {
        self.conf_dir().join("10-flannel.conflist")
    }

    /// What a container runtime would have as /etc/cni/net.d and /opt/cni/bin.
    pub fn conf_dir(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    pub fn bin_dir(&self) -> PathBuf {
        Runner::further_plugins(&self.folder)
    }

    /// `--cni-conf-dir` and `--cni-bin-dir`.
    pub fn cni_folders(&self) -> [String; 4] {
        let [conf, bin] = [self.conf_dir(), self.bin_dir()].map(|folder| folder.display().to_string());
        ["--cni-conf-dir".into(), conf, "--cni-bin-dir".into(), bin]
    }

    /// `palisade cni install`: from now on pods start once the node's agent enforces them.
    pub fn install_plugin(&self) -> Result<()> {
        self.plugin_command("install")
    }

    pub fn uninstall_plugin(&self) -> Result<()> {
        self.plugin_command("uninstall")
    }

    fn plugin_command(&self, command: &str) -> Result<()> {
        let mut arguments = vec!["cni".to_owned(), command.to_owned()];
        arguments.extend(self.cni_folders());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = super::agent::palisade(self, &arguments)?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn loopback(&self) -> PathBuf {
        self.folder.join("00-loopback.conflist")
    }

    /// Starts pods: a namespace each, joined by CNI ADD as a container runtime does it, all in one go.
    pub fn start_pods(&self, lab: &Lab, specs: &[PodSpec]) -> Result<Vec<Pod>> {
        self.try_start_pods(lab, specs)?.into_iter().collect()
    }

    /// The same, where pods may not start. As a runtime does, DEL undoes what of an ADD was done.
    pub fn try_start_pods(&self, lab: &Lab, specs: &[PodSpec]) -> Result<Vec<Result<Pod>>> {
        let mut pods = Vec::new();
        self.start_pods_each(lab, specs, |pod| pods.push(pod))?;
        Ok(pods)
    }

    /// The same, each pod as soon as it is there.
    pub fn start_pods_each(&self, lab: &Lab, specs: &[PodSpec], mut take: impl FnMut(Result<Pod>)) -> Result<()> {
        let pods: Vec<Pod> = specs.iter().map(|spec| Pod::new(lab, self, spec)).collect::<Result<_>>()?;
        let mut calls = Vec::new();
        for pod in &pods {
            calls.push(self.call("ADD", &self.loopback(), "lo", pod));
            calls.push(self.call("ADD", &self.conf_dir(), "eth0", pod));
        }
        let mut pods = pods.into_iter();
        let mut is_loopback = false;
        let mut failed = Vec::new();
        self.runner.call_each(&calls, |result| {
            is_loopback = !is_loopback;
            if is_loopback {
                return;
            }
            let mut pod = pods.next().expect("two calls for each");
            take(match result {
                Ok(result) => pod.read_result(&result).map(|()| pod),
                Err(error) => {
                    let name = format!("{}/{}", pod.namespace, pod.name);
                    failed.push(pod);
                    Err(error.context(format!("CNI ADD of {name}")))
                }
            });
        })?;
        self.stop_pods(&failed)?;
        failed.iter().try_for_each(|pod| pod.netns.remove())
    }

    /// CNI DEL of each.
    pub fn stop_pods(&self, pods: &[Pod]) -> Result<()> {
        let calls: Vec<Call> = pods
            .iter()
            .flat_map(|pod| {
                [self.call("DEL", &self.conf_dir(), "eth0", pod), self.call("DEL", &self.loopback(), "lo", pod)]
            })
            .collect();
        self.runner.call(&calls)?.into_iter().try_for_each(|result| result.map(drop))
    }

    /// CNI CHECK of a pod, STATUS of the network, or GC of all attachments but those of these pods.
    pub fn check_pod(&self, pod: &Pod) -> Result<()> {
        self.one_call(self.call("CHECK", &self.conf_dir(), "eth0", pod))
    }

    pub fn network_status(&self, any: &Pod) -> Result<()> {
        self.one_call(self.call("STATUS", &self.conf_dir(), "eth0", any))
    }

    pub fn collect_garbage(&self, any: &Pod, staying: &[Pod]) -> Result<()> {
        let mut call = self.call("GC", &self.conf_dir(), "eth0", any);
        call.valid = staying.iter().map(|pod| pod.container_id.clone()).collect();
        self.one_call(call)
    }

    fn one_call(&self, call: Call) -> Result<()> {
        self.runner.call(&[call])?.remove(0).map(drop)
    }

    pub fn start_pod(&self, lab: &Lab, spec: PodSpec) -> Result<Pod> {
        let mut pods = self.start_pods(lab, &[spec])?;
        Ok(pods.remove(0))
    }

    /// CNI DEL, as at a pod's end; its addresses are free for the next one.
    pub fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.stop_pods(std::slice::from_ref(pod))
    }

    fn call(&self, command: &'static str, conflist: &std::path::Path, interface: &'static str, pod: &Pod) -> Call {
        let mappings: Vec<Value> = pod
            .host_ports
            .iter()
            .map(|(host, protocol, port)| {
                json!({"hostPort": host, "containerPort": port, "protocol": protocol.to_lowercase()})
            })
            .collect();
        Call {
            command,
            conflist: conflist.to_owned(),
            cache: self.cni_cache(),
            interface,
            container_id: pod.container_id.clone(),
            capability: json!({"portMappings": mappings}),
            netns: pod.netns.path(),
            valid: Vec::new(),
            // As the kubelet gives them; their order differs from pod to pod there.
            args: vec![
                ["IgnoreUnknown".into(), "1".into()],
                ["K8S_POD_NAMESPACE".into(), pod.namespace.clone()],
                ["K8S_POD_NAME".into(), pod.name.clone()],
                ["K8S_POD_INFRA_CONTAINER_ID".into(), pod.container_id.clone()],
                ["K8S_POD_UID".into(), pod.uid.clone()],
            ],
        }
    }

    /// Whether bridged packets pass iptables, as kube-proxy wants it. Needs the bridge, so a first pod.
    pub fn bridge_netfilter(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        self.netns
            .sysctl(&[("net/bridge/bridge-nf-call-iptables", value), ("net/bridge/bridge-nf-call-ip6tables", value)])
    }
}
