//! Typed handles on the maps: writing one entry, and reading all of them.

mod live;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ipnet::{Ipv4Net, Ipv6Net};
use palisade_common::Reason;
use palisade_common::layout::{
    Address, Backends, Config, EndpointRecord, EndpointStats, FlowKey, FlowStats, FlowValue, PauseKey, PortKey,
    PortValue, REASONS, RuleKey, RuleValue, ServiceKey, Versioned, service_port_bit,
};

pub use live::Live;

use super::batch::Entries;
use super::bulk::{self, Bulk};
use super::config_cell::ConfigCell;
use crate::tables::ByTable;
use crate::tables::adopted::Found;
use crate::tables::plan::Write;
use crate::tables::sim::bytes_of;

/// A table layout as plain bytes for aya.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain<T>(pub T);

// SAFETY: only used below, with the layouts of palisade_common::layout: `repr(C)`, without padding that is not a field (their
// sizes are asserted there), valid for every bit pattern.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

type Hash<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;
type Trie<K, V> = LpmTrie<MapData, Plain<K>, Plain<V>>;

/// Everything that policy decides, and what the programs remember.
pub struct Maps {
    pub config: ConfigCell,
    config_map: Array<MapData, Plain<Config>>,
    flow_stats: Array<MapData, Plain<FlowStats>>,
    endpoints: Hash<u32, Versioned>,
    records: Array<MapData, Plain<EndpointRecord>>,
    exact_v4: Hash<u32, Versioned>,
    exact_v6: Hash<Address, Versioned>,
    cidr_v4: Trie<u32, Versioned>,
    cidr_v6: Trie<Address, Versioned>,
    rules: Hash<RuleKey, RuleValue>,
    ports: Trie<PortKey, PortValue>,
    services: Hash<ServiceKey, Versioned>,
    backends: Hash<u32, Backends>,
    stamps: Array<MapData, u32>,
    service_ports: Array<MapData, u64>,
    flows: Hash<FlowKey, FlowValue>,
    all_flows: Entries<Plain<FlowKey>, Plain<FlowValue>>,
    bulk: Bulk,
    pauses: Hash<PauseKey, u64>,
    counters: PerCpuArray<MapData, u64>,
    early: PerCpuArray<MapData, u64>,
    event_budget: PerCpuArray<MapData, [u32; 4]>,
    endpoint_stats: Array<MapData, Plain<EndpointStats>>,
    rule_hits: Hash<u32, u64>,
}

