//! What the tables in userspace are told besides the maps, and answer as the programs would.

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::Hook;
use palisade_common::decide::{FlowEntry as _, Tables as _};
use palisade_common::layout::{EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue};
use palisade_common::parse::{Bytes as _, HEADERS_MAX, Packet, protocol};

use super::super::sim::{FrameBytes, Sim};

fn packet(protocol: u8) -> Packet {
    Packet { protocol, source_port: 80, destination_port: 4000, ..Packet::default() }
}

#[test]
fn pressure_and_keeping_are_as_they_were_set() {
    for set in [false, true] {
        let mut sim = Sim::default();
        (sim.pressure, sim.keeps_existing) = (set, set);
        assert_eq!((sim.pressure(0), sim.keeps_existing()), (set, set));
    }
}

/// Otherwise a record is looked for twice by every packet.
#[test]
fn a_hint_holds_for_its_epoch() {
    let sim = Sim::default();
    assert_eq!(sim.hint(5, 7), None);
    sim.put_hint(5, 7, 3);
    assert_eq!((sim.hint(5, 7), sim.hint(5, 8), sim.hint(6, 7)), (Some(3), None, None));
    sim.put_hint(5, 8, 4);
    assert_eq!((sim.hint(5, 7), sim.hint(5, 8)), (None, Some(4)));
}

#[test]
fn flows_and_fragments_are_forgotten() {
    let sim = Sim::default();
    let keys = [80, 81].map(|low_port| FlowKey { low_port, ..FlowKey::default() });
    for key in &keys {
        assert!(sim.put_flow(key, &FlowValue { flags: 9, ..FlowValue::default() }, true));
    }
    assert!(sim.put_fragment(&FragmentKey::default(), &FragmentValue { seen: 9, ..FragmentValue::default() }));
    assert_eq!(sim.fragment(&FragmentKey::default()).map(|first| first.seen), Some(9));
    sim.evict(&keys[0]);
    assert_eq!(sim.flows().into_keys().collect::<Vec<_>>(), [keys[1]]);
    assert_eq!((sim.flow(&keys[0]).is_none(), sim.flow(&keys[1]).map(|flow| flow.flags())), (true, Some(9)));
    sim.forget_flows();
    assert_eq!((sim.flows().len(), sim.fragment(&FragmentKey::default())), (0, None));
}

/// As the programs, which look for headers in the first part of a frame only.
#[test]
fn words_are_read_of_the_headers() {
    let bytes: Vec<u8> = (0..3000_u32).map(|place| place as u8).collect();
    let frame = FrameBytes { bytes: &bytes, gso: true };
    assert_eq!((frame.len(), frame.is_gso()), (3000, true));
    assert_eq!(frame.words::<2>(3).map(|words| words.map(u32::to_ne_bytes)), Some([[3, 4, 5, 6], [7, 8, 9, 10]]));
    for (offset, wanted) in [(HEADERS_MAX - 1, true), (HEADERS_MAX, false), (HEADERS_MAX + 1, false)] {
        assert_eq!(frame.words::<1>(offset).is_some(), wanted, "{offset}");
    }
    let frame = FrameBytes { bytes: &bytes[..20], gso: false };
    assert!(!frame.is_gso());
    for (offset, wanted) in [(0, true), (4, true), (5, false), (20, false), (u32::MAX, false)] {
        assert_eq!(frame.words::<4>(offset).is_some(), wanted, "{offset}");
    }
}

#[test]
fn a_pod_listens_on_its_own_end() {
    let mut sim = Sim::default();
    sim.listening = BTreeMap::from([(5, BTreeSet::from([80]))]);
    let own = EndpointRecord { ifindex: 5, ..EndpointRecord::default() };
    let other = EndpointRecord { ifindex: 6, ..EndpointRecord::default() };
    for (record, kind, hook, wanted) in [
        (&own, protocol::TCP, Hook::FromPod, Some(true)),
        (&own, protocol::TCP, Hook::ToPod, Some(false)),
        (&other, protocol::TCP, Hook::FromPod, None),
        (&own, protocol::SCTP, Hook::FromPod, None),
    ] {
        assert_eq!(sim.listens(record, &packet(kind), hook), wanted, "{kind}, {hook:?}");
    }
}

#[test]
fn a_socket_is_connected_or_not_or_not_there() {
    let mut sim = Sim::default();
    sim.connected = BTreeMap::from([(5, BTreeMap::from([(80, true), (4000, false)]))]);
    let own = EndpointRecord { ifindex: 5, ..EndpointRecord::default() };
    let other = EndpointRecord { ifindex: 6, ..EndpointRecord::default() };
    let asked = |record, packet: &Packet, hook| sim.is_connected(record, packet, hook);
    let datagram = packet(protocol::UDP);
    assert_eq!(asked(&own, &datagram, Hook::FromPod), Some(true));
    assert_eq!(asked(&own, &datagram, Hook::ToPod), Some(false));
    assert_eq!(asked(&own, &Packet { source_port: 81, ..datagram }, Hook::FromPod), None);
    assert_eq!(asked(&other, &datagram, Hook::FromPod), None);
}
