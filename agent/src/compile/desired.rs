//! The desired tables, and what was written to them since the last delta.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;

use palisade_common::layout::{Backends, EndpointRecord, PortKey, PortValue, RuleKey, RuleValue, ServiceKey};

use super::prefix::{Bits, Net, Prefix, v4_word, v6_words};
use crate::tables::{Delta, Tables};

#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) tables: Tables,
    /// For each key written since the last delta: what was there.
    before: Delta,
}

// === impl Desired ===

impl Desired {
    pub(super) fn endpoint(&mut self, ifindex: u32, record: Option<EndpointRecord>) {
        set(&mut self.tables.endpoints, &mut self.before.endpoints, ifindex, record);
    }

    pub(super) fn exact(&mut self, address: Bits, class: Option<u32>) {
        match address.address() {
            IpAddr::V4(address) => {
                set(&mut self.tables.exact_v4, &mut self.before.exact_v4, v4_word(address), class);
            }
            IpAddr::V6(address) => {
                set(&mut self.tables.exact_v6, &mut self.before.exact_v6, v6_words(address), class);
            }
        }
    }

    pub(super) fn cidr(&mut self, prefix: Prefix, class: Option<u32>) {
        match prefix.net() {
            Net::V4(net) => set(&mut self.tables.cidr_v4, &mut self.before.cidr_v4, net, class),
            Net::V6(net) => set(&mut self.tables.cidr_v6, &mut self.before.cidr_v6, net, class),
        }
    }

    pub(super) fn rule(&mut self, key: RuleKey, value: Option<RuleValue>) {
        set(&mut self.tables.rules, &mut self.before.rules, key, value);
    }

    pub(super) fn port(&mut self, key: (PortKey, u32), value: Option<PortValue>) {
        set(&mut self.tables.ports, &mut self.before.ports, key, value);
    }

    pub(super) fn service(&mut self, key: ServiceKey, number: Option<u32>) {
        set(&mut self.tables.services, &mut self.before.services, key, number);
    }

    pub(super) fn backends(&mut self, row: u32, backends: Option<Backends>) {
        set(&mut self.tables.backends, &mut self.before.backends, row, backends);
    }

    pub(super) fn take_delta(&mut self) -> Delta {
        self.tables.delta_since(&mem::take(&mut self.before))
    }
}

fn set<K: Ord + Copy, V: PartialEq>(
    now: &mut BTreeMap<K, V>,
    before: &mut BTreeMap<K, Option<V>>,
    key: K,
    value: Option<V>,
) {
    let old = match value {
        Some(value) => now.insert(key, value),
        None => now.remove(&key),
    };
    before.entry(key).or_insert(old);
}
