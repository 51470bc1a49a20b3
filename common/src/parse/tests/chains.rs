//! Chains of extension headers to the byte, and what is not believed of a quotation.

use super::super::*;
use super::*;

const CHAIN: u32 = packet_trait::MALFORMED | packet_trait::CHAIN_INCOMPLETE;
const LATER: u32 = packet_trait::FRAGMENT_LATER;

/// The frame with another payload length in its IPv6 header: what lies behind is padding.
fn ending_after(payload: u16, mut frame: Vec<u8>) -> Vec<u8> {
    frame[18..20].copy_from_slice(&payload.to_be_bytes());
    frame
}

#[test]
fn a_chain_ends_with_its_packet() {
    let six = |chain: &[u8], fragment| ethernet(&[], &v6(chain, UDP, fragment, &upper(UDP)));
    let (options, fragment) = (protocol::DESTINATION, protocol::FRAGMENT);
    for (name, frame, wanted) in [
        ("whole", six(&[options], 0), 0),
        ("options behind the end", ending_after(4, six(&[options], 0)), packet_trait::MALFORMED),
        ("options over the end", ending_after(12, six(&[options], 0)), packet_trait::MALFORMED),
        ("a fragment header behind the end", ending_after(7, six(&[fragment], 24)), packet_trait::MALFORMED),
        ("a later fragment of nothing", ending_after(8, six(&[fragment], 24)), LATER),
        ("a first fragment's options behind the end", ending_after(12, six(&[fragment, options], 1)), CHAIN),
        ("a first fragment's options over the end", ending_after(20, six(&[fragment, options], 1)), CHAIN),
    ] {
        let packet = parsed(&frame, false);
        assert_eq!(packet.traits & (CHAIN | LATER), wanted, "{name}: {packet:?}");
    }
}

/// What a later fragment begins with is no header, whatever its fragment header says is next.
#[test]
fn a_later_fragments_chain_is_not_followed() {
    let frame = ethernet(&[], &v6(&[protocol::FRAGMENT, protocol::DESTINATION], UDP, 24, &upper(UDP)));
    let packet = parsed(&frame, false);
    assert_eq!((packet.protocol, packet.transport), (protocol::DESTINATION, 14 + 40 + 8), "{packet:?}");
    // The reserved byte of a fragment header is no length (RFC 8200 §4.5).
    let mut frame = ethernet(&[], &v6(&[protocol::FRAGMENT], UDP, 0, &upper(UDP)));
    frame[55] = 3;
    assert_eq!(parsed(&frame, false).destination_port, 80);
}

#[test]
fn a_packet_may_be_its_header() {
    for content in [v4(50, 0, 0, &[]), v4(50, 40, 0, &[]), v6(&[], 59, 0, &[])] {
        let packet = parsed(&ethernet(&[], &content), false);
        assert_eq!((packet.traits, packet.transport), (packet_trait::IP, packet.end), "{packet:?}");
    }
}

/// A later fragment has no ports, nor has ICMP of the other family; the length that a quoted packet tells is not the quotation's.
#[test]
fn what_a_quotation_does_not_say() {
    let later = v4(TCP, 0, 3, &upper(TCP)[..8]);
    let foreign = v4(protocol::ICMPV6, 0, 0, &upper(TCP)[..8]);
    let foreign_six = v6(&[], protocol::ICMP, 0, &upper(TCP)[..8]);
    let mut short = v6(&[protocol::DESTINATION], UDP, 0, &upper(UDP)[..8]);
    short[4..6].copy_from_slice(&[0, 0]);
    for (name, quotation, wanted) in [
        ("a later fragment", later, None),
        ("ICMPv6 in IPv4", foreign, Some(0)),
        ("ICMP in IPv6", foreign_six, Some(0)),
        ("a length of nothing", short, Some(80)),
    ] {
        let frame = ethernet(&[], &icmp_error(&quotation, quotation[0] >> 4 == 6));
        let memory = Memory { bytes: &frame, gso: false, read: Cell::new(0) };
        let (mut error, mut inner) = (Packet::default(), Packet::default());
        super::super::frame(&memory, &mut error);
        quoted(&memory, &error, &mut inner);
        let port = (!inner.has(packet_trait::MALFORMED)).then_some(inner.destination_port);
        assert_eq!(port, wanted, "{name}: {inner:?}");
    }
}
