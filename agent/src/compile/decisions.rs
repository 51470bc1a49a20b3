//! Decision tables: for one direction of a set of policies, what each class may use.
//!
//! A table's content never changes, as the sides and the classes that it is made of never do. A row is there only where
//! a class differs from everybody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use palisade_common::layout::{PORTS_ALL, RuleKey, RuleValue, TableRef};

use super::Direction;
use super::classes::Classes;
use super::desired::Desired;
use super::limits::Limits;
use super::numbers::{Numbers, next};
use super::policies::Side;
use super::ports::PortSets;
use super::table::{Relevant, Table, TableKey};
use crate::facts::NamedPort;
use crate::index::matchers::MatcherId;

#[derive(Debug, Default)]
pub(super) struct Decisions {
    ids: HashMap<TableKey, u32>,
    tables: BTreeMap<u32, Table>,
    by_matcher: HashMap<MatcherId, BTreeSet<u32>>,
    /// Egress tables in which a rule for everybody has named ports: each pod with such a name has a row.
    named_everyone: BTreeSet<u32>,
    by_class: HashMap<u32, BTreeSet<u32>>,
    born: BTreeSet<u32>,
    /// No endpoint may use them any longer.
    released: BTreeSet<u32>,
    row_count: usize,
    pub(super) sets: PortSets,
}

/// What a table's rows are made with.
pub(super) struct Means<'a> {
    pub(super) classes: &'a Classes,
    pub(super) numbers: &'a mut Numbers,
    pub(super) desired: &'a mut Desired,
}

// === impl Decisions ===

impl Decisions {
    pub(super) fn get(&self, id: u32) -> Option<&Table> {
        self.tables.get(&id)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = (u32, &Table)> {
        self.tables.iter().map(|(&id, table)| (id, table))
    }

    /// The port sets that tables allow everybody.
    pub(super) fn defaults(&self) -> impl Iterator<Item = u32> {
        self.tables.values().filter(|table| table.fits).map(|table| table.default.ports)
    }

    pub(super) fn acquire(
        &mut self,
        direction: Direction,
        sides: Vec<Arc<Side>>,
        ports: Arc<[NamedPort]>,
        numbers: &mut Numbers,
    ) -> u32 {
        let key = TableKey::of(direction, &sides, &ports);
        if let Some(&id) = self.ids.get(&key) {
            self.tables.get_mut(&id).expect("every id has its table").users += 1;
            return id;
        }
        let id = next(&mut numbers.table);
        let table = Table::new(direction, sides, ports, &mut self.sets, numbers);
        for matcher in table.matchers() {
            self.by_matcher.entry(matcher).or_default().insert(id);
        }
        if table.names_everyone() {
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
        self.released.insert(id);
    }

    /// What an endpoint refers to; `None`: there is no room for the table.
    pub(super) fn reference(&self, id: u32) -> Option<TableRef> {
        let table = self.tables.get(&id).filter(|table| table.fits)?;
        Some(TableRef { table: id, default: table.default })
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
        let mut table = None;
        let mut known = HashMap::new();
        for (id, class) in fresh {
            if table.replace(id) != Some(id) {
                known.clear();
            }
            self.add_row(id, class, &mut known, means);
        }
        let flipped = self.fit(limits, means.desired);
        self.sets.flush(means.desired);
        flipped
    }

    /// The classes that may have a row in the table.
    fn classes_of(&self, id: u32, classes: &Classes) -> BTreeSet<u32> {
        let table = &self.tables[&id];
        let mut found: BTreeSet<u32> = table.matchers().flat_map(|matcher| classes.with_matcher(matcher)).collect();
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

    /// `known`: what is already known of the table's relevant parts of classes; many differ only in others.
    fn add_row(&mut self, id: u32, class: u32, known: &mut HashMap<Relevant, RuleValue>, means: &mut Means<'_>) {
        let (Some(table), Some(signature)) = (self.tables.get_mut(&id), means.classes.signature(class)) else { return };
        if table.default.ports == PORTS_ALL {
            return;
        }
        let relevant = table.relevant(signature);
        let value = match known.get(&relevant) {
            Some(value) => {
                self.sets.retain(value.ports);
                *value
            }
            None => table.allowed(&relevant, &mut self.sets, means.numbers),
        };
        known.insert(relevant, value);
        if value == table.default {
            self.sets.release(value.ports);
            return;
        }
        table.rows.insert(class, value);
        self.row_count += 1;
        self.by_class.entry(class).or_default().insert(id);
        if table.fits {
            means.desired.rule(RuleKey { table: id, class }, Some(value));
            self.sets.show(value.ports);
        }
    }

    fn remove_row(&mut self, id: u32, class: u32, desired: &mut Desired) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let Some(value) = table.rows.remove(&class) else { return };
        self.row_count -= 1;
        if table.fits {
            desired.rule(RuleKey { table: id, class }, None);
            self.sets.hide(value.ports);
        }
        self.sets.release(value.ports);
    }

    /// Forgets the tables that no endpoint uses.
    fn sweep(&mut self, desired: &mut Desired) {
        while let Some(id) = self.released.pop_first() {
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
            for matcher in table.matchers() {
                if let Some(tables) = self.by_matcher.get_mut(&matcher) {
                    tables.remove(&id);
                    if tables.is_empty() {
                        self.by_matcher.remove(&matcher);
                    }
                }
            }
            self.ids.remove(&TableKey::of(table.direction, &table.sides, &table.ports));
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
                self.sets.show(value.ports);
            } else {
                self.sets.hide(value.ports);
            }
        }
    }

    /// Decides which tables there is room for. Where not for all, the first in the order of their policies' names.
    fn fit(&mut self, limits: &Limits, desired: &mut Desired) -> BTreeSet<u32> {
        // Sets that ended with this change still count where they are remembered: forget them first.
        self.sets.sweep(desired);
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
