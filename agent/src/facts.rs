//! What remains of an API object behind the door: the parts that can change a verdict, comparable by value.
//!
//! `api` makes them, `index` keeps them. Nothing behind `api` sees a Kubernetes type. What could not be understood is a
//! [`Fault`] beside the facts, and the facts are then the closed reading of the object (SEMANTICS 15.2).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Labels of a pod or namespace. Shared, as many pods of a workload carry the same.
pub type Labels = Arc<BTreeMap<String, String>>;

/// `namespace/name` of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceFacts {
    pub name: Arc<str>,
    pub labels: Labels,
    /// Pods of the namespace may send from any address (annotation `palisade.dev/trusted-addresses: "true"`).
    pub trusted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFacts {
    pub name: ObjectName,
    /// metadata.uid; from a folder, where it may be missing, made from the name.
    pub uid: Arc<str>,
    pub labels: Labels,
    /// status.podIPs and status.podIP, without doubles.
    pub addresses: Vec<IpAddr>,
    /// Named ports of containers and restartable init containers (SEMANTICS 7.6, 7.10, 7.11). Shared.
    pub ports: Arc<BTreeSet<NamedPort>>,
    /// Ports of its node that are translated to the pod's (portmap). Shared.
    pub host_ports: Arc<BTreeSet<HostPort>>,
    /// spec.nodeName.
    pub node: Option<Arc<str>>,
    /// spec.hostNetwork: neither subject nor peer of a selector (SEMANTICS 10).
    pub host_network: bool,
    /// status.phase Succeeded or Failed: its addresses may be another's already (SEMANTICS 9.3).
    pub finished: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub port: u16,
    /// hostIP; `None` where it is missing or unspecified: any of the node's.
    pub address: Option<IpAddr>,
}

/// What of a Service makes the node send a pod's packet elsewhere than it was addressed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFacts {
    pub name: ObjectName,
    /// spec.clusterIPs (or clusterIP), spec.externalIPs, and status.loadBalancer.ingress[].ip whose ipMode is not Proxy; sorted, without
    /// doubles. Empty: headless, or an ExternalName.
    pub addresses: Vec<IpAddr>,
    /// Sorted, without doubles.
    pub ports: Vec<ServicePort>,
    /// spec.selector; `None`: its endpoints are somebody else's doing.
    pub selector: Option<Labels>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
    pub target: TargetPort,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetPort {
    Number(u16),
    /// Resolved at each backend.
    Named(Arc<str>),
}

