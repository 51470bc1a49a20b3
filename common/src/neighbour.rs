//! ARP, neighbour discovery, router solicitations and multicast listener reports: always allowed, but never for an address
//! that is not the pod's own (SEMANTICS 14.2; RFC 826, RFC 4861, RFC 3810).

use crate::decide::{mac, owns};
use crate::layout::{Address, EndpointRecord};
use crate::parse::{Bytes, Packet, V4, V6, packet_trait};
use crate::verdict::Reason;

const REDIRECT_V4: u8 = 5;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT_V6: u8 = 137;

const SOURCE_LINK_ADDRESS: u32 = 1;
const TARGET_LINK_ADDRESS: u32 = 2;
/// RFC 3971 §5.3.2, RFC 7527: six bytes, so that a pod knows its own solicitation again.
const NONCE: u32 = 14;

/// How many options of a neighbour message are read; a message with more is refused.
const OPTIONS_MAX: u32 = 4;

#[inline(always)]
const fn is_listener_report(icmp_type: u8) -> bool {
    matches!(icmp_type, 131 | 132 | 143)
}

#[inline(always)]
fn is_whole_icmpv6(packet: &Packet) -> bool {
    const WHOLE: u32 = packet_trait::FRAGMENT_FIRST | packet_trait::FRAGMENT_LATER | packet_trait::MALFORMED;
    packet.family == V6 && packet.has(packet_trait::ICMP) && packet.traits & WHOLE == 0
}

/// Neighbour discovery proper: hop limit 255 proves that no router forwarded it (RFC 4861 §6.1, §7.1).
#[inline(always)]
fn is_discovery(packet: &Packet) -> bool {
    packet.hop_limit == 255
        && matches!(packet.icmp_type, ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT)
}

/// A listener report proper, which no router forwards: hop limit 1, to a group, from a link-local address or from none (RFC 2710 §3,
/// RFC 3810 §5.2.13).
#[inline(always)]
fn is_report(packet: &Packet) -> bool {
    is_listener_report(packet.icmp_type)
        && packet.hop_limit == 1
        && is_group(&packet.destination)
        && (is_link_local(&packet.source) || is_unspecified(packet))
}

#[inline(always)]
const fn is_group(address: &Address) -> bool {
    u32::from_be(address.words[0]) >> 24 == 0xff
}

#[inline(always)]
const fn is_link_local(address: &Address) -> bool {
    u32::from_be(address.words[0]) >> 22 == 0xfe80 >> 6
}

/// Of the link, by itself.
#[inline(always)]
pub(crate) fn is_neighbour(packet: &Packet) -> bool {
    is_whole_icmpv6(packet) && (is_report(packet) || is_discovery(packet))
}

/// No router takes a packet of discovery to somewhere else: it goes to a group of the link, to a link-local address, or to the network
/// (of 64 bits) of one of the pod's own addresses.
#[inline(always)]
fn stays_on_link(packet: &Packet, record: &EndpointRecord) -> bool {
    const GROUP_OF_LINK: u32 = 0xff02;
    let destination = &packet.destination;
    let near = |own: &Address| {
        own.words[0] != 0 && own.words[0] == destination.words[0] && own.words[1] == destination.words[1]
    };
    u32::from_be(destination.words[0]) >> 16 == GROUP_OF_LINK
        || is_link_local(destination)
        || (packet.icmp_type != ROUTER_SOLICITATION
            && (near(&record.v6[0]) || near(&record.v6[1]) || near(&record.v6[2]) || near(&record.v6[3])))
}

/// What a pod may always be told: also router advertisements and redirects, which no pod can send.
#[inline(always)]
pub(crate) fn is_for_pod(packet: &Packet) -> bool {
    if packet.family == V4 {
        return packet.icmp_type == REDIRECT_V4;
    }
    is_neighbour(packet) || (packet.hop_limit == 255 && matches!(packet.icmp_type, ROUTER_ADVERTISEMENT | REDIRECT_V6))
}

