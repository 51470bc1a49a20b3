//! An ICMP error passes if it is about a flow that would still pass, and goes to who sent what it quotes.

use super::super::*;
use crate::decide::stub::{Entry, Stub};
use crate::layout::{TableRef, endpoint_flag};
use crate::parse::{V4, V6};

const EPOCH: u32 = 7;
const GENERATION: u32 = 3;
const THEN: u64 = 100 * SECOND;
const INGRESS_TABLE: u32 = 1;
const EGRESS_TABLE: u32 = 2;
const POD: Address = Address::v4(u32::from_ne_bytes([10, 0, 0, 5]));
const PEER: Address = Address::v4(u32::from_ne_bytes([192, 0, 2, 1]));

fn record(flags: u32) -> EndpointRecord {
    let table = |table| TableRef { table, ..TableRef::default() };
    EndpointRecord {
        ifindex: 5,
        generation: GENERATION,
        flags: endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS | flags,
        ingress: table(INGRESS_TABLE),
        egress: table(EGRESS_TABLE),
        v4: [POD.v4_word(), 0, 0, 0],
        ..EndpointRecord::default()
    }
}

/// A packet that went by the hook, and the error that came back.
fn quoted(hook: Hook, ports: (u16, u16)) -> (Packet, Packet) {
    let (source, destination) = if hook == Hook::FromPod { (POD, PEER) } else { (PEER, POD) };
    let quoted = Packet {
        family: V4,
        protocol: protocol::UDP,
        source,
        destination,
        source_port: ports.0,
        destination_port: ports.1,
        ..Packet::default()
    };
    (quoted, Packet { family: V4, destination: source, ..Packet::default() })
}

const PORTS: [(u16, u16); 2] = [(80, 4000), (4000, 80)];

fn judged(epoch: u32, generation: u32) -> Judgement {
    Judgement { epoch, generation }
}

#[test]
fn an_error_is_about_a_flow_that_would_pass() {
    let none = judged(0, 0);
    let now = judged(EPOCH, GENERATION);
    let before = judged(EPOCH - 1, GENERATION);
    let others = judged(EPOCH, GENERATION + 1);
    let others_before = judged(EPOCH - 1, GENERATION + 1);
    let (neither, both) = ([false, false], [true, true]);
    let (own, opposite) = ([true, false], [false, true]);
    // Of the quoted packet's direction and the opposite one: what was judged, which was opened, which a policy admits.
    for (name, made, opened, admitted, keeps, node, [from_pod, to_pod]) in [
        ("judged", [now, none], own, neither, false, false, both),
        ("judged, of the opposite direction", [none, now], opposite, neither, false, false, both),
        ("judged for another pod", [others, others], both, neither, false, false, neither),
        ("judged before a change", [before, before], both, neither, false, false, neither),
        ("kept", [before, none], own, neither, true, false, both),
        ("kept, of the opposite direction", [none, before], opposite, neither, true, false, both),
        ("kept for another pod", [others_before, others_before], both, neither, true, false, neither),
        ("still admitted", [before, none], own, own, false, false, both),
        ("admitted, but not opened", [before, none], own, opposite, false, false, neither),
        ("still admitted, of the opposite direction", [none, before], opposite, opposite, false, false, both),
        ("admitted, but not opened so", [none, before], opposite, own, false, false, neither),
        ("of the node, as it sent it", [before, none], own, neither, false, true, [false, true]),
        ("of the node, as it was answered", [none, before], opposite, neither, false, true, [true, false]),
    ] {
        for (hook, wanted) in [(Hook::FromPod, from_pod), (Hook::ToPod, to_pod)] {
            for ports in PORTS {
                let (packet, error) = quoted(hook, ports);
                let tables =
                    if hook == Hook::FromPod { [EGRESS_TABLE, INGRESS_TABLE] } else { [INGRESS_TABLE, EGRESS_TABLE] };
                let admitting = tables.into_iter().zip(admitted).filter(|(_, is)| *is).map(|(table, _)| table);
                let stub = Stub { now: THEN, keeps, admitting: admitting.collect(), ..Stub::default() };
                let record = record(0);
                let at = At::new(&stub, &record, &packet, EPOCH, hook);
                assert_eq!(related(&at, &error), Reason::UnrelatedError, "{name}: nothing is known of it");
                let (sender, receiver) = (at.sender, 1 - at.sender);
                let mut value = FlowValue { seen: THEN, ..FlowValue::default() };
                value.judged[sender][at.forward_role()] = made[0];
                value.judged[receiver][at.reverse_role()] = made[1];
                value.flags = if node { flow_flag::NODE } else { 0 };
                value.flags |= if opened[0] { flow_flag::OPENED << sender } else { 0 };
                value.flags |= if opened[1] { flow_flag::OPENED << receiver } else { 0 };
                *stub.flow.borrow_mut() = Some((at.key, Entry::of(value)));
                let reason = if wanted { Reason::RelatedError } else { Reason::UnrelatedError };
                assert_eq!(related(&at, &error), reason, "{name}, {hook:?}, {ports:?}");
                let late = At { now: THEN + 181 * SECOND, ..at };
                assert_eq!(related(&late, &error), Reason::UnrelatedError, "{name}: it is forgotten by now");
            }
        }
    }
}

#[test]
fn an_error_goes_to_who_sent_what_it_quotes() {
    for hook in Hook::ALL {
        let (packet, error) = quoted(hook, PORTS[0]);
        let stub = Stub { now: THEN, ..Stub::default() };
        let told = |flags: u32, packet: &Packet, error: &Packet| {
            let record = record(flags);
            let at = At::new(&stub, &record, packet, EPOCH, hook);
            let mut value = FlowValue { seen: THEN, ..FlowValue::default() };
            value.judged[at.sender][at.forward_role()] = at.judgement();
            *stub.flow.borrow_mut() = Some((at.key, Entry::of(value)));
            related(&at, error) == Reason::RelatedError
        };
        assert!(told(0, &packet, &error), "{hook:?}");
        assert!(!told(0, &packet, &Packet { destination: Address::v4(9), ..error }), "{hook:?}: to somebody else");
        assert!(!told(0, &packet, &Packet { family: V6, ..error }), "{hook:?}: of another family");
        assert!(!told(0, &Packet { traits: packet_trait::MALFORMED, ..packet }, &error), "{hook:?}");
        // A pod tells only of what was sent to it, but for routers.
        let elsewhere = Packet { destination: Address::v4(9), ..packet };
        assert_eq!(told(0, &elsewhere, &error), hook == Hook::FromPod, "{hook:?}");
        assert!(told(endpoint_flag::TRUSTED, &elsewhere, &error), "{hook:?}");
    }
}
