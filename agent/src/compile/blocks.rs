//! The prefixes of all ipBlocks, each with every block that covers it: the one longest match stands for the union.
//!
//! All cidrs *and excepts* are in the trie. The blocks said at a prefix are those whose cidr holds it and none of whose
//! excepts does; so an address has exactly the blocks of its longest match (SEMANTICS 6.3 to 6.5). A block that is
//! added or removed touches only prefixes inside its cidr. In which map a prefix of one host is written, `hosts` decides.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::iter;
use std::sync::Arc;

use palisade_common::layout::{CLASS_NONE, Family};

use super::classes::{Classes, Signature};
use super::desired::Desired;
use super::policies::Side;
use super::prefix::{Bits, Prefix};
use crate::facts::Block;
use crate::index::matchers::MatcherId;

#[derive(Debug)]
struct Node {
    /// Cidrs and excepts that are this prefix.
    users: usize,
    blocks: Arc<[MatcherId]>,
    class: u32,
}

#[derive(Debug, Default)]
pub(super) struct Blocks {
    wanted: BTreeMap<Block, MatcherId>,
    /// Those in the trie; the others did not fit and match nothing, whole with all their excepts.
    admitted: BTreeSet<MatcherId>,
    nodes: BTreeMap<Prefix, Node>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<(Family, u8), usize>,
    dirty: BTreeSet<Prefix>,
    /// Prefixes of one host that changed, appeared or went.
    dirty_hosts: BTreeSet<Bits>,
    /// Classes of prefixes that were removed.
    left: Vec<u32>,
    /// Where addresses may have other blocks than before.
    moved: Vec<Prefix>,
}

// === impl Blocks ===

impl Blocks {
    pub(super) fn want(&mut self, block: &Block, id: MatcherId) {
        self.wanted.insert(block.clone(), id);
    }

    pub(super) fn forget(&mut self, block: &Block, id: MatcherId) {
        self.wanted.remove(block);
        if self.admitted.remove(&id) {
            self.remove(block, id);
        }
    }

    /// Puts what is new into the trie, and takes out again what does not fit. Which blocks fit depends only on the blocks, not on their arrival.
    pub(super) fn admit(&mut self, new: &BTreeMap<Block, MatcherId>, prefixes_max: usize) {
        for (block, &id) in new {
            self.add(block, id);
        }
        let fits = |family: Family| self.prefix_count(family) <= prefixes_max;
        if self.refused_count() == 0 && fits(Family::V4) && fits(Family::V6) {
            return;
        }
        let chosen = self.choose(prefixes_max);
        let wanted: Vec<(Block, MatcherId)> = self.wanted.iter().map(|(block, &id)| (block.clone(), id)).collect();
        for (block, id) in wanted {
            match (self.admitted.contains(&id), chosen.contains(&id)) {
                (true, false) => {
                    self.admitted.remove(&id);
                    self.remove(&block, id);
                }
                (false, true) => self.add(&block, id),
                (true, true) | (false, false) => {}
            }
        }
    }

    pub(super) fn refused_count(&self) -> usize {
        self.wanted.len() - self.admitted.len()
    }

    /// The rules of a side that name a block which matches nothing for want of room.
    pub(super) fn refused_in(&self, side: &Side) -> BTreeSet<u32> {
        let refused = self.wanted.values().filter(|id| !self.admitted.contains(id));
        refused.filter_map(|id| side.by_matcher.get(id)).flatten().copied().collect()
    }

    /// The blocks that cover an address.
    pub(super) fn covering(&self, address: Bits) -> Arc<[MatcherId]> {
        self.longest(address, 128).map_or_else(Arc::default, |node| node.blocks.clone())
    }

    /// Finds the classes of all prefixes that changed, and writes them but for those of one host.
    pub(super) fn settle(&mut self, classes: &mut Classes, highest: &mut u32, desired: &mut Desired) {
        let none = Signature { selectors: Arc::default(), ports: Arc::default(), blocks: Arc::default() };
        while let Some(prefix) = self.dirty.pop_first() {
            let node = self.nodes.get_mut(&prefix);
            let class = node.map(|node| {
                let class = classes.acquire(Signature { blocks: node.blocks.clone(), ..none.clone() }, highest);
                classes.release(node.class);
                node.class = class;
                class
            });
            if prefix.is_host() {
                self.dirty_hosts.insert(prefix.first);
            } else {
                desired.cidr(prefix, class);
            }
        }
        self.left.drain(..).for_each(|class| classes.release(class));
    }

    /// The prefixes of one host that changed, appeared or went, by their addresses.
    pub(super) fn take_dirty_hosts(&mut self) -> BTreeSet<Bits> {
        std::mem::take(&mut self.dirty_hosts)
    }

    /// The class of the prefix that is this address alone, if there is one.
    pub(super) fn host(&self, address: Bits) -> Option<u32> {
        self.nodes.get(&address.host()).map(|node| node.class)
    }

    /// The prefixes of one host from `first` to `last`, of one family, by their addresses.
    pub(super) fn hosts(&self, first: Bits, last: Bits) -> impl Iterator<Item = Bits> {
        let nodes = self.nodes.range(first.host()..=last.host());
        nodes.map(|(prefix, _)| prefix).filter(|prefix| prefix.is_host()).map(|prefix| prefix.first)
    }

