//! What of a flow is remembered: by the node's packets, by judgements made anew, and up to the end of a connection.

use super::super::*;
use crate::decide::stub::{Entry, Stub};
use crate::layout::revoked;
use crate::parse::{V4, tcp_flag};

const EPOCH: u32 = 7;
const GENERATION: u32 = 3;
const THEN: u64 = 100 * SECOND;
const NOW: u64 = THEN + 5 * SECOND;
const MADE_NOW: Judgement = Judgement { epoch: EPOCH, generation: GENERATION };
const MADE_BEFORE: Judgement = Judgement { epoch: EPOCH - 1, generation: GENERATION };
/// Which end of the key sends is told by the ports.
const PORTS: [(u16, u16); 2] = [(80, 4000), (4000, 80)];

fn packet(protocol: u8, tcp_flags: u8, (source_port, destination_port): (u16, u16)) -> Packet {
    let opening = protocol == protocol::TCP && tcp_flags == tcp_flag::SYN;
    let traits = if opening { packet_trait::OPENING } else { 0 };
    Packet { family: V4, protocol, tcp_flags, traits, source_port, destination_port, ..Packet::default() }
}

fn record() -> EndpointRecord {
    EndpointRecord { ifindex: 5, generation: GENERATION, ..EndpointRecord::default() }
}

/// `flags` of a flow by who opened it (the sender, the receiver), and others.
fn flags(at: &At<'_, Stub>, [by_sender, by_receiver]: [bool; 2], others: u32) -> u32 {
    let opened = |end: usize, is: bool| if is { flow_flag::OPENED << end } else { 0 };
    opened(at.sender, by_sender) | opened(1 - at.sender, by_receiver) | others
}

fn ruling(forward: bool, kept: bool) -> Ruling {
    Ruling::of(if kept { Reason::Kept } else { Reason::Allowed }).remembering(forward)
}

#[test]
fn what_the_node_sends_is_remembered_as_its_own() {
    const NODE: u32 = flow_flag::NODE;
    const ENDED: u32 = flow_flag::FIN;
    let (tcp, udp) = (protocol::TCP, protocol::UDP);
    let (ack, syn, rst) = (tcp_flag::ACK, tcp_flag::SYN, tcp_flag::RST);
    // The packet; who opened the flow, what else is known of it, when it was judged; whether it is judged anew.
    for (name, protocol, tcp_flags, opened, others, judged, anew) in [
        ("goes on", udp, 0, [true, false], NODE, MADE_NOW, false),
        ("goes on, of TCP", tcp, ack, [true, false], NODE, MADE_NOW, false),
        ("was judged before", udp, 0, [true, false], NODE, MADE_BEFORE, true),
        ("was judged before, of TCP", tcp, ack, [true, false], NODE, MADE_BEFORE, true),
        ("was another's of the same tuple", udp, 0, [true, false], 0, MADE_NOW, true),
        ("opens once more", tcp, syn, [true, false], NODE, MADE_NOW, false),
        ("opens anew what is ending", tcp, syn, [true, false], NODE | ENDED, MADE_NOW, true),
        ("goes on with what is ending", tcp, ack, [true, false], NODE | ENDED, MADE_NOW, false),
        ("answers the pod", udp, 0, [false, true], 0, Judgement { epoch: 0, generation: 0 }, false),
        ("opens what the pod opened", tcp, syn, [false, true], 0, MADE_BEFORE, true),
        ("goes on with what both opened", udp, 0, [true, true], NODE, MADE_BEFORE, true),
        ("was opened by nobody", udp, 0, [false, false], 0, MADE_BEFORE, true),
        ("resets", tcp, rst, [true, false], NODE, MADE_BEFORE, false),
        ("resets what the pod opened", tcp, rst, [false, true], 0, MADE_BEFORE, false),
        ("sends what is a reset in TCP alone", udp, rst, [true, false], NODE, MADE_BEFORE, true),
    ] {
        for ports in PORTS {
            let (packet, record) = (packet(protocol, tcp_flags, ports), record());
            let tables = Stub { epoch: EPOCH, now: NOW, ..Stub::default() };
            let at = At::new(&tables, &record, &packet, EPOCH, Hook::ToPod);
            let mut value = FlowValue { flags: flags(&at, opened, others), seen: THEN, ..FlowValue::default() };
            value.judged[at.sender][INGRESS] = judged;
            tables.put_flow(&at.key, &value, true);
            let entry = tables.flow(&at.key).expect("it was put");
            assert_eq!(remember_node(&at), Reason::Node, "{name}");
            assert_eq!(entry.seen(), if anew { THEN } else { NOW }, "{name}: in place or not");
            let after = tables.flow(&at.key).expect("it is there").value();
            let wanted = if anew { MADE_NOW } else { judged };
            assert_eq!(after.judged[at.sender][INGRESS], wanted, "{name}, {ports:?}");
            let kept = if anew { flags(&at, [true, opened[1]], NODE) } else { flags(&at, opened, others & NODE) };
            assert_eq!(after.flags & ((flow_flag::OPENED * 3) | NODE), kept, "{name}, {ports:?}");
            let goes_on = !(anew && tcp_flags == syn && protocol == tcp);
            assert_eq!(after.flags & ENDED, if goes_on { others & ENDED } else { 0 }, "{name}");
        }
    }
}

