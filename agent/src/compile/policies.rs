//! The policies that select a pod of this node, their rules by matcher, and the matchers and port names they ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Direction;
use super::numbers::{Numbers, next};
use crate::facts::{ObjectName, Peer, Peers, PolicyFacts, PortMatch, Ports, Protocol, Rule};
use crate::index::Index;
use crate::index::matchers::MatcherId;

/// A named port as a policy asks for it.
pub(super) type PortName = (Arc<str>, Protocol);

/// One direction of one policy, for as long as its rules stay the same.
#[derive(Debug)]
pub(super) struct Side {
    /// Identifies the content: other rules, other number.
    pub(super) id: u32,
    pub(super) policy: ObjectName,
    pub(super) direction: Direction,
    facts: Arc<PolicyFacts>,
    /// The kernel's numbers of the rules, by place.
    pub(super) rule_ids: Vec<u32>,
    /// Places of the rules for everybody.
    pub(super) everyone: Vec<u32>,
    /// Places of the rules that name the matcher.
    pub(super) by_matcher: HashMap<MatcherId, Vec<u32>>,
    pub(super) names: BTreeSet<PortName>,
}

/// Distinct peers, counted by the sides that name them.
#[derive(Debug, Default)]
pub(super) struct Registry {
    ids: HashMap<Peer, MatcherId>,
    peers: BTreeMap<MatcherId, (Peer, usize)>,
    highest: u32,
    appeared: BTreeSet<MatcherId>,
    /// Nobody may name them any longer.
    released: BTreeSet<MatcherId>,
}

#[derive(Debug, Default)]
pub(super) struct Policies {
    /// Sides of the policies that select somebody here, by [`Direction`].
    sides: BTreeMap<ObjectName, [Option<Arc<Side>>; 2]>,
    pub(super) registry: Registry,
    /// Names that egress rules ask for, counted by side.
    pub(super) names: BTreeMap<PortName, usize>,
    /// Of the names counted anew: whether anybody asked for them before.
    names_before: BTreeMap<PortName, bool>,
    highest_side: u32,
}

// === impl Side ===

impl Side {
    pub(super) fn rules(&self) -> &[Rule] {
        rules(&self.facts, self.direction).unwrap_or(&[])
    }
}

/// The rules of a direction, `None` where the policy does not isolate for it.
fn rules(facts: &PolicyFacts, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => facts.isolates_ingress.then_some(&facts.ingress),
        Direction::Egress => facts.isolates_egress.then_some(&facts.egress),
    }
}

// === impl Policies ===

impl Policies {
    pub(super) fn sides(&self) -> impl Iterator<Item = (&ObjectName, &[Option<Arc<Side>>; 2])> {
        self.sides.iter()
    }

    pub(super) fn side(&self, policy: &ObjectName, direction: Direction) -> Option<&Arc<Side>> {
        self.sides.get(policy)?[direction as usize].as_ref()
    }

    /// Brings a policy up to date: `selects` says whether it has a subject here. Returns whether a side is another.
    pub(super) fn refresh(&mut self, index: &Index, name: &ObjectName, selects: bool, numbers: &mut Numbers) -> bool {
        let facts = index.policy(name).filter(|_| selects);
        let before = self.sides.remove(name).unwrap_or_default();
        let mut after = [None, None];
        for direction in Direction::ALL {
            let old = before[direction as usize].as_ref();
            let rules = facts.and_then(|facts| Some((facts, rules(facts, direction)?)));
            after[direction as usize] = rules.map(|(facts, rules)| match old {
                Some(old) if old.rules() == rules => old.clone(),
                Some(_) | None => self.side_of(name, direction, facts, old, numbers),
            });
        }
        let mut changed = false;
        for (old, new) in before.iter().zip(&after) {
            let same = match (old, new) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            changed |= !same;
            // What the new one needs was acquired before; so nothing that both need goes away.
            if let Some(old) = old.as_ref().filter(|_| !same) {
                self.release(old);
            }
        }
        if after.iter().any(Option::is_some) {
            self.sides.insert(name.clone(), after);
        }
        changed
    }

    /// Names that somebody began or ceased to ask for, since the last call.
    pub(super) fn take_names(&mut self) -> BTreeSet<PortName> {
        let before = std::mem::take(&mut self.names_before);
        let changed = before.into_iter().filter(|(name, was)| *was != self.names.contains_key(name));
        changed.map(|(name, _)| name).collect()
    }