/// Every entry as it lies in the maps.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub config: Config,
    pub flow_stats: FlowStats,
    pub found: Found,
    pub flows: BTreeMap<FlowKey, FlowValue>,
    pub counters: Vec<(Reason, u64)>,
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Self::collect(|name| ebpf.take_map(name).with_context(|| format!("no map {name} in the object")))
    }

    /// The maps that an agent has pinned below `root`.
    pub fn open_pinned(root: &Path) -> anyhow::Result<Self> {
        let folder = super::pins::maps_folder(root);
        super::pins::expect_ours(root)?;
        Self::collect(|name| {
            let path = folder.join(name);
            let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
            Ok(Map::from_map_data(data)?)
        })
    }

    fn collect(mut map: impl FnMut(&str) -> anyhow::Result<Map>) -> anyhow::Result<Self> {
        let config_map = map("CONFIG")?;
        let Map::Array(data) = &config_map else { bail!("CONFIG is not an array") };
        let config = ConfigCell::map(data.fd().as_fd())?;
        let flows = map("FLOWS")?;
        let Map::LruHashMap(data) = &flows else { bail!("FLOWS is not an LRU hash map") };
        let all_flows = Entries::new(data).context("FLOWS")?;
        let [exact_v4, exact_v6] = [map("CLASS_EXACT_V4")?, map("CLASS_EXACT_V6")?];
        let [cidr_v4, cidr_v6] = [map("CLASS_CIDR_V4")?, map("CLASS_CIDR_V6")?];
        let [rules, ports] = [map("RULES")?, map("PORTS")?];
        let [services, backends] = [map("SERVICES")?, map("BACKENDS")?];
        let bulk = Bulk {
            exact_v4: bulk::entries(&exact_v4)?,
            exact_v6: bulk::entries(&exact_v6)?,
            cidr_v4: bulk::entries(&cidr_v4)?,
            cidr_v6: bulk::entries(&cidr_v6)?,
            rules: bulk::entries(&rules)?,
            ports: bulk::entries(&ports)?,
            services: bulk::entries(&services)?,
            backends: bulk::entries(&backends)?,
        };
        Ok(Self {
            config,
            config_map: config_map.try_into()?,
            flow_stats: map("FLOW_STATS")?.try_into()?,
            endpoints: map("ENDPOINTS")?.try_into()?,
            records: map("RECORDS")?.try_into()?,
            exact_v4: exact_v4.try_into()?,
            exact_v6: exact_v6.try_into()?,
            cidr_v4: cidr_v4.try_into()?,
            cidr_v6: cidr_v6.try_into()?,
            rules: rules.try_into()?,
            ports: ports.try_into()?,
            services: services.try_into()?,
            backends: backends.try_into()?,
            bulk,
            stamps: map("STAMPS")?.try_into()?,
            service_ports: map("SERVICE_PORTS")?.try_into()?,
            flows: flows.try_into()?,
            all_flows,
            pauses: map("PAUSES")?.try_into()?,
            counters: map("COUNTERS")?.try_into()?,
            early: map("EARLY")?.try_into()?,
            event_budget: map("EVENT_BUDGET")?.try_into()?,
            endpoint_stats: map("ENDPOINT_STATS")?.try_into()?,
            rule_hits: map("RULE_HITS")?.try_into()?,
        })
    }

    /// Carries writes out in their order, at least the first one: as many as can be at once.
    ///
    /// # Errors
    ///
    /// How many were carried out, and why the next one was not.
    pub(super) fn write_leading(&mut self, writes: &[Write]) -> Result<usize, (usize, anyhow::Error)> {
        let run = bulk::run(writes);
        let at_once = if run > 1 { self.bulk.write(&writes[..run]) } else { 0 };
        // One by one what the kernel has refused, and what follows it.
        for (done, write) in writes.iter().enumerate().take(run).skip(at_once) {
            self.write(write).map_err(|error| (done, error))?;
        }
        Ok(run)
    }

    /// Carries one write out. Removing what is not there is done already.
    pub fn write(&mut self, write: &Write) -> anyhow::Result<()> {
        let result = match *write {
            Write::Record(index, record) => self.records.set(index, Plain(record), 0),
            Write::Rule(key, value) => put(&mut self.rules, key, value),
            Write::Port(key, length, value) => put_prefix(&mut self.ports, Key::new(length, Plain(key)), value),
            Write::ExactV4(address, value) => put(&mut self.exact_v4, address, value),
            Write::ExactV6(address, value) => put(&mut self.exact_v6, address, value),
            Write::CidrV4(prefix, value) => put_prefix(&mut self.cidr_v4, key_v4(prefix), value),
            Write::CidrV6(prefix, value) => put_prefix(&mut self.cidr_v6, key_v6(prefix), value),
            Write::Endpoint(ifindex, value) => put(&mut self.endpoints, ifindex, value),
            Write::Service(key, value) => put(&mut self.services, key, value),
            Write::Backends(row, value) => put(&mut self.backends, row, value),
            Write::ServicePort(port, on) => {
                let (word, bit) = service_port_bit(port);
                let ports = self.service_ports.get(&word, 0)?;
                self.service_ports.set(word, if on { ports | bit } else { ports & !bit }, 0)
            }
            Write::Stamp(stamp, ifindex) => self.stamps.set(stamp, ifindex, 0),
            Write::Epoch(epoch) => {
                self.config.store_epoch(epoch);
                Ok(())
            }
        };
        result.with_context(|| format!("{write:?}"))
    }

    /// Packets by reason, all CPUs together.
    pub fn counters(&self) -> anyhow::Result<Vec<(Reason, u64)>> {
        Reason::ALL
            .iter()
            .filter(|reason| (**reason as usize) < REASONS)
            .map(|reason| Ok((*reason, self.counters.get(&(*reason as u32), 0)?.iter().sum())))
            .collect()
    }

    /// Packets that were refused on an uplink, all CPUs together.
    pub fn refused_early(&self) -> anyhow::Result<u64> {
        Ok(self.early.get(&0, 0)?.iter().sum())
    }

    /// Refused packets of which no event could be sent, all CPUs together.
    pub fn events_lost(&self) -> anyhow::Result<u64> {
        Ok(self.event_budget.get(&0, 0)?.iter().map(|[_, _, lost, _]| u64::from(*lost)).sum())
    }

    /// What was counted on an endpoint's account, by its number.
    pub fn endpoint_stats(&self, number: u32) -> anyhow::Result<EndpointStats> {
        Ok(self.endpoint_stats.get(&number, 0)?.0)
    }

    /// New flows by the rule that admitted them.
    pub fn rule_hits(&self) -> anyhow::Result<BTreeMap<u32, u64>> {
        entries(&self.rule_hits)
    }

    /// What is paused, and until when (ns, CLOCK_MONOTONIC); that which is over as well.
    pub fn pauses(&self) -> anyhow::Result<BTreeMap<PauseKey, u64>> {
        entries(&self.pauses)
    }

    /// Begins a pause (ns, CLOCK_MONOTONIC) or ends it (`None`). Of many that are asked for at once by several processes, each is made.
    pub fn set_pause(&mut self, key: PauseKey, until: Option<u64>) -> anyhow::Result<()> {
        if let Some(until) = until {
            self.config.raise_paused_until(until.div_ceil(1_000_000_000) as u32);
        }
        put(&mut self.pauses, key, until).with_context(|| format!("pausing {key:?}"))?;
        if until.is_none() {
            let seen = self.config.paused_until();
            let last = self.pauses()?.into_values().max().unwrap_or(0).max(super::flows::now());
            self.config.lower_paused_until(seen, last.div_ceil(1_000_000_000) as u32);
        }
        Ok(())
    }

    pub fn records_len(&self) -> u32 {
        self.records.len()
    }

    pub fn flow_stats(&self) -> anyhow::Result<FlowStats> {
        Ok(self.flow_stats.get(&0, 0)?.0)
    }

    /// Counts the flows that stay and lists those for which `is_over` holds.
    pub(super) fn partition_flows(
        &self,
        is_over: impl Fn(&FlowKey, &FlowValue) -> bool,
    ) -> anyhow::Result<(u64, Vec<FlowKey>)> {
        let (mut staying, mut over) = (0, Vec::new());
        self.all_flows.for_each(|key, value| {
            if is_over(&key.0, &value.0) {
                over.push(key.0);
            } else {
                staying += 1;
            }
        })?;
        Ok((staying, over))
    }

    pub(super) fn remove_flow(&mut self, key: &FlowKey) -> anyhow::Result<()> {
        Ok(absent_is_fine(self.flows.remove(&Plain(*key)))?)
    }

    /// Every flow there is.
    pub fn flows(&self) -> anyhow::Result<BTreeMap<FlowKey, FlowValue>> {
        let mut flows = BTreeMap::new();
        self.each_flow(|key, value| _ = flows.insert(*key, *value))?;
        Ok(flows)
    }

    /// Sees every flow there is.
    pub(super) fn each_flow(&self, mut see: impl FnMut(&FlowKey, &FlowValue)) -> anyhow::Result<()> {
        Ok(self.all_flows.for_each(|key, value| see(&key.0, &value.0))?)
    }

    /// The highest generation that anything is remembered for, which may be that of a pod whose record has gone.
    pub(super) fn last_generation(&self) -> anyhow::Result<u32> {
        let mut last = self.pauses()?.into_keys().map(|key| key.generation).max().unwrap_or_default();
        self.each_flow(|_, value| last = last.max(super::flows::generation(value)))?;
        Ok(last)
    }

    /// Puts many flows at once, whether they are there or not.
    pub(super) fn put_flows(&self, keys: &[Plain<FlowKey>], values: &[Plain<FlowValue>]) -> anyhow::Result<()> {
        self.all_flows.put(keys, values).context("FLOWS")
    }

    /// Puts a flow if it is not there yet, or, as `known` says, only if it still is. Returns whether it was put.
    pub(super) fn put_flow(&mut self, key: &FlowKey, value: &FlowValue, known: bool) -> anyhow::Result<bool> {
        // linux/bpf.h
        const BPF_NOEXIST: u64 = 1;
        const BPF_EXIST: u64 = 2;
        let flags = if known { BPF_EXIST } else { BPF_NOEXIST };
        match self.flows.insert(Plain(*key), Plain(*value), flags) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::AlreadyExists => {
                Ok(false)
            }
            gone => Ok(absent_is_fine(gone).map(|()| false)?),
        }
    }

    /// Reads everything; flows may be many.
    pub fn snapshot(&self, with_flows: bool) -> anyhow::Result<Snapshot> {
        let flows = if with_flows { self.flows()? } else { BTreeMap::new() };
        Ok(Snapshot {
            config: self.config_map.get(&0, 0)?.0,
            flow_stats: self.flow_stats()?,
            found: self.found()?,
            flows,
            counters: self.counters()?,
        })
    }

    /// Reads what policy decides.
    pub fn found(&self) -> anyhow::Result<Found> {
        let mut records = BTreeMap::new();
        for index in 0..self.records.len() {
            let record = self.records.get(&index, 0)?.0;
            if record.ifindex != 0 {
                records.insert(index, record);
            }
        }
        let tables = ByTable {
            endpoints: entries(&self.endpoints)?,
            exact_v4: entries(&self.exact_v4)?,
            exact_v6: entries(&self.exact_v6)?,
            cidr_v4: prefixes(&self.cidr_v4, |length, data| net_v4(length, data.0))?,
            cidr_v6: prefixes(&self.cidr_v6, |length, data| net_v6(length, data.0))?,
            rules: entries(&self.rules)?,
            ports: prefixes(&self.ports, |length, data| Ok((data.0, length)))?,
            services: entries(&self.services)?,
            backends: entries(&self.backends)?,
        };
        Ok(Found { epoch: self.config.epoch(), records, tables })
    }
}

