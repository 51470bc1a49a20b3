//! IPv4 and IPv6 headers, extension headers, fragments.

use super::{Bytes, EXTENSION_HEADERS_MAX, Packet, V4, V6, be, packet_trait, protocol};
use crate::layout::Address;

/// RFC 791. A total length of 0 is BIG TCP (kernel commit b1a78b9b9886) where the frame is GSO.
#[inline(always)]
pub(super) fn ipv4<B: Bytes>(bytes: &B, offset: u32, quoted: bool, packet: &mut Packet) {
    let Some(header) = bytes.words::<5>(offset) else {
        packet.traits |= packet_trait::MALFORMED;
        return;
    };
    let first = be(header[0]);
    let fragment = be(header[1]);
    let lifetime = be(header[2]);
    packet.family = V4;
    packet.traits |= packet_trait::IP;
    packet.source = Address::v4(header[3]);
    packet.destination = Address::v4(header[4]);
    packet.protocol = (lifetime >> 16) as u8;
    packet.hop_limit = lifetime >> 24;
    let header_length = (first >> 24 & 0xf) * 4;
    let total = first & 0xffff;
    packet.transport = offset + header_length;
    packet.end = offset + total;
    if total == 0 && bytes.is_gso() {
        packet.end = bytes.len();
    }
    if first >> 28 != 4
        || header_length < 20
        || (!quoted && (packet.end > bytes.len() || packet.transport > packet.end))
    {
        packet.traits |= packet_trait::MALFORMED;
        return;
    }
    fragment_of(packet, (fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
    packet.fragment_id = fragment >> 16;
}

#[inline(always)]
fn fragment_of(packet: &mut Packet, offset: u32, more: bool) {
    packet.fragment_offset = offset;
    if offset != 0 {
        packet.traits |= packet_trait::FRAGMENT_LATER;
    } else if more {
        packet.traits |= packet_trait::FRAGMENT_FIRST;
    }
}

/// RFC 8200. A payload length of 0 is BIG TCP (kernel commit 81fbc812132c) where the frame is GSO.
#[inline(always)]
pub(super) fn ipv6<B: Bytes>(bytes: &B, offset: u32, quoted: bool, packet: &mut Packet) {
    let Some(header) = bytes.words::<10>(offset) else {
        packet.traits |= packet_trait::MALFORMED;
        return;
    };
    let second = be(header[1]);
    packet.family = V6;
    packet.traits |= packet_trait::IP;
    packet.source = Address::v6([header[2], header[3], header[4], header[5]]);
    packet.destination = Address::v6([header[6], header[7], header[8], header[9]]);
    packet.hop_limit = second & 0xff;
    let payload = second >> 16;
    packet.end = offset + 40 + payload;
    if payload == 0 && bytes.is_gso() {
        packet.end = bytes.len();
    }
    packet.transport = offset + 40;
    packet.protocol = (second >> 8) as u8;
    if be(header[0]) >> 28 != 6 || (!quoted && packet.end > bytes.len()) {
        packet.traits |= packet_trait::MALFORMED;
        return;
    }
    if quoted {
        packet.end = bytes.len();
    }
    if is_extension(packet.protocol) {
        bytes.extensions(packet);
    }
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}

/// Follows the chain of extension headers to the upper layer, or to the fragment header of a later fragment.
#[inline(always)]
pub fn extensions<B: Bytes>(bytes: &B, packet: &mut Packet) {
    let mut offset = packet.transport;
    let mut next = packet.protocol;
    let mut fragmented = false;
    for index in 0..EXTENSION_HEADERS_MAX {
        if !is_extension(next) {
            break;
        }
        let header = if offset + 8 <= packet.end { bytes.words::<2>(offset) } else { None };
        let Some(header) = header else {
            packet.traits |= packet_trait::MALFORMED;
            if packet.has(packet_trait::FRAGMENT_FIRST) {
                packet.traits |= packet_trait::CHAIN_INCOMPLETE;
            }
            return;
        };
        let first = be(header[0]);
        // Hop-by-hop options are legal only directly behind the IPv6 header; one fragment header is enough.
        if (next == protocol::HOP_BY_HOP && index != 0) || (next == protocol::FRAGMENT && fragmented) {
            packet.traits |= packet_trait::MALFORMED;
            return;
        }
        let length = first >> 16 & 0xff;
        let step = match next {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        let fragment_header = next == protocol::FRAGMENT;
        next = (first >> 24) as u8;
        packet.protocol = next;
        offset += step;
        packet.transport = offset;
        if fragment_header {
            fragmented = true;
            packet.fragment_id = be(header[1]);
            fragment_of(packet, first & 0xfff8, first & 1 != 0);
            if packet.has(packet_trait::FRAGMENT_LATER) {
                return;
            }
        }
    }
    if is_extension(next) || offset > packet.end {
        packet.traits |= packet_trait::MALFORMED;
        if packet.has(packet_trait::FRAGMENT_FIRST) {
            packet.traits |= packet_trait::CHAIN_INCOMPLETE;
        }
    }
}
