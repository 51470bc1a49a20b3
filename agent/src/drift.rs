//! Tables as they are against tables as a compilation from nothing would make them.
//!
//! Numbers differ between the two, and mean something else: they are compared by what they stand for, in words. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use palisade_common::layout::{
    Address, CLASS_ASK_CIDR, EndpointRecord, PORTS_ALL, PORTS_NONE, PortKey, PortValue, RuleValue, SERVICE_NONE,
    TableRef, Versioned, endpoint_flag,
};
use palisade_common::parse::{V4, V6};
use serde::{Deserialize, Serialize};

use crate::compile::{Catalog, Compiler, Limits};
use crate::explain::port::port_text;
use crate::facts::{Change, Kind, Veth, VethChange};
use crate::index::Index;
use crate::last_known::LastKnown;
use crate::observe::events::{address_text, protocol_name};
use crate::tables::adopted::Found;
use crate::tables::sim::Sim;

/// All that the tables are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingredients {
    pub objects: LastKnown,
    pub veths: Vec<Veth>,
    /// The node's own addresses.
    pub own: BTreeSet<IpAddr>,
    pub limits: Limits,
}

/// A place in a table where the two differ. Field names are part of the output of `palisade maps diff -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Name of the kernel's map.
    pub map: &'static str,
    pub entry: String,
    /// None: it is not there.
    pub loaded: Option<String>,
    /// None: it should not be there.
    pub compiled: Option<String>,
}

/// What is in the tables, in words: by map and entry.
type View = BTreeMap<(&'static str, String), String>;

/// What differs between the tables as they are loaded, whose numbers `catalog` names, and what `from` makes of them.
pub fn differences(loaded: &Found, catalog: &Catalog, from: Ingredients) -> Vec<Difference> {
    let node = from.objects.node.clone();
    let mut index = Index::new(&node);
    from.objects.into_updates().into_iter().for_each(|update| index.apply(update.change));
    for kind in Kind::ALL {
        index.apply(Change::Relisted(kind));
    }
    index.apply_addresses(from.own);
    for veth in from.veths {
        index.apply_veth(VethChange { ifindex: veth.ifindex, veth: Some(veth) });
    }
    let mut compiler = Compiler::new(from.limits);
    compiler.update(&mut index, 0);
    let compiled = Sim::holding(compiler.tables());
    let (loaded, compiled) = (view(loaded, catalog), view(compiled.found(), &compiler.catalog(&index, &[])));
    let keys: BTreeSet<_> = loaded.keys().chain(compiled.keys()).collect();
    let differ = keys.into_iter().filter(|key| loaded.get(*key) != compiled.get(*key));
    let difference = |key: &(&'static str, String)| Difference {
        map: key.0,
        entry: key.1.clone(),
        loaded: loaded.get(key).cloned(),
        compiled: compiled.get(key).cloned(),
    };
    differ.map(difference).collect()
}

fn view(found: &Found, catalog: &Catalog) -> View {
    let words = Words { found, catalog, sets: sets(found) };
    let mut view = View::new();
    let mut used = BTreeSet::new();
    for (ifindex, index) in &found.tables.endpoints {
        let record = found.records.get(&index.at(found.epoch)).filter(|record| record.ifindex == *ifindex);
        if let Some(record) = record {
            used.extend([(true, record.ingress.table), (false, record.egress.table)]);
        }
        view.insert(
            ("ENDPOINTS", ifindex.to_string()),
            record.map_or("no record".to_owned(), |record| words.record(record)),
        );
    }
    let tables = &found.tables;
    let mut class = |map, entry: String, value: &Versioned| match value.at(found.epoch) {
        CLASS_ASK_CIDR => {}
        class => drop(view.insert((map, entry), words.class(class))),
    };
    for (word, value) in &tables.exact_v4 {
        class("CLASS_EXACT_V4", address_text(V4, &Address::v4(*word)), value);
    }
    for (address, value) in &tables.exact_v6 {
        class("CLASS_EXACT_V6", address_text(V6, address), value);
    }
    for (net, value) in &tables.cidr_v4 {
        class("CLASS_CIDR_V4", net.to_string(), value);
    }
    for (net, value) in &tables.cidr_v6 {
        class("CLASS_CIDR_V6", net.to_string(), value);
    }
    for (key, row) in &tables.rules {
        let entry = format!("{}: {}", words.table(key.table), words.class(key.class));
        view.insert(("RULES", entry), words.row(row));
    }
    for set in words.sets.keys() {
        view.insert(("PORTS", words.row(&RuleValue::set(*set))), "a port set".to_owned());
    }
    for (key, value) in tables.services.iter().filter(|(_, value)| value.at(found.epoch) != SERVICE_NONE) {
        let address = if key.address == Address::ZERO {
            format!("any IPv{}", key.family)
        } else {
            address_text(key.family, &key.address)
        };
        let entry = format!("{address} {}", port_text(key.protocol, key.port));
        view.insert(("SERVICES", entry), words.backends(key.family, value.at(found.epoch)));
    }
    view
}

/// Each port set's ranges: key with prefix length, and value.
type Sets<'a> = BTreeMap<u32, Vec<(&'a (PortKey, u32), &'a PortValue)>>;

fn sets(found: &Found) -> Sets<'_> {
    let mut sets = Sets::new();
    for (key, value) in &found.tables.ports {
        sets.entry(u32::from_be(key.0.ports_be)).or_default().push((key, value));
    }
    sets
}

