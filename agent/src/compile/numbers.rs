//! Numbers that only grow: none is used again, so that no reader can take a new row for an old one.

use palisade_common::layout::{BACKENDS_FIRST, CLASS_ASK_CIDR, EndpointRecord, PORTS_FIRST, RuleValue};

use crate::tables::Tables;

/// The highest number of each kind that was given out so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub class: u32,
    pub table: u32,
    pub ports: u32,
    pub rule: u32,
    pub generation: u32,
    pub backends: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { class: 0, table: 0, ports: PORTS_FIRST - 1, rule: 0, generation: 0, backends: BACKENDS_FIRST - 1 }
    }
}

impl Numbers {
    /// The highest numbers that tables of an earlier agent hold.
    pub fn highest(tables: &Tables) -> Self {
        let Tables { endpoints, exact_v4, exact_v6, cidr_v4, cidr_v6, rules, ports, services: _, backends } = tables;
        let mut numbers = Self::default();
        numbers.backends = backends.keys().copied().fold(numbers.backends, u32::max);
        let classes = exact_v4.values().chain(exact_v6.values()).chain(cidr_v4.values()).chain(cidr_v6.values());
        for class in classes.filter(|&&class| class != CLASS_ASK_CIDR) {
            numbers.class = numbers.class.max(*class);
        }
        for (key, RuleValue { ports, rule, .. }) in rules {
            numbers.class = numbers.class.max(key.class);
            numbers.table = numbers.table.max(key.table);
            numbers.ports = numbers.ports.max(*ports);
            numbers.rule = numbers.rule.max(*rule);
        }
        for ((key, _), value) in ports {
            numbers.ports = numbers.ports.max(u32::from_be(key.ports_be));
            numbers.rule = numbers.rule.max(value.rule);
        }
        for EndpointRecord { generation, ingress, egress, .. } in endpoints.values() {
            numbers.generation = numbers.generation.max(*generation);
            for table in [ingress, egress] {
                numbers.table = numbers.table.max(table.table);
                numbers.ports = numbers.ports.max(table.default.ports);
                numbers.rule = numbers.rule.max(table.default.rule);
            }
        }
        numbers
    }

    pub(super) fn above(self, other: Self) -> Self {
        Self {
            class: self.class.max(other.class),
            table: self.table.max(other.table),
            ports: self.ports.max(other.ports),
            rule: self.rule.max(other.rule),
            generation: self.generation.max(other.generation),
            backends: self.backends.max(other.backends),
        }
    }
}

/// The next number of a kind.
pub(super) fn next(highest: &mut u32) -> u32 {
    *highest = highest.checked_add(1).expect("numbers last for 2^32 changes");
    *highest
}
