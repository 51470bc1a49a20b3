//! The worlds of the `scale` figures: policies with many rules, over many pods, or of many ranges of ports.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::scene::{self, Family, Packet};
use crate::case::ObjectChange;

/// The first peer's address; the others follow it.
pub const PEERS: Ipv4Addr = Ipv4Addr::new(super::vary::FIRST_BYTE, 64, 0, 0);
/// No rule admits it.
pub const PORT_REFUSED: u16 = 79;
const PORT: u16 = 80;
/// From one range of ports to the next, and how many ports a range has beyond its first.
const RANGE_STEP: u16 = 60;
const RANGE_LENGTH: u16 = 30;
/// By how many labels a policy tells peers apart that are pods.
const APPS: u32 = 10;

/// A number of something.
#[derive(Clone, Copy, Debug)]
pub enum Point {
    /// Each admits an ipBlock of one peer to a range of ports of its own.
    Rules(u32),
    /// Peers that [`APPS`] rules choose by labels, each for a range of ports of its own.
    Pods(u32),
    /// Of one rule for an ipBlock; the last one admits.
    PortRanges(u32),
}

type Range = (&'static str, &'static [Point]);

/// Each from its smallest number on.
pub const RANGES: [Range; 3] = [
    ("Rules", &[Point::Rules(1), Point::Rules(100), Point::Rules(10_000)]),
    ("Pods", &[Point::Pods(10), Point::Pods(1_000), Point::Pods(20_000)]),
    ("Port ranges", &[Point::PortRanges(1), Point::PortRanges(30), Point::PortRanges(1_000)]),
];

impl Point {
    pub const fn number(self) -> u32 {
        match self {
            Self::Rules(number) | Self::Pods(number) | Self::PortRanges(number) => number,
        }
    }

    /// Addresses from [`PEERS`] on that the policy admits.
    pub const fn peers(self) -> u32 {
        match self {
            Self::Rules(number) | Self::Pods(number) => number,
            Self::PortRanges(_) => 20_000,
        }
    }

    pub const fn port_admitted(self) -> u16 {
        match self {
            Self::Rules(_) | Self::Pods(_) => PORT,
            Self::PortRanges(number) => PORT + RANGE_STEP * (number as u16 - 1),
        }
    }

    /// The packet, from the first peer.
    pub fn frame(self, packet: Packet) -> Vec<u8> {
        let mut frame = packet.frame();
        let place = usize::try_from(Family::V4.peer_offset(packet.hook)).expect("offsets are not negative");
        frame[place..place + 4].copy_from_slice(&PEERS.octets());
        frame
    }

    pub fn world(self) -> Vec<ObjectChange> {
        let rules: Vec<Value> = match self {
            Self::Rules(number) => (0..number)
                .map(|rule| from(json!({"ipBlock": {"cidr": format!("{}/32", peer(rule))}}), &[up_to(rule)]))
                .collect(),
            Self::Pods(_) => (0..APPS)
                .map(|app| from(json!({"podSelector": {"matchLabels": {"app": app.to_string()}}}), &[up_to(app)]))
                .collect(),
            Self::PortRanges(number) => {
                let ranges: Vec<Value> = (0..number as u16)
                    .map(|range| PORT + RANGE_STEP * range)
                    .map(|first| json!({"protocol": "TCP", "port": first, "endPort": first + RANGE_LENGTH}))
                    .collect();
                vec![from(json!({"ipBlock": {"cidr": format!("{PEERS}/16")}}), &ranges)]
            }
        };
        let mut changes = scene::world_of(rules, Vec::new());
        if let Self::Pods(number) = self {
            changes.extend((0..number).map(|number| ObjectChange::Put(pod(number))));
        }
        changes
    }
}

fn peer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(PEERS.to_bits() + number)
}

fn from(peer: Value, ports: &[Value]) -> Value {
    json!({"from": [peer], "ports": ports})
}

/// Ranges of ports that are all another, and have the admitted port in common.
fn up_to(number: u32) -> Value {
    json!({"protocol": "TCP", "port": PORT, "endPort": 1000 + number})
}

/// On another node.
fn pod(number: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": scene::NAMESPACE,
            "name": format!("peer-{number}"),
            "labels": {"app": (number % APPS).to_string()},
        },
        "spec": {"nodeName": "another", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": peer(number)}]},
    })
}
