//! Every field of whole frames, and headers that fit to the byte.

use super::super::*;
use super::*;

fn words(octets: [u8; 16]) -> Address {
    let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    Address::v6([word(0), word(4), word(8), word(12)])
}

/// What [`ethernet`] and [`v4`] or [`v6`] write, behind `tags`.
fn common(family: u8, protocol: u8, tags: u32, length: u32) -> Packet {
    let v4 = |last| Address::v4(u32::from_ne_bytes([10, 0, 0, last]));
    let v6 = |last| words([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let network = 14 + 4 * tags;
    Packet {
        traits: packet_trait::IP,
        family,
        protocol,
        source: if family == V4 { v4(1) } else { v6(1) },
        destination: if family == V4 { v4(2) } else { v6(2) },
        source_mac: (0x0200_0000, 0x0001),
        destination_mac: (0x0200_0000, 0x0002),
        network,
        transport: network + if family == V4 { 20 } else { 40 },
        end: length,
        hop_limit: 64,
        fragment_id: if family == V4 { 0x1234 } else { 0 },
        ..Packet::default()
    }
}

#[test]
fn every_field_of_a_frame() {
    let (tcp, udp, sctp) = (upper(TCP), upper(UDP), upper(SCTP));
    let (echo, echo_v6) = (upper(protocol::ICMP), upper(protocol::ICMPV6));
    for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
        let frames = |kind, content: &[u8]| {
            [(V4, ethernet(tags, &v4(kind, 0, 0, content))), (V6, ethernet(tags, &v6(&[], kind, 0, content)))]
        };
        let check = |kind: u8, content: &[u8], change: &dyn Fn(Packet) -> Packet| {
            for (family, frame) in frames(kind, content) {
                let wanted = change(common(family, kind, tags.len() as u32, frame.len() as u32));
                assert_eq!(parsed(&frame, false), wanted, "{kind}, {family}, {tags:?}");
            }
        };
        let ports = |packet: Packet| Packet { source_port: 1000, destination_port: 80, ..packet };
        let opening = |packet: Packet| Packet { traits: packet.traits | packet_trait::OPENING, ..packet };
        check(TCP, &tcp, &|it| Packet {
            tcp_flags: tcp_flag::SYN,
            tcp_sequence: 1,
            tcp_acknowledgement: 2,
            payload: 4,
            ..opening(ports(it))
        });
        check(UDP, &udp, &ports);
        check(SCTP, &sctp, &|it| opening(ports(it)));
        check(50, &[9; 4], &|it| it);
        let asked = |packet: Packet, icmp_type| {
            let traits = packet.traits | packet_trait::ICMP | packet_trait::OPENING;
            Packet { traits, icmp_type, source_port: 7, destination_port: 7, ..packet }
        };
        // Each in its own family, and no ICMP in the other.
        check(protocol::ICMP, &echo, &|it| if it.family == V4 { asked(it, 8) } else { it });
        check(protocol::ICMPV6, &echo_v6, &|it| if it.family == V6 { asked(it, 128) } else { it });
    }
}

#[test]
fn addresses_and_numbers_lie_in_frames_in_network_order() {
    let mut frame = ethernet(&[], &v4(TCP, 0, 0, &upper(TCP)));
    let numbers: Vec<u8> = (0x11..=0x1c).collect();
    frame[..12].copy_from_slice(&numbers);
    frame[38..46].copy_from_slice(&[0xa1, 0xa2, 0xa3, 0xa4, 0xb1, 0xb2, 0xb3, 0xb4]);
    let packet = parsed(&frame, false);
    assert_eq!((packet.destination_mac, packet.source_mac), ((0x1112_1314, 0x1516), (0x1718_191a, 0x1b1c)));
    assert_eq!((packet.tcp_sequence, packet.tcp_acknowledgement), (0xa1a2_a3a4, 0xb1b2_b3b4));
    let mut arp = frame;
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let packet = parsed(&arp, false);
    assert_eq!((packet.traits, packet.network), (packet_trait::ARP, 14));
    arp[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(parsed(&arp, false).traits, 0, "neither IP nor ARP");
}

/// Headers with nothing behind them, and with what their own lengths say.
#[test]
fn headers_that_fit_to_the_byte() {
    let with = |kind: u8, length: usize, changes: &[(usize, u8)]| {
        let mut content = upper(kind);
        content.resize(length, 0);
        changes.iter().for_each(|&(place, byte)| content[place] = byte);
        content
    };
    let (offset, length) = (12, 5);
    // The header, whether it is legal whole and as a first fragment, and how many bytes of TCP's payload there are.
    for (kind, content, [whole, first], payload) in [
        (TCP, with(TCP, 20, &[]), [true, true], 0),
        (TCP, with(TCP, 19, &[]), [false, false], 0),
        (TCP, with(TCP, 21, &[]), [true, true], 1),
        (TCP, with(TCP, 24, &[(offset, 0x60)]), [true, true], 0),
        (TCP, with(TCP, 23, &[(offset, 0x60)]), [false, true], 0),
        (TCP, with(TCP, 24, &[(offset, 0x40)]), [false, false], 0),
        (TCP, with(TCP, 60, &[(offset, 0xf0)]), [true, true], 0),
        (UDP, with(UDP, 8, &[(length, 8)]), [true, true], 0),
        (UDP, with(UDP, 7, &[(length, 7)]), [false, false], 0),
        (UDP, with(UDP, 9, &[(length, 8)]), [true, true], 0),
        (UDP, with(UDP, 9, &[(length, 9)]), [true, true], 0),
        (UDP, with(UDP, 9, &[(length, 10)]), [false, true], 0),
        (UDP, with(UDP, 9, &[(length, 7)]), [false, true], 0),
        (UDP, with(UDP, 9, &[(length, 0)]), [false, true], 0),
        (SCTP, with(SCTP, 16, &[]), [true, true], 0),
        (SCTP, with(SCTP, 15, &[]), [false, false], 0),
    ] {
        for (fragment, legal) in [(false, whole), (true, first)] {
            let four = ethernet(&[], &v4(kind, 0, if fragment { 0x2000 } else { 0 }, &content));
            let chain = if fragment { &[protocol::FRAGMENT][..] } else { &[] };
            let six = ethernet(&[], &v6(chain, kind, u16::from(fragment), &content));
            for frame in [four, six] {
                let packet = parsed(&frame, false);
                assert_eq!(!packet.has(packet_trait::MALFORMED), legal, "{kind}, {content:?}, {fragment}: {packet:?}");
                assert_eq!(packet.has(packet_trait::CHAIN_INCOMPLETE), fragment && !legal, "{packet:?}");
                assert!(!legal || packet.payload == payload, "{packet:?}");
            }
        }
    }
    for kind in [protocol::ICMP, protocol::ICMPV6] {
        let frame = |content: &[u8]| {
            ethernet(&[], &if kind == protocol::ICMP { v4(kind, 0, 0, content) } else { v6(&[], kind, 0, content) })
        };
        let wanted = packet_trait::IP | packet_trait::ICMP | packet_trait::OPENING;
        assert_eq!(parsed(&frame(&upper(kind)), false).traits, wanted);
        assert_eq!(parsed(&frame(&upper(kind)[..7]), false).traits, packet_trait::IP | packet_trait::MALFORMED);
    }
}

/// What a frame stands for several of says a length of its own, which is not the frame's.
#[test]
fn a_datagram_that_stands_for_several() {
    let mut frame = ethernet(&[], &v4(UDP, 0, 0, &upper(UDP)));
    frame[39] = 9;
    for (gso, length, legal) in [(true, 200, true), (true, 7, true), (false, 200, false), (false, 12, true)] {
        frame[39] = length;
        assert_eq!(!parsed(&frame, gso).has(packet_trait::MALFORMED), legal, "{gso}, {length}");
    }
}

/// Types that are answers or errors, and those that name a question (RFC 792, RFC 4443, RFC 4620).
#[test]
fn kinds_of_icmp() {
    for icmp_type in 0..=u8::MAX {
        for kind in [protocol::ICMP, protocol::ICMPV6] {
            let content = [&[icmp_type, 0, 0, 0, 0, 7, 0, 1][..], &[0; 40]].concat();
            let four = kind == protocol::ICMP;
            let packet = parsed(
                &ethernet(&[], &if four { v4(kind, 0, 0, &content) } else { v6(&[], kind, 0, &content) }),
                false,
            );
            let (named, answers, errors): (&[u8], &[u8], &[u8]) = if four {
                (&[0, 8, 13, 14, 15, 16, 17, 18], &[0, 14, 16, 18], &[3, 4, 11, 12])
            } else {
                (&[128, 129], &[129, 140], &[1, 2, 3, 4])
            };
            let (answer, error) = (answers.contains(&icmp_type), errors.contains(&icmp_type));
            let identifier = if named.contains(&icmp_type) { 7 } else { 0 };
            assert_eq!((packet.source_port, packet.destination_port), (identifier, identifier), "{kind}, {icmp_type}");
            assert_eq!(packet.has(packet_trait::ICMP_ERROR), error, "{kind}, {icmp_type}");
            assert_eq!(packet.has(packet_trait::OPENING), !answer && !error, "{kind}, {icmp_type}");
        }
    }
}
