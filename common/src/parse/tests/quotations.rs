//! Packets that ICMP errors quote: believed as far as they are there.

use super::super::*;
use super::*;

#[test]
fn quoted_packets() {
    for (frame, family) in [
        (ethernet(&[], &icmp_error(&v4(TCP, 8, 0, &upper(TCP)[..8]), false)), V4),
        (ethernet(&[], &icmp_error(&v6(&[protocol::DESTINATION], TCP, 0, &upper(TCP)[..8]), true)), V6),
    ] {
        let memory = Memory { bytes: &frame, gso: false, read: Cell::new(0) };
        let (mut error, mut inner) = (Packet::default(), Packet::default());
        super::super::frame(&memory, &mut error);
        assert!(error.has(packet_trait::ICMP_ERROR), "{error:?}");
        quoted(&memory, &error, &mut inner);
        assert!(!inner.has(packet_trait::MALFORMED), "{inner:?}");
        assert_eq!((inner.family, inner.source_port, inner.destination_port), (family, 1000, 80));
        // A byte less, and the quoted ports are not believed.
        let frame = &frame[..frame.len() - 1];
        let memory = Memory { bytes: frame, gso: false, read: Cell::new(0) };
        quoted(&memory, &error, &mut inner);
        assert!(inner.has(packet_trait::MALFORMED), "{inner:?}");
    }
}

/// What lies behind the end of an error, or of its quotation, is not quoted.
#[test]
fn quotations_that_end_early() {
    const ESP: u8 = 50;
    let quoting = |content: &[u8], cut: usize| {
        let mut frame = ethernet(&[], &icmp_error(&v4(content[0], 0, 0, &content[1..]), false));
        // The error says that it ends earlier than the frame does.
        let length = (frame.len() - 14 - cut) as u16;
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        frame
    };
    let tcp = [&[TCP][..], &upper(TCP)[..8]].concat();
    let icmp = [&[protocol::ICMP][..], &upper(protocol::ICMP)].concat();
    for (name, frame, legal) in [
        ("eight bytes", quoting(&tcp, 0), true),
        ("seven bytes and padding", quoting(&tcp, 1), false),
        ("no byte and padding", quoting(&tcp, 8), false),
        ("half a header and padding", quoting(&tcp, 18), false),
        ("a question", quoting(&icmp, 0), true),
        ("seven bytes of a question", quoting(&icmp, 1), false),
        ("another protocol, no byte", quoting(&[ESP, 1, 2, 3, 4], 4), true),
        ("another protocol, half a header", quoting(&[ESP, 1, 2, 3, 4], 5), false),
    ] {
        let memory = Memory { bytes: &frame, gso: false, read: Cell::new(0) };
        let (mut error, mut inner) = (Packet::default(), Packet::default());
        super::super::frame(&memory, &mut error);
        assert!(error.has(packet_trait::ICMP_ERROR), "{name}: {error:?}");
        quoted(&memory, &error, &mut inner);
        assert_eq!(!inner.has(packet_trait::MALFORMED), legal, "{name}: {inner:?}");
        assert!(inner.destination_port == 0 || legal, "{name}: {inner:?}");
    }
}
