//! The key of a flow is the same from both ends; how long an entry is remembered; when a connection is over; what is an answer.

mod errors;
mod judging;
mod remembering;

use super::*;
use crate::decide::stub::{Entry, Stub};
use crate::parse::{V4, V6, tcp_flag};

fn packet(family: u8, protocol: u8, ends: [(Address, u16); 2]) -> Packet {
    let [(source, source_port), (destination, destination_port)] = ends;
    Packet { family, protocol, source, destination, source_port, destination_port, ..Packet::default() }
}

#[test]
fn both_directions_have_one_key() {
    let words = [0, 1, 0xffff_ffff, 0x0100_0000, u32::from_ne_bytes([10, 0, 0, 1])];
    let mut v6 = std::vec::Vec::new();
    for place in 0..4 {
        for word in words {
            let mut address = [7; 4];
            address[place] = word;
            v6.push(Address::v6(address));
        }
    }
    let v4: std::vec::Vec<Address> = words.into_iter().map(Address::v4).collect();
    for (family, addresses) in [(V4, v4), (V6, v6)] {
        for &a in &addresses {
            for &b in &addresses {
                for (a_port, b_port) in [(0, 0), (80, 4000), (4000, 80), (1, u16::MAX)] {
                    let (there, sender) = key(&packet(family, 6, [(a, a_port), (b, b_port)]));
                    let (back, receiver) = key(&packet(family, 6, [(b, b_port), (a, a_port)]));
                    assert_eq!(there, back, "{a:?} {a_port}, {b:?} {b_port}");
                    let same_end = a == b && a_port == b_port;
                    assert_eq!(sender != receiver, !same_end, "{a:?} {a_port}, {b:?} {b_port}");
                    let own = if sender == 0 { (there.low, there.low_port) } else { (there.high, there.high_port) };
                    assert_eq!(own, (a, a_port), "the sender's end is the sender's");
                    assert_eq!((there.protocol, there.family, there.pad), (6, family, 0));
                }
            }
        }
    }
}

#[test]
fn other_flows_have_other_keys() {
    let ends = [(Address::v4(1), 80), (Address::v4(2), 4000)];
    let base = key(&packet(V4, 6, ends)).0;
    let others = [
        packet(V4, 17, ends),
        packet(V6, 6, ends),
        packet(V4, 6, [(Address::v4(1), 81), (Address::v4(2), 4000)]),
        packet(V4, 6, [(Address::v4(1), 4000), (Address::v4(2), 80)]),
        packet(V4, 6, [(Address::v4(3), 80), (Address::v4(2), 4000)]),
    ];
    for other in others {
        assert_ne!(key(&other).0, base, "{other:?}");
    }
}

const LOW_FIN_ACKED: u32 = flow_flag::FIN_ACKED;
const HIGH_FIN_ACKED: u32 = flow_flag::FIN_ACKED << 1;

/// Seconds, as nf_conntrack has them.
const IDLE: [(u8, u64); 6] = [
    (protocol::TCP, 432_000),
    (protocol::SCTP, 432_000),
    (protocol::UDP, 180),
    (protocol::ICMP, 30),
    (protocol::ICMPV6, 30),
    (47, 600),
];

#[test]
fn a_silent_flow_is_remembered_for_its_protocols_time() {
    const BORN: u64 = 7 * SECOND;
    for (protocol, seconds) in IDLE {
        let last = BORN + seconds * 1_000_000_000;
        let entry = Entry::new(flow_flag::OPENED, BORN);
        assert!(is_alive(&entry, protocol, last), "{protocol}");
        assert!(!is_alive(&entry, protocol, last + 1), "{protocol}");
        // A clock that is read on another CPU may stand behind.
        assert!(is_alive(&entry, protocol, 0), "{protocol}");
        let unconfirmed = Entry::new(flow_flag::OPENED | flow_flag::UNCONFIRMED, BORN);
        assert!(is_alive(&unconfirmed, protocol, BORN + 2_000_000_000), "{protocol}");
        assert!(!is_alive(&unconfirmed, protocol, BORN + 2_000_000_001), "{protocol}");
    }
}

