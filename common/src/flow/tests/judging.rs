//! Verdicts on flows that no remembered judgement settles: which question is asked.

use super::super::*;
use crate::decide::stub::{Entry, Stub};
use crate::layout::{TableRef, endpoint_flag, revoked};
use crate::parse::{V4, tcp_flag};

const ISOLATED: u32 = endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS;
/// What each table of the endpoint is called.
const INGRESS_TABLE: u32 = 1;
const EGRESS_TABLE: u32 = 2;

const NOW: u64 = 1000 * SECOND;
const GENERATION: u32 = 3;
const EPOCH: u32 = 7;

fn record(flags: u32, isolated_at: u32) -> EndpointRecord {
    let table = |table| TableRef { table, ..TableRef::default() };
    let (ingress, egress) = (table(INGRESS_TABLE), table(EGRESS_TABLE));
    let (flags, generation) = (ISOLATED | flags, GENERATION);
    EndpointRecord { ifindex: 5, flags, generation, isolated_at, ingress, egress, ..EndpointRecord::default() }
}

/// Between the pod's port and another's.
fn packet(hook: Hook, protocol: u8, local: u16, remote: u16) -> Packet {
    let (pod, peer) = (Address::v4(0x0100_000a), Address::v4(0x0900_000a));
    let packet = Packet { family: V4, protocol, tcp_flags: tcp_flag::ACK, ..Packet::default() };
    match hook {
        Hook::FromPod => {
            Packet { source: pod, source_port: local, destination: peer, destination_port: remote, ..packet }
        }
        Hook::ToPod => {
            Packet { source: peer, source_port: remote, destination: pod, destination_port: local, ..packet }
        }
    }
}

/// The table that says whether the packet's own direction may be opened, and the other.
fn tables_of(hook: Hook) -> [u32; 2] {
    match hook {
        Hook::FromPod => [EGRESS_TABLE, INGRESS_TABLE],
        Hook::ToPod => [INGRESS_TABLE, EGRESS_TABLE],
    }
}

/// Which directions are asked about, the packet's own first.
fn asked(tables: &Stub, record: &EndpointRecord, packet: &Packet, hook: Hook) -> [bool; 2] {
    let judge = |admitting: u32| {
        let tables = Stub {
            admitting: vec![admitting],
            now: tables.now,
            pressure: tables.pressure,
            paused_until: tables.paused_until,
            listens: tables.listens,
            connected: tables.connected,
            ..Stub::default()
        };
        judge_unknown(&At::new(&tables, record, packet, EPOCH, hook)).reason()
    };
    let [forward, reverse] = tables_of(hook).map(judge);
    assert!(matches!(forward, Reason::Allowed | Reason::NoRule), "{forward:?}");
    assert!(matches!(reverse, Reason::Midstream | Reason::NoRule), "{reverse:?}");
    [forward == Reason::Allowed, reverse == Reason::Midstream]
}

const FORWARD: [bool; 2] = [true, false];
const REVERSE: [bool; 2] = [false, true];
const EITHER: [bool; 2] = [true, true];

