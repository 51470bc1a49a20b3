//! The oracle's own reading of a frame, straight from the RFCs, over a slice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::Mac;

/// A frame as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Too many tags, or cut within them.
    Unreadable,
    Other,
    Arp(Option<Arp>),
    /// `None`: cut within the IP header, so that there are no addresses.
    Ip(Option<Packet>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target: Ipv4Addr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub protocol: u8,
    pub fragment: Option<Fragment>,
    /// A header is cut short, lies about its length or stands where it may not.
    pub malformed: bool,
    /// A first fragment that ends before the headers do.
    pub chain_incomplete: bool,
    pub upper: Upper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes.
    pub offset: usize,
    pub more: bool,
    pub id: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Not there (later fragments), or not readable.
    None,
    Tcp(Tcp),
    Udp {
        source: u16,
        destination: u16,
    },
    Sctp {
        source: u16,
        destination: u16,
        init: bool,
    },
    Icmp(Icmp),
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub fin: bool,
    pub syn: bool,
    pub rst: bool,
    pub ack: bool,
    /// Bytes of payload.
    pub payload: usize,
}

/// ICMP in an IPv4 packet, ICMPv6 in an IPv6 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub id: u16,
    /// What follows the eight bytes.
    pub content: Vec<u8>,
}

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Hop-by-hop, routing, fragment, authentication, destination, mobility, HIP, shim6.
const EXTENSIONS: [u8; 8] = [HOP_BY_HOP, 43, FRAGMENT, AUTHENTICATION, 60, 135, 139, 140];

