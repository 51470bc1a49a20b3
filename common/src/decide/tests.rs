//! The budget of mid-stream admissions; whose address it is; look-ups that have to agree.

mod fragments;
mod services;
pub(crate) mod stub;
mod uplink;

use super::policy::OPEN_INGRESS;
use super::*;
use crate::layout::{
    Address, CLASS_ASK_CIDR, EndpointRecord, EndpointStats, PORTS_ALL, PORTS_NONE, RuleValue, TableRef, Versioned,
    endpoint_flag,
};
use crate::parse::{Bytes, Packet, V4, V6, packet_trait};
use crate::verdict::Reason;
use stub::{Script, Stub};

const SECOND: u64 = 1_000_000_000;

#[test]
fn midstream_budget() {
    let stats = |midstream_second, midstream_count| EndpointStats {
        midstream_second,
        midstream_count,
        ..EndpointStats::default()
    };
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

struct Frame<'a>(&'a [u8]);

impl Bytes for Frame<'_> {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let bytes = self.0.get(offset as usize..offset as usize + N * 4)?;
        Some(core::array::from_fn(|n| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| bytes[4 * n + byte]))))
    }

    fn is_gso(&self) -> bool {
        false
    }
}

/// A pod that sends to itself, so that a frame is its own at either hook. As ICMP these would be a redirect and a router's advertisement.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const V4_FRAME: [u8; 54] = *b"\x02\0\0\0\0\x09\x02\0\0\0\0\x09\x08\0\
    \x45\0\0\x28\0\0\0\0\x40\x06\0\0\x0a\xf4\x01\x09\x0a\xf4\x01\x09\
    \x05\0\0\x50\0\0\0\x01\0\0\0\0\x50\x02\xff\xff\0\0\0\0";
const V6_FRAME: [u8; 62] = *b"\x02\0\0\0\0\x09\x02\0\0\0\0\x09\x86\xdd\
    \x60\0\0\0\0\x08\x11\x40\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\
    \x86\0\0\x50\0\x08\0\0";

/// [`guard::is_plain`] spares the questions that it answers, and no others.
#[test]
fn what_looks_plain_is_admitted() {
    let own = |bytes: &[u8]| Frame(bytes).words::<4>(0).expect("an address");
    let record = EndpointRecord {
        mac_hi: u32::from_ne_bytes([MAC[0], MAC[1], MAC[2], MAC[3]]),
        mac_lo: u32::from(u16::from_ne_bytes([MAC[4], MAC[5]])),
        v4: [Frame(&V4_FRAME).words::<1>(26).expect("an address")[0], 0, 0, 0],
        v6: [Address::v6(own(&V6_FRAME[22..38])), Address::default(), Address::default(), Address::default()],
        v4_count: 1,
        v6_count: 1,
        ..EndpointRecord::default()
    };
    for frame in [&V4_FRAME[..], &V6_FRAME] {
        for hook in [Hook::FromPod, Hook::ToPod] {
            assert!(guard::is_plain(&Frame(frame), &record, hook), "{hook:?}: {frame:x?}");
            let mut plain = 0;
            for (place, value) in (0..frame.len()).flat_map(|place| (0..=u8::MAX).map(move |value| (place, value))) {
                let mut bytes = frame.to_vec();
                bytes[place] = value;
                let bytes = Frame(&bytes);
                let mut packet = Packet::default();
                parse::frame(&bytes, &mut packet);
                let reason = match hook {
                    Hook::FromPod => guard::admission_from_pod(&bytes, &packet, &record),
                    Hook::ToPod => guard::admission_to_pod(&packet, &record),
                };
                if guard::is_plain(&bytes, &record, hook) {
                    plain += 1;
                    assert_eq!(reason, None, "{hook:?}: byte {place} is {value:x}");
                }
            }
            // Its own MAC and address, the ethertype, and the protocol as far as it matters must be what they are.
            assert!(plain > 256 * (frame.len() - 25), "{hook:?}: {plain}");
        }
    }
    assert!(!guard::is_plain(&Frame(&V4_FRAME), &EndpointRecord { v4: [0; 4], ..record }, Hook::FromPod));
}

