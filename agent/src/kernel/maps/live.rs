//! The loaded maps as the decision function asks them: each question is a look-up in the kernel, none is a copy.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use palisade_common::Hook;
use palisade_common::decide::{ServiceCount, Tables};
use palisade_common::layout::{
    Address, Backends, Config, EndpointRecord, FlowKey, FlowStats, FlowValue, FragmentKey, FragmentValue,
    PORT_PREFIX_MAX, PortKey, PortValue, RuleKey, RuleValue, ServiceKey, Versioned, service_port_bit,
};
use palisade_common::parse::{Packet, V4};

use super::{Maps, Plain, entries, prefixes};
use crate::tables::sim::SimFlow;

/// For as long as the epoch stays the same: a record that was read once is not read again.
///
/// It has no flows: what is asked about is a new one ([`crate::explain::trace::Traced`]). What pods' sockets would say is not known to it;
/// openings do not depend on that.
pub struct Live<'m> {
    maps: &'m Maps,
    config: Config,
    stats: FlowStats,
    records: Box<[OnceCell<Option<Box<EndpointRecord>>>]>,
    backends: OnceCell<BTreeMap<u32, Backends>>,
    flows: RefCell<BTreeMap<FlowKey, FlowValue>>,
    trouble: RefCell<Option<MapError>>,
}

impl Maps {
    /// As they are from now on.
    ///
    /// # Errors
    ///
    /// When CONFIG or FLOW_STATS cannot be read.
    pub fn live(&self) -> anyhow::Result<Live<'_>> {
        Ok(Live {
            maps: self,
            config: self.config_map.get(&0, 0)?.0,
            stats: self.flow_stats()?,
            records: (0..self.records.len()).map(|_| OnceCell::new()).collect(),
            backends: OnceCell::new(),
            flows: RefCell::default(),
            trouble: RefCell::default(),
        })
    }
}

impl Live<'_> {
    /// # Errors
    ///
    /// When a look-up failed, so that what was answered is worth nothing.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.trouble.take() {
            Some(error) => Err(anyhow::Error::from(error).context("looking up an entry of a map")),
            None => Ok(()),
        }
    }

    /// Every row of a decision table, by class.
    ///
    /// # Errors
    ///
    /// When RULES cannot be read.
    pub fn rows_of(&self, table: u32) -> anyhow::Result<BTreeMap<u32, RuleValue>> {
        let rows = entries(&self.maps.rules)?.into_iter().filter(|(key, _)| key.table == table);
        Ok(rows.map(|(key, row)| (key.class, row)).collect())
    }

    /// What a port set has, by key and prefix length (bits).
    ///
    /// # Errors
    ///
    /// When PORTS cannot be read.
    pub fn ports_of(&self, set: u32) -> anyhow::Result<BTreeMap<(PortKey, u32), PortValue>> {
        let mut ports = prefixes(&self.maps.ports, |length, data| Ok((data.0, length)))?;
        ports.retain(|(key, _), _| u32::from_be(key.ports_be) == set);
        Ok(ports)
    }

    fn found<V>(&self, looked_up: Result<V, MapError>) -> Option<V> {
        match looked_up {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                self.trouble.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

impl Tables for Live<'_> {
    type Flow<'a>
        = SimFlow<'a>
    where
        Self: 'a;

    fn epoch(&self) -> u32 {
        self.maps.config.epoch()
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        self.found(self.maps.endpoints.get(&Plain(ifindex), 0)).map(|value| value.0)
    }

    fn hint(&self, _ifindex: u32, _epoch: u32) -> Option<u32> {
        None
    }

    fn put_hint(&self, _ifindex: u32, _epoch: u32, _index: u32) {}

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        let read = || self.found(self.maps.records.get(&index, 0)).map(|record| Box::new(record.0));
        self.records.get(index as usize)?.get_or_init(read).as_deref()
    }

    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        let found = if family == V4 {
            self.maps.exact_v4.get(&Plain(address.v4_word()), 0)
        } else {
            self.maps.exact_v6.get(&Plain(*address), 0)
        };
        self.found(found).map(|value| value.0)
    }

    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        let found = if family == V4 {
            self.maps.cidr_v4.get(&Key::new(32, Plain(address.v4_word())), 0)
        } else {
            self.maps.cidr_v6.get(&Key::new(128, Plain(*address)), 0)
        };
        self.found(found).map(|value| value.0)
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        self.found(self.maps.rules.get(&Plain(*key), 0)).map(|value| value.0)
    }

    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        let key = PortKey { ports_be: ports.to_be(), protocol, pad: 0, port_be: port.to_be() };
        self.found(self.maps.ports.get(&Key::new(PORT_PREFIX_MAX, Plain(key)), 0)).map(|value| value.0.rule)
    }

    fn has_service_port(&self, port: u16) -> bool {
        let (word, bit) = service_port_bit(port);
        self.found(self.maps.service_ports.get(&word, 0)).is_some_and(|ports| ports & bit != 0)
    }

    fn service(&self, key: &ServiceKey) -> Option<Versioned> {
        self.found(self.maps.services.get(&Plain(*key), 0)).map(|value| value.0)
    }

    fn backends(&self, row: u32) -> Option<&Backends> {
        let read = || match entries(&self.maps.backends) {
            Ok(rows) => rows,
            Err(_) => {
                self.trouble.borrow_mut().get_or_insert(MapError::KeyNotFound);
                BTreeMap::new()
            }
        };
        self.backends.get_or_init(read).get(&row)
    }

    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        self.found(self.maps.stamps.get(&u32::from(stamp), 0)).filter(|ifindex| *ifindex != 0)
    }

    fn exits_missing(&self) -> bool {
        self.maps.config.exits_missing()
    }

    fn count_service(&self, _what: ServiceCount) {}

    fn flow(&self, key: &FlowKey) -> Option<SimFlow<'_>> {
        SimFlow::of(&self.flows, key)
    }

    fn put_flow(&self, _key: &FlowKey, _value: &FlowValue, _new: bool) -> bool {
        true
    }

    fn fragment(&self, _key: &FragmentKey) -> Option<FragmentValue> {
        None
    }

    fn put_fragment(&self, _key: &FragmentKey, _value: &FragmentValue) -> bool {
        true
    }

    fn now(&self) -> u64 {
        crate::kernel::flows::now()
    }

    fn pressure(&self, now: u64) -> bool {
        self.stats.inserts > self.config.inserts_safe || now < self.config.pressure_until
    }

    fn paused_until(&self) -> u32 {
        self.maps.config.paused_until()
    }

    fn keeps_existing(&self) -> bool {
        self.config.keep_existing != 0
    }

    fn listens(&self, _record: &EndpointRecord, _packet: &Packet, _hook: Hook) -> Option<bool> {
        None
    }

    fn is_connected(&self, _record: &EndpointRecord, _packet: &Packet, _hook: Hook) -> Option<bool> {
        None
    }

    fn take_midstream(&self, _number: u32, _now: u64) -> bool {
        true
    }
}
