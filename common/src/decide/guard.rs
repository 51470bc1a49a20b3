//! What holds for every pod, isolated or not: who it says it is, and what it may be told.

use crate::layout::{Address, EndpointRecord, endpoint_flag};
use crate::neighbour;
use crate::parse::{Bytes, Packet, V4, V6, ethertype, packet_trait, protocol};
use crate::verdict::{Hook, Reason};

/// Whether the endpoint's own addresses are held against its packets.
#[inline(always)]
const fn is_checked(record: &EndpointRecord) -> bool {
    let trusted = record.flags & endpoint_flag::TRUSTED != 0;
    // Of a closed endpoint the addresses may not be known yet; it can reach nothing anyway.
    let nameless = record.flags & endpoint_flag::CLOSED != 0 && record.v4_count + record.v6_count == 0;
    !trusted && !nameless
}

/// Whether two headers tell that nothing is to be checked any further ([`admission_from_pod`], [`admission_to_pod`]): no tag, IP
/// with the pod's MAC and its first address of the family, and TCP, UDP or, in IPv4, whatever is no ICMP. Most frames are like that.
#[inline(always)]
pub(super) fn is_plain<B: Bytes>(bytes: &B, record: &EndpointRecord, hook: Hook) -> bool {
    let Some(words) = bytes.first_words::<9>() else { return false };
    let [w0, w1, w2, w3, _, w5, w6, w7, w8] = words.map(u32::from_be);
    let from_pod = matches!(hook, Hook::FromPod);
    let own = if from_pod { ((w1 << 16) | (w2 >> 16), w2 & 0xffff) } else { (w0, w1 >> 16) };
    if own != mac(record) {
        return false;
    }
    match w3 >> 16 {
        ethertype::IPV4 => {
            let own = if from_pod { across(w6, w7) } else { across(w7, w8) };
            own == u32::from_be(record.v4[0]) && own != 0 && w5 as u8 != protocol::ICMP
        }
        ethertype::IPV6 => {
            let Some(words) = bytes.first_words::<14>() else { return false };
            let first = if from_pod { 5 } else { 9 };
            let word = |n: usize| across(u32::from_be(words[first + n]), u32::from_be(words[first + n + 1])).to_be();
            let own = Address::v6([word(0), word(1), word(2), word(3)]);
            let protocol = (w5 >> 24) as u8;
            let transport = protocol == protocol::TCP || protocol == protocol::UDP;
            transport && own.words[3] != 0 && same(&own, &record.v6[0])
        }
        _ => false,
    }
}

/// The word that begins in the middle of one and ends in the middle of the next, as everything behind an Ethernet header does.
#[inline(always)]
const fn across(word: u32, next: u32) -> u32 {
    (word << 16) | (next >> 16)
}

/// What every pod may send, isolated or not (addresses, neighbour discovery, redirects). `None`: go on.
#[inline(always)]
pub fn admission_from_pod<B: Bytes>(bytes: &B, packet: &Packet, record: &EndpointRecord) -> Option<Reason> {
    let checked = is_checked(record);
    if checked && packet.source_mac != mac(record) {
        return Some(Reason::SpoofedMac);
    }
    if packet.has(packet_trait::ARP) {
        return Some(neighbour::arp_from_pod(bytes, packet, record, checked));
    }
    if !packet.has(packet_trait::IP) {
        return None;
    }
    if packet.has(packet_trait::ICMP)
        && let Some(reason) = neighbour::from_pod(bytes, packet, record, checked)
    {
        return Some(reason);
    }
    if checked && !owns(record, packet.family, &packet.source) {
        return Some(Reason::SpoofedAddress);
    }
    if checked && packet.family == V6 && packet.has(packet_trait::CHAIN_INCOMPLETE) {
        return Some(Reason::SpoofedFragment);
    }
    None
}

/// What every pod may be told. `None`: go on.
#[inline(always)]
pub fn admission_to_pod(packet: &Packet, record: &EndpointRecord) -> Option<Reason> {
    let checked = is_checked(record);
    if checked && !is_group_mac(packet) && packet.destination_mac != mac(record) {
        return Some(Reason::NotForPod);
    }
    if packet.has(packet_trait::ARP) {
        return Some(Reason::Neighbour);
    }
    if !packet.has(packet_trait::IP) {
        return None;
    }
    if checked && !is_for(record, packet) {
        return Some(Reason::NotForPod);
    }
    if packet.has(packet_trait::ICMP) && neighbour::is_for_pod(packet) { Some(Reason::Neighbour) } else { None }
}

#[inline(always)]
pub(crate) fn mac(record: &EndpointRecord) -> (u32, u32) {
    (u32::from_be(record.mac_hi), u16::from_be(record.mac_lo as u16) as u32)
}

#[inline(always)]
fn is_group_mac(packet: &Packet) -> bool {
    packet.destination_mac.0 & 0x0100_0000 != 0
}

/// The address is one of the endpoint's own. The unspecified address is nobody's.
#[inline(always)]
pub(crate) fn owns(record: &EndpointRecord, family: u8, address: &Address) -> bool {
    if family == V4 {
        let word = address.v4_word();
        return word != 0
            && (word == record.v4[0] || word == record.v4[1] || word == record.v4[2] || word == record.v4[3]);
    }
    let [a, b, c, d] = address.words;
    if a | b | c | d == 0 {
        return false;
    }
    same(address, &record.v6[0])
        || same(address, &record.v6[1])
        || same(address, &record.v6[2])
        || same(address, &record.v6[3])
}

#[inline(always)]
fn same(a: &Address, b: &Address) -> bool {
    // Bit operations, one branch.
    (a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) | (a.words[3] ^ b.words[3]) == 0
}

/// Own unicast, multicast, or a broadcast of the pod's network.
#[inline(always)]
fn is_for(record: &EndpointRecord, packet: &Packet) -> bool {
    if owns(record, packet.family, &packet.destination) {
        return true;
    }
    if packet.family == V6 {
        return u32::from_be(packet.destination.words[0]) >> 24 == 0xff;
    }
    let word = packet.destination.v4_word();
    u32::from_be(word) >> 28 == 0xe
        || word == u32::MAX
        || (word != 0
            && (word == record.v4_broadcast[0]
                || word == record.v4_broadcast[1]
                || word == record.v4_broadcast[2]
                || word == record.v4_broadcast[3]))
}