/// The protocols a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    pub name: Arc<str>,
    /// status.addresses that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// spec.podCIDRs (or podCIDR).
    pub pod_cidrs: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFacts {
    pub name: ObjectName,
    /// spec.podSelector; `Selector::everything()` where it could not be understood, so that the policy isolates.
    pub subject: Selector,
    pub isolates_ingress: bool,
    pub isolates_egress: bool,
    /// Empty where the policy does not isolate for that direction.
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

/// One entry of spec.ingress or spec.egress. An entry that could not be understood has `Peers::These(vec![])`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub peers: Peers,
    pub ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Peers {
    /// from/to missing or empty: everybody, pods or not.
    All,
    /// Any of these; the empty list is nobody.
    These(Vec<Peer>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Peer {
    Pods { namespaces: Namespaces, pods: Selector },
    Block(Block),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Namespaces {
    /// The one of this name: the policy's own, where namespaceSelector is missing.
    Named(Arc<str>),
    Matching(Selector),
}

/// An ipBlock: canonical (host bits cleared), excepts sorted, without doubles, each inside the cidr.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Block {
    pub cidr: IpNet,
    pub except: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ports {
    /// ports missing or empty: every port of every protocol, protocols without ports included.
    All,
    /// Any of these; the empty list is none.
    These(Vec<PortMatch>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    /// Destination ports first..=last.
    Range { protocol: Protocol, first: u16, last: u16 },
    /// Resolved at each destination pod.
    Named { protocol: Protocol, name: Arc<str> },
}

/// A label selector: all requirements hold. No requirement: everything matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Selector {
    /// Sorted, without doubles.
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Requirement {
    pub key: Arc<str>,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    In(BTreeSet<String>),
    /// Also matches where the key is absent.
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

/// One change at the door. Objects are keyed as Kubernetes keys them: a pod of the same name and another UID is another.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Namespace(Arc<str>, Option<NamespaceFacts>),
    /// `None`: this pod (by UID) is gone.
    Pod {
        name: ObjectName,
        uid: Arc<str>,
        facts: Option<PodFacts>,
    },
    Policy(ObjectName, Option<PolicyFacts>),
    Node(Arc<str>, Option<NodeFacts>),
    Service(ObjectName, Option<ServiceFacts>),
    /// The complete list of a kind has been applied: whatever was not named since its `Relist` is gone.
    Relist(Kind),
    Relisted(Kind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    Namespace,
    Pod,
    Policy,
    Node,
    Service,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Namespace, Self::Pod, Self::Policy, Self::Node, Self::Service];

    /// Without a complete list of it nothing can be judged. Not knowing a Service opens nothing.
    pub const fn is_needed(self) -> bool {
        !matches!(self, Self::Service)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Policy => "NetworkPolicy",
            Self::Node => "Node",
            Self::Service => "Service",
        }
    }
}

/// Something that cannot be enforced as written; what it concerns is closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fault {
    pub kind: Kind,
    /// `namespace/name`, or the name alone where there is no namespace; a file's path where it names no object.
    pub object: String,
    /// Path of the field, as in `spec.ingress[0].ports[1].port`.
    pub field: String,
    /// A sentence without a full stop: what is wrong and what follows from it.
    pub message: String,
}

// === impl ServiceFacts ===

impl ServiceFacts {
    /// The pod is one that the Service may stand for.
    pub fn selects(&self, pod: &PodFacts) -> bool {
        let matches = |selector: &Labels| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        pod.name.namespace == self.name.namespace
            && !pod.finished
            && self.selector.as_ref().is_some_and(|selector| !selector.is_empty() && matches(selector))
    }
}

impl ServicePort {
    /// The ports of a pod with these named ports that stand for it.
    pub fn resolved<'a>(&self, ports: impl IntoIterator<Item = &'a NamedPort>) -> Vec<u16> {
        match &self.target {
            TargetPort::Number(port) => vec![*port],
            TargetPort::Named(name) => {
                let named = ports.into_iter().filter(|port| port.name == *name && port.protocol == self.protocol);
                named.map(|port| port.port).collect()
            }
        }
    }
}

// === impl Selector ===

impl Selector {
    pub fn everything() -> Self {
        Self { requirements: Vec::new() }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    /// SEMANTICS 4.2, after apimachinery's pkg/labels Requirement.Matches.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&*self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// One object's change, and all that is wrong with the object as it now is (empty: nothing, earlier faults are cleared).
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub change: Change,
    pub faults: Vec<Fault>,
    /// When the object was written, as the API server has it (Unix time in seconds): of a policy that has just been. `None`: nobody knows, or
    /// it is no news.
    pub written: Option<i64>,
}

impl Update {
    pub fn new(change: Change, faults: Vec<Fault>) -> Self {
        Self { change, faults, written: None }
    }
}

/// The host's side of a veth that is, or may be, a pod's: what `node` found out about it. Addresses and names may come
/// later than the interface; each change is the whole value anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Veth {
    /// Index of the host's side.
    pub ifindex: u32,
    /// Name of the host's side.
    pub name: Arc<str>,
    /// MAC address of the pod's side.
    pub pod_mac: Option<[u8; 6]>,
    /// Id of the network namespace of the pod's side, relative to the node's.
    pub netns_id: Option<i32>,
    /// Addresses of the pod's side with their prefix lengths (bits), link-local ones included.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Which pod the CNI result names.
    pub pod: Option<(ObjectName, Option<Arc<str>>)>,
    /// It was there before this node's first program was attached to it: there may be connections nobody saw being opened.
    pub older: bool,
    /// It is new on a node where CNI results are told of, and none names it yet: until then an address that it has may still be said to be that
    /// of the pod which had it before.
    pub awaits_result: bool,
}

/// What `node` tells: a veth is as given, or gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethChange {
    pub ifindex: u32,
    pub veth: Option<Veth>,
}

/// What `node` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    Veth(VethChange),
    /// All there are.
    Devices(Vec<Device>),
    /// The node's own addresses, all of them.
    Addresses(BTreeSet<IpAddr>),
    /// Of these, those of the pods' bridges, link-local ones aside.
    PodGateways(BTreeSet<IpAddr>),
    /// Events were lost, and what they would have told was asked for instead: it is in the same batch.
    Resynced(EventSource),
}

/// Where events of the node come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventSource {
    /// rtnetlink, of the node's own namespace.
    Links,
    /// rtnetlink, of the pods' namespaces.
    PodSides,
    /// inotify on the CNI results.
    Results,
}

impl EventSource {
    pub const ALL: [Self; 3] = [Self::Links, Self::PodSides, Self::Results];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::PodSides => "pod-sides",
            Self::Results => "results",
        }
    }
}

/// A device by which pods' packets may leave the node, which therefore needs a program where they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u32,
    pub name: Arc<str>,
    /// IFF_UP.
    pub up: bool,
    /// ARPHRD_ETHER: packets begin with an Ethernet header.
    pub has_link_header: bool,
    /// Of kind veth: for a moment a pod's interface looks like one.
    pub is_veth: bool,
    /// Neither made by the node for itself nor a tunnel: others may be on its other side.
    pub is_wire: bool,
    pub vxlan: Option<Vxlan>,
}

/// The node's end of a VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The node's own address that peers send to; `None`: any.
    pub local: Option<IpAddr>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP.
    pub port: u16,
}
