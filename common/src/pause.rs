//! Whether a pause holds: an operator's word that nothing of a pod, or of the node, is refused until a certain time.

/// `untils`: ends of the pauses that concern the packet (ns, CLOCK_MONOTONIC), those that there are; `now` likewise.
#[inline(always)]
pub fn holds(untils: [Option<u64>; 2], now: u64) -> bool {
    let [first, second] = untils;
    first.is_some_and(|until| now < until) || second.is_some_and(|until| now < until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_its_end_and_not_at_it() {
        assert!(!holds([None, None], 0));
        for untils in [[Some(10), None], [None, Some(10)], [Some(10), Some(3)], [Some(3), Some(10)]] {
            assert_eq!([0, 9, 10, 11].map(|now| holds(untils, now)), [true, true, false, false], "{untils:?}");
        }
    }
}
