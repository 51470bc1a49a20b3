//! A pod: a network namespace with what Kubernetes knows of it, and what CNI made of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::netns::parse_mac;
use super::{Lab, Netns, Node};

#[derive(Clone, Default)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Named container ports: name, protocol (`TCP`, `UDP`, `SCTP`), number.
    pub ports: Vec<(String, String, u16)>,
    /// Ports of its node that portmap sends on: node's port, protocol, container's port.
    pub host_ports: Vec<(u16, String, u16)>,
    /// What the API server has given it; made up where there is none.
    pub uid: Option<String>,
}

impl PodSpec {
    pub fn new(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self {
            namespace: namespace.into(),
            name: name.into(),
            labels,
            ports: Vec::new(),
            host_ports: Vec::new(),
            uid: None,
        }
    }

    pub fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        self.ports.push((name.into(), protocol.into(), port));
        self
    }

    pub fn host_port(mut self, host: u16, protocol: &str, port: u16) -> Self {
        self.host_ports.push((host, protocol.into(), port));
        self
    }
}

#[derive(Clone)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<(String, String, u16)>,
    pub host_ports: Vec<(u16, String, u16)>,
    pub node: String,
    pub netns: Netns,
    pub container_id: String,
    /// IPv4, then IPv6, as in status.podIPs.
    pub addresses: Vec<IpAddr>,
    /// Of eth0.
    pub mac: [u8; 6],
    /// The host's side of its veth.
    pub host_interface: String,
}

impl Pod {
    pub(super) fn new(lab: &Lab, node: &Node, spec: &PodSpec) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let netns = Netns::create(lab.guard(), &format!("{}-{}-{}-{count}", lab.prefix, spec.namespace, spec.name))?;
        Ok(Self {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: spec.uid.clone().unwrap_or_else(|| format!("00000000-0000-4000-8000-{process:06x}{count:06x}")),
            labels: spec.labels.clone(),
            ports: spec.ports.clone(),
            host_ports: spec.host_ports.clone(),
            node: node.name.clone(),
            netns,
            // As long as a container's id, and another one for every pod of the machine.
            container_id: format!("{process:032x}{count:032x}"),
            addresses: Vec::new(),
            mac: [0; 6],
            host_interface: String::new(),
        })
    }

    /// Takes what there is to know from the result of ADD.
    pub(super) fn read_result(&mut self, result: &Value) -> Result<()> {
        let interfaces = result["interfaces"].as_array().context("a result names interfaces")?;
        for interface in interfaces {
            let name = interface["name"].as_str().context("an interface has a name")?;
            if interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty()) {
                self.mac = parse_mac(interface["mac"].as_str().context("an interface has a MAC address")?)?;
            } else if name != "cni0" {
                self.host_interface = name.to_owned();
            }
        }
        for ip in result["ips"].as_array().context("a result has addresses")? {
            let text = ip["address"].as_str().context("an address is text")?;
            let (address, _) = text.split_once('/').context("an address has a prefix length")?;
            self.addresses.push(address.parse()?);
        }
        self.addresses.sort();
        ensure!(self.addresses.len() == 2, "a dual-stack pod has two addresses: {:?}", self.addresses);
        Ok(())
    }

    pub fn ipv4(&self) -> IpAddr {
        self.addresses[0]
    }

    pub fn ipv6(&self) -> IpAddr {
        self.addresses[1]
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The link-local address that the kernel derives from the MAC address (EUI-64).
    pub fn link_local(&self) -> std::net::Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.map(u16::from);
        std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
    }
}
