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

pub fn is_echo_request(packet: &Packet, icmp: &Icmp) -> bool {
    icmp.kind == if packet.source.is_ipv4() { 8 } else { 128 }
}

pub fn is_echo_reply(packet: &Packet, icmp: &Icmp) -> bool {
    icmp.kind == if packet.source.is_ipv4() { 0 } else { 129 }
}

/// A packet that opens a flow and can never be a reply.
pub fn opens(packet: &Packet) -> bool {
    match &packet.upper {
        Upper::Tcp(tcp) => tcp.syn && !tcp.ack,
        Upper::Sctp { init, .. } => *init,
        Upper::Icmp(icmp) => is_echo_request(packet, icmp),
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

/// Which flow: the identifier of an echo stands for both ports.
pub fn passage(packet: &Packet) -> Passage {
    let (source, destination, protocol, ports) = tuple_of(packet);
    let (from, to) = match (&packet.upper, ports) {
        (_, Some(ports)) => ports,
        (Upper::Icmp(icmp), None) if is_echo_request(packet, icmp) || is_echo_reply(packet, icmp) => (icmp.id, icmp.id),
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
