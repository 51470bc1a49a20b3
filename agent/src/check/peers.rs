//! Whom flows are compared for: pods that the tables do not tell apart, and what is outside by the prefixes of policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use palisade_common::decide::Tables as _;
use palisade_common::layout::{Address, EndpointRecord, RuleValue, TableRef, endpoint_flag};

use super::world::World;
use crate::explain::way::Seat;
use crate::facts::ObjectName;
use crate::tables::sim::bytes_of;
use crate::tables::{address_v4, address_v6};

/// Somebody at whom one answer holds for all.
#[derive(Clone, Debug)]
pub struct Peer {
    pub who: Who,
    /// Of each family, if there is one.
    pub addresses: [Option<IpAddr>; 2],
    /// Interfaces in the one world and in the other; `None`: it is outside.
    pub pod: Option<[u32; 2]>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// By name, sorted.
    Pods(Vec<ObjectName>),
    /// Everybody in the prefix that no longer one of a policy has.
    Outside(IpNet),
    /// Everybody else outside, in IPv4 or IPv6.
    Elsewhere { v4: bool },
}

/// All that a verdict about a pod depends on.
/// In a world: classes of both families, flags that matter, tables of both directions.
type InWorld = ([Option<u32>; 2], u32, [TableKey; 2]);
type Likeness = [InWorld; 2];
type TableKey = (u32, (u32, u32, u16, u16, u8));

fn table_key(TableRef { table, default }: TableRef) -> TableKey {
    let RuleValue { ports, rule, first, last, protocol, .. } = default;
    (table, (ports, rule, first, last, protocol))
}

pub(super) fn as_laid(address: IpAddr) -> (u8, Address) {
    match address {
        IpAddr::V4(address) => (4, Address::v4(address_v4(address))),
        IpAddr::V6(address) => (6, address_v6(address)),
    }
}

/// The class that an address has.
fn class(world: &World, address: IpAddr) -> u32 {
    let (family, laid) = as_laid(address);
    let exact = world.sim.class_exact(family, &laid).map(|class| class.at(world.sim.epoch()));
    let exact = exact.filter(|class| *class != palisade_common::layout::CLASS_ASK_CIDR);
    let cidr = || world.sim.class_cidr(family, &laid).map(|class| class.at(world.sim.epoch()));
    exact.or_else(cidr).unwrap_or(0)
}

/// Pods that are in both worlds, those alike together. Of those alike there may be two, so that they have each other as peers.
pub fn pods(worlds: [&World; 2]) -> Vec<(Peer, Option<Peer>)> {
    let mut alike: BTreeMap<Likeness, Vec<(ObjectName, [u32; 2])>> = BTreeMap::new();
    for (name, before) in &worlds[0].pods {
        let Some(after) = worlds[1].pods.get(name) else { continue };
        let interfaces = [*before, *after];
        let [Some(before), Some(after)] = likeness(worlds, interfaces) else { continue };
        alike.entry([before, after]).or_default().push((name.clone(), interfaces));
    }
    let groups = alike.into_values().map(|pods| {
        let names: Vec<ObjectName> = pods.iter().map(|(name, _)| name.clone()).collect();
        let peer = |(_, interfaces): &(ObjectName, [u32; 2])| Peer {
            who: Who::Pods(names.clone()),
            addresses: addresses(worlds[1], interfaces[1]),
            pod: Some(*interfaces),
        };
        (peer(&pods[0]), pods.get(1).map(peer))
    });
    groups.collect()
}

fn addresses(world: &World, ifindex: u32) -> [Option<IpAddr>; 2] {
    let mut own = world.entry(ifindex).map(|entry| entry.addresses.clone()).unwrap_or_default();
    // Every pod has one, and flows between pods do not use it.
    own.retain(|address| !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()));
    [true, false].map(|v4| own.iter().copied().find(|address| address.is_ipv4() == v4))
}

fn likeness(worlds: [&World; 2], interfaces: [u32; 2]) -> [Option<InWorld>; 2] {
    let of = |world: &World, ifindex: u32| {
        const MATTERS: u32 = endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS | endpoint_flag::CLOSED;
        let record: &EndpointRecord = world.record(ifindex)?;
        let classes = addresses(world, ifindex).map(|address| address.map(|address| class(world, address)));
        Some((classes, record.flags & MATTERS, [table_key(record.ingress), table_key(record.egress)]))
    };
    [of(worlds[0], interfaces[0]), of(worlds[1], interfaces[1])]
}

/// Those outside that policies of either world may tell apart.
pub fn outside(worlds: [&World; 2]) -> Vec<Peer> {
    let mut nets: BTreeSet<IpNet> = BTreeSet::new();
    for world in worlds {
        let tables = &world.sim.found().tables;
        nets.extend(tables.cidr_v4.keys().map(|net| IpNet::V4(*net)));
        nets.extend(tables.cidr_v6.keys().map(|net| IpNet::V6(*net)));
        // Single addresses of ipBlocks are where pods' addresses are.
        let v4 = tables.exact_v4.keys().map(|word| IpAddr::from(word.to_ne_bytes()));
        let v6 = tables.exact_v6.keys().map(|address| IpAddr::from(bytes_of(address)));
        let hosts = v4.chain(v6).filter(|address| world.seat(*address) == Seat::Elsewhere);
        nets.extend(hosts.map(IpNet::from));
    }
    let is_pod = |address: IpAddr| worlds.iter().any(|world| world.seat(address) != Seat::Elsewhere);
    let peer = |who: Who, address: IpAddr| {
        let addresses = if address.is_ipv4() { [Some(address), None] } else { [None, Some(address)] };
        Peer { who, addresses, pod: None }
    };
    let mut peers = Vec::new();
    for net in &nets {
        let inner: Vec<&IpNet> = nets.iter().filter(|inner| net != *inner && net.contains(*inner)).collect();
        let firsts = [net.addr()].into_iter().chain(inner.iter().filter_map(|inner| next(inner.broadcast())));
        let mut candidates = firsts.chain([net.broadcast()]);
        let alone = |at: &IpAddr| net.contains(at) && !inner.iter().any(|inner| inner.contains(at)) && !is_pod(*at);
        if let Some(address) = candidates.find(alone) {
            peers.push(peer(Who::Outside(*net), address));
        }
    }
    for v4 in [true, false] {
        let candidates = (0..=u8::MAX).map(|number| match v4 {
            true => IpAddr::V4(Ipv4Addr::new(number, 0, 2, 1)),
            false => IpAddr::V6(Ipv6Addr::new(0x2000 | u16::from(number) << 4, 2, 0, 0, 0, 0, 0, 1)),
        });
        let mut nowhere = candidates.skip(1).filter(|at| !nets.iter().any(|net| net.contains(at)) && !is_pod(*at));
        if let Some(address) = nowhere.next() {
            peers.push(peer(Who::Elsewhere { v4 }, address));
        }
    }
    peers
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}