    /// How many prefixes of one host there are.
    pub(super) fn host_count(&self, family: Family) -> usize {
        self.lengths.get(&(family, Bits::lowest(family).host().len)).copied().unwrap_or_default()
    }

    /// The prefixes in which addresses may have other blocks than before.
    pub(super) fn take_moved(&mut self) -> Vec<Prefix> {
        std::mem::take(&mut self.moved)
    }

    fn prefix_count(&self, family: Family) -> usize {
        self.lengths.range((family, 0)..=(family, 128)).map(|(_, count)| count).sum()
    }

    /// The blocks that fit, in their own order.
    fn choose(&self, prefixes_max: usize) -> BTreeSet<MatcherId> {
        let mut taken: BTreeMap<Family, HashSet<Prefix>> = BTreeMap::new();
        let mut chosen = BTreeSet::new();
        for (block, &id) in &self.wanted {
            let prefixes: BTreeSet<Prefix> = prefixes(block).collect();
            let taken = taken.entry(Prefix::of(block.cidr).first.family).or_default();
            let more = prefixes.iter().filter(|prefix| !taken.contains(prefix)).count();
            if taken.len() + more <= prefixes_max {
                taken.extend(prefixes);
                chosen.insert(id);
            }
        }
        chosen
    }

    fn add(&mut self, block: &Block, id: MatcherId) {
        self.admitted.insert(id);
        for prefix in prefixes(block) {
            self.occupy(prefix);
        }
        // Of all lists at once: they have one order.
        self.cover(block, |blocks| blocks.push(id));
    }

    fn remove(&mut self, block: &Block, id: MatcherId) {
        self.cover(block, |blocks| blocks.retain(|&other| other != id));
        for prefix in prefixes(block) {
            self.vacate(prefix);
        }
    }

    fn occupy(&mut self, prefix: Prefix) {
        if let Some(node) = self.nodes.get_mut(&prefix) {
            node.users += 1;
            return;
        }
        // No cidr or except lies between the prefix and its longest match: the same blocks hold for both.
        let blocks = self.longest(prefix.first, prefix.len).map_or_else(Arc::default, |node| node.blocks.clone());
        self.nodes.insert(prefix, Node { users: 1, blocks, class: CLASS_NONE });
        *self.lengths.entry((prefix.first.family, prefix.len)).or_default() += 1;
        self.dirty.insert(prefix);
    }

    fn vacate(&mut self, prefix: Prefix) {
        let Some(node) = self.nodes.get_mut(&prefix) else { return };
        node.users -= 1;
        if node.users > 0 {
            return;
        }
        self.left.push(node.class);
        self.nodes.remove(&prefix);
        let length = (prefix.first.family, prefix.len);
        let count = self.lengths.get_mut(&length).expect("a prefix is counted while it is there");
        *count -= 1;
        if *count == 0 {
            self.lengths.remove(&length);
        }
        self.dirty.insert(prefix);
    }

    /// Changes the blocks of every prefix inside the block's cidr and outside its excepts.
    fn cover(&mut self, block: &Block, change: impl Fn(&mut Vec<MatcherId>)) {
        let cidr = Prefix::of(block.cidr);
        let mut excepts: Vec<Prefix> = block.except.iter().map(|net| Prefix::of(*net)).collect();
        excepts.sort_unstable();
        let mut excepts = excepts.into_iter().peekable();
        let mut excepted_to: Option<Bits> = None;
        // Neighbours often have the same blocks; they go on sharing them.
        let mut same: Option<[Arc<[MatcherId]>; 2]> = None;
        for (prefix, node) in self.nodes.range_mut(cidr..=cidr.end()) {
            // A prefix that starts inside an except which does not come after it lies inside that except.
            while let Some(except) = excepts.next_if(|except| except <= prefix) {
                excepted_to = excepted_to.max(Some(except.last()));
            }
            if excepted_to.is_some_and(|last| prefix.first <= last) {
                continue;
            }
            let blocks = match &same {
                Some([before, after]) if Arc::ptr_eq(before, &node.blocks) => after.clone(),
                Some(_) | None => {
                    let mut blocks = node.blocks.to_vec();
                    change(&mut blocks);
                    blocks.into()
                }
            };
            let before = std::mem::replace(&mut node.blocks, blocks.clone());
            same = Some([before, blocks]);
            self.dirty.insert(*prefix);
        }
        self.moved.push(cidr);
    }

    /// The longest prefix of at most `len` bits that holds the address.
    fn longest(&self, address: Bits, len: u8) -> Option<&Node> {
        let lengths = self.lengths.range((address.family, 0)..=(address.family, len)).rev();
        lengths.map(|((_, len), _)| address.prefix(*len)).find_map(|prefix| self.nodes.get(&prefix))
    }
}

fn prefixes(block: &Block) -> impl Iterator<Item = Prefix> {
    iter::once(block.cidr).chain(block.except.iter().copied()).map(Prefix::of)
}
