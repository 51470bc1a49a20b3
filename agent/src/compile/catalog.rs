//! Names for numbers: what the tables mean, for people (`palisade endpoints`, `palisade maps`, refused flows).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use palisade_common::layout::CLASS_NONE;
use serde::{Deserialize, Serialize};

use super::record::Own;
use super::{Compiler, Direction};
use crate::facts::{Block, Fault, NamedPort, Namespaces, Operator, Peer, Peers, PortMatch, Ports, Selector};
use crate::index::Index;

/// Field names are part of the output of `-o json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Of the agent itself. The compiler does not know.
    #[serde(default)]
    pub agent: AgentEntry,
    pub endpoints: Vec<EndpointEntry>,
    pub rules: BTreeMap<u32, RuleEntry>,
    pub tables: BTreeMap<u32, TableEntry>,
    pub classes: BTreeMap<u32, ClassEntry>,
    pub faults: Vec<FaultEntry>,
}

/// How the agent stood when it wrote this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEntry {
    pub node: String,
    pub version: String,
    /// Why it does not call itself ready.
    pub not_ready: Option<String>,
    /// Names of the devices at which what leaves the node is judged.
    pub exits: Vec<String>,
    /// Why pods with an egress policy are refused what they send to Services; empty: they are not.
    pub exits_missing: Vec<String>,
    /// Folders of CNI configurations and of plugins, where the agent keeps the CNI plugin in the chain.
    #[serde(default)]
    pub cni: Option<[PathBuf; 2]>,
    /// Folder below which the objects last known are kept.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// Since when kinds of objects are not seen to change, as the API server does not answer.
    #[serde(default)]
    pub stale: Vec<String>,
    /// Devices by which packets come in, and how the XDP program is there or why it is not; none: `--xdp off`.
    #[serde(default)]
    pub xdp: Option<Vec<XdpEntry>>,
}

/// A device of `--xdp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpEntry {
    pub device: String,
    /// `native` or `generic`; none: it is not there.
    pub mode: Option<String>,
    /// Why it is not there.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointEntry {
    pub ifindex: u32,
    pub interface: String,
    /// `None`: there is no room for it.
    pub number: Option<u32>,
    pub generation: u32,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// The pod's named ports.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
    pub isolated_ingress: bool,
    pub isolated_egress: bool,
    /// `namespace/name` of the policies that isolate it.
    pub ingress_policies: Vec<String>,
    pub egress_policies: Vec<String>,
    pub ingress_table: Option<u32>,
    pub egress_table: Option<u32>,
    /// It may send from any address.
    pub trusted: bool,
    /// Why nothing passes but between the pod and its node.
    pub closed: Option<String>,
    /// Why a program is missing on its interface, so that policies do not hold. The compiler does not know.
    #[serde(default)]
    pub not_attached: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEntry {
    /// `namespace/name`.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Place in spec.ingress or spec.egress, from 0.
    pub index: usize,
    /// As written, for people; none: everybody.
    #[serde(default)]
    pub peers: Option<Vec<String>>,
    /// As written, for people; none: everything.
    #[serde(default)]
    pub ports: Option<Vec<String>>,
}

