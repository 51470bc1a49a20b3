//! Odd frames, as data: what is read of them, and that nothing is read that is not there.

mod chains;
mod fields;
mod quotations;

use std::cell::Cell;
use std::vec;
use std::vec::Vec;

use super::*;

/// A frame in memory that remembers how far it was read.
struct Memory<'a> {
    bytes: &'a [u8],
    gso: bool,
    read: Cell<u32>,
}

impl Bytes for Memory<'_> {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.bytes.get(start..start.checked_add(N * 4)?)?;
        self.read.set(self.read.get().max(offset + N as u32 * 4));
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
        }
        Some(words)
    }

    fn is_gso(&self) -> bool {
        self.gso
    }
}

fn parsed(bytes: &[u8], gso: bool) -> Packet {
    let memory = Memory { bytes, gso, read: Cell::new(0) };
    let mut packet = Packet::default();
    frame(&memory, &mut packet);
    let quoted_from = packet;
    if packet.has(packet_trait::ICMP_ERROR) {
        let mut inner = Packet::default();
        quoted(&memory, &quoted_from, &mut inner);
        check(&inner, &memory, true);
    }
    check(&packet, &memory, false);
    packet
}

/// What holds of every frame whatever.
fn check(packet: &Packet, memory: &Memory<'_>, quoted: bool) {
    let length = memory.bytes.len() as u32;
    assert!(memory.read.get() <= length, "read past the end");
    if !packet.has(packet_trait::IP) || packet.has(packet_trait::MALFORMED) {
        return;
    }
    assert!(quoted || packet.end <= length, "{packet:?} ends after {length} bytes");
    assert!(packet.transport <= length || packet.has(packet_trait::FRAGMENT_LATER), "{packet:?} of {length} bytes");
    if quoted {
        return;
    }
    assert!(packet.payload <= length, "{packet:?}");
    let later = packet.has(packet_trait::FRAGMENT_LATER);
    let header = match packet.protocol {
        protocol::TCP => 20,
        protocol::UDP => 8,
        protocol::SCTP => 16,
        other if other == icmp_of(packet.family) => 8,
        _ => 0,
    };
    assert!(later || packet.transport + header <= packet.end, "{packet:?}: the header is not all there");
    assert!(!(later && packet.source_port | packet.destination_port != 0), "{packet:?}: ports of a later fragment");
}

// === Building frames ===

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;
const SCTP: u8 = protocol::SCTP;

/// Ports 1000 and 80, and some data.
fn upper(kind: u8) -> Vec<u8> {
    let mut bytes = vec![0x03, 0xe8, 0, 80];
    match kind {
        TCP => bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 2, 1, 0, 0, 0, 0, 0, 9, 9, 9, 9]),
        UDP => bytes.extend([0, 12, 0, 0, 9, 9, 9, 9]),
        SCTP => bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4]),
        // Echo requests with identifier 7.
        protocol::ICMP => bytes = vec![8, 0, 0, 0, 0, 7, 0, 1],
        protocol::ICMPV6 => bytes = vec![128, 0, 0, 0, 0, 7, 0, 1],
        _ => bytes = vec![9; 4],
    }
    bytes
}

fn v4(kind: u8, options: usize, fragment: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45 + (options / 4) as u8, 0];
    bytes.extend((20 + options as u16 + content.len() as u16).to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, kind, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.resize(20 + options, 1);
    bytes.extend(content);
    bytes
}

/// Extension headers by number, before `content` of protocol `kind`. `fragment`: offset and flag of a fragment header.
fn v6(chain: &[u8], kind: u8, fragment: u16, content: &[u8]) -> Vec<u8> {
    let mut rest = content.to_vec();
    let mut next = kind;
    for &number in chain.iter().rev() {
        let mut header = match number {
            protocol::FRAGMENT => {
                let [high, low] = fragment.to_be_bytes();
                vec![next, 0, high, low, 0, 0, 0xab, 0xcd]
            }
            // Twenty-four bytes, told as words less two.
            protocol::AUTHENTICATION => [vec![next, 4], vec![0; 22]].concat(),
            // Sixteen bytes, told as eights less one.
            _ => [vec![next, 1], vec![0; 14]].concat(),
        };
        header.extend(rest);
        rest = header;
        next = number;
    }
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((rest.len() as u16).to_be_bytes());
    bytes.extend([next, 64]);
    for last in [1, 2] {
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    bytes.extend(rest);
    bytes
}

/// `tags`: ethertypes of VLAN tags, the outermost first.
fn ethernet(tags: &[u16], content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 5]);
    }
    let kind: u32 = if content[0] >> 4 == 6 { ethertype::IPV6 } else { ethertype::IPV4 };
    bytes.extend((kind as u16).to_be_bytes());
    bytes.extend(content);
    bytes
}

