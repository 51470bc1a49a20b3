//! A later fragment follows its first for a minute, behind the upper-layer header.

use super::super::*;
use super::stub::Stub;
use crate::layout::{FragmentValue, Judgement};
use crate::parse::{V4, V6, protocol};

const SECOND: u64 = 1_000_000_000;
const EPOCH: u32 = 7;
const GENERATION: u32 = 3;

fn record(flags: u32) -> EndpointRecord {
    let flags = endpoint_flag::ISOLATED_INGRESS | flags;
    EndpointRecord { ifindex: 5, flags, generation: GENERATION, ..EndpointRecord::default() }
}

fn later(tables: &Stub, record: &EndpointRecord, protocol: u8, fragment_offset: u32) -> Reason {
    let packet = Packet { family: V4, protocol, fragment_offset, ..Packet::default() };
    later_fragment(&flow::At::new(tables, record, &packet, EPOCH, Hook::ToPod), None).reason()
}

#[test]
fn a_later_fragment_follows_its_first() {
    let judged = |epoch, generation| {
        Some(FragmentValue { judged: Judgement { epoch, generation }, seen: SECOND, forward: 0, pad: 0 })
    };
    let (now, before) = (judged(EPOCH, GENERATION), judged(EPOCH - 1, GENERATION));
    let (last, too_late) = (61 * SECOND, 61 * SECOND + 1);
    for (name, first, keeps, time, wanted) in [
        ("in time", now, false, last, Reason::Fragment),
        ("too late", now, false, too_late, Reason::FragmentAlone),
        ("no first", None, false, last, Reason::FragmentAlone),
        ("judged before a change", before, false, last, Reason::FragmentAlone),
        ("judged before a change, and kept", before, true, last, Reason::Fragment),
        ("kept, and too late", before, true, too_late, Reason::FragmentAlone),
        ("of another pod", judged(EPOCH, GENERATION + 1), false, last, Reason::FragmentAlone),
        ("of another pod, and kept", judged(EPOCH, GENERATION + 1), true, last, Reason::FragmentAlone),
    ] {
        let tables = Stub { fragment: first.into(), keeps, now: time, ..Stub::default() };
        assert_eq!(later(&tables, &record(0), protocol::UDP, 8), wanted, "{name}");
        assert_eq!(later(&tables, &record(endpoint_flag::CLOSED), protocol::UDP, 8), Reason::Closed, "{name}");
    }
}

#[test]
fn a_later_fragment_does_not_reach_into_the_header() {
    let judged = Judgement { epoch: EPOCH, generation: GENERATION };
    let tables =
        Stub { fragment: Some(FragmentValue { judged, seen: 0, forward: 0, pad: 0 }).into(), ..Stub::default() };
    for (protocol, header) in [(protocol::TCP, 20), (protocol::SCTP, 16), (protocol::UDP, 8), (47, 8)] {
        for (offset, wanted) in [
            (header - 1, Reason::Malformed),
            (header, Reason::Fragment),
            (header + 1, Reason::Fragment),
            (65_528, Reason::Fragment),
        ] {
            assert_eq!(later(&tables, &record(0), protocol, offset), wanted, "{protocol}, {offset}");
        }
    }
}

/// Where FRAGMENTS takes no entry the first does not pass either: the others would be lost.
#[test]
fn a_first_fragment_passes_if_it_is_remembered() {
    let meeting = Meeting { hook: Hook::FromPod, ifindex: 5, from_node: false, stamp: 0 };
    for (traits, takes_fragments, epoch, wanted) in [
        (packet_trait::FRAGMENT_FIRST, true, EPOCH, Reason::Allowed),
        (packet_trait::FRAGMENT_FIRST, false, EPOCH, Reason::Unremembered),
        (packet_trait::FRAGMENT_FIRST, true, EPOCH + 1, Reason::Unsettled),
        (0, false, EPOCH, Reason::Allowed),
    ] {
        let tables = Stub { takes_fragments, epoch, ..Stub::default() };
        // The flow is settled, and then the epoch moves.
        tables.epochs.push(EPOCH);
        let packet = Packet { family: V4, protocol: protocol::UDP, traits, ..Packet::default() };
        let ruling = isolated(&tables, &packet, &record(0), EPOCH, meeting);
        assert_eq!(ruling.reason(), wanted, "{traits:#x}, {takes_fragments}, {epoch}");
        let seen = tables.fragment.get().map(|first| first.judged);
        let remembered = traits != 0 && epoch == EPOCH;
        assert_eq!(seen, remembered.then_some(Judgement { epoch: EPOCH, generation: GENERATION }));
    }
}

/// The protocol of an IPv6 later fragment is what its fragment header says, which the first's chain may go on from.
#[test]
fn fragments_of_ipv6_are_found_without_their_protocol() {
    let meeting = Meeting { hook: Hook::FromPod, ifindex: 5, from_node: false, stamp: 0 };
    for (family, wanted) in [(V4, protocol::UDP), (V6, 0)] {
        let tables = Stub { takes_fragments: true, epoch: EPOCH, ..Stub::default() };
        let traits = packet_trait::FRAGMENT_FIRST;
        let packet = Packet { family, protocol: protocol::UDP, traits, ..Packet::default() };
        isolated(&tables, &packet, &record(0), EPOCH, meeting);
        assert_eq!(*tables.fragment_protocols.borrow(), [wanted], "{family}");
    }
}
