//! Random tables as the compiler would make them: numbers only grow, rows are immutable while anything refers to them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use palisade_common::layout::{
    Address, CLASS_NONE, EndpointRecord, PORT_PREFIX_MAX, PORT_PREFIX_MIN, PORTS_ALL, PORTS_FIRST, PORTS_NONE, PortKey,
    PortValue, RuleKey, RuleValue, TableRef, endpoint_flag,
};
use palisade_common::parse::{V4, V6};

use super::super::{Tables, address_v4, address_v6};

pub const INTERFACES: std::ops::RangeInclusive<u32> = 10..=15;

const V4_HOSTS: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "192.0.2.9"];
const V6_HOSTS: [&str; 4] = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "2001:db8::9"];
/// Nested and overlapping, the shortest and the longest possible among them.
const PREFIXES: [&str; 15] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/25",
    "10.0.0.1/32",
    "10.0.1.0/24",
    "128.0.0.0/1",
    "::/0",
    "fd00::/8",
    "fd00::/64",
    "fd00::/127",
    "fd00::1/128",
    "fd00:0:0:1::/64",
    "2001:db8::/33",
];

/// Deterministic (xorshift64*).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

/// Addresses in and around all prefixes.
pub fn probes() -> Vec<(u8, Address)> {
    let mut v4: BTreeSet<u32> = V4_HOSTS.iter().map(|host| u32::from(host.parse::<Ipv4Addr>().expect("one"))).collect();
    let mut v6: BTreeSet<u128> =
        V6_HOSTS.iter().map(|host| u128::from(host.parse::<Ipv6Addr>().expect("one"))).collect();
    for prefix in PREFIXES {
        match prefix.parse().expect("a prefix") {
            IpNet::V4(net) => {
                let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
                v4.extend([first, last, last.wrapping_add(1)]);
            }
            IpNet::V6(net) => {
                let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
                v6.extend([first, last.wrapping_add(1)]);
            }
        }
    }
    let v4 = v4.into_iter().map(|bits| (V4, Address::v4(address_v4(Ipv4Addr::from(bits)))));
    let v6 = v6.into_iter().map(|bits| (V6, address_v6(Ipv6Addr::from(bits))));
    v4.chain(v6).collect()
}

/// Tables, and the highest numbers given out.
#[derive(Default)]
pub struct World {
    pub tables: Tables,
    table: u32,
    class: u32,
    ports: u32,
    generation: u32,
}

impl World {
    /// Changes a few things, or many.
    pub fn change(&mut self, chance: &mut Chance) {
        let old = self.tables.clone();
        let one_in = *chance.of(&[2, 4, 12]);
        for ifindex in INTERFACES {
            if chance.one_in(one_in) {
                self.change_endpoint(ifindex, chance);
            }
        }
        for host in V4_HOSTS {
            if chance.one_in(one_in) {
                let key = address_v4(host.parse().expect("an address"));
                let class = self.pick_class(chance, true);
                set(&mut self.tables.exact_v4, key, class);
            }
        }
        for host in V6_HOSTS {
            if chance.one_in(one_in) {
                let key = address_v6(host.parse().expect("an address"));
                let class = self.pick_class(chance, true);
                set(&mut self.tables.exact_v6, key, class);
            }
        }
        for prefix in PREFIXES {
            if chance.one_in(one_in) {
                let class = self.pick_class(chance, false);
                match prefix.parse().expect("a prefix") {
                    IpNet::V4(net) => set::<Ipv4Net, u32>(&mut self.tables.cidr_v4, net, class),
                    IpNet::V6(net) => set::<Ipv6Net, u32>(&mut self.tables.cidr_v6, net, class),
                }
            }
        }
        self.fill_rules(&old, chance);
        self.fill_ports(&old, chance);
    }

    fn change_endpoint(&mut self, ifindex: u32, chance: &mut Chance) {
        if chance.one_in(4) {
            self.tables.endpoints.remove(&ifindex);
            return;
        }
        self.generation += 1;
        let mut record = self.tables.endpoints.get(&ifindex).copied().unwrap_or_default();
        if record.ifindex == 0 || chance.one_in(3) {
            record =
                EndpointRecord { ifindex, generation: self.generation, flags: 3 | endpoint_flag::TRUSTED, ..record };
        }
        for direction in 0..2 {
            let table = self.pick_table(chance);
            match direction {
                0 => record.ingress = table,
                _ => record.egress = table,
            }
        }
        self.tables.endpoints.insert(ifindex, record);
    }