/// Of a closed endpoint no address may be known yet; where one is, it is held against its packets.
#[test]
fn a_closed_endpoint_with_an_address_sends_from_it() {
    let packet = Packet { family: V4, traits: packet_trait::IP, source: Address::v4(9), ..Packet::default() };
    for (counts, wanted) in
        [((0, 0), None), ((1, 0), Some(Reason::SpoofedAddress)), ((0, 1), Some(Reason::SpoofedAddress))]
    {
        let (v4_count, v6_count) = counts;
        let record = EndpointRecord { flags: endpoint_flag::CLOSED, v4_count, v6_count, ..EndpointRecord::default() };
        assert_eq!(guard::admission_from_pod(&Frame(&[]), &packet, &record), wanted, "{counts:?}");
    }
}

#[test]
fn an_answer_names_the_rule_that_admits() {
    assert_eq!((Answer::NONE.is_allowed(), Answer::NONE.rule()), (false, None));
    assert_eq!((Answer::ALLOWED.is_allowed(), Answer::ALLOWED.rule()), (true, Some(0)));
}

/// The class of an address is believed when two look-ups agree, or at the third; that there is none, at once.
#[test]
fn a_class_is_read_until_two_look_ups_agree() {
    const ASK: u32 = CLASS_ASK_CIDR;
    for (found, class, looks) in [
        (&[None, Some(5), Some(5)][..], 0, 1),
        (&[Some(5), Some(5), Some(6)], 5, 2),
        (&[Some(5), Some(6), Some(6), Some(7)], 6, 3),
        (&[Some(5), Some(6), Some(7), Some(8)], 7, 3),
        (&[Some(5), None, Some(5)], 0, 2),
        (&[Some(ASK), Some(5), Some(5), Some(6)], 5, 3),
        (&[Some(ASK), Some(ASK), Some(5)], 0, 2),
    ] {
        let tables = Stub { exact: Script::new(found.iter().map(|it| it.map(Versioned::constant))), ..Stub::default() };
        let table = TableRef { table: 1, default: RuleValue { ports: PORTS_ALL, ..RuleValue::default() } };
        let question = Question {
            peer: &Address::v4(9),
            client: (0, 0),
            epoch: 3,
            what: OPEN_INGRESS,
            port: 80,
            protocol: 6,
            family: V4,
        };
        let record = EndpointRecord { ingress: table, ..EndpointRecord::default() };
        assert_eq!(answer(&tables, &question, &record).class(), class, "{found:?}");
        assert_eq!(found.len() - tables.exact.left(), looks, "{found:?}");
    }
}

/// For other packets to believe, two look-ups have to agree on the record, and it has to be the interface's.
#[test]
fn a_hint_is_what_two_look_ups_said() {
    let endpoint = |index| Some(Versioned { since: 4, before: 9, after: index });
    for (found, record, hinted) in [
        (&[endpoint(0), endpoint(0)][..], Some(0), true),
        (&[endpoint(0), endpoint(1)], Some(0), false),
        (&[endpoint(1), endpoint(1)], None, false),
        (&[endpoint(2)], None, false),
        (&[None], None, false),
    ] {
        let records = [7, 8].map(|ifindex| EndpointRecord { ifindex, ..EndpointRecord::default() });
        let endpoints = Script::new(found.iter().copied());
        let tables = Stub { endpoints, records: records.into(), ..Stub::default() };
        let own = record_of(&tables, 7, 4).map(|record| record.ifindex);
        assert_eq!(own, record.map(|_: u32| 7), "{found:?}");
        assert_eq!(*tables.hints.borrow() == [(7, 4, 0)], hinted, "{found:?}: {:?}", tables.hints);
    }
}

