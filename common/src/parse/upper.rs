//! Upper-layer headers: TCP, UDP, SCTP, ICMP.

use super::{Bytes, Packet, V4, be, packet_trait, protocol, tcp_flag};

#[inline(always)]
pub(super) const fn icmp_of(family: u8) -> u8 {
    if family == V4 { protocol::ICMP } else { protocol::ICMPV6 }
}

#[inline(always)]
pub(super) fn ports(packet: &mut Packet, word: u32) {
    packet.source_port = (word >> 16) as u16;
    packet.destination_port = word as u16;
}

/// The upper-layer header, whole (a first fragment must hold it).
#[inline(always)]
pub fn transport<B: Bytes>(bytes: &B, packet: &mut Packet) {
    let room = packet.end - packet.transport;
    let whole = match packet.protocol {
        protocol::TCP => tcp(bytes, packet, room),
        protocol::UDP => udp(bytes, packet, room),
        protocol::SCTP => sctp(bytes, packet, room),
        other if other == icmp_of(packet.family) => {
            packet.traits |= packet_trait::ICMP;
            match if room >= 8 { bytes.words::<2>(packet.transport) } else { None } {
                Some(words) => {
                    icmp(packet, be(words[0]), be(words[1]));
                    true
                }
                None => {
                    packet.traits &= !packet_trait::ICMP;
                    false
                }
            }
        }
        _ => true,
    };
    if !whole {
        packet.traits |= packet_trait::MALFORMED;
        if packet.has(packet_trait::FRAGMENT_FIRST) {
            packet.traits |= packet_trait::CHAIN_INCOMPLETE;
        }
    }
}

#[inline(always)]
fn tcp<B: Bytes>(bytes: &B, packet: &mut Packet, room: u32) -> bool {
    if room < 20 {
        return false;
    }
    let Some(words) = bytes.words::<4>(packet.transport) else { return false };
    ports(packet, be(words[0]));
    packet.tcp_sequence = be(words[1]);
    packet.tcp_acknowledgement = be(words[2]);
    let flags = be(words[3]);
    packet.tcp_flags = (flags >> 16) as u8;
    let header_length = (flags >> 28) * 4;
    // A first fragment may end within the options; the header proper is what decides.
    if header_length < 20 || (header_length > room && !packet.has(packet_trait::FRAGMENT_FIRST)) {
        return false;
    }
    packet.payload = room.saturating_sub(header_length);
    if packet.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN {
        packet.traits |= packet_trait::OPENING;
    }
    true
}

#[inline(always)]
fn udp<B: Bytes>(bytes: &B, packet: &mut Packet, room: u32) -> bool {
    if room < 8 {
        return false;
    }
    let Some(words) = bytes.words::<2>(packet.transport) else { return false };
    ports(packet, be(words[0]));
    let length = be(words[1]) >> 16;
    if packet.has(packet_trait::FRAGMENT_FIRST) || bytes.is_gso() {
        return true;
    }
    length >= 8 && length <= room
}

#[inline(always)]
fn sctp<B: Bytes>(bytes: &B, packet: &mut Packet, room: u32) -> bool {
    const CHUNK_INIT: u32 = 1;
    if room < 16 {
        return false;
    }
    let Some(words) = bytes.words::<4>(packet.transport) else { return false };
    ports(packet, be(words[0]));
    if be(words[3]) >> 24 == CHUNK_INIT {
        packet.traits |= packet_trait::OPENING;
    }
    true
}

/// Both words of an ICMP or ICMPv6 header. The identifier of a question and its answer (echo, timestamp, …) stands for both ports.
/// Whatever is neither an answer nor an error is judged in its own direction.
#[inline(always)]
pub(super) fn icmp(packet: &mut Packet, first: u32, second: u32) {
    packet.icmp_type = (first >> 24) as u8;
    let (identified, answer, error) = if packet.family == V4 {
        (
            matches!(packet.icmp_type, 0 | 8 | 13..=18),
            matches!(packet.icmp_type, 0 | 14 | 16 | 18),
            matches!(packet.icmp_type, 3 | 4 | 11 | 12),
        )
    } else {
        (
            matches!(packet.icmp_type, 128 | 129),
            matches!(packet.icmp_type, 129 | 140),
            matches!(packet.icmp_type, 1..=4),
        )
    };
    if identified {
        packet.source_port = (second >> 16) as u16;
        packet.destination_port = (second >> 16) as u16;
    }
    if error {
        packet.traits |= packet_trait::ICMP_ERROR;
    } else if !answer {
        packet.traits |= packet_trait::OPENING;
    }
}