#[test]
fn what_the_node_begins_is_remembered_unless_it_is_a_reset() {
    for (protocol, tcp_flags, silent, wanted) in [
        (protocol::UDP, 0, None, true),
        (protocol::TCP, tcp_flag::SYN, None, true),
        (protocol::TCP, tcp_flag::RST, None, false),
        (protocol::UDP, 0, Some(181), true),
    ] {
        for ports in PORTS {
            let (packet, record) = (packet(protocol, tcp_flags, ports), record());
            let tables = Stub { epoch: EPOCH, now: THEN + silent.unwrap_or(0) * SECOND, ..Stub::default() };
            let at = At::new(&tables, &record, &packet, EPOCH, Hook::ToPod);
            if silent.is_some() {
                // The pod opened it, and it is over.
                let flags = flags(&at, [false, true], 0);
                tables.put_flow(&at.key, &FlowValue { flags, seen: THEN, ..FlowValue::default() }, true);
            }
            assert_eq!(remember_node(&at), Reason::Node);
            let flags = tables.flow(&at.key).map(|flow| flow.flags());
            assert_eq!(flags, wanted.then_some(flow_flag::OPENED << at.sender | flow_flag::NODE), "{protocol}");
        }
    }
}

#[test]
fn what_no_room_is_left_for_is_told() {
    for (protocol, tcp_flags) in [(protocol::UDP, 0), (protocol::TCP, tcp_flag::SYN)] {
        let (packet, record) = (packet(protocol, tcp_flags, PORTS[0]), record());
        let tables = Stub { epoch: EPOCH, now: NOW, full: true, ..Stub::default() };
        assert_eq!(remember_node(&At::new(&tables, &record, &packet, EPOCH, Hook::ToPod)), Reason::Unremembered);
        let tables = Stub { epoch: EPOCH, now: NOW, full: true, ..Stub::default() };
        // Not isolated in this direction: it is admitted, and to be remembered.
        assert_eq!(pass(&At::new(&tables, &record, &packet, EPOCH, Hook::ToPod)).reason(), Reason::Unremembered);
    }
}

/// The packet that has a flow judged anew may be its last.
#[test]
fn an_entry_that_is_judged_anew_by_a_fin() {
    for ports in PORTS {
        let (packet, record) = (packet(protocol::TCP, tcp_flag::FIN | tcp_flag::ACK, ports), record());
        let tables = Stub { epoch: EPOCH, now: NOW, ..Stub::default() };
        let at = At::new(&tables, &record, &packet, EPOCH, Hook::ToPod);
        stamp(&at, &Entry::new(0, THEN), ruling(true, false));
        let after = tables.flow(&at.key).expect("it is there");
        assert_eq!(after.flags(), (flow_flag::OPENED | flow_flag::FIN) << at.sender);
        assert_eq!(after.fin_next(at.sender), 1);
    }
}