/// A packet is judged again once if the epoch has moved, and given up if it has moved again.
#[test]
fn a_packet_is_judged_twice_at_most() {
    for (epochs, wanted) in
        [(&[1, 1, 2][..], Reason::Closed), (&[1, 2, 2, 2, 3], Reason::Closed), (&[1, 2, 2, 3, 3, 3], Reason::Unsettled)]
    {
        let tables = Stub { epochs: Script::new(epochs.iter().copied()), epoch: 9, ..Stub::default() };
        let meeting = Meeting { hook: Hook::FromPod, ifindex: 7, from_node: false, stamp: 0 };
        let packet = Packet::default();
        assert_eq!(decide(&Frame(&[]), || &packet, &tables, meeting).reason(), wanted, "{epochs:?}");
        let left = if wanted == Reason::Closed { 1 } else { 2 };
        assert_eq!(tables.epochs.left(), left, "{epochs:?}");
    }
}

/// As a register holds them between the parts of a kernel program.
#[test]
fn rulings_and_answers_are_numbers_on_the_way() {
    for class in [0, 1, 0x8000_0001, u32::MAX] {
        for &reason in Reason::ALL {
            let ruling = Ruling::new(reason, class);
            for ruling in [ruling, ruling.remembering(false), ruling.remembering(true)] {
                let back = Ruling::from_bits(ruling.to_bits());
                assert_eq!((back, back.reason(), back.class()), (ruling, reason, class));
                assert_eq!((back.reason_number(), back.passes()), (reason as u8, reason.passes()));
            }
            assert_eq!((ruling.remembers(), ruling.is_forward()), (false, false));
            for forward in [false, true] {
                let ruling = ruling.remembering(forward);
                assert_eq!((ruling.remembers(), ruling.is_forward()), (true, forward));
            }
        }
    }
    for answer in [Answer::NONE, Answer::ALLOWED] {
        assert_eq!(Answer::from_bits(answer.to_bits()), answer);
    }
    assert_ne!(Answer::NONE.to_bits(), Answer::ALLOWED.to_bits());
}

/// Each of the places of a record's addresses counts, and no other.
#[test]
fn an_address_is_own_in_any_place() {
    let mut record = EndpointRecord::default();
    for place in 0..record.v4.len() {
        record.v4[place] = u32::from_ne_bytes([10, 0, 0, 1 + place as u8]);
        record.v4_broadcast[place] = u32::from_ne_bytes([10, 0, place as u8, 255]);
        record.v6[place] = Address::v6([0xfd, 0, 0, 1 + place as u32]);
    }
    let is_own = |address: [u8; 4]| guard::owns(&record, V4, &Address::v4(u32::from_ne_bytes(address)));
    let is_told = |destination: [u8; 4]| {
        let destination = Address::v4(u32::from_ne_bytes(destination));
        let packet = Packet { family: V4, traits: packet_trait::IP, destination, ..Packet::default() };
        guard::admission_to_pod(&packet, &record) != Some(Reason::NotForPod)
    };
    for place in 0..4 {
        assert!(is_own([10, 0, 0, 1 + place]) && is_told([10, 0, 0, 1 + place]), "{place}");
        assert!(is_told([10, 0, place, 255]) && !is_own([10, 0, place, 255]), "{place}");
        assert!(guard::owns(&record, V6, &Address::v6([0xfd, 0, 0, 1 + u32::from(place)])), "{place}");
    }
    assert!(!is_own([10, 0, 0, 9]) && !is_own([0; 4]));
    assert!(!guard::owns(&record, V6, &Address::v6([0xfd, 0, 0, 9])));
    for (destination, wanted) in
        [([224, 0, 0, 1], true), ([239, 9, 9, 9], true), ([240, 0, 0, 1], false), ([255; 4], true), ([0; 4], false)]
    {
        assert_eq!(is_told(destination), wanted, "{destination:?}");
    }
}

