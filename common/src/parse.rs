//! From bytes to a [`Packet`]: real header lengths, VLAN tags, IPv4 options, IPv6 extension headers, fragments, TCP, UDP, SCTP
//! and ICMP. Knows nothing of endpoints or policies; never fails: what cannot be read is marked so.
//!
//! Written for the kernel's verifier too: offsets are bounded before each read, loops have constant bounds, and each header
//! is one read of whole words.

use crate::layout::{Address, Family};

/// A frame, from its Ethernet header on.
#[allow(clippy::len_without_is_empty, reason = "no frame is empty")]
pub trait Bytes {
    /// Length of the frame in bytes, the part that is not in one piece included.
    fn len(&self) -> u32;

    /// `N` words at `offset` (bytes), each as it lies in the packet; `None` past the end.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// The frame stands for several (GSO): it may be longer than its headers can say.
    fn is_gso(&self) -> bool;

    /// Zero. In the kernel one that the compiler cannot see through: it would otherwise clear with `memset`, which is a loop over bytes
    /// there and dearer than the whole of parsing.
    #[inline(always)]
    fn zero(&self) -> u32 {
        0
    }
}

pub mod ethertype {
    pub const IPV4: u32 = 0x0800;
    pub const ARP: u32 = 0x0806;
    pub const VLAN: u32 = 0x8100;
    pub const IPV6: u32 = 0x86dd;
    pub const SERVICE_VLAN: u32 = 0x88a8;
}

pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

pub mod tcp_flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// What a frame is; bits of [`Packet::traits`].
pub mod packet_trait {
    /// An IP packet whose addresses could be read.
    pub const IP: u32 = 1 << 0;
    pub const ARP: u32 = 1 << 1;
    /// A header is truncated, lies about its length or is not legal.
    pub const MALFORMED: u32 = 1 << 2;
    /// Has to be judged in its own direction: TCP SYN without ACK, SCTP INIT, ICMP echo request.
    pub const OPENING: u32 = 1 << 3;
    pub const FRAGMENT_FIRST: u32 = 1 << 4;
    pub const FRAGMENT_LATER: u32 = 1 << 5;
    /// A first fragment that does not hold the whole chain of headers (RFC 7112).
    pub const CHAIN_INCOMPLETE: u32 = 1 << 6;
    /// ICMP or ICMPv6 in its own family; `icmp_type` is valid.
    pub const ICMP: u32 = 1 << 7;
    /// An ICMP error that quotes a packet.
    pub const ICMP_ERROR: u32 = 1 << 8;
}

/// Extension headers that are followed; RFC 8200 §4.1 lists seven kinds, of which one may come twice.
pub const EXTENSION_HEADERS_MAX: u32 = 8;

/// A parsed frame. Offsets and lengths in bytes from the start of the frame, ports and TCP numbers in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Bits of [`packet_trait`].
    pub traits: u32,
    /// 4 or 6; 0 where it is no IP packet.
    pub family: u8,
    /// Upper-layer protocol.
    pub protocol: u8,
    pub icmp_type: u8,
    /// Bits of [`tcp_flag`].
    pub tcp_flags: u8,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// MAC addresses as numbers: the first four bytes, the last two.
    pub source_mac: (u32, u32),
    pub destination_mac: (u32, u32),
    /// Where the IP or ARP header starts.
    pub network: u32,
    /// Where the upper-layer header starts.
    pub transport: u32,
    /// Where the IP packet ends by its own account.
    pub end: u32,
    pub hop_limit: u32,
    /// As it lies in the packet.
    pub fragment_id: u32,
    /// Bytes.
    pub fragment_offset: u32,
    pub tcp_sequence: u32,
    pub tcp_acknowledgement: u32,
    /// TCP payload, bytes.
    pub payload: u32,
}

impl Packet {
    /// The default, of the given zero.
    #[inline(always)]
    const fn blank(zero: u32) -> Self {
        let (byte, half) = (zero as u8, zero as u16);
        let address = Address { words: [zero; 4] };
        Self {
            traits: zero,
            family: byte,
            // A constant between, or the four become one `memset`.
            protocol: 0,
            icmp_type: byte,
            tcp_flags: 0,
            source: address,
            destination: address,
            source_port: half,
            destination_port: half,
            source_mac: (zero, zero),
            destination_mac: (zero, zero),
            network: zero,
            transport: zero,
            end: zero,
            hop_limit: zero,
            fragment_id: zero,
            fragment_offset: zero,
            tcp_sequence: zero,
            tcp_acknowledgement: zero,
            payload: zero,
        }
    }

    #[inline(always)]
    pub const fn has(&self, bit: u32) -> bool {
        self.traits & bit != 0
    }

    #[inline(always)]
    pub const fn is_tcp(&self) -> bool {
        self.protocol == protocol::TCP
    }
}

/// The IP family as a number in [`Packet::family`].
pub const V4: u8 = Family::V4 as u8;
pub const V6: u8 = Family::V6 as u8;

#[inline(always)]
fn be(word: u32) -> u32 {
    u32::from_be(word)
}

/// Parses a whole frame.
#[inline(always)]
pub fn frame<B: Bytes>(bytes: &B, packet: &mut Packet) {
    // The function's value has to be used: a BPF function that returns nothing may leave a pointer in r0 ("cannot return stack
    // pointer to the caller", 6.18), and the compiler drops a value that nobody reads.
    packet.traits = frame_traits(bytes, packet);
}

