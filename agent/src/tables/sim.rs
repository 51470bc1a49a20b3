//! The tables in userspace: what the loaded maps would answer, and a flow table beside them.
//!
//! Used by tests (the second of the three judges, and replaying plans write by write) and for questions without a kernel.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use palisade_common::Hook;
use palisade_common::decide::{
    FlowEntry, Meeting, Place, Ruling, ServiceCount, Tables as Ask, UplinkTables, VXLAN_LENGTH, decide, decide_leaving,
    is_network, refused_early, take_midstream, tunnelled,
};
use palisade_common::layout::{
    Address, Backends, Config, EndpointRecord, EndpointStats, FlowKey, FlowStats, FlowValue, FragmentKey,
    FragmentValue, Judgement, PORT_PREFIX_MAX, PORT_PREFIX_MIN, PortKey, RuleKey, RuleValue, ServiceKey, UplinkConfig,
    Versioned, is_awaited,
};
use palisade_common::parse::{self, Bytes, HEADERS_MAX, Packet, V4};

use super::Tables;
use super::adopted::Found;
use super::plan::{Installed, Write};

/// Maps and settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sim {
    maps: Found,
    stamps: BTreeMap<u32, u32>,
    service_ports: BTreeSet<u16>,
    counts: RefCell<FlowStats>,
    hints: RefCell<BTreeMap<u32, (u32, u32)>>,
    flows: RefCell<BTreeMap<FlowKey, FlowValue>>,
    fragments: RefCell<BTreeMap<FragmentKey, FragmentValue>>,
    stats: RefCell<BTreeMap<u32, EndpointStats>>,
    /// Nanoseconds.
    pub now: Cell<u64>,
    pub pressure: bool,
    /// As [`palisade_common::layout::Config::paused_until`].
    pub paused_until: u32,
    pub keeps_existing: bool,
    pub exits_missing: bool,
    pub midstream_budget: u32,
    /// What the program on the uplinks is told.
    pub uplink: UplinkConfig,
    /// Since when AWAITED is written (second); 0: it is not.
    pub awaited_since: u32,
    awaited: RefCell<BTreeMap<(Address, u16), u32>>,
    /// TCP ports on which a pod listens, by interface; no entry: nothing is known of its sockets.
    pub listening: BTreeMap<u32, BTreeSet<u16>>,
    /// UDP ports to which a pod's sockets are bound, by interface, and whether they are connected.
    pub connected: BTreeMap<u32, BTreeMap<u16, bool>>,
}

/// A frame in memory.
#[derive(Clone, Copy, Debug)]
pub struct FrameBytes<'a> {
    pub bytes: &'a [u8],
    pub gso: bool,
}

impl Bytes for FrameBytes<'_> {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        if offset >= HEADERS_MAX {
            return None;
        }
        let start = offset as usize;
        let bytes = self.bytes.get(start..start.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
        }
        Some(words)
    }

    fn is_gso(&self) -> bool {
        self.gso
    }
}

impl Sim {
    /// Maps that hold these tables and nothing else.
    pub fn holding(tables: &Tables) -> Self {
        let room = u32::try_from(tables.endpoints.len()).expect("fewer than 2^32 endpoints");
        let installed = Installed::new(0, room);
        let plan = installed.plan(&Tables::default().delta_to(tables)).expect("a record for each endpoint");
        let mut sim = Self::default();
        plan.writes.iter().for_each(|write| sim.write(write));
        sim
    }

    /// The kernel's maps as they were found, for questions about them. Of Services only those of the tables are known.
    pub fn of(found: Found, config: &Config) -> Self {
        let service_ports = found.tables.services.keys().map(|key| key.port).collect();
        let record = |index: &Versioned| found.records.get(&index.at(found.epoch));
        let stamps =
            found.tables.endpoints.iter().filter_map(|(ifindex, index)| Some((record(index)?.stamp, *ifindex)));
        let stamps = stamps.filter(|(stamp, _)| *stamp != 0).collect();
        let Config { keep_existing, midstream_budget, exits_missing, paused_until, .. } = *config;
        Self {
            stamps,
            service_ports,
            maps: found,
            keeps_existing: keep_existing != 0,
            exits_missing: exits_missing != 0,
            paused_until,
            midstream_budget,
            ..Self::default()
        }
    }

    pub fn write(&mut self, write: &Write) {
        let Found { epoch, records, tables } = &mut self.maps;
        match *write {
            Write::Record(index, record) => {
                records.insert(index, record);
            }
            Write::Rule(key, value) => put(&mut tables.rules, key, value),
            Write::Port(key, length, value) => put(&mut tables.ports, (key, length), value),
            Write::ExactV4(address, value) => put(&mut tables.exact_v4, address, value),
            Write::ExactV6(address, value) => put(&mut tables.exact_v6, address, value),
            Write::CidrV4(prefix, value) => put(&mut tables.cidr_v4, prefix, value),
            Write::CidrV6(prefix, value) => put(&mut tables.cidr_v6, prefix, value),
            Write::Endpoint(ifindex, value) => put(&mut tables.endpoints, ifindex, value),
            Write::Service(key, value) => put(&mut tables.services, key, value),
            Write::Backends(row, value) => put(&mut tables.backends, row, value),
            Write::ServicePort(port, true) => drop(self.service_ports.insert(port)),
            Write::ServicePort(port, false) => drop(self.service_ports.remove(&port)),
            Write::Stamp(stamp, ifindex) => drop(self.stamps.insert(stamp, ifindex)),
            Write::Epoch(new) => *epoch = new,
        }
    }

