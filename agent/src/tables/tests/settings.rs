//! What the tables in userspace are told besides the maps, and answer as the programs would.

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::Hook;
use palisade_common::decide::Tables as _;
use palisade_common::layout::EndpointRecord;
use palisade_common::parse::{Packet, protocol};

use super::Sim;

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
