//! One decision table: the rules of some policies in one direction, by matcher, and what each class may use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use palisade_common::layout::{PORTS_NONE, RuleValue};

use super::Direction;
use super::classes::Signature;
use super::numbers::Numbers;
use super::policies::{PortName, Side};
use super::ports::{PortSets, Range, Rank, union};
use crate::facts::{NamedPort, ObjectName, PortMatch, Ports};
use crate::index::matchers::MatcherId;

/// Pods for which this is equal share a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableKey {
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
    everyone: Grant,
    by_matcher: HashMap<MatcherId, Grant>,
    /// What every peer may use.
    pub(super) default: RuleValue,
    pub(super) rows: BTreeMap<u32, RuleValue>,
    pub(super) users: usize,
    /// It is in the desired tables; false: there is no room for it, or not asked yet.
    pub(super) fits: bool,
}

/// What rules give together.
#[derive(Debug, Default)]
struct Grant {
    /// The first that gives everything.
    all: Option<Rank>,
    /// Disjoint.
    ranges: Vec<Range>,
    /// Egress: names that each destination resolves.
    names: BTreeMap<PortName, Rank>,
}

/// What of a class matters to a table: its matchers and named ports that the table's rules name.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Relevant {
    matchers: Vec<MatcherId>,
    ports: Vec<NamedPort>,
}

// === impl TableKey ===

impl TableKey {
    pub(super) fn of(direction: Direction, sides: &[Arc<Side>], ports: &Arc<[NamedPort]>) -> Self {
        Self { direction, sides: sides.iter().map(|side| side.id).collect(), ports: ports.clone() }
    }
}

// === impl Table ===

impl Table {
    pub(super) fn new(
        direction: Direction,
        sides: Vec<Arc<Side>>,
        ports: Arc<[NamedPort]>,
        sets: &mut PortSets,
        numbers: &mut Numbers,
    ) -> Self {
        let mut everyone = Grant::default();
        let mut by_matcher: HashMap<MatcherId, Grant> = HashMap::new();
        for (place, side) in (0..).zip(&sides) {
            for &rule in &side.everyone {
                everyone.add(side, &ports, side.rank(place, rule, false));
            }
            for (matcher, rules) in &side.by_matcher {
                let grant = by_matcher.entry(*matcher).or_default();
                for &rule in rules {
                    grant.add(side, &ports, side.rank(place, rule, true));
                }
            }
        }
        for grant in by_matcher.values_mut().chain([&mut everyone]) {
            grant.ranges = union(&grant.ranges);
        }
        let default = RuleValue::set(PORTS_NONE);
        let rows = BTreeMap::new();
        let mut table = Self { direction, sides, ports, everyone, by_matcher, default, rows, users: 1, fits: false };
        table.default = table.allowed(&Relevant::default(), sets, numbers);
        table
    }

    /// Total and independent of numbers: at one time there is one content behind a name.
    pub(super) fn order(&self) -> (Direction, Vec<&ObjectName>, &[NamedPort]) {
        (self.direction, self.sides.iter().map(|side| &side.policy).collect(), &self.ports)
    }

    pub(super) fn matchers(&self) -> impl Iterator<Item = MatcherId> {
        self.by_matcher.keys().copied()
    }

    /// A rule for everybody has named ports: each pod with such a name has a row.
    pub(super) fn names_everyone(&self) -> bool {
        !self.everyone.names.is_empty()
    }

    pub(super) fn relevant(&self, class: &Signature) -> Relevant {
        let matchers: Vec<MatcherId> = class.matchers().filter(|id| self.by_matcher.contains_key(id)).collect();
        let grants = || matchers.iter().map(|id| &self.by_matcher[id]).chain([&self.everyone]);
        let named = |port: &&NamedPort| {
            let name = (port.name.clone(), port.protocol);
            grants().any(|grant| grant.names.contains_key(&name))
        };
        let ports = class.ports.iter().filter(named).cloned().collect();
        Relevant { matchers, ports }
    }

    /// What a class may use of which nothing else matters.
    pub(super) fn allowed(&self, class: &Relevant, sets: &mut PortSets, numbers: &mut Numbers) -> RuleValue {
        let grants = || class.matchers.iter().map(|id| &self.by_matcher[id]).chain([&self.everyone]);
        if let Some(all) = grants().filter_map(|grant| grant.all).min() {
            return RuleValue::all(all.rule);
        }
        let mut ranges: Vec<Range> = grants().flat_map(|grant| grant.ranges.iter().copied()).collect();
        for own in &class.ports {
            let name = (own.name.clone(), own.protocol);
            let ranks = grants().filter_map(|grant| grant.names.get(&name));
            ranges.extend(ranks.map(|&rank| Range { protocol: own.protocol, first: own.port, last: own.port, rank }));
        }
        let ranges = union(&ranges);
        let ports = sets.acquire(&ranges, &mut numbers.ports);
        match ranges[..] {
            [Range { protocol, first, last, rank }] => {
                RuleValue { ports, rule: rank.rule, first, last, protocol: protocol.number(), pad: [0; 3] }
            }
            _ => RuleValue::set(ports),
        }
    }
}

// === impl Grant ===

impl Grant {
    fn add(&mut self, side: &Side, ports: &[NamedPort], rank: Rank) {
        let matches = match &side.rules()[rank.place as usize].ports {
            Ports::All => {
                self.all = Some(self.all.map_or(rank, |all| all.min(rank)));
                return;
            }
            Ports::These(matches) => matches,
        };
        for port in matches {
            match (port, side.direction) {
                (&PortMatch::Range { protocol, first, last }, _) => {
                    self.ranges.push(Range { protocol, first, last, rank });
                }
                (PortMatch::Named { protocol, name }, Direction::Ingress) => {
                    let own = ports.iter().filter(|port| port.name == *name && port.protocol == *protocol);
                    let range = |own: &NamedPort| Range { protocol: *protocol, first: own.port, last: own.port, rank };
                    self.ranges.extend(own.map(range));
                }
                (PortMatch::Named { protocol, name }, Direction::Egress) => {
                    let first = self.names.entry((name.clone(), *protocol)).or_insert(rank);
                    *first = rank.min(*first);
                }
            }
        }
    }
}

// === impl Side ===

impl Side {
    fn rank(&self, side: u32, place: u32, named_peers: bool) -> Rank {
        Rank { named_peers, side, place, rule: self.rule_ids[place as usize] }
    }
}