fn two(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn four(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn six(bytes: &[u8], offset: usize) -> Option<Mac> {
    bytes.get(offset..offset + 6)?.try_into().ok()
}

pub fn frame(bytes: &[u8], gso: bool) -> Reading {
    let destination_mac = six(bytes, 0).unwrap_or_default();
    let source_mac = six(bytes, 6).unwrap_or_default();
    Reading { source_mac, destination_mac, body: body(bytes, gso).unwrap_or(Body::Unreadable) }
}

fn body(bytes: &[u8], gso: bool) -> Option<Body> {
    let mut offset = 12;
    let mut kind = two(bytes, offset)?;
    for _ in 0..2 {
        if matches!(kind, 0x8100 | 0x88a8) {
            offset += 4;
            kind = two(bytes, offset)?;
        }
    }
    let rest = bytes.get(offset + 2..)?;
    match kind {
        0x8100 | 0x88a8 => None,
        0x0800 => Some(Body::Ip(v4(rest, gso))),
        0x86dd => Some(Body::Ip(v6(rest, gso))),
        0x0806 => Some(Body::Arp(arp(rest))),
        _ => Some(Body::Other),
    }
}

fn arp(bytes: &[u8]) -> Option<Arp> {
    if bytes.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Arp { sender_mac: six(bytes, 8)?, sender: four(bytes, 14)?.into(), target: four(bytes, 24)?.into() })
}

/// A packet with addresses and nothing else yet.
fn bare(source: IpAddr, destination: IpAddr, hop_limit: u8, protocol: u8) -> Packet {
    Packet {
        source,
        destination,
        hop_limit,
        protocol,
        fragment: None,
        malformed: false,
        chain_incomplete: false,
        upper: Upper::None,
    }
}

fn v4(bytes: &[u8], gso: bool) -> Option<Packet> {
    if bytes.len() < 20 {
        return None;
    }
    let source = IpAddr::V4(four(bytes, 12)?.into());
    let destination = IpAddr::V4(four(bytes, 16)?.into());
    let mut packet = bare(source, destination, bytes[8], bytes[9]);
    let header = usize::from(bytes[0] & 0xf) * 4;
    let mut total = usize::from(two(bytes, 2)?);
    // BIG TCP: the length does not fit in the field.
    if total == 0 && gso {
        total = bytes.len();
    }
    if bytes[0] >> 4 != 4 || header < 20 || total > bytes.len() || header > total {
        packet.malformed = true;
        return Some(packet);
    }
    let word = two(bytes, 6)?;
    let offset = usize::from(word & 0x1fff) * 8;
    let more = word & 0x2000 != 0;
    if offset != 0 || more {
        packet.fragment = Some(Fragment { offset, more, id: u32::from(two(bytes, 4)?) });
    }
    upper(&mut packet, &bytes[header..total], gso);
    Some(packet)
}

fn v6(bytes: &[u8], gso: bool) -> Option<Packet> {
    if bytes.len() < 40 {
        return None;
    }
    let address = |offset: usize| {
        let octets: [u8; 16] = bytes[offset..offset + 16].try_into().expect("the header is there");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let mut packet = bare(address(8), address(24), bytes[7], bytes[6]);
    let mut length = usize::from(two(bytes, 4)?);
    if length == 0 && gso {
        length = bytes.len() - 40;
    }
    if bytes[0] >> 4 != 6 || 40 + length > bytes.len() {
        packet.malformed = true;
        return Some(packet);
    }
    extensions(&mut packet, &bytes[40..40 + length], gso);
    Some(packet)
}

/// RFC 8200 §4: walks the chain to the upper layer.
fn extensions(packet: &mut Packet, mut rest: &[u8], gso: bool) {
    let mut seen = Vec::new();
    while EXTENSIONS.contains(&packet.protocol) {
        let kind = packet.protocol;
        let misplaced = kind == HOP_BY_HOP && !seen.is_empty() || kind == FRAGMENT && seen.contains(&FRAGMENT);
        let length = match (kind, rest.get(1)) {
            (FRAGMENT, _) => 8,
            (AUTHENTICATION, Some(length)) => (usize::from(*length) + 2) * 4,
            (_, Some(length)) => (usize::from(*length) + 1) * 8,
            (_, None) => 8,
        };
        if rest.len() < 8 || length > rest.len() {
            packet.malformed = true;
            packet.chain_incomplete = is_first(packet);
            return;
        }
        if misplaced || seen.len() == 8 {
            packet.malformed = true;
            return;
        }
        seen.push(kind);
        packet.protocol = rest[0];
        if kind == FRAGMENT {
            let word = two(rest, 2).expect("eight bytes are there");
            let fragment = Fragment {
                offset: usize::from(word & 0xfff8),
                more: word & 1 == 1,
                id: four(rest, 4).expect("eight bytes are there"),
            };
            // An atomic fragment (RFC 6946) is a whole packet.
            if fragment.offset != 0 || fragment.more {
                packet.fragment = Some(fragment);
            }
        }
        rest = &rest[length..];
        if is_later(packet) {
            break;
        }
    }
    upper(packet, rest, gso);
}

pub fn is_first(packet: &Packet) -> bool {
    packet.fragment.is_some_and(|fragment| fragment.offset == 0)
}

pub fn is_later(packet: &Packet) -> bool {
    packet.fragment.is_some_and(|fragment| fragment.offset != 0)
}

/// The upper layer's header, which every packet but a later fragment has to hold whole.
fn upper(packet: &mut Packet, bytes: &[u8], gso: bool) {
    if let Some(fragment) = packet.fragment.filter(|fragment| fragment.offset != 0) {
        // A fragment that would overwrite the ports or flags of the first (RFC 1858).
        let header = match packet.protocol {
            6 => 20,
            17 => 8,
            132 => 16,
            _ => 0,
        };
        packet.malformed |= fragment.offset < header;
        return;
    }
    let first = is_first(packet);
    let read = match packet.protocol {
        6 => tcp(bytes, first),
        17 => udp(bytes, first || gso),
        132 => sctp(bytes),
        1 if packet.source.is_ipv4() => icmp(bytes),
        58 if packet.source.is_ipv6() => icmp(bytes),
        _ => Some(Upper::Other),
    };
    match read {
        Some(upper) => packet.upper = upper,
        None => {
            packet.malformed = true;
            packet.chain_incomplete = first;
        }
    }
}

fn tcp(bytes: &[u8], first: bool) -> Option<Upper> {
    let header = usize::from(bytes.get(12)? >> 4) * 4;
    if bytes.len() < 20 || header < 20 || (header > bytes.len() && !first) {
        return None;
    }
    let flags = bytes[13];
    Some(Upper::Tcp(Tcp {
        source: two(bytes, 0)?,
        destination: two(bytes, 2)?,
        sequence: four(bytes, 4)?,
        acknowledgement: four(bytes, 8)?,
        fin: flags & 1 != 0,
        syn: flags & 2 != 0,
        rst: flags & 4 != 0,
        ack: flags & 16 != 0,
        payload: bytes.len().saturating_sub(header),
    }))
}

/// `partial`: the datagram's length is that of more than is here.
fn udp(bytes: &[u8], partial: bool) -> Option<Upper> {
    if bytes.len() < 8 {
        return None;
    }
    let length = usize::from(two(bytes, 4)?);
    if !partial && (length < 8 || length > bytes.len()) {
        return None;
    }
    Some(Upper::Udp { source: two(bytes, 0)?, destination: two(bytes, 2)? })
}

/// The common header and that of the first chunk (RFC 9260 §3).
fn sctp(bytes: &[u8]) -> Option<Upper> {
    if bytes.len() < 16 {
        return None;
    }
    Some(Upper::Sctp { source: two(bytes, 0)?, destination: two(bytes, 2)?, init: bytes[12] == 1 })
}

fn icmp(bytes: &[u8]) -> Option<Upper> {
    if bytes.len() < 8 {
        return None;
    }
    Some(Upper::Icmp(Icmp { kind: bytes[0], id: two(bytes, 4)?, content: bytes[8..].to_vec() }))
}

/// The packet that an ICMP error quotes, as far as its flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Reads what an error about a packet of `family` quotes: only its beginning is there, so lengths are not believed.
/// `None`: it does not say of which flow it was.
pub fn quoted(content: &[u8], family: IpAddr) -> Option<Quoted> {
    let (source, destination, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = if family.is_ipv4() {
        let first = *content.first()?;
        let later = two(content, 6)? & 0x1fff != 0;
        let header = usize::from(first & 0xf) * 4;
        if first >> 4 != 4 || header < 20 || later {
            return None;
        }
        let (source, destination) = (four(content, 12)?, four(content, 16)?);
        (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into(), content[9], content.get(header..)?)
    } else {
        let mut packet = bare(family, family, 0, *content.get(6)?);
        let octets = |offset: usize| -> Option<[u8; 16]> { content.get(offset..offset + 16)?.try_into().ok() };
        let (source, destination) = (Ipv6Addr::from(octets(8)?), Ipv6Addr::from(octets(24)?));
        // The chain is walked by the same rules as any other; the upper layer is read below.
        let mut rest = &content[40..];
        while EXTENSIONS.contains(&packet.protocol) {
            let length = match packet.protocol {
                FRAGMENT if two(rest, 2)? & 0xfff8 != 0 => return None,
                FRAGMENT => 8,
                AUTHENTICATION => (usize::from(*rest.get(1)?) + 2) * 4,
                _ => (usize::from(*rest.get(1)?) + 1) * 8,
            };
            packet.protocol = rest[0];
            rest = rest.get(length..)?;
        }
        (source.into(), destination.into(), packet.protocol, rest)
    };
    let echo = |kind: u8| if source.is_ipv4() { matches!(kind, 0 | 8) } else { matches!(kind, 128 | 129) };
    let (source_port, destination_port) = match protocol {
        6 | 17 | 132 if rest.len() >= 8 => (two(rest, 0)?, two(rest, 2)?),
        1 | 58 if rest.len() >= 8 && echo(rest[0]) => (two(rest, 4)?, two(rest, 4)?),
        1 | 58 if rest.len() >= 8 => (0, 0),
        1 | 6 | 17 | 58 | 132 => return None,
        _ => (0, 0),
    };
    Some(Quoted { source, destination, protocol, source_port, destination_port })
}
