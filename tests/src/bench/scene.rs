//! What the packets of the in-kernel figures meet: two pods, one of which a policy isolates in both directions, and frames between them
//! and the world.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use palisade_common::Hook;
use serde_json::{Value, json};

use crate::case::{Endpoint, ObjectChange};
use crate::frame::{Body, Frame, Ip, Mac, Tcp, Upper};

pub const NODE: &str = "bench";
pub const NAMESPACE: &str = "bench";

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// No policy selects it.
    Free,
    /// Isolated for ingress and egress.
    Isolated,
}

impl Subject {
    pub const ALL: [Self; 2] = [Self::Free, Self::Isolated];

    /// Index of the host's side of its veth.
    pub const fn ifindex(self) -> u32 {
        match self {
            Self::Free => 2,
            Self::Isolated => 3,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Isolated => "isolated",
        }
    }

    const fn mac(self) -> Mac {
        [0x0a, 0x58, 10, 244, 1, self.ifindex() as u8]
    }

    fn address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 244, 1, self.ifindex() as u8).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, self.ifindex() as u16).into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The other end: no pod, inside of the block that the policy's last rule admits. Its last word is what [`super::vary`] varies.
    fn peer(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(super::vary::FIRST_BYTE, 0, 0, 0).into(),
            Self::V6 => Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0x0a00, 0).into(),
        }
    }

    /// Where the last word of the peer's address lies in a frame (bytes).
    pub const fn peer_offset(self, hook: Hook) -> i16 {
        match (self, hook) {
            (Self::V4, Hook::ToPod) => 26,
            (Self::V4, Hook::FromPod) => 30,
            (Self::V6, Hook::ToPod) => 34,
            (Self::V6, Hook::FromPod) => 50,
        }
    }

    /// Where the TCP ports lie in a frame (bytes).
    pub const fn ports_offset(self) -> i16 {
        match self {
            Self::V4 => 34,
            Self::V6 => 54,
        }
    }
}

/// The port that every rule set's last rule admits, and one that none admits.
pub const ADMITTED: u16 = 80;
pub const REFUSED: u16 = 81;

/// A packet between a pod and the peer.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub subject: Subject,
    pub family: Family,
    pub hook: Hook,
    /// The port of the end that did not open the flow.
    pub port: u16,
    /// SYN; else ACK.
    pub opens: bool,
    /// It is the opener's.
    pub forward: bool,
}

impl Packet {
    /// The packet that opens the flow of this one.
    pub fn opener(self) -> Self {
        let hook = if self.forward { self.hook } else { self.hook.opposite() };
        Self { hook, opens: true, forward: true, ..self }
    }

    pub fn frame(self) -> Vec<u8> {
        const OPENER_PORT: u16 = 40_000;
        const BRIDGE: Mac = [0x0a, 0x58, 10, 244, 1, 1];
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        let (pod, peer) = (self.subject.address(self.family), self.family.peer());
        let (macs, addresses) = match self.hook {
            Hook::FromPod => ((self.subject.mac(), BRIDGE), (pod, peer)),
            Hook::ToPod => ((BRIDGE, self.subject.mac()), (peer, pod)),
        };
        let ports = if self.forward { (OPENER_PORT, self.port) } else { (self.port, OPENER_PORT) };
        let ip = Ip {
            source: addresses.0,
            destination: addresses.1,
            hop_limit: 63,
            options: 0,
            extensions: Vec::new(),
            fragment: None,
            length: None,
            header_words: None,
            version: None,
            payload_max: None,
            upper: Upper::Tcp(Tcp {
                source: ports.0,
                destination: ports.1,
                sequence: 1,
                acknowledgement: 1,
                flags: if self.opens { SYN } else { ACK },
                data: 10,
                header_words: None,
            }),
        };
        Frame {
            source_mac: macs.0,
            destination_mac: macs.1,
            tags: Vec::new(),
            body: Body::Ip(ip),
            cut: None,
            padding: 0,
        }
        .bytes()
    }
}

/// The objects and veths. The policy has `rules` rules in each direction, of which the last admits the peer to [`ADMITTED`], and each of the
/// others another block and port.
pub fn world(rules: usize) -> Vec<ObjectChange> {
    let rules = |direction| (1..=rules).map(|number| rule(direction, number == rules, number)).collect();
    world_of(rules("from"), rules("to"))
}

/// The same with other rules.
pub fn world_of(ingress: Vec<Value>, egress: Vec<Value>) -> Vec<ObjectChange> {
    let mut changes = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}),
        policy(ingress, egress),
    ];
    changes.extend(Subject::ALL.map(pod));
    let mut changes: Vec<_> = changes.into_iter().map(ObjectChange::Put).collect();
    changes.extend(Subject::ALL.map(|subject| ObjectChange::Endpoint(endpoint(subject))));
    changes
}

fn pod(subject: Subject) -> Value {
    let addresses: Vec<_> = Family::ALL.iter().map(|family| json!({"ip": subject.address(*family)})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": subject.name(), "labels": {"pod": subject.name()}},
        "spec": {"nodeName": NODE, "containers": []},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

fn endpoint(subject: Subject) -> Endpoint {
    Endpoint {
        ifindex: subject.ifindex(),
        namespace: NAMESPACE.into(),
        pod: subject.name().into(),
        uid: None,
        mac: subject.mac(),
        addresses: vec![(subject.address(Family::V4), 24), (subject.address(Family::V6), 64)],
        older: false,
        listening: None,
    }
}

fn policy(ingress: Vec<Value>, egress: Vec<Value>) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": "rules"},
        "spec": {
            "podSelector": {"matchLabels": {"pod": Subject::Isolated.name()}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    })
}

fn rule(direction: &str, last: bool, number: usize) -> Value {
    if last {
        return json!({
            direction: [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "fd01::/16"}}],
            "ports": [{"protocol": "TCP", "port": ADMITTED}],
        });
    }
    let [high, low] = u16::try_from(number).expect("the figures need fewer rules").to_be_bytes();
    json!({
        direction: [
            {"ipBlock": {"cidr": format!("172.16.{high}.{low}/32")}},
            {"ipBlock": {"cidr": format!("fd02::{number:x}/128")}},
        ],
        "ports": [{"protocol": "TCP", "port": 1000 + number}],
    })
}