    /// Judges a frame as the programs would.
    pub fn judge(&self, frame: FrameBytes<'_>, meeting: Meeting) -> Ruling {
        let mut packet = Packet::default();
        parse::frame(&frame, &mut packet);
        decide(&frame, || &packet, self, meeting)
    }

    /// Judges a frame by its stamp, as the programs would where it ends up.
    pub fn judge_leaving(&self, frame: FrameBytes<'_>, stamp: u16, place: Place) -> Ruling {
        let mut packet = Packet::default();
        parse::frame(&frame, &mut packet);
        decide_leaving(|| &packet, self, stamp, place)
    }

    /// Whether the program on the uplinks would refuse a frame, as which pod's by its interface.
    pub fn judge_early(&self, frame: FrameBytes<'_>) -> Option<(Ruling, u32)> {
        let mut packet = Packet::default();
        parse::frame(&frame, &mut packet);
        let end = &self.uplink.tunnels[UplinkConfig::part(packet.family)];
        if let Some(header) = tunnelled(&packet, end) {
            if !frame.words(header).is_some_and(|words| is_network(words, end.vni)) {
                return None;
            }
            let bytes = frame.bytes.get((header + VXLAN_LENGTH) as usize..)?;
            parse::frame(&FrameBytes { bytes, gso: false }, &mut packet);
            const ETHERNET_LENGTH: u32 = 14;
            if packet.network != ETHERNET_LENGTH {
                return None;
            }
        }
        refused_early(self, &packet)
    }

    /// What was counted of flows to Services.
    pub fn service_counts(&self) -> FlowStats {
        *self.counts.borrow()
    }

    /// What a new agent would find in the maps.
    pub fn found(&self) -> &Found {
        &self.maps
    }

    /// Forgets all flows and fragments.
    pub fn forget_flows(&self) {
        self.flows.borrow_mut().clear();
        self.fragments.borrow_mut().clear();
    }

    /// Forgets a flow as an LRU map under pressure would.
    pub fn evict(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }

    pub fn flows(&self) -> BTreeMap<FlowKey, FlowValue> {
        self.flows.borrow().clone()
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// An entry of the simulated FLOWS.
#[derive(Debug)]
pub struct SimFlow<'a> {
    flows: &'a RefCell<BTreeMap<FlowKey, FlowValue>>,
    key: FlowKey,
}

impl<'a> SimFlow<'a> {
    /// The entry of a flow table in memory, if it is there.
    pub fn of(flows: &'a RefCell<BTreeMap<FlowKey, FlowValue>>, key: &FlowKey) -> Option<Self> {
        flows.borrow().contains_key(key).then_some(Self { flows, key: *key })
    }

    fn change(&self, change: impl FnOnce(&mut FlowValue)) {
        if let Some(value) = self.flows.borrow_mut().get_mut(&self.key) {
            change(value);
        }
    }
}

impl FlowEntry for SimFlow<'_> {
    fn value(&self) -> FlowValue {
        self.flows.borrow().get(&self.key).copied().unwrap_or_default()
    }

    fn judged(&self, opener: usize, role: usize) -> Judgement {
        self.value().judged[opener][role]
    }

    fn flags(&self) -> u32 {
        self.value().flags
    }

    fn seen(&self) -> u64 {
        self.value().seen
    }

    fn fin_next(&self, sender: usize) -> u32 {
        self.value().fin_next[sender]
    }

    fn client(&self) -> (u32, u32) {
        let value = self.value();
        (value.client, value.client_generation)
    }

    fn revoked(&self) -> u32 {
        self.value().revoked
    }

    fn set_revoked(&self, revoked: u32) {
        self.change(|value| value.revoked = revoked);
    }

    fn set_seen(&self, seen: u64) {
        self.change(|value| value.seen = seen);
    }

    fn set_flags(&self, flags: u32) {
        self.change(|value| value.flags = flags);
    }

    fn set_fin_next(&self, sender: usize, next: u32) {
        self.change(|value| value.fin_next[sender] = next);
    }
}

impl Ask for Sim {
    type Flow<'a> = SimFlow<'a>;

    fn epoch(&self) -> u32 {
        self.maps.epoch
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        self.maps.tables.endpoints.get(&ifindex).copied()
    }