impl fmt::Display for RuleEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} rule {}", self.policy, self.direction, self.index)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    pub direction: String,
    /// `namespace/name`, sorted.
    pub policies: Vec<String>,
    /// Of ingress: what its rules' names of ports stand for at its pods.
    #[serde(default)]
    pub ports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassEntry {
    /// What is known of the addresses of the class.
    pub description: String,
    /// The peers of policies whose addresses they are, as rules name them.
    #[serde(default)]
    pub peers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultEntry {
    pub kind: String,
    pub object: String,
    pub field: String,
    pub message: String,
}

impl From<&Fault> for FaultEntry {
    fn from(fault: &Fault) -> Self {
        let Fault { kind, object, field, message } = fault.clone();
        Self { kind: kind.name().to_owned(), object, field, message }
    }
}

impl Compiler {
    /// The names of all numbers in the tables as they are now. `faults`: those of other stages, to be listed with ours.
    pub fn catalog(&self, index: &Index, faults: &[Fault]) -> Catalog {
        let table = |table: &super::table::Table| TableEntry {
            direction: table.direction.name().to_owned(),
            policies: table.sides.iter().map(|side| side.policy.to_string()).collect(),
            ports: table.ports.iter().map(describe_named).collect(),
        };
        let class = |id: u32| (id, self.class_entry(id));
        let mut faults: Vec<FaultEntry> = faults.iter().chain(&self.faults(index)).map(FaultEntry::from).collect();
        faults.sort_by(|a, b| (&a.kind, &a.object, &a.field).cmp(&(&b.kind, &b.object, &b.field)));
        faults.dedup();
        Catalog {
            agent: AgentEntry::default(),
            endpoints: index.veths().filter_map(|veth| self.endpoint_entry(index, veth.ifindex)).collect(),
            rules: self.rule_entries(),
            tables: self.decisions.tables().map(|(id, entry)| (id, table(entry))).collect(),
            classes: self.classes.ids().into_iter().chain([CLASS_NONE]).map(class).collect(),
            faults,
        }
    }

    fn rule_entries(&self) -> BTreeMap<u32, RuleEntry> {
        let mut entries = BTreeMap::new();
        for side in self.policies.sides().flat_map(|(_, sides)| sides.iter().flatten()) {
            for (index, (rule, id)) in side.rules().iter().zip(&side.rule_ids).enumerate() {
                let peers = match &rule.peers {
                    Peers::All => None,
                    Peers::These(peers) => Some(peers.iter().map(describe_peer).collect()),
                };
                let ports = match &rule.ports {
                    Ports::All => None,
                    Ports::These(ports) => Some(ports.iter().map(describe_port).collect()),
                };
                let (policy, direction) = (side.policy.to_string(), side.direction.name().to_owned());
                entries.insert(*id, RuleEntry { policy, direction, index, peers, ports });
            }
        }
        entries
    }

    fn endpoint_entry(&self, index: &Index, ifindex: u32) -> Option<EndpointEntry> {
        let veth = index.veth(ifindex)?;
        let endpoint = self.endpoints.all.get(&ifindex)?;
        let own = Own::of(index, veth, endpoint.pod);
        let v4 = own.v4.keys().copied().map(IpAddr::V4);
        let policies = |direction: Direction| {
            let isolating = endpoint.policies.iter().filter(|policy| self.policies.side(policy, direction).is_some());
            isolating.map(ToString::to_string).collect()
        };
        let namespace = endpoint.name.as_ref().map(|name| name.namespace.to_string());
        let facts = namespace.as_deref().and_then(|name| index.namespace(name)?.facts.as_ref());
        let room = self.cut.is_none_or(|cut| ifindex < cut);
        let no_room = || format!("there is no room for it among {} endpoints", self.limits.endpoints_max);
        let [ingress_table, egress_table] = endpoint.tables;
        Some(EndpointEntry {
            ifindex,
            interface: veth.name.to_string(),
            number: endpoint.number,
            generation: endpoint.generation,
            trusted: facts.is_some_and(|facts| facts.trusted),
            namespace,
            pod: endpoint.name.as_ref().map(|name| name.name.to_string()),
            addresses: v4.chain(own.v6.iter().copied().map(IpAddr::V6)).collect(),
            ports: endpoint
                .pod
                .and_then(|id| index.pod(id))
                .map_or(Vec::new(), |pod| pod.ports.iter().cloned().collect()),
            isolated_ingress: endpoint.is_isolated(Direction::Ingress),
            isolated_egress: endpoint.is_isolated(Direction::Egress),
            ingress_policies: policies(Direction::Ingress),
            egress_policies: policies(Direction::Egress),
            ingress_table,
            egress_table,
            not_attached: None,
            closed: if room { endpoint.closed.as_ref().map(ToString::to_string) } else { Some(no_room()) },
        })
    }

    fn class_entry(&self, id: u32) -> ClassEntry {
        let class = self.peer_class(id);
        let peers: Vec<String> = class.matchers.iter().map(describe_peer).collect();
        let ports = class.ports.iter().map(|port| format!("port {}", describe_named(port)));
        let parts: Vec<String> = peers.iter().cloned().chain(ports).collect();
        let nobody = || "nobody that a policy names".to_owned();
        ClassEntry { description: if parts.is_empty() { nobody() } else { parts.join("; ") }, peers }
    }
}

fn describe_peer(peer: &Peer) -> String {
    let labels = |selector: &Selector| {
        let described = describe_selector(selector);
        if described.is_empty() { described } else { format!(" {described}") }
    };
    match peer {
        Peer::Pods { namespaces: Namespaces::Named(name), pods } => format!("pods{} in namespace {name}", labels(pods)),
        Peer::Pods { namespaces: Namespaces::Matching(selector), pods } if selector.requirements.is_empty() => {
            format!("pods{} in any namespace", labels(pods))
        }
        Peer::Pods { namespaces: Namespaces::Matching(selector), pods } => {
            format!("pods{} in namespaces{}", labels(pods), labels(selector))
        }
        Peer::Block(Block { cidr, except }) if except.is_empty() => cidr.to_string(),
        Peer::Block(Block { cidr, except }) => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(", "))
        }
    }
}

fn describe_named(port: &NamedPort) -> String {
    format!("{}={}/{}", port.name, port.port, port.protocol.name())
}

fn describe_port(port: &PortMatch) -> String {
    let lower = |protocol: &crate::facts::Protocol| protocol.name().to_lowercase();
    match port {
        PortMatch::Range { protocol, first: 0 | 1, last: u16::MAX } => lower(protocol),
        PortMatch::Range { protocol, first, last } if first == last => format!("{}/{first}", lower(protocol)),
        PortMatch::Range { protocol, first, last } => format!("{}/{first}-{last}", lower(protocol)),
        PortMatch::Named { protocol, name } => format!("{}/{name}", lower(protocol)),
    }
}

/// As `kubectl` writes selectors.
fn describe_selector(selector: &Selector) -> String {
    let requirement = |requirement: &crate::facts::Requirement| {
        let key = &requirement.key;
        let list = |values: &std::collections::BTreeSet<String>| Vec::from_iter(values.iter().cloned()).join(",");
        match &requirement.operator {
            Operator::In(values) if values.len() == 1 => format!("{key}={}", list(values)),
            Operator::In(values) => format!("{key} in ({})", list(values)),
            Operator::NotIn(values) => format!("{key} notin ({})", list(values)),
            Operator::Exists => key.to_string(),
            Operator::DoesNotExist => format!("!{key}"),
        }
    };
    selector.requirements.iter().map(requirement).collect::<Vec<_>>().join(",")
}
