//! Numbers to mark packets with: which of the node's pods opened a flow.

use std::collections::{BTreeMap, BTreeSet};

/// Who has which stamp. There may be more pods than stamps.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    /// By interface.
    given: BTreeMap<u32, u32>,
    used: BTreeSet<u32>,
    /// Of an earlier agent's records, by interface: the last to be given to others.
    reserved: BTreeMap<u32, u32>,
    /// Given back in this update: while the change is being written two endpoints would have it.
    resting: BTreeSet<u32>,
    /// The last update's change is not in force: whoever gave one back has it still.
    held: bool,
    /// Interfaces for which none was left.
    wanting: BTreeSet<u32>,
    last: u32,
}

// === impl Stamps ===

impl Stamps {
    pub(super) fn adopt(&mut self, ifindex: u32, stamp: u32) {
        if stamp != 0 {
            self.reserved.insert(ifindex, stamp);
            self.last = self.last.max(stamp);
        }
    }

    /// A new update begins. Returns the interfaces that wanted a stamp and may get one now.
    pub(super) fn begin(&mut self) -> BTreeSet<u32> {
        if std::mem::take(&mut self.held) || self.resting.is_empty() {
            return BTreeSet::new();
        }
        self.resting.clear();
        self.wanting.clone()
    }

    /// The change could not be written: what was given back rests for another update.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// The stamp that the endpoint keeps while it wants one: that of its earlier record, or the next that is free. They are given out in
    /// turn, so that one is used again as late as can be: packets that bear it may still be under way.
    pub(super) fn give(&mut self, ifindex: u32, stamps_max: u32) -> Option<u32> {
        if let Some(stamp) = self.given.get(&ifindex) {
            return Some(*stamp);
        }
        let free = |stamp: &u32| !self.used.contains(stamp) && !self.resting.contains(stamp);
        let own = self.reserved.get(&ifindex).copied().filter(|stamp| *stamp <= stamps_max && free(stamp));
        let others: BTreeSet<u32> = self.reserved.values().copied().collect();
        let in_turn = || (self.last + 1..=stamps_max).chain(1..=self.last.min(stamps_max)).filter(free);
        let stamp = own.or_else(|| in_turn().find(|stamp| !others.contains(stamp))).or_else(|| in_turn().next());
        let Some(stamp) = stamp else {
            self.wanting.insert(ifindex);
            return None;
        };
        self.last = stamp;
        self.used.insert(stamp);
        self.given.insert(ifindex, stamp);
        self.reserved.remove(&ifindex);
        self.wanting.remove(&ifindex);
        Some(stamp)
    }

    pub(super) fn give_back(&mut self, ifindex: u32) {
        self.wanting.remove(&ifindex);
        // Another interface may get the index; the earlier record is not its.
        self.reserved.remove(&ifindex);
        if let Some(stamp) = self.given.remove(&ifindex) {
            self.used.remove(&stamp);
            self.resting.insert(stamp);
        }
    }

    /// Interfaces for which none is left.
    pub(super) fn wanting(&self) -> &BTreeSet<u32> {
        &self.wanting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_kept_and_used_again_as_late_as_can_be() {
        let mut stamps = Stamps::default();
        assert_eq!([stamps.give(10, 3), stamps.give(11, 3), stamps.give(10, 3)], [Some(1), Some(2), Some(1)]);
        stamps.give_back(10);
        stamps.begin();
        assert_eq!([stamps.give(12, 3), stamps.give(13, 3)], [Some(3), Some(1)]);
    }

    /// Two endpoints never have one stamp at one epoch, and whoever had to wait is told of.
    #[test]
    fn one_that_is_given_back_rests_for_the_update() {
        let mut stamps = Stamps::default();
        stamps.give(10, 1);
        stamps.give_back(10);
        assert_eq!(stamps.give(11, 1), None);
        assert_eq!(stamps.wanting(), &BTreeSet::from([11]));
        assert_eq!(stamps.begin(), BTreeSet::from([11]));
        assert_eq!((stamps.give(11, 1), stamps.wanting().len()), (Some(1), 0));
        assert_eq!(stamps.begin(), BTreeSet::new());
    }

    /// Where a change fails, the endpoint in force has the stamp still.
    #[test]
    fn one_that_is_given_back_rests_until_that_holds() {
        let mut stamps = Stamps::default();
        stamps.give(10, 1);
        stamps.give_back(10);
        for _ in 0..3 {
            stamps.hold();
            assert_eq!((stamps.begin(), stamps.give(11, 1)), (BTreeSet::new(), None));
        }
        assert_eq!((stamps.begin(), stamps.give(11, 1)), (BTreeSet::from([11]), Some(1)));
    }

    #[test]
    fn what_an_earlier_agent_gave_is_kept() {
        let mut stamps = Stamps::default();
        stamps.adopt(10, 1);
        stamps.adopt(11, 9);
        assert_eq!([stamps.give(20, 3), stamps.give(10, 3), stamps.give(11, 3)], [Some(2), Some(1), Some(3)]);
        // The turn goes on where it may have been: what was given back just before is not the next.
        let mut stamps = Stamps::default();
        stamps.adopt(10, 2);
        assert_eq!([stamps.give(20, 4), stamps.give(21, 4), stamps.give(22, 4)], [Some(3), Some(4), Some(1)]);
        // One of an interface that has not shown up is better than none.
        let mut stamps = Stamps::default();
        stamps.adopt(10, 1);
        assert_eq!(stamps.give(20, 1), Some(1));
    }
}
