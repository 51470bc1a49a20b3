//! Two judges for tests: one asks the tables as the programs do, one reads the policies word by word.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use palisade_common::layout::{
    EndpointRecord, PORT_PREFIX_MAX, PORT_PREFIX_MIN, PORTS_ALL, PORTS_NONE, PortKey, RuleKey, RuleValue, endpoint_flag,
};

use crate::compile::prefix::{v4_word, v6_words};
use crate::facts::*;
use crate::index::fixture::NODE;
use crate::index::{Identity, Index, PodId};
use crate::tables::Tables;

pub(super) fn class_of(tables: &Tables, peer: IpAddr) -> u32 {
    match peer {
        IpAddr::V4(address) => tables.exact_v4.get(&v4_word(address)).copied().unwrap_or_else(|| {
            let nets = (0..=32).rev().map(|len| Ipv4Net::new(address, len).expect("a length").trunc());
            nets.filter_map(|net| tables.cidr_v4.get(&net)).next().copied().unwrap_or(0)
        }),
        IpAddr::V6(address) => tables.exact_v6.get(&v6_words(address)).copied().unwrap_or_else(|| {
            let nets = (0..=128).rev().map(|len| Ipv6Net::new(address, len).expect("a length").trunc());
            nets.filter_map(|net| tables.cidr_v6.get(&net)).next().copied().unwrap_or(0)
        }),
    }
}

/// What the tables say of a new flow.
pub(super) fn allowed(
    tables: &Tables,
    record: &EndpointRecord,
    egress: bool,
    peer: IpAddr,
    protocol: u8,
    port: u16,
) -> bool {
    let (flag, table) = match egress {
        false => (endpoint_flag::ISOLATED_INGRESS, record.ingress),
        true => (endpoint_flag::ISOLATED_EGRESS, record.egress),
    };
    if record.flags & endpoint_flag::CLOSED != 0 {
        return false;
    }
    if record.flags & flag == 0 {
        return true;
    }
    let class = class_of(tables, peer);
    let row = tables.rules.get(&RuleKey { table: table.table, class }).copied().unwrap_or(table.default);
    match row.ports {
        PORTS_NONE => false,
        PORTS_ALL => true,
        set => {
            let admits = (PORT_PREFIX_MIN..=PORT_PREFIX_MAX).any(|bits| {
                let port = port & (u32::MAX << (PORT_PREFIX_MAX - bits)) as u16;
                let key = PortKey { ports_be: set.to_be(), protocol, pad: 0, port_be: port.to_be() };
                tables.ports.contains_key(&(key, bits))
            });
            let RuleValue { rule, first, last, .. } = row;
            let alone = row.protocol == protocol && (first..=last).contains(&port);
            assert!(rule == 0 || alone == admits, "{row:?} says otherwise than its port set of {protocol}/{port}");
            admits
        }
    }
}

/// What the policies say of a new flow between a pod and a peer, read literally.
pub(super) fn literal(index: &Index, pod: PodId, egress: bool, peer: IpAddr, protocol: u8, port: u16) -> bool {
    let subject = index.pod(pod).expect("a pod that is there");
    if subject.finished || subject.host_network {
        return true;
    }
    let policies: Vec<_> = index.namespace(&subject.name.namespace).expect("its namespace").policies.values().collect();
    let isolating = policies.into_iter().filter(|policy| {
        let isolates = if egress { policy.isolates_egress } else { policy.isolates_ingress };
        isolates && policy.subject.matches(&subject.labels)
    });
    let isolating: Vec<_> = isolating.collect();
    let peer_pod = peer_pod(index, peer);
    let destination = if egress { peer_pod } else { Some(subject) };
    let rule = |rule: &Rule| {
        let peers = match &rule.peers {
            Peers::All => true,
            Peers::These(peers) => peers.iter().any(|one| peer_matches(index, one, peer, peer_pod)),
        };
        let ports = match &rule.ports {
            Ports::All => true,
            Ports::These(ports) => ports.iter().any(|one| port_matches(one, destination, protocol, port)),
        };
        peers && ports
    };
    isolating.is_empty()
        || isolating.iter().any(|policy| if egress { &policy.egress } else { &policy.ingress }.iter().any(rule))
}

/// The pod that an address is, if it is one pod's alone: one's to whom a CNI result of this node gave it, or else by status.
fn peer_pod(index: &Index, address: IpAddr) -> Option<&PodFacts> {
    let is_peer = |pod: &PodFacts| !pod.finished && !pod.host_network;
    let given: BTreeSet<PodId> = index
        .veths()
        .filter(|veth| veth.pod.is_some() && veth.addresses.iter().any(|(own, _)| *own == address))
        .filter_map(|veth| match index.identity(veth.ifindex) {
            Some(Identity::Pod(id)) => Some(id),
            Some(Identity::Unknown(_)) | None => None,
        })
        .filter(|id| index.pod(*id).is_some_and(|pod| is_peer(pod) && pod.node.as_deref() == Some(NODE)))
        .collect();
    let stated = index.pods().filter(|(_, pod)| is_peer(pod) && pod.addresses.contains(&address)).map(|(id, _)| id);
    let pods: BTreeSet<PodId> = if given.is_empty() { stated.collect() } else { given };
    if pods.len() == 1 { index.pod(*pods.first()?) } else { None }
}

fn peer_matches(index: &Index, peer: &Peer, address: IpAddr, pod: Option<&PodFacts>) -> bool {
    match peer {
        Peer::Block(Block { cidr, except }) => {
            let inside = |net: &IpNet| net.contains(&address);
            inside(cidr) && !except.iter().any(inside)
        }
        Peer::Pods { namespaces, pods } => pod.is_some_and(|pod| {
            let namespace = match namespaces {
                Namespaces::Named(name) => *name == pod.name.namespace,
                Namespaces::Matching(selector) => {
                    let facts = index.namespace(&pod.name.namespace).and_then(|namespace| namespace.facts.as_ref());
                    facts.is_some_and(|facts| selector.matches(&facts.labels))
                }
            };
            namespace && pods.matches(&pod.labels)
        }),
    }
}

fn port_matches(entry: &PortMatch, destination: Option<&PodFacts>, protocol: u8, port: u16) -> bool {
    match entry {
        PortMatch::Range { protocol: own, first, last } => own.number() == protocol && (*first..=*last).contains(&port),
        PortMatch::Named { protocol: own, name } => destination.is_some_and(|pod| {
            let is = |named: &NamedPort| named.name == *name && named.protocol == *own && named.port == port;
            own.number() == protocol && pod.ports.iter().any(is)
        }),
    }
}
