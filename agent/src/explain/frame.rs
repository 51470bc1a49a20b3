//! The frame that opens a flow, as a pod or its peer would send it.

use std::net::IpAddr;

use palisade_common::parse::{ethertype, protocol};

/// The port that a client might have: nothing is said about it by any policy.
pub const CLIENT_PORT: u16 = 50_000;

/// A flow's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// MAC addresses as they travel.
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    /// Both of one family.
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IP protocol; that of ICMP stands for an echo request of either family.
    pub protocol: u8,
    /// Destination port; of no meaning to protocols without ports.
    pub port: u16,
}

impl Opening {
    /// The protocol as it is numbered in the family.
    pub fn number(&self) -> u8 {
        if self.protocol == protocol::ICMP && self.source.is_ipv6() { protocol::ICMPV6 } else { self.protocol }
    }

    /// The whole frame. Checksums are left out: nobody on the way looks at them.
    pub fn bytes(&self) -> Vec<u8> {
        let upper = self.upper();
        let length = u16::try_from(upper.len()).expect("a header is short");
        let mut bytes = [self.destination_mac, self.source_mac].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend((ethertype::IPV4 as u16).to_be_bytes());
                // Version and header length; TOS; length; id; DF; TTL; protocol; checksum.
                bytes.extend([0x45, 0]);
                bytes.extend((20 + length).to_be_bytes());
                bytes.extend([0, 0, 0x40, 0, 64, self.number(), 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            (source, destination) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                bytes.extend((ethertype::IPV6 as u16).to_be_bytes());
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(length.to_be_bytes());
                bytes.extend([self.number(), 64]);
                bytes.extend(octets(source));
                bytes.extend(octets(destination));
            }
        }
        bytes.extend(upper);
        bytes
    }

    fn upper(&self) -> Vec<u8> {
        let ports = [CLIENT_PORT.to_be_bytes(), self.port.to_be_bytes()].concat();
        match self.number() {
            // Sequence and acknowledgement; header length; SYN; window, checksum, urgent pointer.
            protocol::TCP => [&ports[..], &[0; 8], &[0x50, 0x02], &[0xff, 0xff, 0, 0, 0, 0]].concat(),
            protocol::UDP => [&ports[..], &8_u16.to_be_bytes(), &[0, 0]].concat(),
            // Verification tag, checksum; INIT, its length, its tag and the rest.
            protocol::SCTP => [&ports[..], &[0; 8], &[1, 0, 0, 20], &[0; 16]].concat(),
            // Echo request, with its identifier.
            protocol::ICMP => vec![8, 0, 0, 0, 0, 1, 0, 1],
            protocol::ICMPV6 => vec![128, 0, 0, 0, 0, 1, 0, 1],
            _ => vec![0; 8],
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_common::parse::{self, Packet, packet_trait};

    use super::*;
    use crate::tables::sim::FrameBytes;

    #[test]
    fn each_opens_a_flow_in_both_families() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::ICMP, 47] {
                let opening = Opening {
                    source_mac: [2, 0, 0, 0, 0, 1],
                    destination_mac: [2, 0, 0, 0, 0, 2],
                    source: source.parse().expect("an address"),
                    destination: destination.parse().expect("an address"),
                    protocol,
                    port: 443,
                };
                let bytes = opening.bytes();
                let mut packet = Packet::default();
                parse::frame(&FrameBytes { bytes: &bytes, gso: false }, &mut packet);
                assert!(packet.has(packet_trait::IP) && !packet.has(packet_trait::MALFORMED), "{opening:?}");
                assert_eq!(packet.protocol, opening.number());
                let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&protocol);
                let ports = (packet.source_port, packet.destination_port);
                assert!(!has_ports || ports == (CLIENT_PORT, 443), "{opening:?}: {ports:?}");
                let opens = packet.has(packet_trait::OPENING);
                assert_eq!(opens, [6, 132, 1].contains(&protocol), "{opening:?}");
                assert!(!packet.has(packet_trait::ICMP_ERROR));
            }
        }
    }
}
