//! What a packet means for its flow: whether it opens one, which one, and whether it answers.

use std::net::IpAddr;

use super::flow::{Flow, Passage};
use super::packet::{Icmp, Packet, Upper};

pub fn is_error(packet: &Packet, icmp: &Icmp) -> bool {
    match packet.source {
        IpAddr::V4(_) => matches!(icmp.kind, 3 | 4 | 11 | 12),
        IpAddr::V6(_) => matches!(icmp.kind, 1..=4),
    }
}

/// Echo, timestamp, information, address mask and node information replies.
fn is_answer(packet: &Packet, icmp: &Icmp) -> bool {
    match packet.source {
        IpAddr::V4(_) => [0, 14, 16, 18].contains(&icmp.kind),
        IpAddr::V6(_) => [129, 140].contains(&icmp.kind),
    }
}

/// Questions and answers that belong together by an identifier.
fn is_identified(packet: &Packet, icmp: &Icmp) -> bool {
    match packet.source {
        IpAddr::V4(_) => [0, 8, 13, 14, 15, 16, 17, 18].contains(&icmp.kind),
        IpAddr::V6(_) => [128, 129].contains(&icmp.kind),
    }
}

/// A packet that opens a flow and can never be a reply.
pub fn opens(packet: &Packet) -> bool {
    match &packet.upper {
        Upper::Tcp(tcp) => tcp.syn && !tcp.ack,
        Upper::Sctp { init, .. } => *init,
        Upper::Icmp(icmp) => !is_answer(packet, icmp) && !is_error(packet, icmp),
        Upper::None | Upper::Udp { .. } | Upper::Other => false,
    }
}

pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// Source, destination, protocol, and the ports where the protocol has such.
pub fn tuple_of(packet: &Packet) -> (IpAddr, IpAddr, u8, Option<(u16, u16)>) {
    let ports = match &packet.upper {
        Upper::Tcp(tcp) => Some((tcp.source, tcp.destination)),
        Upper::Udp { source, destination } | Upper::Sctp { source, destination, .. } => Some((*source, *destination)),
        Upper::Icmp(_) | Upper::None | Upper::Other => None,
    };
    (packet.source, packet.destination, packet.protocol, ports)
}

/// Which flow: an identifier stands for both ports.
pub fn passage(packet: &Packet) -> Passage {
    let (source, destination, protocol, ports) = tuple_of(packet);
    let (from, to) = match (&packet.upper, ports) {
        (_, Some(ports)) => ports,
        (Upper::Icmp(icmp), None) if is_identified(packet, icmp) => (icmp.id, icmp.id),
        (_, None) => (0, 0),
    };
    Passage::new((source, from), (destination, to), protocol)
}

/// Whether a packet of the end that did not open the flow answers it.
pub fn answers(flow: &Flow, packet: &Packet, sender: usize, time: u64) -> bool {
    match &packet.upper {
        Upper::Tcp(tcp) => flow.answers(tcp, sender, time),
        Upper::Udp { .. } | Upper::Sctp { .. } | Upper::Icmp(_) | Upper::None | Upper::Other => true,
    }
}