/// What is removed had a minute more than it is used for.
#[test]
fn what_nobody_will_miss() {
    const MINUTE: u64 = 60_000_000_000;
    let over = |protocol: u8, flags: u32, silent: u64| {
        let key = FlowKey { protocol, ..FlowKey::default() };
        is_over(&key, &FlowValue { flags, seen: 5, ..FlowValue::default() }, 5 + silent)
    };
    for (protocol, seconds) in IDLE {
        let last = seconds * 1_000_000_000 + MINUTE;
        assert!(!over(protocol, flow_flag::OPENED, last) && over(protocol, flow_flag::OPENED, last + 1), "{protocol}");
    }
    for (flags, closed) in [
        (flow_flag::RESET, true),
        (LOW_FIN_ACKED | HIGH_FIN_ACKED, true),
        (LOW_FIN_ACKED, false),
        (HIGH_FIN_ACKED | flow_flag::RESET_SEEN | flow_flag::FIN | flow_flag::FIN << 1, false),
        (flow_flag::UNCONFIRMED, false),
    ] {
        let last = 10_000_000_000 + MINUTE;
        assert!(!over(protocol::TCP, flags, last), "{flags:#x}");
        assert_eq!(over(protocol::TCP, flags, last + 1), closed, "{flags:#x}");
    }
}

#[test]
fn only_empty_last_words_answer_on_a_closed_connection() {
    const LAST: u64 = 10_000_000_000;
    let closed = LOW_FIN_ACKED | HIGH_FIN_ACKED;
    for (name, flags, silent, tcp_flags, payload, wanted) in [
        ("open, however long ago", flow_flag::FIN, 100 * LAST, tcp_flag::SYN, 9, true),
        ("one FIN acknowledged", LOW_FIN_ACKED, 100 * LAST, tcp_flag::ACK, 9, true),
        ("closed, an acknowledgement in time", closed, LAST, tcp_flag::ACK, 0, true),
        ("closed, too late", closed, LAST + 1, tcp_flag::ACK, 0, false),
        ("closed, with data", closed, 0, tcp_flag::ACK, 1, false),
        ("closed, opening anew", closed, 0, tcp_flag::SYN, 0, false),
        ("closed, both", closed, 0, tcp_flag::SYN | tcp_flag::ACK, 0, false),
        ("reset, in time", flow_flag::RESET, LAST, tcp_flag::ACK, 0, true),
        ("reset, with data", flow_flag::RESET, 0, tcp_flag::ACK, 1, false),
        ("a reset was seen, in time", flow_flag::RESET_SEEN, LAST, tcp_flag::ACK, 9, true),
        ("a reset was seen, too late", flow_flag::RESET_SEEN, LAST + 1, tcp_flag::ACK, 9, false),
    ] {
        let mut packet = packet(V4, protocol::TCP, [(Address::v4(1), 80), (Address::v4(2), 4000)]);
        (packet.tcp_flags, packet.payload) = (tcp_flags, payload);
        let entry = Entry::new(flow_flag::OPENED | flags, 3);
        assert_eq!(answers(&entry, &packet, 3 + silent), wanted, "{name}");
        packet.protocol = protocol::UDP;
        assert!(answers(&entry, &packet, 3 + silent), "{name}: only TCP closes");
    }
}

#[test]
fn the_number_after_a_fin() {
    let fin = |tcp_sequence, payload| tcp::fin_next(&Packet { tcp_sequence, payload, ..Packet::default() });
    assert_eq!((fin(10, 0), fin(10, 5), fin(u32::MAX, 0), fin(u32::MAX - 5, 9)), (11, 16, 0, 4));
}

/// Only the end of a connection and what has silenced it for a while are worth a new time.
#[test]
fn the_time_of_an_entry_is_written_when_it_matters() {
    const THEN: u64 = 5 * SECOND;
    let record = EndpointRecord::default();
    let (ack, fin, rst) = (tcp_flag::ACK, tcp_flag::FIN, tcp_flag::RST);
    for (name, flags, silent, tcp_flags, forward, written) in [
        ("its opener's, at once", 0, SEEN_GRANULARITY, ack, true, false),
        ("its opener's", 0, SEEN_GRANULARITY + 1, ack, true, true),
        ("an answer", 0, SEEN_GRANULARITY + 1, ack, false, true),
        ("an answer to what is not confirmed", flow_flag::UNCONFIRMED, SEEN_GRANULARITY + 1, ack, false, false),
        ("an answer to what is ending", flow_flag::RESET_SEEN, SEEN_GRANULARITY + 1, ack, false, false),
        ("a FIN, at once", 0, 0, fin, false, false),
        ("a reset, at once", 0, 1, rst, false, true),
        ("another reset", flow_flag::RESET_SEEN, 1, rst, false, false),
        ("a reset with a FIN", 0, 1, rst | fin, false, true),
    ] {
        let mut packet = packet(V4, protocol::TCP, [(Address::v4(1), 80), (Address::v4(2), 4000)]);
        packet.tcp_flags = tcp_flags;
        let tables = Stub { now: THEN + silent, ..Stub::default() };
        let at = At::new(&tables, &record, &packet, 1, Hook::ToPod);
        let entry = Entry::new(flow_flag::OPENED | flags, THEN);
        note(&at, &entry, forward);
        assert_eq!(entry.seen(), if written { THEN + silent } else { THEN }, "{name}");
    }
}

