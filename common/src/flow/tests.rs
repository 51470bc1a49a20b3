//! The key of a flow is the same from both ends.

use super::*;
use crate::parse::{V4, V6};

fn packet(family: u8, protocol: u8, ends: [(Address, u16); 2]) -> Packet {
    let [(source, source_port), (destination, destination_port)] = ends;
    Packet { family, protocol, source, destination, source_port, destination_port, ..Packet::default() }
}

#[test]
fn both_directions_have_one_key() {
    let words = [0, 1, 0xffff_ffff, 0x0100_0000, u32::from_ne_bytes([10, 0, 0, 1])];
    let mut v6 = std::vec::Vec::new();
    for place in 0..4 {
        for word in words {
            let mut address = [7; 4];
            address[place] = word;
            v6.push(Address::v6(address));
        }
    }
    let v4: std::vec::Vec<Address> = words.into_iter().map(Address::v4).collect();
    for (family, addresses) in [(V4, v4), (V6, v6)] {
        for &a in &addresses {
            for &b in &addresses {
                for (a_port, b_port) in [(0, 0), (80, 4000), (4000, 80), (1, u16::MAX)] {
                    let (there, sender) = key(&packet(family, 6, [(a, a_port), (b, b_port)]));
                    let (back, receiver) = key(&packet(family, 6, [(b, b_port), (a, a_port)]));
                    assert_eq!(there, back, "{a:?} {a_port}, {b:?} {b_port}");
                    let same_end = a == b && a_port == b_port;
                    assert_eq!(sender != receiver, !same_end, "{a:?} {a_port}, {b:?} {b_port}");
                    let own = if sender == 0 { (there.low, there.low_port) } else { (there.high, there.high_port) };
                    assert_eq!(own, (a, a_port), "the sender's end is the sender's");
                    assert_eq!((there.protocol, there.family, there.pad), (6, family, 0));
                }
            }
        }
    }
}

#[test]
fn other_flows_have_other_keys() {
    let ends = [(Address::v4(1), 80), (Address::v4(2), 4000)];
    let base = key(&packet(V4, 6, ends)).0;
    let others = [
        packet(V4, 17, ends),
        packet(V6, 6, ends),
        packet(V4, 6, [(Address::v4(1), 81), (Address::v4(2), 4000)]),
        packet(V4, 6, [(Address::v4(1), 4000), (Address::v4(2), 80)]),
        packet(V4, 6, [(Address::v4(3), 80), (Address::v4(2), 4000)]),
    ];
    for other in others {
        assert_ne!(key(&other).0, base, "{other:?}");
    }
}
