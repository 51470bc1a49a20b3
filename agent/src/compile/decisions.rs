//! Decision tables: for one direction of a set of policies, what each class may use.
//!
//! A table's content never changes, as the sides and the classes that it is made of never do. A row is there only where a
//! class differs from everybody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use palisade_common::layout::{PORTS_ALL, PORTS_NONE, RuleKey, RuleValue, TableRef};

use super::Direction;
use super::classes::{Classes, Signature};
use super::desired::Desired;
use super::limits::Limits;
use super::numbers::{Numbers, next};
use super::policies::{Side, names};
use super::ports::{PortSets, Range, union};
use crate::facts::{NamedPort, ObjectName, PortMatch, Ports};
use crate::index::matchers::MatcherId;

/// Pods for which this is equal share a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TableKey {
    direction: Direction,
    /// Numbers of the sides.
    sides: Vec<u32>,
    /// Ingress: how the subject itself resolves the named ports (SEMANTICS 7.6).
    ports: Arc<[NamedPort]>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) direction: Direction,
    /// In the order of the policies' names.
    pub(super) sides: Vec<Arc<Side>>,
    pub(super) ports: Arc<[NamedPort]>,
    /// What every peer may use.
    default: RuleValue,
    pub(super) rows: BTreeMap<u32, RuleValue>,
    users: usize,
    /// It is in the desired tables; false: there is no room for it, or not asked yet.
    fits: bool,
}

#[derive(Debug, Default)]
pub(super) struct Decisions {
    ids: HashMap<TableKey, u32>,
    tables: BTreeMap<u32, Table>,
    by_matcher: HashMap<MatcherId, BTreeSet<u32>>,
    /// Egress tables in which a rule for everybody has named ports: each pod with such a name has a row.
    named_everyone: BTreeSet<u32>,
    by_class: HashMap<u32, BTreeSet<u32>>,
    born: BTreeSet<u32>,
    idle: BTreeSet<u32>,
    row_count: usize,
    pub(super) sets: PortSets,
}

/// What a table's rows are made with.
pub(super) struct Means<'a> {
    pub(super) classes: &'a Classes,
    pub(super) numbers: &'a mut Numbers,
    pub(super) desired: &'a mut Desired,
}

// === impl Table ===

impl Table {
    fn key(&self) -> TableKey {
        let sides = self.sides.iter().map(|side| side.id).collect();
        TableKey { direction: self.direction, sides, ports: self.ports.clone() }
    }

    /// Total and independent of numbers: at one time there is one content behind a name.
    fn order(&self) -> (Direction, Vec<&ObjectName>, &[NamedPort]) {
        (self.direction, self.sides.iter().map(|side| &side.policy).collect(), &self.ports)
    }

    /// What a class may use; `None`: somebody of whom nothing is known.
    fn allowed(&self, class: Option<&Signature>, sets: &mut PortSets, numbers: &mut Numbers) -> RuleValue {
        // The rules that match: first those for everybody, so that their names are given before others'.
        let mut matched: Vec<(bool, usize, u32)> = Vec::new();
        for (side, Side { everyone, by_matcher, .. }) in self.sides.iter().map(|side| &**side).enumerate() {
            matched.extend(everyone.iter().map(|&place| (false, side, place)));
            for matcher in class.iter().flat_map(|class| class.matchers()) {
                let places = by_matcher.get(&matcher).into_iter().flatten();
                matched.extend(places.map(|&place| (true, side, place)));
            }
        }
        matched.sort_unstable();
        matched.dedup();
        let resolved: &[NamedPort] = match (self.direction, class) {
            (Direction::Ingress, _) => &self.ports,
            (Direction::Egress, Some(class)) => &class.ports,
            (Direction::Egress, None) => &[],
        };
        let mut ranges = Vec::new();
        for (rank, (_, side, place)) in (0..).zip(matched) {
            let side = &self.sides[side];
            let rule = side.rule_ids[place as usize];
            match &side.rules()[place as usize].ports {
                Ports::All => return RuleValue { ports: PORTS_ALL, rule },
                Ports::These(ports) => {
                    for port in ports {
                        extend(&mut ranges, port, resolved, rank, rule);
                    }
                }
            }
        }
        RuleValue { ports: sets.acquire(union(&ranges), &mut numbers.ports), rule: 0 }
    }
}