/// Of a pod that a policy has begun to isolate just now, its sockets and the ports tell which end of a flow of UDP was there first.
#[test]
fn which_end_opened_a_flow_of_datagrams() {
    use Hook::{FromPod, ToPod};
    const LAST: u16 = 32767;
    const FIRST: u16 = 32768;
    for (connected, local, remote, from_pod, to_pod) in [
        (Some(true), 53, 40000, FORWARD, REVERSE),
        (Some(false), LAST, FIRST, REVERSE, FORWARD),
        (Some(false), FIRST, LAST, FORWARD, REVERSE),
        (Some(false), LAST, LAST, FORWARD, FORWARD),
        (Some(false), FIRST, FIRST, FORWARD, FORWARD),
        (Some(false), LAST - 1, 65535, REVERSE, FORWARD),
        (None, LAST, FIRST, FORWARD, FORWARD),
    ] {
        for (hook, wanted) in [(FromPod, from_pod), (ToPod, to_pod)] {
            let case = format!("{connected:?}, {local}, {remote}, {hook:?}");
            let tables = Stub { now: NOW, connected, ..Stub::default() };
            let datagram = packet(hook, protocol::UDP, local, remote);
            assert_eq!(asked(&tables, &record(0, 970), &datagram, hook), wanted, "{case}");
            // Half a minute later nothing is under way any more, nor where the pod was isolated from the first on.
            assert_eq!(asked(&tables, &record(0, 969), &datagram, hook), FORWARD, "{case}");
            assert_eq!(asked(&tables, &record(0, 0), &datagram, hook), FORWARD, "{case}");
            // What passed by a pause is not remembered, and may be under way as long.
            let paused = |paused_until| Stub { now: NOW, connected, paused_until, ..Stub::default() };
            for (until, wanted) in [(2000, wanted), (970, wanted), (969, FORWARD)] {
                assert_eq!(
                    asked(&paused(until), &record(0, 0), &datagram, hook),
                    wanted,
                    "{case}, paused until {until}"
                );
            }
            let other = packet(hook, protocol::ICMP, local, remote);
            assert_eq!(asked(&tables, &record(0, 970), &other, hook), FORWARD, "{case}: no sockets tell");
            let opening = Packet { traits: packet_trait::OPENING, ..datagram };
            assert_eq!(asked(&tables, &record(0, 970), &opening, hook), FORWARD, "{case}");
        }
    }
    // The first second of the clock is no sign that it was never isolated.
    let tables = Stub { now: 5 * SECOND, connected: Some(true), ..Stub::default() };
    assert_eq!(asked(&tables, &record(0, 1), &packet(ToPod, protocol::UDP, 1, 2), ToPod), REVERSE);
    assert_eq!(asked(&tables, &record(0, 0), &packet(ToPod, protocol::UDP, 1, 2), ToPod), FORWARD);
}

/// Of connections that nobody may have seen being opened, the pod's listening sockets tell.
#[test]
fn which_end_opened_a_connection() {
    use Hook::{FromPod, ToPod};
    for (listens, hook, wanted) in [
        (None, FromPod, EITHER),
        (None, ToPod, EITHER),
        (Some(true), FromPod, REVERSE),
        (Some(true), ToPod, FORWARD),
        (Some(false), FromPod, FORWARD),
        (Some(false), ToPod, REVERSE),
    ] {
        // A connection that passed by a pause may be silent for long after it.
        let doubts = [(true, false, 0), (false, true, 0), (true, true, 0), (false, false, 1), (false, false, 0)];
        for (midstream, pressure, paused_until) in doubts {
            let record = record(if midstream { endpoint_flag::MIDSTREAM } else { 0 }, 0);
            let tables = Stub { now: NOW, listens, pressure, paused_until, ..Stub::default() };
            let segment = packet(hook, protocol::TCP, 80, 4000);
            let wanted = if midstream || pressure || paused_until != 0 { wanted } else { FORWARD };
            assert_eq!(asked(&tables, &record, &segment, hook), wanted, "{listens:?}, {hook:?}");
            let opening = Packet { traits: packet_trait::OPENING, ..segment };
            assert_eq!(asked(&tables, &record, &opening, hook), FORWARD, "{listens:?}, {hook:?}");
        }
    }
}

