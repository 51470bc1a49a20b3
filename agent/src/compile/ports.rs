//! Port sets: which rule admits which port, as disjoint intervals, and these as the prefixes of an LPM trie.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use palisade_common::layout::{PORT_PREFIX_MAX, PORTS_FIRST, PORTS_NONE, PortKey, PortValue};

use super::desired::Desired;
use super::numbers::next;
use crate::facts::Protocol;

/// A rule of a table and its number. Where several admit a port, the first gives its name: those for everybody, then by
/// the policies' names and the place in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) named_peers: bool,
    pub(super) side: u32,
    pub(super) place: u32,
    pub(super) rule: u32,
}

/// Ports that a rule admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) rank: Rank,
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
    written: bool,
}

/// All port sets, one for each content.
#[derive(Debug, Default)]
pub(super) struct PortSets {
    ids: HashMap<Arc<[Interval]>, u32>,
    sets: BTreeMap<u32, PortSet>,
    /// Nobody may use them any longer.
    released: BTreeSet<u32>,
    /// Sets that were shown or hidden; often both, when a table gives way to another.
    touched: BTreeSet<u32>,
    /// Prefixes of all sets together.
    rows: usize,
}

// === impl PortSets ===

impl PortSets {
    pub(super) fn acquire(&mut self, ranges: &[Range], highest: &mut u32) -> u32 {
        let interval =
            |&Range { protocol, first, last, rank }: &Range| Interval { protocol, first, last, rule: rank.rule };
        let intervals: Vec<Interval> = ranges.iter().map(interval).collect();
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
        self.sets.insert(id, PortSet { intervals, rows, users: 1, shown: 0, written: false });
        id
    }

    pub(super) fn release(&mut self, id: u32) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users -= 1;
            self.released.insert(id);
        }
    }

    /// One more of the sets that tables already have.
    pub(super) fn retain(&mut self, id: u32) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users += 1;
        }
    }

    /// A row or endpoint of the desired tables begins to refer to the set.
    pub(super) fn show(&mut self, id: u32) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.shown += 1;
            self.touched.insert(id);
        }
    }

    pub(super) fn hide(&mut self, id: u32) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.shown -= 1;
            self.touched.insert(id);
        }
    }

    /// Writes the sets that the desired tables came to refer to, and takes away the others.
    pub(super) fn flush(&mut self, desired: &mut Desired) {
        while let Some(id) = self.touched.pop_first() {
            let set = self.sets.get_mut(&id).expect("a set that was touched is kept until it is written");
            let shown = set.shown > 0;
            if set.written != shown {
                set.written = shown;
                set.write(id, shown, desired);
            }
        }
    }

    /// Forgets the sets that nobody uses.
    pub(super) fn sweep(&mut self, desired: &mut Desired) {
        while let Some(id) = self.released.pop_first() {
            if self.sets.get(&id).is_some_and(|set| set.users == 0) {
                let set = self.sets.remove(&id).expect("it was there just now");
                if set.written {
                    set.write(id, false, desired);
                }
                self.touched.remove(&id);
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

/// The union as disjoint ranges, neighbours of one rule merged. A union of unions is the union of all.
pub(super) fn union(ranges: &[Range]) -> Vec<Range> {
    let mut disjoint = Vec::new();
    for protocol in Protocol::ALL {
        // Where a range begins (true) and where it no longer holds, in the order of ports.
        let mut edges: Vec<(u32, bool, Rank)> = Vec::new();
        for range in ranges.iter().filter(|range| range.protocol == protocol && range.first <= range.last) {
            edges.push((u32::from(range.first), true, range.rank));
            edges.push((u32::from(range.last) + 1, false, range.rank));
        }
        edges.sort_unstable();
        sweep(protocol, &edges, &mut disjoint);
    }
    disjoint
}

fn sweep(protocol: Protocol, edges: &[(u32, bool, Rank)], disjoint: &mut Vec<Range>) {
    let port = |number: u32| u16::try_from(number).expect("a range ends before port 65536");
    let mut open: BTreeMap<Rank, usize> = BTreeMap::new();
    let mut from = 0;
    for &(at, begins, rank) in edges {
        if from < at
            && let Some((&rank, _)) = open.first_key_value()
        {
            match disjoint.last_mut() {
                Some(last) if last.protocol == protocol && last.rank == rank && u32::from(last.last) + 1 == from => {
                    last.last = port(at - 1);
                }
                Some(_) | None => disjoint.push(Range { protocol, first: port(from), last: port(at - 1), rank }),
            }
        }
        from = at;
        let count = open.entry(rank).or_default();
        if begins {
            *count += 1;
        } else {
            *count -= 1;
            if *count == 0 {
                open.remove(&rank);
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
