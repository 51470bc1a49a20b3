//! From bytes to a [`Packet`]: real header lengths, VLAN tags, IPv4 options, IPv6 extension headers, fragments, TCP, UDP, SCTP
//! and ICMP. Knows nothing of endpoints or policies; never fails: what cannot be read is marked so.
//!
//! Written for the kernel's verifier too: offsets are bounded before each read, loops have constant bounds, and each header
//! is one read of whole words.

mod ip;
mod upper;

use crate::layout::{Address, Family};
pub use ip::extensions;
use ip::{ipv4, ipv6};
pub use upper::transport;
use upper::{icmp, icmp_of, ports};

/// A frame, from its Ethernet header on.
#[allow(clippy::len_without_is_empty, reason = "no frame is empty")]
pub trait Bytes {
    /// Length of the frame in bytes, the part that is not in one piece included.
    fn len(&self) -> u32;

    /// `N` words at `offset` (bytes), each as it lies in the packet; `None` past the end, and for an offset of [`HEADERS_MAX`] or more.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// The first `N` words, if that is little trouble.
    #[inline(always)]
    fn first_words<const N: usize>(&self) -> Option<[u32; N]> {
        self.words::<N>(0)
    }

    /// The frame stands for several (GSO): it may be longer than its headers can say.
    fn is_gso(&self) -> bool;

    /// Zero. In the kernel one that the compiler cannot see through: it would otherwise clear with `memset`, which is a loop over bytes
    /// there and dearer than the whole of parsing.
    #[inline(always)]
    fn zero(&self) -> u32 {
        0
    }

    // Parts of the parser, which the kernel's programs call as functions that its verifier reads by themselves.

    #[inline(always)]
    fn transport(&self, packet: &mut Packet)
    where
        Self: Sized,
    {
        transport(self, packet);
    }

    #[inline(always)]
    fn extensions(&self, packet: &mut Packet)
    where
        Self: Sized,
    {
        extensions(self, packet);
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
    /// Has to be judged in its own direction: TCP SYN without ACK, SCTP INIT, ICMP that is no answer and no error.
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

/// Headers are looked for in this much of a frame (bytes): Ethernet, two tags, IPv6 and eight extension headers of usual size.
pub const HEADERS_MAX: u32 = 2048;

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

    /// Of a protocol with connections, each of which has one opener.
    #[inline(always)]
    pub const fn is_connected(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::SCTP)
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
        bytes.transport(packet);
    }
}

/// Parses what begins with its IP header, as on devices without link headers.
#[inline(always)]
pub fn network<B: Bytes>(bytes: &B, packet: &mut Packet) {
    *packet = Packet::blank(bytes.zero());
    let Some(word) = bytes.words::<1>(0) else {
        packet.traits = packet_trait::MALFORMED;
        return;
    };
    match be(word[0]) >> 28 {
        4 => ipv4(bytes, 0, false, packet),
        6 => ipv6(bytes, 0, false, packet),
        _ => packet.traits = packet_trait::MALFORMED,
    }
    if packet.has(packet_trait::IP) && packet.traits & (packet_trait::MALFORMED | packet_trait::FRAGMENT_LATER) == 0 {
        bytes.transport(packet);
    }
}

/// Parses the packet that an ICMP error quotes: as far as ports, and without believing its lengths, which are the original's.
#[inline(always)]
pub fn quoted<B: Bytes>(bytes: &B, error: &Packet, packet: &mut Packet) {
    *packet = Packet::blank(bytes.zero());
    let offset = error.transport + 8;
    if error.family == V4 {
        ipv4(bytes, offset, true, packet)
    } else {
        ipv6(bytes, offset, true, packet)
    }
    // What lies behind the error's own end is padding.
    if !packet.has(packet_trait::IP)
        || packet.traits & (packet_trait::MALFORMED | packet_trait::FRAGMENT_LATER) != 0
        || packet.transport > error.end
    {
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

#[cfg(test)]
mod tests;