/// A row of one range is not asked for in PORTS, nor is one that admits nothing.
#[test]
fn ports_are_asked_of_sets_of_several_ranges() {
    let one = RuleValue { ports: 5, rule: 7, first: 80, last: 90, protocol: 6, ..RuleValue::default() };
    for (default, protocol, port, wanted) in [
        (RuleValue::set(PORTS_NONE), 6, 80, None),
        (RuleValue::all(4), 6, 80, Some(4)),
        (one, 6, 79, None),
        (one, 6, 80, Some(7)),
        (one, 6, 90, Some(7)),
        (one, 6, 91, None),
        (one, 17, 80, None),
        (RuleValue::set(5), 6, 1, Some(9)),
        (RuleValue::set(5), 1, 1, None),
    ] {
        let tables = Stub { port_rule: Some(9), ..Stub::default() };
        let table = TableRef { table: 1, default };
        let question = Question {
            peer: &Address::v4(9),
            client: (0, 0),
            epoch: 3,
            what: OPEN_INGRESS,
            port,
            protocol,
            family: V4,
        };
        let record = EndpointRecord { ingress: table, ..EndpointRecord::default() };
        assert_eq!(answer(&tables, &question, &record).rule(), wanted, "{default:?}, {protocol}, {port}");
    }
}

/// What is said to a packet that cannot be judged by its flow.
#[test]
fn packets_without_a_flow() {
    use packet_trait::{ARP, ICMP_ERROR, IP, MALFORMED};
    const ISOLATED: u32 = endpoint_flag::ISOLATED_EGRESS | endpoint_flag::TRUSTED;
    const CLOSED: u32 = endpoint_flag::CLOSED | endpoint_flag::TRUSTED;
    for (flags, traits, hook, from_node, wanted) in [
        (Some(ISOLATED), IP | MALFORMED, Hook::ToPod, true, Reason::Node),
        (Some(ISOLATED), IP | MALFORMED, Hook::ToPod, false, Reason::Malformed),
        (Some(ISOLATED), IP | MALFORMED, Hook::FromPod, true, Reason::Malformed),
        (Some(ISOLATED), MALFORMED, Hook::FromPod, false, Reason::Malformed),
        (Some(ISOLATED), 0, Hook::FromPod, false, Reason::UnknownProtocol),
        (Some(ISOLATED), IP | ICMP_ERROR, Hook::ToPod, true, Reason::Node),
        (Some(ISOLATED), IP | ICMP_ERROR, Hook::ToPod, false, Reason::UnrelatedError),
        (Some(CLOSED), IP | ICMP_ERROR, Hook::ToPod, false, Reason::Closed),
        (Some(endpoint_flag::TRUSTED), IP | MALFORMED, Hook::ToPod, false, Reason::NotIsolated),
        (None, ARP, Hook::ToPod, false, Reason::Neighbour),
        (None, ARP, Hook::FromPod, false, Reason::Closed),
        (None, IP, Hook::ToPod, false, Reason::Closed),
        (None, IP, Hook::ToPod, true, Reason::Node),
    ] {
        let endpoint = flags.map(|_| Versioned::constant(0));
        let records =
            flags.map(|flags| EndpointRecord { ifindex: 7, generation: 3, flags, ..EndpointRecord::default() });
        let tables = Stub {
            endpoints: Script::new([endpoint, endpoint]),
            records: records.into_iter().collect(),
            ..Stub::default()
        };
        let packet = Packet { family: V4, traits, ..Packet::default() };
        let ruling = decide(&Frame(&[]), || &packet, &tables, Meeting { hook, ifindex: 7, from_node, stamp: 0 });
        assert_eq!(ruling.reason(), wanted, "{flags:?}, {traits:#x}, {hook:?}, {from_node}");
    }
}

#[test]
fn an_address_of_one_word_is_an_address() {
    let ones = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]].map(Address::v6);
    let record = EndpointRecord { v6: ones, ..EndpointRecord::default() };
    for address in ones {
        assert!(guard::owns(&record, V6, &address), "{address:?}");
    }
    // The chain of headers is IPv6's.
    let record = EndpointRecord { v4: [9, 0, 0, 0], v6: ones, ..EndpointRecord::default() };
    let traits = packet_trait::IP | packet_trait::CHAIN_INCOMPLETE;
    for (family, source, wanted) in [(V4, Address::v4(9), None), (V6, ones[0], Some(Reason::SpoofedFragment))] {
        let packet = Packet { family, traits, source, ..Packet::default() };
        assert_eq!(guard::admission_from_pod(&Frame(&[]), &packet, &record), wanted, "{family}");
    }
}