/// Answers to a flow that was cut open none of their own for half a minute.
#[test]
fn answers_to_what_was_cut_open_nothing() {
    for hook in Hook::ALL {
        for (local, remote) in [(80, 4000), (4000, 80)] {
            let datagram = packet(hook, protocol::UDP, local, remote);
            let [forward, _] = tables_of(hook);
            let record = record(0, 0);
            let tables_at = |second: u64| Stub { now: second * SECOND, admitting: vec![forward], ..Stub::default() };
            let tables = tables_at(1000);
            let at = At::new(&tables, &record, &datagram, EPOCH, hook);
            let (opener, role) = (1 - at.sender, at.reverse_role());
            let mut value = FlowValue { flags: flow_flag::OPENED << opener, seen: at.now, ..FlowValue::default() };
            value.judged[opener][role] = Judgement { epoch: EPOCH - 1, generation: GENERATION };
            let entry = Entry::of(value);
            let judged = |second: u64| {
                let tables = tables_at(second);
                judge_known(&At::new(&tables, &record, &datagram, EPOCH, hook), &entry).reason()
            };
            assert_eq!(judged(1000), Reason::Revoked);
            assert_eq!(entry.revoked(), revoked(1000, opener, role));
            assert_eq!((judged(1030), judged(1031)), (Reason::Revoked, Reason::Allowed), "{hook:?}, {local}");
            // Another judgement's end does not count for this one, however long ago.
            for (other_opener, other_role) in [(1 - opener, role), (opener, 1 - role), (1 - opener, 1 - role)] {
                entry.set_revoked(revoked(1000, other_opener, other_role));
                assert_eq!(judged(1100), Reason::Revoked, "{hook:?}, {local}");
                assert_eq!(entry.revoked(), revoked(1100, opener, role));
            }
        }
    }
}

/// What is put anew says what is known, and nothing else.
#[test]
fn a_new_entry_is_blank() {
    for (hook, tcp_flags, flags, fin) in [
        (Hook::ToPod, tcp_flag::SYN, 0, None),
        (Hook::FromPod, tcp_flag::SYN, 0, None),
        (Hook::ToPod, tcp_flag::FIN, flow_flag::FIN, Some(15)),
        (Hook::FromPod, tcp_flag::FIN, flow_flag::FIN, Some(15)),
        (Hook::ToPod, tcp_flag::RST, flow_flag::RESET_SEEN, None),
        (Hook::FromPod, tcp_flag::RST, flow_flag::RESET, None),
        (Hook::FromPod, tcp_flag::RST | tcp_flag::FIN, flow_flag::RESET, None),
    ] {
        for (local, remote) in [(80, 4000), (4000, 80)] {
            let segment =
                Packet { tcp_flags, tcp_sequence: 9, payload: 5, ..packet(hook, protocol::TCP, local, remote) };
            let tables =
                Stub { epoch: EPOCH, now: NOW, admitting: vec![INGRESS_TABLE, EGRESS_TABLE], ..Stub::default() };
            let record = record(0, 0);
            let at = At::new(&tables, &record, &segment, EPOCH, hook);
            assert_eq!(pass(&at).reason(), Reason::Allowed);
            let mut wanted = FlowValue { seen: NOW, ..FlowValue::default() };
            wanted.judged[at.sender][at.forward_role()] = at.judgement();
            wanted.flags = flow_flag::OPENED << at.sender | if fin.is_some() { flags << at.sender } else { flags };
            wanted.fin_next[at.sender] = fin.unwrap_or(0);
            let (key, entry) = tables.flow.take().expect("it is remembered");
            assert_eq!((key, entry.value()), (at.key, wanted), "{hook:?}, {tcp_flags:#x}, {local}");
        }
    }
}