    fn hint(&self, ifindex: u32, epoch: u32) -> Option<u32> {
        self.hints.borrow().get(&ifindex).filter(|(then, _)| *then == epoch).map(|(_, index)| *index)
    }

    fn put_hint(&self, ifindex: u32, epoch: u32, index: u32) {
        self.hints.borrow_mut().insert(ifindex, (epoch, index));
    }

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        self.maps.records.get(&index)
    }

    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        if family == V4 {
            self.maps.tables.exact_v4.get(&address.v4_word()).copied()
        } else {
            self.maps.tables.exact_v6.get(address).copied()
        }
    }

    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        if family == V4 {
            let bits = u32::from_be(address.v4_word());
            (0..=32_u8).rev().find_map(|length| {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                let net = Ipv4Net::new(Ipv4Addr::from(bits & mask), length).expect("a length of at most 32");
                self.maps.tables.cidr_v4.get(&net).copied()
            })
        } else {
            let bits = u128::from_be_bytes(bytes_of(address));
            (0..=128_u8).rev().find_map(|length| {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                let net = Ipv6Net::new(Ipv6Addr::from(bits & mask), length).expect("a length of at most 128");
                self.maps.tables.cidr_v6.get(&net).copied()
            })
        }
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        self.maps.tables.rules.get(key).copied()
    }

    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        (PORT_PREFIX_MIN..=PORT_PREFIX_MAX).rev().find_map(|length| {
            let mask = u16::MAX.checked_shl(PORT_PREFIX_MAX - length).unwrap_or(0);
            let key = PortKey { ports_be: ports.to_be(), protocol, pad: 0, port_be: (port & mask).to_be() };
            self.maps.tables.ports.get(&(key, length)).map(|value| value.rule)
        })
    }

    fn has_service_port(&self, port: u16) -> bool {
        self.service_ports.contains(&port)
    }

    fn service(&self, key: &ServiceKey) -> Option<Versioned> {
        self.maps.tables.services.get(key).copied()
    }

    fn backends(&self, row: u32) -> Option<&Backends> {
        self.maps.tables.backends.get(&row)
    }

    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        self.stamps.get(&u32::from(stamp)).copied()
    }

    fn exits_missing(&self) -> bool {
        self.exits_missing
    }

    fn count_service(&self, what: ServiceCount) {
        let mut counts = self.counts.borrow_mut();
        match what {
            ServiceCount::Answered => counts.service_answered += 1,
            ServiceCount::Judged => counts.service_judged += 1,
        }
    }

    fn flow(&self, key: &FlowKey) -> Option<SimFlow<'_>> {
        SimFlow::of(&self.flows, key)
    }

    fn put_flow(&self, key: &FlowKey, value: &FlowValue, _new: bool) -> bool {
        self.flows.borrow_mut().insert(*key, *value);
        true
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        self.fragments.borrow().get(key).copied()
    }

    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        self.fragments.borrow_mut().insert(*key, *value);
        true
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn pressure(&self, _now: u64) -> bool {
        self.pressure
    }

    fn paused_until(&self) -> u32 {
        self.paused_until
    }

    fn keeps_existing(&self) -> bool {
        self.keeps_existing
    }

    fn listens(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool> {
        if packet.protocol != parse::protocol::TCP {
            return None;
        }
        Some(self.listening.get(&record.ifindex)?.contains(&local_port(packet, hook)))
    }

    fn is_connected(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool> {
        self.connected.get(&record.ifindex)?.get(&local_port(packet, hook)).copied()
    }

    fn note_awaited(&self, address: &Address, port: u16, second: u32) {
        if self.awaited_since != 0 {
            self.awaited.borrow_mut().insert((*address, port), second);
        }
    }

    fn take_midstream(&self, number: u32, now: u64) -> bool {
        let mut stats = self.stats.borrow_mut();
        let stats = stats.entry(number).or_default();
        match take_midstream(*stats, now, self.midstream_budget) {
            Some(next) => {
                *stats = next;
                true
            }
            None => false,
        }
    }
}

impl UplinkTables for Sim {
    fn endpoint_of(&self, address: &Address) -> Option<u32> {
        let records =
            self.maps.tables.endpoints.values().filter_map(|index| self.maps.records.get(&index.at(self.maps.epoch)));
        super::pod_addresses(records).get(address).copied()
    }

    fn masquerade(&self, family: u8) -> Option<Address> {
        let part = UplinkConfig::part(family);
        (self.uplink.unsure[part] == 0).then_some(self.uplink.masquerade[part])
    }

    fn awaits(&self, address: &Address, port: u16, second: u32) -> bool {
        is_awaited(self.awaited.borrow().get(&(*address, port)).copied().unwrap_or(0), self.awaited_since, second)
    }
}

fn local_port(packet: &Packet, hook: Hook) -> u16 {
    match hook {
        Hook::FromPod => packet.source_port,
        Hook::ToPod => packet.destination_port,
    }
}

/// The sixteen bytes of an address in the order in which they travel.
pub fn bytes_of(address: &Address) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(address.words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