fn put<K: Copy + 'static, V: Copy + 'static>(map: &mut Hash<K, V>, key: K, value: Option<V>) -> Result<(), MapError> {
    match value {
        Some(value) => map.insert(Plain(key), Plain(value), 0),
        None => absent_is_fine(map.remove(&Plain(key))),
    }
}

fn put_prefix<K: Copy + 'static, V: Copy + 'static>(
    map: &mut Trie<K, V>,
    key: Key<Plain<K>>,
    value: Option<V>,
) -> Result<(), MapError> {
    match value {
        Some(value) => map.insert(&key, Plain(value), 0),
        None => absent_is_fine(map.remove(&key)),
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries<K: Copy + Ord + 'static, V: Copy + 'static>(map: &Hash<K, V>) -> anyhow::Result<BTreeMap<K, V>> {
    let mut found = BTreeMap::new();
    for entry in map.iter() {
        let (key, value) = entry?;
        found.insert(key.0, value.0);
    }
    Ok(found)
}

fn prefixes<K: Copy + 'static, V: Copy + 'static, N: Ord>(
    map: &Trie<K, V>,
    name: impl Fn(u32, Plain<K>) -> anyhow::Result<N>,
) -> anyhow::Result<BTreeMap<N, V>> {
    let mut found = BTreeMap::new();
    for entry in map.iter() {
        let (key, value) = entry?;
        found.insert(name(key.prefix_len(), key.data())?, value.0);
    }
    Ok(found)
}

pub(super) fn key_v4(prefix: Ipv4Net) -> Key<Plain<u32>> {
    Key::new(u32::from(prefix.prefix_len()), Plain(u32::from(prefix.network()).to_be()))
}

pub(super) fn key_v6(prefix: Ipv6Net) -> Key<Plain<Address>> {
    Key::new(u32::from(prefix.prefix_len()), Plain(crate::tables::address_v6(prefix.network())))
}

fn net_v4(length: u32, data: u32) -> anyhow::Result<Ipv4Net> {
    Ok(Ipv4Net::new(Ipv4Addr::from(u32::from_be(data)), u8::try_from(length)?)?)
}

fn net_v6(length: u32, data: Address) -> anyhow::Result<Ipv6Net> {
    Ok(Ipv6Net::new(Ipv6Addr::from(bytes_of(&data)), u8::try_from(length)?)?)
}
