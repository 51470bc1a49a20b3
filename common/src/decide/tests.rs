//! The budget of mid-stream admissions; whose address it is.

use super::*;
use crate::layout::{Address, EndpointRecord, EndpointStats, endpoint_flag};
use crate::parse::{Bytes, Packet, V4, V6, packet_trait};
use crate::verdict::Reason;

const SECOND: u64 = 1_000_000_000;

#[test]
fn midstream_budget() {
    let stats = |midstream_second, midstream_count| EndpointStats { midstream_second, midstream_count };
    for (name, before, now, budget, wanted) in [
        ("the first ever", stats(0, 0), 5 * SECOND, 2, Some(stats(5, 1))),
        ("the second in its second", stats(5, 1), 6 * SECOND - 1, 2, Some(stats(5, 2))),
        ("one too many", stats(5, 2), 5 * SECOND, 2, None),
        ("the next second", stats(5, 2), 6 * SECOND, 2, Some(stats(6, 1))),
        ("time that went back", stats(7, 2), 6 * SECOND, 2, Some(stats(6, 1))),
        ("no budget, in a new second", stats(5, 0), 6 * SECOND, 0, None),
        ("no budget, in the same second", stats(6, 0), 6 * SECOND, 0, None),
        ("the first second of the clock", stats(0, 0), 0, 1, Some(stats(0, 1))),
        ("used up in the first second of the clock", stats(0, 1), SECOND - 1, 1, None),
        ("a budget that became smaller", stats(5, 9), 5 * SECOND, 2, None),
        ("more seconds than a word holds", stats(0, 9), (u64::from(u32::MAX) + 2) * SECOND, 2, Some(stats(1, 1))),
        ("all of a large budget", stats(5, u32::MAX - 1), 5 * SECOND, u32::MAX, Some(stats(5, u32::MAX))),
    ] {
        assert_eq!(take_midstream(before, now, budget), wanted, "{name}");
    }
}

#[test]
fn as_many_as_the_budget_in_each_second() {
    for budget in [0, 1, 2, 100] {
        let mut stats = EndpointStats::default();
        for second in 3..6 {
            let mut taken = 0;
            for step in 0..200 {
                if let Some(next) = take_midstream(stats, second * SECOND + step, budget) {
                    stats = next;
                    taken += 1;
                }
            }
            assert_eq!(taken, budget, "in second {second}");
        }
    }
}

#[test]
fn an_address_is_own_in_all_its_words() {
    let own = [0x2001_0db8, 7, 0x8000_0000, 1];
    let record = EndpointRecord {
        v6: [Address::v6([0; 4]), Address::v6(own), Address::default(), Address::default()],
        ..EndpointRecord::default()
    };
    assert!(guard::owns(&record, V6, &Address::v6(own)));
    for place in 0..4 {
        for word in [0, own[place] ^ 1, own[place] << 1, u32::MAX] {
            let mut other = own;
            other[place] = word;
            assert!(!guard::owns(&record, V6, &Address::v6(other)), "{other:x?}");
        }
    }
    assert!(!guard::owns(&record, V6, &Address::v6([0; 4])), "the unspecified address is nobody's");
}

/// Of a closed endpoint no address may be known yet; where one is, it is held against its packets.
#[test]
fn a_closed_endpoint_with_an_address_sends_from_it() {
    struct Nothing;
    impl Bytes for Nothing {
        fn len(&self) -> u32 {
            0
        }

        fn words<const N: usize>(&self, _offset: u32) -> Option<[u32; N]> {
            None
        }

        fn is_gso(&self) -> bool {
            false
        }
    }
    let packet = Packet { family: V4, traits: packet_trait::IP, source: Address::v4(9), ..Packet::default() };
    for (counts, wanted) in
        [((0, 0), None), ((1, 0), Some(Reason::SpoofedAddress)), ((0, 1), Some(Reason::SpoofedAddress))]
    {
        let (v4_count, v6_count) = counts;
        let record = EndpointRecord { flags: endpoint_flag::CLOSED, v4_count, v6_count, ..EndpointRecord::default() };
        assert_eq!(guard::admission_from_pod(&Nothing, &packet, &record), wanted, "{counts:?}");
    }
}