fn icmp_error(content: &[u8], six: bool) -> Vec<u8> {
    let mut bytes = if six { vec![1, 4, 0, 0] } else { vec![3, 3, 0, 0] };
    bytes.extend([0; 4]);
    bytes.extend(content);
    if six { v6(&[], protocol::ICMPV6, 0, &bytes) } else { v4(protocol::ICMP, 0, 0, &bytes) }
}

const CHAINABLE: [u8; 8] = [
    protocol::HOP_BY_HOP,
    protocol::DESTINATION,
    protocol::ROUTING,
    protocol::FRAGMENT,
    protocol::AUTHENTICATION,
    protocol::MOBILITY,
    protocol::HIP,
    protocol::SHIM6,
];

/// Frames of every kind that are as they should be.
fn good() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for kind in [TCP, UDP, SCTP, protocol::ICMP, 50] {
        for options in [0, 4, 40] {
            all.push(ethernet(&[], &v4(kind, options, 0, &upper(kind))));
        }
        all.push(ethernet(&[0x8100], &v4(kind, 0, 0x2000, &upper(kind))));
        all.push(ethernet(&[], &v4(kind, 8, 0x2003, &[7; 24])));
    }
    for kind in [TCP, UDP, SCTP, protocol::ICMPV6, 50, 59] {
        all.push(ethernet(&[], &v6(&[], kind, 0, &upper(kind))));
        all.push(ethernet(&[0x88a8, 0x8100], &v6(&CHAINABLE, kind, 0, &upper(kind))));
        all.push(ethernet(&[], &v6(&[protocol::FRAGMENT], kind, 1, &upper(kind))));
        all.push(ethernet(
            &[],
            &v6(&[protocol::ROUTING, protocol::FRAGMENT, protocol::DESTINATION], kind, 24, &[7; 24]),
        ));
    }
    all.push(ethernet(&[], &icmp_error(&v4(TCP, 8, 0, &upper(TCP)), false)));
    all.push(ethernet(&[], &icmp_error(&v6(&[protocol::DESTINATION], UDP, 0, &upper(UDP)), true)));
    all
}

// === Tests ===

#[test]
fn ports_and_protocol_are_found_behind_whatever_precedes_them() {
    for kind in [TCP, UDP, SCTP] {
        for options in (0..=40).step_by(4) {
            let packet = parsed(&ethernet(&[], &v4(kind, options, 0, &upper(kind))), false);
            assert_eq!((packet.source_port, packet.destination_port), (1000, 80), "{kind}, {options} bytes of options");
            assert!(!packet.has(packet_trait::MALFORMED), "{packet:?}");
            assert_eq!(packet.has(packet_trait::OPENING), kind != UDP, "{packet:?}");
        }
        // Every two, in either order, and every one behind hop-by-hop options, in the frame of zero to two tags.
        for first in CHAINABLE {
            for second in CHAINABLE {
                for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
                    let packet = parsed(&ethernet(tags, &v6(&[first, second], kind, 0, &upper(kind))), false);
                    let twice = first == second && second == protocol::FRAGMENT;
                    let legal = second != protocol::HOP_BY_HOP && !twice;
                    assert_eq!(!packet.has(packet_trait::MALFORMED), legal, "{first}, {second}: {packet:?}");
                    if legal {
                        assert_eq!((packet.source_port, packet.destination_port), (1000, 80), "{first}, {second}");
                        assert_eq!((packet.protocol, packet.family), (kind, V6), "{first}, {second}");
                    }
                }
            }
        }
    }
}