    fn side_of(
        &mut self,
        policy: &ObjectName,
        direction: Direction,
        facts: &Arc<PolicyFacts>,
        old: Option<&Arc<Side>>,
        numbers: &mut Numbers,
    ) -> Arc<Side> {
        let mut side = Side {
            id: next(&mut self.highest_side),
            policy: policy.clone(),
            direction,
            facts: facts.clone(),
            rule_ids: Vec::new(),
            everyone: Vec::new(),
            by_matcher: HashMap::new(),
            names: BTreeSet::new(),
        };
        let rules = rules(facts, direction).unwrap_or(&[]);
        for (place, rule) in rules.iter().enumerate() {
            // A rule that stays as and where it was keeps its number.
            let kept = old.filter(|old| old.rules().get(place) == Some(rule)).map(|old| old.rule_ids[place]);
            side.rule_ids.push(kept.unwrap_or_else(|| next(&mut numbers.rule)));
            let place = u32::try_from(place).expect("an object has fewer than 2^32 rules");
            match &rule.peers {
                Peers::All => side.everyone.push(place),
                Peers::These(peers) => {
                    for peer in peers {
                        let id = self.registry.id(peer);
                        let places = side.by_matcher.entry(id).or_default();
                        if places.last() != Some(&place) {
                            places.push(place);
                        }
                    }
                }
            }
            if let Ports::These(ports) = &rule.ports {
                side.names.extend(ports.iter().filter_map(|port| match port {
                    PortMatch::Named { protocol, name } => Some((name.clone(), *protocol)),
                    PortMatch::Range { .. } => None,
                }));
            }
        }
        for id in side.by_matcher.keys() {
            self.registry.acquire(*id);
        }
        if direction == Direction::Egress {
            for name in &side.names {
                self.names_before.entry(name.clone()).or_insert_with(|| self.names.contains_key(name));
                *self.names.entry(name.clone()).or_default() += 1;
            }
        }
        Arc::new(side)
    }

    fn release(&mut self, side: &Side) {
        for id in side.by_matcher.keys() {
            self.registry.release(*id);
        }
        if side.direction == Direction::Ingress {
            return;
        }
        for name in &side.names {
            self.names_before.entry(name.clone()).or_insert_with(|| self.names.contains_key(name));
            let count = self.names.get_mut(name).expect("a name is counted while a side asks for it");
            *count -= 1;
            if *count == 0 {
                self.names.remove(name);
            }
        }
    }
}

// === impl Registry ===

impl Registry {
    fn id(&mut self, peer: &Peer) -> MatcherId {
        if let Some(&id) = self.ids.get(peer) {
            return id;
        }
        let id = MatcherId(next(&mut self.highest));
        self.ids.insert(peer.clone(), id);
        self.peers.insert(id, (peer.clone(), 0));
        self.appeared.insert(id);
        id
    }

    fn acquire(&mut self, id: MatcherId) {
        self.peers.get_mut(&id).expect("a peer is known before it is acquired").1 += 1;
    }

    fn release(&mut self, id: MatcherId) {
        let (_, users) = self.peers.get_mut(&id).expect("a peer is known until nobody names it");
        *users -= 1;
        self.released.insert(id);
    }

    pub(super) fn peer(&self, id: MatcherId) -> Option<&Peer> {
        self.peers.get(&id).map(|(peer, _)| peer)
    }

    /// What appeared and what vanished since the last call.
    pub(super) fn take_changes(&mut self) -> (BTreeMap<MatcherId, Peer>, BTreeMap<MatcherId, Peer>) {
        let mut vanished = BTreeMap::new();
        while let Some(id) = self.released.pop_first() {
            if self.peers.get(&id).is_some_and(|(_, users)| *users == 0) {
                let (peer, _) = self.peers.remove(&id).expect("it was there just now");
                self.ids.remove(&peer);
                if !self.appeared.remove(&id) {
                    vanished.insert(id, peer);
                }
            }
        }
        let appeared = std::mem::take(&mut self.appeared);
        let peer = |id: MatcherId| (id, self.peers[&id].0.clone());
        (appeared.into_iter().map(peer).collect(), vanished)
    }
}