/// A function of its own, so that the verifier goes on from one state, not one for each kind of packet.
#[inline(never)]
fn frame_traits<B: Bytes>(bytes: &B, packet: &mut Packet) -> u32 {
    parse_frame(bytes, packet);
    packet.traits
}

#[inline(always)]
fn parse_frame<B: Bytes>(bytes: &B, packet: &mut Packet) {
    *packet = Packet::blank(bytes.zero());
    let Some(ethernet) = bytes.words::<4>(0) else {
        packet.traits = packet_trait::MALFORMED;
        return;
    };
    let [w0, w1, w2, w3] = [be(ethernet[0]), be(ethernet[1]), be(ethernet[2]), be(ethernet[3])];
    packet.destination_mac = (w0, w1 >> 16);
    packet.source_mac = ((w1 << 16) | (w2 >> 16), w2 & 0xffff);
    let mut kind = w3 >> 16;
    let mut offset = 14;
    let mut tags = 0;
    while kind == ethertype::VLAN || kind == ethertype::SERVICE_VLAN {
        if tags == 2 {
            packet.traits = packet_trait::MALFORMED;
            return;
        }
        let Some(tag) = bytes.words::<1>(offset) else {
            packet.traits = packet_trait::MALFORMED;
            return;
        };
        kind = be(tag[0]) & 0xffff;
        offset += 4;
        tags += 1;
    }
    packet.network = offset;
    match kind {
        ethertype::IPV4 => ipv4(bytes, offset, false, packet),
        ethertype::IPV6 => ipv6(bytes, offset, false, packet),
        ethertype::ARP => packet.traits |= packet_trait::ARP,
        _ => {}
    }
    if packet.has(packet_trait::IP) && packet.traits & (packet_trait::MALFORMED | packet_trait::FRAGMENT_LATER) == 0 {
        transport(bytes, packet);
    }
}

/// Parses the packet that an ICMP error quotes: as far as ports, and without believing its lengths, which are the original's.
#[inline(always)]
pub fn quoted<B: Bytes>(bytes: &B, error: &Packet, packet: &mut Packet) {
    packet.traits = quoted_traits(bytes, error, packet);
}

#[inline(never)]
fn quoted_traits<B: Bytes>(bytes: &B, error: &Packet, packet: &mut Packet) -> u32 {
    parse_quoted(bytes, error, packet);
    packet.traits
}

#[inline(always)]
fn parse_quoted<B: Bytes>(bytes: &B, error: &Packet, packet: &mut Packet) {
    *packet = Packet::blank(bytes.zero());
    let offset = error.transport + 8;
    if error.family == V4 {
        ipv4(bytes, offset, true, packet)
    } else {
        ipv6(bytes, offset, true, packet)
    }
    if !packet.has(packet_trait::IP) || packet.traits & (packet_trait::MALFORMED | packet_trait::FRAGMENT_LATER) != 0 {
        packet.traits |= packet_trait::MALFORMED;
        return;
    }
    match packet.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6 => {
            if packet.transport + 8 > error.end {
                packet.traits |= packet_trait::MALFORMED;
                return;
            }
            let Some(words) = bytes.words::<2>(packet.transport) else {
                packet.traits |= packet_trait::MALFORMED;
                return;
            };
            if packet.protocol == icmp_of(packet.family) {
                icmp(packet, be(words[0]), be(words[1]));
            } else if packet.protocol != protocol::ICMP && packet.protocol != protocol::ICMPV6 {
                ports(packet, be(words[0]));
            }
        }
        _ => {}
    }
}

#[inline(always)]
const fn icmp_of(family: u8) -> u8 {
    if family == V4 { protocol::ICMP } else { protocol::ICMPV6 }
}

/// RFC 791. A total length of 0 is BIG TCP (kernel commit b1a78b9b9886) where the frame is GSO.
#[inline(always)]
fn ipv4<B: Bytes>(bytes: &B, offset: u32, quoted: bool, packet: &mut Packet) {
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
fn ipv6<B: Bytes>(bytes: &B, offset: u32, quoted: bool, packet: &mut Packet) {
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
        extensions(bytes, packet);
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
fn extensions<B: Bytes>(bytes: &B, packet: &mut Packet) {
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

#[inline(always)]
fn ports(packet: &mut Packet, word: u32) {
    packet.source_port = (word >> 16) as u16;
    packet.destination_port = word as u16;
}

/// The upper-layer header, whole (a first fragment must hold it).
#[inline(always)]
fn transport<B: Bytes>(bytes: &B, packet: &mut Packet) {
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

/// Both words of an ICMP or ICMPv6 header. The identifier of an echo stands for both ports.
#[inline(always)]
fn icmp(packet: &mut Packet, first: u32, second: u32) {
    packet.icmp_type = (first >> 24) as u8;
    let (echo_request, echo_reply, error) = if packet.family == V4 {
        (8, 0, matches!(packet.icmp_type, 3 | 4 | 11 | 12))
    } else {
        (128, 129, matches!(packet.icmp_type, 1..=4))
    };
    if packet.icmp_type == echo_request || packet.icmp_type == echo_reply {
        packet.source_port = (second >> 16) as u16;
        packet.destination_port = (second >> 16) as u16;
    }
    if packet.icmp_type == echo_request {
        packet.traits |= packet_trait::OPENING;
    }
    if error {
        packet.traits |= packet_trait::ICMP_ERROR;
    }
}

#[cfg(test)]
mod tests;