/// A judgement made anew leaves of the entry what still holds.
#[test]
fn an_entry_that_is_judged_anew() {
    // So soon that a packet that passes without a judgement leaves the time alone.
    const SOON: u64 = THEN + SEEN_GRANULARITY / 2;
    const FIN: u32 = flow_flag::FIN | flow_flag::FIN_ACKED;
    const UNCONFIRMED: u32 = flow_flag::UNCONFIRMED;
    let (tcp, udp) = (protocol::TCP, protocol::UDP);
    let (ack, syn) = (tcp_flag::ACK, tcp_flag::SYN);
    // The packet, whether its own direction is judged, and what of flags and time there is afterwards.
    for (name, protocol, tcp_flags, forward, before, after, seen) in [
        ("an opening", tcp, syn, true, FIN, 0, SOON),
        ("an opening of what is not confirmed", tcp, syn, true, FIN | UNCONFIRMED, 0, SOON),
        ("a segment", tcp, ack, true, FIN, FIN, SOON),
        ("a segment that confirms", tcp, ack, true, UNCONFIRMED, 0, SOON),
        ("an answer", tcp, ack, false, 0, 0, SOON),
        ("an answer to what is ending", tcp, ack, false, FIN, FIN, THEN),
        ("an answer to what is not confirmed", tcp, ack, false, UNCONFIRMED, UNCONFIRMED, THEN),
        ("a datagram", udp, syn, true, UNCONFIRMED, 0, SOON),
        ("an answering datagram", udp, 0, false, UNCONFIRMED, UNCONFIRMED, THEN),
    ] {
        for (ports, kept) in PORTS.into_iter().flat_map(|ports| [(ports, false), (ports, true)]) {
            let (packet, record) = (packet(protocol, tcp_flags, ports), record());
            for hook in Hook::ALL {
                let tables = Stub { epoch: EPOCH, now: SOON, ..Stub::default() };
                let at = At::new(&tables, &record, &packet, EPOCH, hook);
                let value = FlowValue { flags: before, fin_next: [8, 9], seen: THEN, ..FlowValue::default() };
                assert!(stamp(&at, &Entry::of(value), ruling(forward, kept)));
                let (opener, role) =
                    if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
                let kept = if kept { flow_flag::KEPT } else { 0 };
                let fin_next = if tcp_flags == syn && protocol == tcp { [0; 2] } else { [8, 9] };
                let answered = if forward { 0 } else { flow_flag::ANSWERED };
                let flags = after | kept | answered | flow_flag::OPENED << opener;
                let mut wanted = FlowValue { flags, fin_next, seen, ..FlowValue::default() };
                wanted.judged[opener][role] = MADE_NOW;
                assert_eq!(tables.flow(&at.key).map(|flow| flow.value()), Some(wanted), "{name}, {hook:?}, {ports:?}");
            }
        }
    }
}

/// What was noted of a judgement that ceased to hold goes with the next one of its kind, and stays with another.
#[test]
fn a_judgement_made_anew_is_not_revoked() {
    for (ports, hook, forward) in PORTS
        .into_iter()
        .flat_map(|ports| Hook::ALL.map(|hook| (ports, hook)))
        .flat_map(|(ports, hook)| [(ports, hook, false), (ports, hook, true)])
    {
        let (packet, record) = (packet(protocol::UDP, 0, ports), record());
        let tables = Stub { epoch: EPOCH, now: NOW, ..Stub::default() };
        let at = At::new(&tables, &record, &packet, EPOCH, hook);
        let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
        for (own_opener, own_role) in [(0, EGRESS), (0, INGRESS), (1, EGRESS), (1, INGRESS)] {
            let before = revoked(100, own_opener, own_role);
            let entry = Entry::of(FlowValue { revoked: before, seen: THEN, ..FlowValue::default() });
            stamp(&at, &entry, ruling(forward, false));
            let after = tables.flow(&at.key).expect("it is there").revoked();
            let same = (own_opener, own_role) == (opener, role);
            assert_eq!(after, if same { 0 } else { before }, "{hook:?}, {forward}, {own_opener}, {own_role}");
        }
    }
}

/// A FIN is acknowledged by what comes at or after the number behind it, as numbers go round (RFC 9293 §3.4).
#[test]
fn a_fin_is_acknowledged() {
    for (fin_next, acknowledgement, tcp_flags, fin, wanted) in [
        (100, 100, tcp_flag::ACK, true, true),
        (100, 101, tcp_flag::ACK, true, true),
        (100, 99, tcp_flag::ACK, true, false),
        (100, 100, 0, true, false),
        (100, 100, tcp_flag::ACK, false, false),
        (5, u32::MAX, tcp_flag::ACK, true, false),
        (u32::MAX, 3, tcp_flag::ACK, true, true),
        (100, 100, tcp_flag::ACK | tcp_flag::FIN, true, true),
    ] {
        for ports in PORTS {
            let record = record();
            let segment = Packet {
                tcp_acknowledgement: acknowledgement,
                tcp_sequence: 40,
                ..packet(protocol::TCP, tcp_flags, ports)
            };
            let tables = Stub { now: THEN, ..Stub::default() };
            let at = At::new(&tables, &record, &segment, EPOCH, Hook::ToPod);
            let (sender, receiver) = (at.sender, 1 - at.sender);
            let mut value = FlowValue { seen: THEN, ..FlowValue::default() };
            // Something moves, or nobody looks.
            value.flags = if fin { flow_flag::FIN << receiver } else { flow_flag::FIN << sender };
            value.fin_next[receiver] = fin_next;
            let entry = Entry::of(value);
            note(&at, &entry, true);
            let acknowledged = entry.flags() & flow_flag::FIN_ACKED << receiver != 0;
            assert_eq!(acknowledged, wanted, "{fin_next}, {acknowledgement}, {tcp_flags:#x}, {ports:?}");
            assert_eq!(entry.flags() & flow_flag::FIN_ACKED << sender, 0);
            if tcp_flags & tcp_flag::FIN != 0 {
                assert_eq!(entry.fin_next(sender), 41);
                assert!(entry.flags() & flow_flag::FIN << sender != 0);
            }
        }
    }
}