/// RFC 8200 §4.1 recommends one order; every permutation of the kinds that may follow is read.
#[test]
fn every_order_of_extension_headers() {
    fn permutations(rest: &[u8], chosen: &mut Vec<u8>, each: &mut dyn FnMut(&[u8])) {
        each(chosen);
        for (index, number) in rest.iter().enumerate() {
            let others: Vec<u8> = [&rest[..index], &rest[index + 1..]].concat();
            chosen.push(*number);
            permutations(&others, chosen, each);
            chosen.pop();
        }
    }
    let mut count = 0;
    let all = [protocol::DESTINATION, protocol::ROUTING, protocol::FRAGMENT, protocol::AUTHENTICATION, protocol::HIP];
    permutations(&all, &mut Vec::new(), &mut |chain| {
        for chain in [chain.to_vec(), [&[protocol::HOP_BY_HOP], chain].concat()] {
            let packet = parsed(&ethernet(&[], &v6(&chain, UDP, 0, &upper(UDP))), false);
            assert!(!packet.has(packet_trait::MALFORMED), "{chain:?}: {packet:?}");
            assert_eq!((packet.protocol, packet.destination_port), (UDP, 80), "{chain:?}");
            count += 1;
        }
    });
    assert_eq!(count, 2 * 326, "all permutations of all subsets");
}

#[test]
fn as_many_extension_headers_as_are_followed() {
    for (count, legal) in [(1, true), (7, true), (8, true), (9, false), (30, false)] {
        let chain = vec![protocol::DESTINATION; count];
        let packet = parsed(&ethernet(&[], &v6(&chain, TCP, 0, &upper(TCP))), false);
        assert_eq!(!packet.has(packet_trait::MALFORMED), legal, "{count} headers: {packet:?}");
        assert!(legal || packet.destination_port == 0, "{count} headers: {packet:?}");
    }
}

#[test]
fn vlan_tags() {
    for (tags, legal) in [
        (&[][..], true),
        (&[0x8100], true),
        (&[0x88a8], true),
        (&[0x88a8, 0x8100], true),
        (&[0x8100, 0x8100], true),
        (&[0x8100, 0x8100, 0x8100], false),
    ] {
        let packet = parsed(&ethernet(tags, &v4(TCP, 0, 0, &upper(TCP))), false);
        assert_eq!(!packet.has(packet_trait::MALFORMED), legal, "{tags:?}");
        assert_eq!(packet.has(packet_trait::IP), legal, "{tags:?}");
        assert!(!legal || packet.network == 14 + 4 * tags.len() as u32, "{tags:?}: {packet:?}");
    }
}

#[test]
fn fragments() {
    let (first, later, neither) = (packet_trait::FRAGMENT_FIRST, packet_trait::FRAGMENT_LATER, 0);
    // Offset and flags as they lie in either header, what it makes, and where it is.
    for (v4_word, v6_word, wanted, offset) in [
        (0x0000, 0x0000, neither, 0),
        (0x4000, 0x0000, neither, 0),
        (0x2000, 0x0001, first, 0),
        (0x2001, 0x0009, later, 8),
        (0x0001, 0x0008, later, 8),
        (0x1fff, 0xfff8, later, 65_528),
        (0x3fff, 0xfff9, later, 65_528),
    ] {
        let frames = [
            ethernet(&[], &v4(UDP, 0, v4_word, &upper(UDP))),
            ethernet(&[], &v6(&[protocol::FRAGMENT], UDP, v6_word, &upper(UDP))),
        ];
        for frame in frames {
            let packet = parsed(&frame, false);
            assert_eq!(packet.traits & (first | later), wanted, "{v4_word:#x}: {packet:?}");
            assert_eq!(packet.fragment_offset, offset, "{v4_word:#x}");
            assert_eq!(packet.destination_port, if wanted == later { 0 } else { 80 }, "{v4_word:#x}");
            assert!(!packet.has(packet_trait::MALFORMED), "{v4_word:#x}: {packet:?}");
            let id = if packet.family == V4 { 0x1234 } else { 0xabcd };
            assert_eq!(packet.fragment_id, id, "{v4_word:#x}");
        }
    }
}

