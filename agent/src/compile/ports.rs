//! Port sets: which rule admits which port, as disjoint intervals, and these as the prefixes of an LPM trie.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use palisade_common::layout::{PORT_PREFIX_MAX, PORTS_FIRST, PORTS_NONE, PortKey, PortValue};

use super::desired::Desired;
use super::numbers::next;
use crate::facts::Protocol;

/// Ports that a rule admits. The rule of the lowest `rank` gives its name where several do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) rank: u32,
    pub(super) rule: u32,
}

/// One piece of a port set: disjoint from the others, and from its neighbours of the same rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Interval {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) rule: u32,
}

#[derive(Debug)]
struct PortSet {
    intervals: Arc<[Interval]>,
    rows: usize,
    /// Rows and defaults with this set, whether their tables fit or not.
    users: usize,
    /// Of these, the ones in the desired tables.
    shown: usize,
}

/// All port sets, one for each content.
#[derive(Debug, Default)]
pub(super) struct PortSets {
    ids: HashMap<Arc<[Interval]>, u32>,
    sets: BTreeMap<u32, PortSet>,
    idle: BTreeSet<u32>,
    /// Prefixes of all sets together.
    rows: usize,
}

// === impl PortSets ===

impl PortSets {
    pub(super) fn acquire(&mut self, intervals: Vec<Interval>, highest: &mut u32) -> u32 {
        if intervals.is_empty() {
            return PORTS_NONE;
        }
        if let Some(&id) = self.ids.get(&intervals[..]) {
            let set = self.sets.get_mut(&id).expect("every id has its set");
            set.users += 1;
            return id;
        }
        let id = next(highest);
        let intervals: Arc<[Interval]> = intervals.into();
        let rows = intervals.iter().map(|interval| prefixes(interval.first, interval.last).count()).sum();
        self.rows += rows;
        self.ids.insert(intervals.clone(), id);
        self.sets.insert(id, PortSet { intervals, rows, users: 1, shown: 0 });
        id
    }

    pub(super) fn release(&mut self, id: u32) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users -= 1;
            if set.users == 0 {
                self.idle.insert(id);
            }
        }
    }

    /// A row or endpoint of the desired tables begins to refer to the set.
    pub(super) fn show(&mut self, id: u32, desired: &mut Desired) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        set.shown += 1;
        if set.shown == 1 {
            set.write(id, true, desired);
        }
    }

    pub(super) fn hide(&mut self, id: u32, desired: &mut Desired) {
        let Some(set) = self.sets.get_mut(&id) else { return };
        set.shown -= 1;
        if set.shown == 0 {
            set.write(id, false, desired);
        }
    }

    /// Forgets the sets that nobody uses.
    pub(super) fn sweep(&mut self) {
        while let Some(id) = self.idle.pop_first() {
            if self.sets.get(&id).is_some_and(|set| set.users == 0) {
                let set = self.sets.remove(&id).expect("it was there just now");
                self.ids.remove(&set.intervals);
                self.rows -= set.rows;
            }
        }
    }

    /// Prefixes of all sets that somebody uses.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn rows_of(&self, id: u32) -> usize {
        self.sets.get(&id).map_or(0, |set| set.rows)
    }
}

// === impl PortSet ===

impl PortSet {
    fn write(&self, id: u32, present: bool, desired: &mut Desired) {
        debug_assert!(id >= PORTS_FIRST, "sets are numbered from PORTS_FIRST");
        for interval in &*self.intervals {
            for (port, bits) in prefixes(interval.first, interval.last) {
                let protocol = interval.protocol.number();
                let key = PortKey { ports_be: id.to_be(), protocol, pad: 0, port_be: port.to_be() };
                desired.port((key, bits), present.then_some(PortValue { rule: interval.rule }));
            }
        }
    }
}

/// The union as disjoint intervals, neighbours of one rule merged.
pub(super) fn union(ranges: &[Range]) -> Vec<Interval> {
    let mut intervals = Vec::new();
    for protocol in Protocol::ALL {
        // Where a range begins (true) and where it no longer holds, in the order of ports.
        let mut edges: Vec<(u32, bool, u32, u32)> = Vec::new();
        for range in ranges.iter().filter(|range| range.protocol == protocol && range.first <= range.last) {
            edges.push((u32::from(range.first), true, range.rank, range.rule));
            edges.push((u32::from(range.last) + 1, false, range.rank, range.rule));
        }
        edges.sort_unstable();
        sweep(protocol, &edges, &mut intervals);
    }
    intervals
}

fn sweep(protocol: Protocol, edges: &[(u32, bool, u32, u32)], intervals: &mut Vec<Interval>) {
    let port = |number: u32| u16::try_from(number).expect("an interval ends before port 65536");
    let mut open: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let mut from = 0;
    for &(at, begins, rank, rule) in edges {
        if from < at
            && let Some((&(_, rule), _)) = open.first_key_value()
        {
            match intervals.last_mut() {
                Some(last) if last.protocol == protocol && last.rule == rule && u32::from(last.last) + 1 == from => {
                    last.last = port(at - 1);
                }
                Some(_) | None => intervals.push(Interval { protocol, first: port(from), last: port(at - 1), rule }),
            }
        }
        from = at;
        let count = open.entry((rank, rule)).or_default();
        if begins {
            *count += 1;
        } else {
            *count -= 1;
            if *count == 0 {
                open.remove(&(rank, rule));
            }
        }
    }
}

/// The fewest prefixes that are exactly these ports: first port and prefix length in bits of a [`PortKey`].
pub(super) fn prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    let mut from = u32::from(first);
    let last = u32::from(last);
    std::iter::from_fn(move || {
        if from > last {
            return None;
        }
        // As many ports as the alignment of the first and the distance to the last permit.
        let free_bits = from.trailing_zeros().min(16).min((last - from + 1).ilog2());
        let port = u16::try_from(from).expect("it is not above the last port");
        from += 1 << free_bits;
        Some((port, PORT_PREFIX_MAX - free_bits))
    })
}