/// Adds what a port entry means at a pod with these named ports.
fn extend(ranges: &mut Vec<Range>, port: &PortMatch, resolved: &[NamedPort], rank: u32, rule: u32) {
    match port {
        &PortMatch::Range { protocol, first, last } => ranges.push(Range { protocol, first, last, rank, rule }),
        PortMatch::Named { protocol, name } => {
            let own = resolved.iter().filter(|port| port.name == *name && port.protocol == *protocol);
            ranges.extend(own.map(|own| Range { protocol: *protocol, first: own.port, last: own.port, rank, rule }));
        }
    }
}

// === impl Decisions ===

impl Decisions {
    pub(super) fn get(&self, id: u32) -> Option<&Table> {
        self.tables.get(&id)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (u32, &Table)> {
        self.tables.iter().map(|(&id, table)| (id, table))
    }

    pub(super) fn acquire(
        &mut self,
        direction: Direction,
        sides: Vec<Arc<Side>>,
        ports: Arc<[NamedPort]>,
        numbers: &mut Numbers,
    ) -> u32 {
        let none = RuleValue { ports: PORTS_NONE, rule: 0 };
        let rows = BTreeMap::new();
        let mut table = Table { direction, sides, ports, default: none, rows, users: 1, fits: false };
        let key = table.key();
        if let Some(&id) = self.ids.get(&key) {
            self.tables.get_mut(&id).expect("every id has its table").users += 1;
            return id;
        }
        let id = next(&mut numbers.table);
        table.default = table.allowed(None, &mut self.sets, numbers);
        for matcher in table.sides.iter().flat_map(|side| side.by_matcher.keys()) {
            self.by_matcher.entry(*matcher).or_default().insert(id);
        }
        let named = |side: &Side| side.everyone.iter().any(|&rule| names(&side.rules()[rule as usize].ports).count() > 0);
        if direction == Direction::Egress && table.sides.iter().any(|side| named(side)) {
            self.named_everyone.insert(id);
        }
        self.ids.insert(key, id);
        self.tables.insert(id, table);
        self.born.insert(id);
        id
    }

    pub(super) fn release(&mut self, id: u32) {
        let table = self.tables.get_mut(&id).expect("a table is there until its last user releases it");
        table.users -= 1;
        if table.users == 0 {
            self.idle.insert(id);
        }
    }

    /// What an endpoint refers to; `None`: there is no room for the table.
    pub(super) fn reference(&self, id: u32) -> Option<TableRef> {
        let table = self.tables.get(&id).filter(|table| table.fits)?;
        Some(TableRef { table: id, default_ports: table.default.ports, default_rule: table.default.rule })
    }

    /// Brings all rows up to date. Returns the tables for which room was found or lost.
    pub(super) fn settle(
        &mut self,
        dead: &[u32],
        born: &BTreeSet<u32>,
        limits: &Limits,
        means: &mut Means<'_>,
    ) -> BTreeSet<u32> {
        self.sweep(means.desired);
        for class in dead {
            for table in self.by_class.remove(class).unwrap_or_default() {
                self.remove_row(table, *class, means.desired);
            }
        }
        let mut fresh: BTreeSet<(u32, u32)> = BTreeSet::new();
        let new_tables = std::mem::take(&mut self.born);
        for &id in &new_tables {
            fresh.extend(self.classes_of(id, means.classes).into_iter().map(|class| (id, class)));
        }
        for &class in born {
            let tables = self.tables_of(class, means.classes);
            fresh.extend(tables.into_iter().filter(|id| !new_tables.contains(id)).map(|id| (id, class)));
        }
        for (id, class) in fresh {
            self.add_row(id, class, means);
        }
        let flipped = self.fit(limits, means.desired);
        self.sets.sweep();
        flipped
    }

    /// The classes that may have a row in the table.
    fn classes_of(&self, id: u32, classes: &Classes) -> BTreeSet<u32> {
        let table = &self.tables[&id];
        let matchers = table.sides.iter().flat_map(|side| side.by_matcher.keys());
        let mut found: BTreeSet<u32> = matchers.flat_map(|matcher| classes.with_matcher(*matcher)).collect();
        if self.named_everyone.contains(&id) {
            found.extend(classes.with_ports());
        }
        found
    }

    fn tables_of(&self, class: u32, classes: &Classes) -> BTreeSet<u32> {
        let Some(signature) = classes.signature(class) else { return BTreeSet::new() };
        let tables = signature.matchers().filter_map(|matcher| self.by_matcher.get(&matcher));
        let mut found: BTreeSet<u32> = tables.flatten().copied().collect();
        if !signature.ports.is_empty() {
            found.extend(&self.named_everyone);
        }
        found
    }

    fn add_row(&mut self, id: u32, class: u32, means: &mut Means<'_>) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        if table.default.ports == PORTS_ALL {
            return;
        }
        let value = table.allowed(means.classes.signature(class), &mut self.sets, means.numbers);
        if value == table.default {
            self.sets.release(value.ports);
            return;
        }
        table.rows.insert(class, value);
        self.row_count += 1;
        self.by_class.entry(class).or_default().insert(id);
        if table.fits {
            means.desired.rule(RuleKey { table: id, class }, Some(value));
            self.sets.show(value.ports, means.desired);
        }
    }