    /// One in use, or a new one.
    fn pick_table(&mut self, chance: &mut Chance) -> TableRef {
        let used: Vec<TableRef> =
            self.tables.endpoints.values().flat_map(|record| [record.ingress, record.egress]).collect();
        if used.is_empty() || chance.one_in(2) {
            self.table += 1;
            let default_ports = self.pick_ports(chance);
            let default_rule = if default_ports == PORTS_ALL { self.table } else { 0 };
            return TableRef {
                table: self.table,
                default: RuleValue { rule: default_rule, ..RuleValue::set(default_ports) },
            };
        }
        *chance.of(&used)
    }

    fn pick_ports(&mut self, chance: &mut Chance) -> u32 {
        match chance.below(4) {
            0 => PORTS_NONE,
            1 => PORTS_ALL,
            _ => {
                self.ports += 1;
                PORTS_FIRST + self.ports
            }
        }
    }

    fn pick_class(&mut self, chance: &mut Chance, exact: bool) -> Option<u32> {
        match chance.below(8) {
            0..=2 => None,
            3 => Some(CLASS_NONE),
            4..=5 => {
                let used: Vec<u32> = classes(&self.tables).into_iter().collect();
                if used.is_empty() { None } else { Some(*chance.of(&used)) }
            }
            // Sometimes the class that the look-up finds anyway.
            6 if exact => self.tables.cidr_v4.values().next().copied(),
            _ => {
                self.class += 1;
                Some(self.class)
            }
        }
    }

    /// Rows between what is in use now and was not together before: as chance will have it. Others stay, or go with their use.
    fn fill_rules(&mut self, old: &Tables, chance: &mut Chance) {
        let (old_tables, old_classes) = (tables(old), classes(old));
        let (new_tables, new_classes) = (tables(&self.tables), classes(&self.tables));
        self.tables.rules.retain(|key, _| new_tables.contains(&key.table) && new_classes.contains(&key.class));
        for &table in &new_tables {
            for &class in &new_classes {
                let known = old_tables.contains(&table) && old_classes.contains(&class);
                if class != CLASS_NONE && !known && chance.one_in(2) {
                    let ports = self.pick_ports(chance);
                    let rule = if ports == PORTS_ALL { table * 1000 + class } else { 0 };
                    self.tables.rules.insert(RuleKey { table, class }, RuleValue { rule, ..RuleValue::set(ports) });
                }
            }
        }
    }

    fn fill_ports(&mut self, old: &Tables, chance: &mut Chance) {
        let known = port_sets(old);
        let wanted = port_sets(&self.tables);
        self.tables.ports.retain(|(key, _), _| wanted.contains(&u32::from_be(key.ports_be)));
        for &ports in wanted.difference(&known) {
            for _ in 0..chance.below(4) {
                let protocol = *chance.of(&[6, 17, 132]);
                let length = *chance.of(&[PORT_PREFIX_MIN, 60, 63, PORT_PREFIX_MAX]);
                let mask = u16::MAX.checked_shl(PORT_PREFIX_MAX - length).unwrap_or(0);
                let port = chance.of(&[80_u16, 81, 8443, 9]) & mask;
                let key = PortKey { ports_be: ports.to_be(), protocol, pad: 0, port_be: port.to_be() };
                self.tables.ports.insert((key, length), PortValue { rule: ports * 10 + length });
            }
        }
    }
}

fn set<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn classes(tables: &Tables) -> BTreeSet<u32> {
    let exact = tables.exact_v4.values().chain(tables.exact_v6.values());
    exact.chain(tables.cidr_v4.values()).chain(tables.cidr_v6.values()).copied().collect()
}

fn tables(tables: &Tables) -> BTreeSet<u32> {
    tables.endpoints.values().flat_map(|record| [record.ingress.table, record.egress.table]).collect()
}

fn port_sets(tables: &Tables) -> BTreeSet<u32> {
    let defaults = tables.endpoints.values().flat_map(|record| [record.ingress, record.egress]);
    let rows = tables.rules.values().map(|row| row.ports);
    rows.chain(defaults.map(|table| table.default.ports)).filter(|ports| *ports >= PORTS_FIRST).collect()
}
