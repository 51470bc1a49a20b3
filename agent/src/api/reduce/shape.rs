//! The few fields of Pods, Namespaces, Nodes and Services that are ever read; everything else is skipped as it is decoded.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::lax::{Lax, Record, Shape};

/// Labels as written. A value that is no string is kept as [`Lax::Wrong`].
pub type Strings = BTreeMap<String, Lax<String>>;
pub type List<T> = Lax<Vec<Lax<T>>>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: Lax<String>,
    pub namespace: Lax<String>,
    pub uid: Lax<String>,
    pub resource_version: Lax<String>,
    pub labels: Lax<Strings>,
    pub annotations: Lax<Annotations>,
}

/// The annotations that mean something to us: the others may be long, and every pod has some.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Trust {
    #[serde(rename = "palisade.dev/trusted-addresses")]
    pub trusted_addresses: Lax<String>,
    /// The mirror of a static pod: the UID by which the kubelet, and so the CNI result, knows the pod itself.
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub config_mirror: Lax<String>,
}
pub type Annotations = Record<Trust>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceShape {
    pub kind: Lax<String>,
    pub metadata: Lax<Record<Metadata>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodShape {
    pub kind: Lax<String>,
    pub metadata: Lax<Record<Metadata>>,
    pub spec: Lax<Record<PodSpec>>,
    pub status: Lax<Record<PodStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Lax<String>,
    pub host_network: Lax<bool>,
    pub containers: List<Record<Container>>,
    pub init_containers: List<Record<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub restart_policy: Lax<String>,
    pub ports: List<Record<ContainerPort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: Lax<String>,
    pub protocol: Lax<String>,
    pub container_port: Lax<i64>,
    pub host_port: Lax<i64>,
    #[serde(rename = "hostIP")]
    pub host_ip: Lax<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    pub phase: Lax<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Lax<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: List<Record<PodAddress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodAddress {
    pub ip: Lax<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeShape {
    pub kind: Lax<String>,
    pub metadata: Lax<Record<Metadata>>,
    pub spec: Lax<Record<NodeSpec>>,
    pub status: Lax<Record<NodeStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Lax<String>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: List<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub addresses: List<Record<NodeAddress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: Lax<String>,
    pub address: Lax<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceShape {
    pub kind: Lax<String>,
    pub metadata: Lax<Record<Metadata>>,
    pub spec: Lax<Record<ServiceSpec>>,
    pub status: Lax<Record<ServiceStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: Lax<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Lax<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: List<String>,
    #[serde(rename = "externalIPs")]
    pub external_ips: List<String>,
    pub selector: Lax<Strings>,
    pub ports: List<Record<ServicePortShape>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePortShape {
    pub protocol: Lax<String>,
    pub port: Lax<i64>,
    pub node_port: Lax<i64>,
    pub target_port: Lax<IntOrString>,
}

/// A number or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

impl Shape<'_> for IntOrString {
    fn from_number(number: i64) -> Option<Self> {
        Some(Self::Int(number))
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::String(text.to_owned()))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    pub load_balancer: Lax<Record<LoadBalancer>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    pub ingress: List<Record<LoadBalancerIngress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerIngress {
    pub ip: Lax<String>,
    #[serde(rename = "ipMode")]
    pub ip_mode: Lax<String>,
}

impl<T> Lax<Record<T>> {
    /// The record, or one in which every field is missing.
    pub fn or_empty(&self) -> std::borrow::Cow<'_, T>
    where
        T: Clone + Default,
    {
        self.found().map_or_else(Default::default, |Record(record)| std::borrow::Cow::Borrowed(record))
    }
}