/// Numbers' meanings.
struct Words<'a> {
    found: &'a Found,
    catalog: &'a Catalog,
    sets: Sets<'a>,
}

impl Words<'_> {
    fn class(&self, class: u32) -> String {
        self.catalog.classes.get(&class).map_or_else(|| format!("class {class}"), |entry| entry.description.clone())
    }

    fn table(&self, table: u32) -> String {
        match self.catalog.tables.get(&table) {
            Some(entry) => {
                let ports =
                    if entry.ports.is_empty() { String::new() } else { format!(" with {}", entry.ports.join(", ")) };
                format!("{} of {}{ports}", entry.direction, entry.policies.join(", "))
            }
            None => format!("table {table}"),
        }
    }

    fn rule(&self, rule: u32) -> String {
        match self.catalog.rules.get(&rule) {
            Some(entry) => entry.to_string(),
            None => format!("rule {rule}"),
        }
    }

    fn row(&self, row: &RuleValue) -> String {
        match row.ports {
            PORTS_NONE => "nothing".to_owned(),
            PORTS_ALL => format!("everything by {}", self.rule(row.rule)),
            _ if row.rule != 0 => {
                format!("{}-{} by {}", port_text(row.protocol, row.first), row.last, self.rule(row.rule))
            }
            set => {
                let port = |((key, length), value): &(&(PortKey, u32), &PortValue)| {
                    let port = u16::from_be(key.port_be);
                    format!("{}/{port}/{} by {}", protocol_name(key.protocol), length - 48, self.rule(value.rule))
                };
                let ports = self.sets.get(&set).into_iter().flatten().map(port);
                ports.collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// Without what only the way there tells: numbers, generation, stamp, and what is known of older connections.
    fn record(&self, record: &EndpointRecord) -> String {
        const KEPT: u32 = endpoint_flag::ISOLATED_INGRESS
            | endpoint_flag::ISOLATED_EGRESS
            | endpoint_flag::CLOSED
            | endpoint_flag::TRUSTED;
        let table = |TableRef { table, default }: &TableRef| match table {
            0 => "-".to_owned(),
            table => format!("{} (everybody: {})", self.table(*table), self.row(default)),
        };
        let v4 = record.v4.iter().filter(|word| **word != 0).map(|word| address_text(V4, &Address::v4(*word)));
        let v6 = record.v6.iter().filter(|address| **address != Address::ZERO).map(|address| address_text(V6, address));
        let EndpointRecord { netns_id, mac_hi, mac_lo, identity_hi, identity_lo, .. } = record;
        format!(
            "flags {:#x}, {}, MAC {mac_hi:08x}{mac_lo:04x}, namespace {netns_id}, identity {identity_hi:08x}{identity_lo:08x}, ingress {}, egress {}",
            record.flags & KEPT,
            v4.chain(v6).collect::<Vec<_>>().join(","),
            table(&record.ingress),
            table(&record.egress),
        )
    }

    fn backends(&self, family: u8, row: u32) -> String {
        let Some(row) = self.found.tables.backends.get(&row) else { return "known".to_owned() };
        let ends = row.addresses.iter().zip(row.ports).take(row.count as usize);
        ends.map(|(address, port)| format!("{} {port}", address_text(family, address))).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::fixture::{self, NODE};

    const SHOP: &str = "
        ns shop
        pod shop/web ip=10.0.0.2,fd00::2 node=n app=web
        pod shop/db ip=10.0.0.4,fd00::4 node=n port=sql/TCP/5432 app=db
        pod shop/far ip=10.0.1.5 node=m app=web
        policy shop/db app=db in(app=web|TCP/sql;UDP/53) in(@192.0.2.0/24!192.0.2.128/25|*)
        policy shop/web app=web out(*|TCP/80)
        service shop/db ip=10.96.0.4 port=TCP/5432/0/sql app=db
        own 10.0.0.1
        veth 2 mac=2 ip=10.0.0.2/24 pod=shop/web
        veth 4 mac=4 ip=10.0.0.4/24 pod=shop/db
        node n
        complete";

    struct World {
        index: Index,
        compiler: Compiler,
    }

    impl World {
        /// Its numbers are not those of a compiler that begins now.
        fn new() -> Self {
            let mut world = Self { index: fixture::index(SHOP), compiler: Compiler::new(Limits::default()) };
            world.compiler.update(&mut world.index, 1);
            for step in ["-policy shop/db", "-pod shop/far"] {
                world.apply(step);
            }
            world.apply(SHOP);
            world
        }

        fn apply(&mut self, lines: &str) {
            fixture::apply(&mut self.index, lines);
            self.compiler.update(&mut self.index, 2);
        }

        fn ingredients(&self) -> Ingredients {
            Ingredients {
                objects: LastKnown::all(NODE, String::new(), &self.index, [].iter()),
                veths: self.index.veths().cloned().collect(),
                own: ["10.0.0.1".parse().expect("an address")].into(),
                limits: Limits::default(),
            }
        }

        fn differences(&self, spoil: impl FnOnce(&mut Found)) -> Vec<Difference> {
            let mut found = Sim::holding(self.compiler.tables()).found().clone();
            spoil(&mut found);
            differences(&found, &self.compiler.catalog(&self.index, &[]), self.ingredients())
        }
    }

    #[test]
    fn the_way_there_makes_no_difference() {
        let world = World::new();
        assert_ne!(world.compiler.tables().rules.keys().map(|key| key.table).max(), Some(2), "numbers are others");
        assert_eq!(world.differences(|_| ()), []);
    }

    #[test]
    fn whatever_is_otherwise_is_told_by_name() {
        type Spoil = fn(&mut Found);
        let world = World::new();
        let spoils: [(&str, Spoil); 8] = [
            ("ENDPOINTS", |found| {
                let _ = found.tables.endpoints.pop_first();
            }),
            ("ENDPOINTS", |found| {
                found.records.values_mut().for_each(|record| record.flags &= !endpoint_flag::ISOLATED_INGRESS);
            }),
            ("CLASS_EXACT_V4", |found| {
                let _ = found.tables.exact_v4.pop_last();
            }),
            ("CLASS_CIDR_V4", |found| {
                let _ = found.tables.cidr_v4.pop_last();
            }),
            ("RULES", |found| {
                let _ = found.tables.rules.pop_first();
            }),
            ("RULES", |found| found.tables.rules.values_mut().for_each(|row| *row = RuleValue::all(row.rule))),
            ("PORTS", |found| {
                let _ = found.tables.ports.pop_first();
            }),
            ("SERVICES", |found| found.tables.services.clear()),
        ];
        for (number, (map, spoil)) in spoils.into_iter().enumerate() {
            let told = world.differences(spoil);
            assert!(told.iter().any(|difference| difference.map == map), "{number}: {told:?}");
        }
    }

    #[test]
    fn an_entry_too_many_is_told() {
        let world = World::new();
        let told = world.differences(|found| {
            let class = *found.tables.exact_v4.values().next().expect("one has a class");
            found.tables.exact_v4.insert(u32::from_ne_bytes([10, 9, 9, 9]), class);
        });
        let [Difference { map: "CLASS_EXACT_V4", entry, loaded: Some(loaded), compiled: None }] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!((&**entry, &**loaded), ("10.9.9.9", "pods app=web in namespace shop"));
    }
}
