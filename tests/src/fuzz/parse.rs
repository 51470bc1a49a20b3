//! Frames: our parser must agree with etherparse, header by header ([`reference`]) and, where no rule of ours applies, about the
//! whole frame.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use palisade::tables::sim::FrameBytes;
use palisade_common::layout::Address;
use palisade_common::parse::{self, Packet, V4, V6, packet_trait as is};

use super::reference::{self, Reading};

pub fn check(input: &[u8]) {
    for gso in [false, true] {
        let bytes = FrameBytes { bytes: input, gso };
        let mut ours = Packet::default();
        parse::frame(&bytes, &mut ours);
        let theirs = reference::frame(input, gso);
        agree(&ours, &theirs.packet);
        if !gso && !theirs.departs {
            whole(input, &ours);
        }
        if ours.has(is::ICMP_ERROR) {
            let Reading { packet: theirs, .. } = reference::quoted(input, &ours);
            let mut quoted = Packet::default();
            parse::quoted(&bytes, &ours, &mut quoted);
            agree_quoted(&quoted, &theirs);
        }
    }
}

/// What a verdict may depend on where nothing more can be believed of a packet.
#[derive(Debug, PartialEq)]
struct Outline {
    traits: u32,
    family: u8,
    source: Address,
    destination: Address,
    source_mac: (u32, u32),
    destination_mac: (u32, u32),
}

fn outline(packet: &Packet) -> Outline {
    const BITS: u32 = is::IP | is::ARP | is::MALFORMED | is::CHAIN_INCOMPLETE | is::ICMP | is::ICMP_ERROR;
    let Packet { traits, family, source, destination, source_mac, destination_mac, .. } = *packet;
    Outline { traits: traits & BITS, family, source, destination, source_mac, destination_mac }
}

fn agree(ours: &Packet, theirs: &Packet) {
    assert_eq!(outline(ours), outline(theirs), "ours: {ours:?}, theirs: {theirs:?}");
    if !ours.has(is::MALFORMED) {
        assert_eq!(ours, theirs, "left: ours, right: theirs");
    }
}

fn agree_quoted(ours: &Packet, theirs: &Packet) {
    assert_eq!(ours.has(is::MALFORMED), theirs.has(is::MALFORMED), "ours: {ours:?}, theirs: {theirs:?}");
    if ours.has(is::MALFORMED) {
        return;
    }
    let parts = |packet: &Packet| {
        let &Packet { family, protocol, icmp_type, source, destination, source_port, destination_port, .. } = packet;
        (family, protocol, icmp_type, source, destination, source_port, destination_port, packet.transport)
    };
    assert_eq!(parts(ours), parts(theirs), "ours: {ours:?}, theirs: {theirs:?}");
}

/// etherparse's own opinion of the whole frame.
fn whole(frame: &[u8], ours: &Packet) {
    let sliced = match SlicedPacket::from_ethernet(frame) {
        Ok(sliced) => sliced,
        Err(error) => {
            assert!(ours.has(is::MALFORMED), "etherparse refuses it ({error}), we do not: {ours:?}");
            return;
        }
    };
    assert!(!ours.has(is::MALFORMED), "etherparse has {sliced:?}, we refuse it");
    let (family, payload) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => (V4, ip.payload()),
        Some(NetSlice::Ipv6(ip)) => (V6, ip.payload()),
        None => return assert!(!ours.has(is::IP | is::ARP), "etherparse sees no network layer: {ours:?}"),
        Some(NetSlice::Arp(_)) => panic!("a rule applies to ARP"),
    };
    let fragment = ours.has(is::FRAGMENT_FIRST | is::FRAGMENT_LATER);
    assert_eq!((ours.family, ours.protocol, fragment), (family, payload.ip_number.0, payload.fragmented), "{ours:?}");
    let start = payload.payload.as_ptr() as usize - frame.as_ptr() as usize;
    assert_eq!((ours.transport as usize, ours.end as usize), (start, start + payload.payload.len()), "{ours:?}");
    let ports = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => {
            return assert!(ours.has(is::ICMP), "etherparse sees ICMP: {ours:?}");
        }
        Some(TransportSlice::Igmp(_)) => panic!("a rule applies to IGMP"),
        None => None,
    };
    assert_eq!(ports.unwrap_or_default(), (ours.source_port, ours.destination_port), "{ours:?}");
}