/// A pod's ICMP: refused, always allowed, or `None` for what is to be judged.
#[inline(never)]
pub(crate) fn from_pod<B: Bytes>(bytes: &B, packet: &Packet, record: &EndpointRecord, checked: bool) -> Option<Reason> {
    if packet.family == V4 {
        return if checked && packet.icmp_type == REDIRECT_V4 { Some(Reason::Redirect) } else { None };
    }
    if checked && packet.icmp_type == ROUTER_ADVERTISEMENT {
        return Some(Reason::RouterAdvertisement);
    }
    if checked && packet.icmp_type == REDIRECT_V6 {
        return Some(Reason::Redirect);
    }
    if !is_neighbour(packet) {
        return None;
    }
    if !checked {
        return Some(Reason::Neighbour);
    }
    if !is_unspecified(packet) && !owns(record, V6, &packet.source) {
        return Some(Reason::SpoofedAddress);
    }
    if !speaks_for_itself(bytes, packet, record) {
        return Some(Reason::SpoofedNeighbour);
    }
    // What would leave the link is a packet as any other.
    if is_report(packet) || stays_on_link(packet, record) { Some(Reason::Neighbour) } else { None }
}

/// Where there is no address yet: duplicate address detection, router solicitations and listener reports.
#[inline(always)]
fn is_unspecified(packet: &Packet) -> bool {
    let [a, b, c, d] = packet.source.words;
    a | b | c | d == 0
}

/// Whatever the message makes others believe is the pod's own.
#[inline(never)]
fn speaks_for_itself<B: Bytes>(bytes: &B, packet: &Packet, record: &EndpointRecord) -> bool {
    let unspecified = is_unspecified(packet);
    match packet.icmp_type {
        ROUTER_SOLICITATION => options_are_own(bytes, packet, record, packet.transport + 8),
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
            if packet.transport + 24 > packet.end {
                return false;
            }
            let Some(target) = bytes.words::<4>(packet.transport + 8) else { return false };
            let claims = packet.icmp_type == NEIGHBOUR_ADVERTISEMENT || unspecified;
            if packet.icmp_type == NEIGHBOUR_ADVERTISEMENT && unspecified {
                return false;
            }
            if claims && !owns(record, V6, &Address::v6(target)) {
                return false;
            }
            options_are_own(bytes, packet, record, packet.transport + 24)
        }
        // Listener reports name groups, not addresses.
        _ => true,
    }
}

/// Each option is a link-layer address, the pod's own, or a nonce: there is no room for anything else to be told.
#[inline(always)]
fn options_are_own<B: Bytes>(bytes: &B, packet: &Packet, record: &EndpointRecord, start: u32) -> bool {
    let own = mac(record);
    let mut offset = start;
    for _ in 0..OPTIONS_MAX {
        if offset + 8 > packet.end {
            return offset >= packet.end;
        }
        let Some(words) = bytes.words::<2>(offset) else { return false };
        let (first, second) = (u32::from_be(words[0]), u32::from_be(words[1]));
        let (kind, length) = (first >> 24, first >> 16 & 0xff);
        let stated = ((first << 16) | (second >> 16), second & 0xffff);
        let legal = match kind {
            SOURCE_LINK_ADDRESS | TARGET_LINK_ADDRESS => stated == own,
            NONCE => true,
            _ => false,
        };
        if length != 1 || !legal {
            return false;
        }
        offset += 8;
    }
    offset >= packet.end
}

/// ARP from a pod: the sender is the pod in MAC and address; a probe (RFC 5227, no sender address) asks for its own.
#[inline(never)]
pub(crate) fn arp_from_pod<B: Bytes>(bytes: &B, packet: &Packet, record: &EndpointRecord, checked: bool) -> Reason {
    if !checked {
        return Reason::Neighbour;
    }
    let Some(words) = bytes.words::<7>(packet.network) else { return Reason::SpoofedNeighbour };
    let word = |index: usize| u32::from_be(words[index]);
    // Ethernet, IPv4, address lengths 6 and 4.
    if word(0) != 0x0001_0800 || word(1) >> 16 != 0x0604 {
        return Reason::SpoofedNeighbour;
    }
    let sender_mac = (word(2), word(3) >> 16);
    let sender = Address::v4(((word(3) << 16) | (word(4) >> 16)).to_be());
    let target = Address::v4(words[6]);
    let own_sender = if sender.v4_word() == 0 { owns(record, V4, &target) } else { owns(record, V4, &sender) };
    if sender_mac == mac(record) && own_sender { Reason::Neighbour } else { Reason::SpoofedNeighbour }
}

#[cfg(test)]
mod tests;
