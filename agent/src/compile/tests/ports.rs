//! Port by port: what a union of ranges and the prefixes of a range say.

use std::collections::BTreeMap;

use palisade_common::layout::PORT_PREFIX_MAX;

use super::random::Dice;
use crate::compile::ports::{Range, Rank, prefixes, union};
use crate::facts::Protocol;

/// The first rule that admits each port.
fn told(ranges: &[Range]) -> BTreeMap<(u8, u16), Rank> {
    let mut first: BTreeMap<(u8, u16), Rank> = BTreeMap::new();
    for range in ranges {
        for port in range.first..=range.last {
            let rank = first.entry((range.protocol.number(), port)).or_insert(range.rank);
            *rank = range.rank.min(*rank);
        }
    }
    first
}

/// Few ports, so that ranges meet; the last ports in half of the cases.
fn ranges(dice: &mut Dice) -> Vec<Range> {
    let base = if dice.roll(2) == 0 { 0 } else { u16::MAX - 15 };
    let mut range = |_| {
        let (one, other) = (base + dice.roll(16) as u16, base + dice.roll(16) as u16);
        // A rule's number tells nothing of its rank: the number is the last thing that counts.
        let rule = dice.roll(3) as u32;
        let rank = Rank { named_peers: dice.roll(2) == 0, side: 0, place: rule, rule: 9 - rule };
        Range { protocol: Protocol::ALL[dice.roll(3)], first: one.min(other), last: one.max(other), rank }
    };
    (0..6).map(&mut range).collect()
}

#[test]
fn a_union_names_the_first_rule_of_each_port_in_as_few_ranges_as_can_be() {
    for seed in 1..=500 {
        let mut dice = Dice(seed);
        let mut ranges = ranges(&mut dice);
        ranges.truncate(dice.roll(7));
        let united = union(&ranges);
        assert_eq!(told(&united), told(&ranges), "seed {seed}: {ranges:?}");
        for pair in united.windows(2) {
            let [a, b] = [pair[0], pair[1]];
            assert!(a.protocol != b.protocol || a.last < b.first, "seed {seed}: {a:?} and {b:?} overlap");
            let joined = a.protocol == b.protocol && a.rank == b.rank && a.last + 1 == b.first;
            assert!(!joined, "seed {seed}: {a:?} and {b:?} are one");
        }
        assert_eq!(union(&united), united, "seed {seed}");
        let (one, other) = ranges.split_at(ranges.len() / 2);
        assert_eq!(union(&[union(one), union(other)].concat()), united, "seed {seed}");
    }
}

#[test]
fn prefixes_are_a_range_port_by_port() {
    let ends = [0, 1, 2, 3, 5, 8, 80, 1023, 1024, 32767, 32768, 65533, 65534, 65535];
    for (first, last) in ends.into_iter().flat_map(|first| ends.map(|last| (first, last))) {
        let mut next = u32::from(first);
        for (port, bits) in prefixes(first, last) {
            let size = 1 << (PORT_PREFIX_MAX - bits);
            assert!(u32::from(port) == next && next.is_multiple_of(size), "{first}-{last}: {port}/{bits}");
            // Twice as large would not be aligned, or go past the end.
            let larger = next.is_multiple_of(2 * size) && next + 2 * size <= u32::from(last) + 1;
            assert!(!larger, "{first}-{last}: {port}/{bits}");
            next += size;
        }
        assert_eq!(next, if first > last { u32::from(first) } else { u32::from(last) + 1 }, "{first}-{last}");
    }
}
