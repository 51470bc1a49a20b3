//! ipBlocks and excepts that are one host: answered by the address itself, which spares the walk down the trie.
//!
//! An address has one class, whichever map says it: its pod's, which includes the blocks that cover it, or else that of the blocks alone.
//! Addresses of pods come first in CLASS_EXACT; prefixes of one host for which no room is left are in the trie, in the order of the addresses.

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::layout::Family;

use super::blocks::Blocks;
use super::desired::Desired;
use super::peers::Peers;
use super::prefix::Bits;

#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// The first prefix of one host of each family that is left to the trie.
    cuts: BTreeMap<Family, Bits>,
}

// === impl Hosts ===

impl Hosts {
    /// Writes what is said of the addresses that changed, by their pod or by prefixes of one host.
    pub(super) fn settle(
        &mut self,
        peers: &Peers,
        blocks: &Blocks,
        exact_max: usize,
        mut dirty: BTreeSet<Bits>,
        desired: &mut Desired,
    ) {
        if dirty.is_empty() {
            return;
        }
        for family in [Family::V4, Family::V6] {
            self.cut(family, exact_max - peers.placed_count(family, exact_max), blocks, &mut dirty);
        }
        for address in dirty {
            let fits = self.cuts.get(&address.family).is_none_or(|cut| address < *cut);
            let (exact, cidr) = match (peers.placed(address), blocks.host(address)) {
                (Some(class), _) => (Some(class), None),
                (None, Some(class)) if fits => (Some(class), None),
                (None, host) => (None, host),
            };
            desired.exact(address, exact);
            desired.cidr(address.host(), cidr);
        }
    }

    /// Finds the first prefix for which pods leave no room, and what changes its map by that. Those that have a pod's address are counted
    /// as well, so that the cut is found without asking for each.
    fn cut(&mut self, family: Family, room: usize, blocks: &Blocks, dirty: &mut BTreeSet<Bits>) {
        let over = blocks.host_count(family) > room;
        let all = || blocks.hosts(Bits::lowest(family), Bits::highest(family));
        let cut = over.then(|| all().nth(room)).flatten();
        let before = match cut {
            Some(cut) => self.cuts.insert(family, cut),
            None => self.cuts.remove(&family),
        };
        if cut != before {
            let [a, b] = [cut, before].map(|cut| cut.unwrap_or(Bits::highest(family)));
            dirty.extend(blocks.hosts(a.min(b), a.max(b)));
        }
    }
}