/// RFC 7112: a first fragment holds the whole chain; one that does not says nothing of its ports.
#[test]
fn first_fragments_without_their_headers() {
    for (chain, content) in [
        (&[protocol::FRAGMENT][..], &[7; 4][..]),
        (&[protocol::FRAGMENT], &upper(TCP)[..16]),
        (&[protocol::FRAGMENT, protocol::DESTINATION], &[]),
    ] {
        let packet = parsed(&ethernet(&[], &v6(chain, TCP, 1, content)), false);
        let wanted = packet_trait::MALFORMED | packet_trait::CHAIN_INCOMPLETE;
        assert_eq!(packet.traits & wanted, wanted, "{chain:?}, {} bytes: {packet:?}", content.len());
    }
    // An extension header that goes on behind the fragment's end.
    let mut frame = ethernet(&[], &v6(&[protocol::FRAGMENT, protocol::DESTINATION], TCP, 1, &[]));
    frame.truncate(frame.len() - 8);
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    let packet = parsed(&frame, false);
    assert!(packet.has(packet_trait::CHAIN_INCOMPLETE) && packet.has(packet_trait::MALFORMED), "{packet:?}");
}

/// A length of zero is no lie where the frame stands for several, and only there.
#[test]
fn big_tcp() {
    let mut four = ethernet(&[], &v4(TCP, 0, 0, &upper(TCP)));
    four[16..18].copy_from_slice(&[0, 0]);
    let mut six = ethernet(&[], &v6(&[], TCP, 0, &upper(TCP)));
    six[18..20].copy_from_slice(&[0, 0]);
    for frame in [four, six] {
        let packet = parsed(&frame, true);
        assert!(!packet.has(packet_trait::MALFORMED), "{packet:?}");
        assert_eq!((packet.end, packet.payload), (frame.len() as u32, 4), "{packet:?}");
        assert_eq!(packet.destination_port, 80);
        assert!(parsed(&frame, false).has(packet_trait::MALFORMED), "a lie without GSO");
    }
}

#[test]
fn lengths_that_lie() {
    let four = ethernet(&[], &v4(TCP, 0, 0, &upper(TCP)));
    let six = ethernet(&[], &v6(&[protocol::DESTINATION], TCP, 0, &upper(TCP)));
    // Frame, place and bytes that are put there.
    let lies: [(&Vec<u8>, usize, &[u8]); 9] = [
        (&four, 14, &[0x44]),
        (&four, 14, &[0x4f]),
        (&four, 14, &[0x55]),
        (&four, 16, &[0, 19]),
        (&four, 16, &[0xff, 0xff]),
        (&four, 46, &[0x40]),
        (&six, 14, &[0x50]),
        (&six, 18, &[0xff, 0xff]),
        (&six, 55, &[0xff]),
    ];
    for (frame, place, bytes) in lies {
        let mut frame = frame.clone();
        assert!(!parsed(&frame, false).has(packet_trait::MALFORMED), "the frame without the lie");
        frame[place..place + bytes.len()].copy_from_slice(bytes);
        let packet = parsed(&frame, false);
        assert!(packet.has(packet_trait::MALFORMED), "{bytes:?} at {place}: {packet:?}");
    }
    // More bytes than the packet says are padding.
    let mut padded = four.clone();
    padded.extend([0; 18]);
    let packet = parsed(&padded, false);
    assert!(!packet.has(packet_trait::MALFORMED) && packet.payload == 4, "{packet:?}");
}

/// Whatever is missing: no panic, no read past the end, and no header that is claimed to be there.
#[test]
fn truncated_at_every_length() {
    let mut count = 0;
    for frame in good() {
        let whole = parsed(&frame, false);
        assert!(!whole.has(packet_trait::MALFORMED), "{whole:?}");
        for length in 0..frame.len() {
            for gso in [false, true] {
                let packet = parsed(&frame[..length], gso);
                assert!(packet.has(packet_trait::MALFORMED), "{length} of {} bytes: {packet:?}", frame.len());
                count += 1;
            }
        }
    }
    assert!(count > 5_000, "{count} frames");
}

/// And whatever is wrong.
#[test]
fn every_byte_changed() {
    for frame in good() {
        for place in 12..frame.len() {
            for value in [0, 1, 6, 43, 44, 51, 60, 0x45, 0x60, 0x81, 0xff] {
                let mut frame = frame.clone();
                frame[place] = value;
                parsed(&frame, false);
                parsed(&frame, true);
            }
        }
    }
}
