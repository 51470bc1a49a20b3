//! Versions, where the epoch wraps.

use super::*;

#[test]
fn versions_change_at_their_epoch() {
    const HALF: u32 = 1 << 31;
    for since in [0, 1, 1000, HALF - 1, HALF, HALF + 1, u32::MAX - 1, u32::MAX] {
        let value = Versioned { since, before: 1, after: 2 };
        for (distance, wanted) in
            [(0, 2), (1, 2), (1000, 2), (HALF - 1, 2), (HALF, 1), (u32::MAX, 1), (u32::MAX - 1000, 1)]
        {
            let epoch = since.wrapping_add(distance);
            assert_eq!(value.at(epoch), wanted, "since {since}, at {epoch}");
        }
        // A step over the end is a step forward like any other.
        assert_eq!(value.at(since.wrapping_sub(1)), 1, "one before {since}");
    }
}

#[test]
fn constants_never_change() {
    for epoch in [0, 1, (1 << 31) - 1, 1 << 31, u32::MAX] {
        assert_eq!(Versioned::constant(7).at(epoch), 7, "at {epoch}");
    }
}