/// A datagram to a pod is no answer where its sender let it out as an opening and did not admit what it would answer. Connections
/// have one opener, and a pod's own judgements are not asked about its own packets.
#[test]
fn what_answers() {
    const EPOCH: u32 = 7;
    let record = EndpointRecord { generation: 3, ..EndpointRecord::default() };
    let (made, older, never) = (
        Judgement { epoch: EPOCH, generation: 9 },
        Judgement { epoch: EPOCH - 1, generation: 9 },
        Judgement { epoch: EPOCH, generation: 0 },
    );
    for (protocol, hook, let_out, admitted, wanted) in [
        (protocol::UDP, Hook::ToPod, made, never, false),
        (protocol::UDP, Hook::ToPod, made, older, false),
        (protocol::UDP, Hook::ToPod, made, made, true),
        (protocol::UDP, Hook::ToPod, older, never, true),
        (protocol::UDP, Hook::ToPod, never, never, true),
        (protocol::UDP, Hook::FromPod, made, never, true),
        (protocol::TCP, Hook::ToPod, made, never, true),
        (protocol::TCP, Hook::FromPod, made, never, true),
    ] {
        let packet = packet(V4, protocol, [(Address::v4(1), 80), (Address::v4(2), 4000)]);
        let tables = Stub::default();
        let at = At::new(&tables, &record, &packet, EPOCH, hook);
        let mut value = FlowValue::default();
        value.judged[at.sender][EGRESS] = let_out;
        value.judged[1 - at.sender][INGRESS] = admitted;
        assert_eq!(is_reply(&at, &Entry::of(value)), wanted, "{protocol}, {hook:?}, {let_out:?}, {admitted:?}");
    }
}

/// Of a closed endpoint only what answers its node passes.
#[test]
fn a_closed_endpoint_answers_its_node_alone() {
    let record = EndpointRecord { generation: 3, ..EndpointRecord::default() };
    let own = Judgement { epoch: 1, generation: 3 };
    let former = Judgement { epoch: 1, generation: 2 };
    let node = flow_flag::NODE;
    for (name, flags, judged, now, protocol, hook, wanted) in [
        ("an answer to the node", node, own, 1, protocol::UDP, Hook::FromPod, Reason::Reply),
        ("an answer to another", 0, own, 1, protocol::UDP, Hook::FromPod, Reason::Closed),
        ("an answer by the pod before", node, former, 1, protocol::UDP, Hook::FromPod, Reason::Closed),
        ("an answer too late", node, own, 999, protocol::UDP, Hook::FromPod, Reason::Closed),
        ("to the pod", node, own, 1, protocol::UDP, Hook::ToPod, Reason::Closed),
        (
            "on a connection that is over",
            node | flow_flag::RESET,
            own,
            20,
            protocol::TCP,
            Hook::FromPod,
            Reason::Closed,
        ),
    ] {
        let packet = packet(V4, protocol, [(Address::v4(1), 80), (Address::v4(2), 4000)]);
        let tables = Stub { now: now * SECOND, ..Stub::default() };
        let at = At::new(&tables, &record, &packet, 1, hook);
        assert_eq!(closed(&at), Reason::Closed, "{name}: nothing is known yet");
        let mut value = FlowValue { flags, seen: SECOND, ..FlowValue::default() };
        value.judged[1 - at.sender][INGRESS] = judged;
        tables.put_flow(&at.key, &value, true);
        assert_eq!(closed(&at), wanted, "{name}");
        for not_an_answer in [packet_trait::OPENING, packet_trait::FRAGMENT_LATER, packet_trait::ICMP_ERROR] {
            let packet = Packet { traits: not_an_answer, ..packet };
            assert_eq!(closed(&At { packet: &packet, ..at }), Reason::Closed, "{name}, {not_an_answer:#x}");
        }
    }
}