/// What was judged at this epoch needs no policy; what is judged anew does.
#[test]
fn a_judgement_of_this_epoch_holds() {
    let (made, before) =
        (Judgement { epoch: EPOCH, generation: GENERATION }, Judgement { epoch: EPOCH - 1, generation: GENERATION });
    let (tcp, opening, fin, kept) = (protocol::TCP, packet_trait::OPENING, flow_flag::FIN, flow_flag::KEPT);
    // Traits, flags besides who opened it, judgements of the packet's direction and the opposite one, and what is said where a policy
    // admits nothing, the packet's direction, the opposite one; with flows kept, where a policy admits nothing.
    let (none, no_rule) = (Judgement::default(), Reason::NoRule);
    for (name, traits, others, made_of, [nothing, forward, reverse], when_kept) in [
        ("goes on", 0, 0, [made, none], [Reason::Established; 3], Reason::Established),
        ("goes on to its end", 0, fin, [made, none], [Reason::Established; 3], Reason::Established),
        ("opens again", opening, 0, [made, none], [Reason::Established; 3], Reason::Established),
        ("opens anew", opening, fin, [made, none], [no_rule, Reason::Allowed, no_rule], no_rule),
        ("opens what was kept", opening, kept, [made, none], [no_rule, Reason::Allowed, no_rule], no_rule),
        ("answers", 0, 0, [none, made], [Reason::Reply; 3], Reason::Reply),
        ("went on before", 0, 0, [before, none], [Reason::Revoked, Reason::Established, Reason::Revoked], Reason::Kept),
        ("answered before", 0, 0, [none, before], [Reason::Revoked, Reason::Revoked, Reason::Reply], Reason::Kept),
    ] {
        for hook in Hook::ALL {
            for (local, remote) in [(80, 4000), (4000, 80)] {
                let segment = Packet { traits, ..packet(hook, tcp, local, remote) };
                let [own, opposite] = tables_of(hook);
                let record = record(0, 0);
                let judged = |admitting: &[u32], keeps: bool, moved: bool| {
                    let admitting = admitting.to_vec();
                    let epoch = EPOCH + u32::from(moved);
                    let tables = Stub { epoch, now: NOW, admitting, keeps, ..Stub::default() };
                    let at = At::new(&tables, &record, &segment, EPOCH, hook);
                    let mut value = FlowValue { seen: NOW, flags: others, ..FlowValue::default() };
                    value.judged[at.sender][at.forward_role()] = made_of[0];
                    value.judged[1 - at.sender][at.reverse_role()] = made_of[1];
                    let opener = if made_of[0] == none { 1 - at.sender } else { at.sender };
                    value.flags |= flow_flag::OPENED << opener;
                    tables.put_flow(&at.key, &value, true);
                    let reason = pass(&at).reason();
                    let flags = tables.flow(&at.key).expect("it is there").flags();
                    assert_eq!(flags & kept != 0, others & kept != 0 || (reason == Reason::Kept), "{name}");
                    reason
                };
                let context = format!("{name}, {hook:?}, {local}");
                assert_eq!(judged(&[], false, false), nothing, "{context}");
                assert_eq!(judged(&[own], false, false), forward, "{context}");
                assert_eq!(judged(&[opposite], false, false), reverse, "{context}");
                assert_eq!(judged(&[], true, false), when_kept, "{context}");
                // A judgement that is to be remembered has to be of one epoch.
                let anew = nothing != forward;
                assert_eq!(judged(&[own], false, true), if anew { Reason::Unsettled } else { forward }, "{context}");
            }
        }
    }
}

/// Where both ends opened a connection, either may go on by what its own direction is allowed.
#[test]
fn a_connection_that_both_opened() {
    for hook in Hook::ALL {
        let segment = packet(hook, protocol::TCP, 80, 4000);
        let record = record(0, 0);
        let tables = Stub { epoch: EPOCH, now: NOW, admitting: vec![tables_of(hook)[0]], ..Stub::default() };
        let at = At::new(&tables, &record, &segment, EPOCH, hook);
        let flags = flow_flag::OPENED * 3;
        tables.put_flow(&at.key, &FlowValue { seen: NOW, flags, ..FlowValue::default() }, true);
        assert_eq!(pass(&at).reason(), Reason::Allowed, "{hook:?}");
    }
}

/// What was under way to a pod that a policy has begun to isolate is no opening, where its sockets say so.
#[test]
fn what_was_under_way_opens_nothing() {
    let hook = Hook::ToPod;
    let datagram = packet(hook, protocol::UDP, 40000, 53);
    for (isolated_at, connected, wanted) in [
        (990, Some(true), Reason::NoRule),
        (990, None, Reason::Allowed),
        (900, Some(true), Reason::Allowed),
        (0, Some(true), Reason::Allowed),
    ] {
        let record = record(0, isolated_at);
        let admitting = vec![INGRESS_TABLE];
        let tables = Stub { epoch: EPOCH, now: NOW, admitting, connected, ..Stub::default() };
        let at = At::new(&tables, &record, &datagram, EPOCH, hook);
        let flags = flow_flag::OPENED << (1 - at.sender);
        tables.put_flow(&at.key, &FlowValue { seen: NOW, flags, ..FlowValue::default() }, true);
        assert_eq!(pass(&at).reason(), wanted, "{isolated_at}, {connected:?}");
    }
}
