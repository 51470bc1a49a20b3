//! The tables without their numbers: two compilers that took different ways to the same facts agree in this form.
//!
//! It is read back from the tables as they would lie in the kernel; only what a number stands for is asked elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use palisade_common::layout::{
    Backends, EndpointRecord, PORTS_ALL, PORTS_NONE, RuleKey, RuleValue, ServiceKey, TableRef, endpoint_flag,
};

use super::prefix::Bits;
use super::{Compiler, Direction};
use crate::facts::{NamedPort, ObjectName, Peer};
use crate::tables::Tables;

/// What a class stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerClass {
    pub matchers: BTreeSet<Peer>,
    pub ports: BTreeSet<NamedPort>,
}

/// What a table stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    pub direction: Direction,
    pub policies: Vec<ObjectName>,
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    pub policy: ObjectName,
    pub direction: Direction,
    /// Place in spec.ingress or spec.egress.
    pub place: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    None,
    All(RuleName),
    /// By protocol number, first port and prefix length.
    Ports(BTreeMap<(u8, u16, u32), RuleName>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalEndpoint {
    /// Without number, generation, MIDSTREAM, time of isolation and tables.
    pub record: EndpointRecord,
    /// By [`Direction`]: the table and what it says to everybody.
    pub tables: [Option<(TableName, Allowed)>; 2],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canonical {
    pub endpoints: BTreeMap<u32, CanonicalEndpoint>,
    pub exact: BTreeMap<IpAddr, PeerClass>,
    pub cidrs: BTreeMap<IpNet, PeerClass>,
    pub rules: BTreeMap<(TableName, PeerClass), Allowed>,
    /// Port sets in the tables to which nothing refers: none, if all is well.
    pub orphans: BTreeSet<u32>,
    /// With the row, where there is one.
    pub services: BTreeMap<ServiceKey, Option<Backends>>,
}

impl Compiler {
    /// The desired tables without their numbers.
    pub fn canonical(&self) -> Canonical {
        let Tables { endpoints, exact_v4, exact_v6, cidr_v4, cidr_v6, rules, ports, services, backends } =
            &self.desired.tables;
        let mut canonical = Canonical::default();
        let names = self.rule_names();
        let sets = port_sets(&self.desired.tables, &names);
        let mut used = BTreeSet::new();
        let mut allowed = |value: RuleValue| {
            used.insert(value.ports);
            match value.ports {
                PORTS_NONE => Allowed::None,
                PORTS_ALL => Allowed::All(names[&value.rule].clone()),
                set => Allowed::Ports(sets[&set].clone()),
            }
        };
        for (&ifindex, record) in endpoints {
            let mut table = |reference: TableRef| {
                (reference.table != 0).then(|| (self.table_name(reference.table), allowed(reference.default)))
            };
            let tables = [table(record.ingress), table(record.egress)];
            let record = EndpointRecord {
                generation: 0,
                number: 0,
                stamp: u32::from(record.stamp != 0),
                flags: record.flags & !endpoint_flag::MIDSTREAM,
                isolated_at: 0,
                ingress: TableRef::default(),
                egress: TableRef::default(),
                ..*record
            };
            canonical.endpoints.insert(ifindex, CanonicalEndpoint { record, tables });
        }
        for (&RuleKey { table, class }, &value) in rules {
            canonical.rules.insert((self.table_name(table), self.peer_class(class)), allowed(value));
        }
        let v4 = |word: u32| IpAddr::from(word.to_ne_bytes());
        canonical.exact.extend(exact_v4.iter().map(|(&word, &class)| (v4(word), self.peer_class(class))));
        for (address, &class) in exact_v6 {
            let bytes = address.words.iter().flat_map(|word| word.to_ne_bytes());
            let bits = bytes.fold(0, |bits: u128, byte| bits << 8 | u128::from(byte));
            let address = Bits { family: palisade_common::layout::Family::V6, bits }.address();
            canonical.exact.insert(address, self.peer_class(class));
        }
        canonical.cidrs.extend(cidr_v4.iter().map(|(&net, &class)| (net.into(), self.peer_class(class))));
        canonical.cidrs.extend(cidr_v6.iter().map(|(&net, &class)| (net.into(), self.peer_class(class))));
        canonical.services = services.iter().map(|(&key, number)| (key, backends.get(number).copied())).collect();
        // The table of an endpoint that is closed is there, if nothing in the tables says so.
        used.extend(self.decisions.defaults());
        let sets = ports.keys().map(|(key, _)| u32::from_be(key.ports_be));
        canonical.orphans = sets.filter(|set| !used.contains(set)).collect();
        canonical
    }

    pub(super) fn peer_class(&self, class: u32) -> PeerClass {
        let Some(signature) = self.classes.signature(class) else { return PeerClass::default() };
        let peer = |id| self.policies.registry.peer(id).cloned();
        PeerClass {
            matchers: signature.matchers().filter_map(peer).collect(),
            ports: signature.ports.iter().cloned().collect(),
        }
    }

    pub(super) fn rule_names(&self) -> BTreeMap<u32, RuleName> {
        let mut names = BTreeMap::new();
        for (policy, sides) in self.policies.sides() {
            for side in sides.iter().flatten() {
                for (place, &id) in side.rule_ids.iter().enumerate() {
                    names.insert(id, RuleName { policy: policy.clone(), direction: side.direction, place });
                }
            }
        }
        names
    }

    fn table_name(&self, id: u32) -> TableName {
        let table = self.decisions.get(id).expect("the tables refer only to tables that are there");
        TableName {
            direction: table.direction,
            policies: table.sides.iter().map(|side| side.policy.clone()).collect(),
            ports: table.ports.to_vec(),
        }
    }
}

fn port_sets(tables: &Tables, names: &BTreeMap<u32, RuleName>) -> BTreeMap<u32, BTreeMap<(u8, u16, u32), RuleName>> {
    let mut sets: BTreeMap<u32, BTreeMap<(u8, u16, u32), RuleName>> = BTreeMap::new();
    for ((key, bits), value) in &tables.ports {
        let set = sets.entry(u32::from_be(key.ports_be)).or_default();
        set.insert((key.protocol, u16::from_be(key.port_be), *bits), names[&value.rule].clone());
    }
    sets
}