    fn remove_row(&mut self, id: u32, class: u32, desired: &mut Desired) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let Some(value) = table.rows.remove(&class) else { return };
        self.row_count -= 1;
        if table.fits {
            desired.rule(RuleKey { table: id, class }, None);
            self.sets.hide(value.ports, desired);
        }
        self.sets.release(value.ports);
    }

    /// Forgets the tables that no endpoint uses.
    fn sweep(&mut self, desired: &mut Desired) {
        while let Some(id) = self.idle.pop_first() {
            if self.tables.get(&id).is_none_or(|table| table.users > 0) {
                continue;
            }
            self.show(id, false, desired);
            let table = self.tables.remove(&id).expect("it was there just now");
            for (class, value) in &table.rows {
                self.row_count -= 1;
                self.sets.release(value.ports);
                if let Some(tables) = self.by_class.get_mut(class) {
                    tables.remove(&id);
                    if tables.is_empty() {
                        self.by_class.remove(class);
                    }
                }
            }
            self.sets.release(table.default.ports);
            for matcher in table.sides.iter().flat_map(|side| side.by_matcher.keys()) {
                if let Some(tables) = self.by_matcher.get_mut(matcher) {
                    tables.remove(&id);
                    if tables.is_empty() {
                        self.by_matcher.remove(matcher);
                    }
                }
            }
            self.ids.remove(&table.key());
            self.named_everyone.remove(&id);
            self.born.remove(&id);
        }
    }

    /// Writes a table with all its rows, or takes it away.
    fn show(&mut self, id: u32, fits: bool, desired: &mut Desired) {
        let Some(table) = self.tables.get_mut(&id).filter(|table| table.fits != fits) else { return };
        table.fits = fits;
        let rows = table.rows.iter().map(|(&class, &value)| (Some(class), value));
        for (class, value) in rows.chain([(None, table.default)]) {
            if let Some(class) = class {
                desired.rule(RuleKey { table: id, class }, fits.then_some(value));
            }
            if fits {
                self.sets.show(value.ports, desired);
            } else {
                self.sets.hide(value.ports, desired);
            }
        }
    }

    /// Decides which tables there is room for. Where not for all, the first in the order of their policies' names.
    fn fit(&mut self, limits: &Limits, desired: &mut Desired) -> BTreeSet<u32> {
        // Sets that ended with this change still count where they are remembered: forget them first.
        self.sets.sweep();
        let all = self.row_count <= limits.rules_max && self.sets.rows() <= limits.ports_max;
        let chosen = if all { self.tables.keys().copied().collect() } else { self.choose(limits) };
        let flips = |(&id, table): (&u32, &Table)| (table.fits != chosen.contains(&id)).then_some(id);
        let flipped: BTreeSet<u32> = self.tables.iter().filter_map(flips).collect();
        for &id in &flipped {
            self.show(id, chosen.contains(&id), desired);
        }
        flipped
    }

    fn choose(&self, limits: &Limits) -> BTreeSet<u32> {
        let mut order: Vec<(&u32, &Table)> = self.tables.iter().collect();
        order.sort_by(|(_, a), (_, b)| a.order().cmp(&b.order()));
        let (mut rules, mut ports) = (0, 0);
        let mut counted: BTreeSet<u32> = BTreeSet::new();
        let mut chosen = BTreeSet::new();
        for (&id, table) in order {
            let sets: BTreeSet<u32> = table.rows.values().chain([&table.default]).map(|value| value.ports).collect();
            let more: usize = sets.difference(&counted).map(|&set| self.sets.rows_of(set)).sum();
            if rules + table.rows.len() <= limits.rules_max && ports + more <= limits.ports_max {
                rules += table.rows.len();
                ports += more;
                counted.extend(sets);
                chosen.insert(id);
            }
        }
        chosen
    }
}
