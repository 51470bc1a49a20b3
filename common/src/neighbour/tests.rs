//! What no router forwards is a neighbour's; what one may have forwarded is a packet as any other.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::parse::protocol;

const ECHO_REQUEST: u8 = 128;

fn icmpv6(icmp_type: u8, hop_limit: u32) -> Packet {
    Packet {
        family: V6,
        protocol: protocol::ICMPV6,
        traits: packet_trait::IP | packet_trait::ICMP,
        icmp_type,
        hop_limit,
        ..Packet::default()
    }
}

#[test]
fn a_pod_may_be_told_by_its_neighbours() {
    for (icmp_type, hop_limit, wanted) in [
        (ROUTER_ADVERTISEMENT, 255, true),
        (ROUTER_ADVERTISEMENT, 254, false),
        (REDIRECT_V6, 255, true),
        (REDIRECT_V6, 64, false),
        (NEIGHBOUR_SOLICITATION, 255, true),
        (NEIGHBOUR_ADVERTISEMENT, 254, false),
        (ECHO_REQUEST, 255, false),
    ] {
        assert_eq!(is_for_pod(&icmpv6(icmp_type, hop_limit)), wanted, "{icmp_type}, hop limit {hop_limit}");
    }
    for (icmp_type, wanted) in [(REDIRECT_V4, true), (8, false), (ROUTER_ADVERTISEMENT, false)] {
        let packet = Packet { family: V4, ..icmpv6(icmp_type, 255) };
        assert_eq!(is_for_pod(&packet), wanted, "ICMP {icmp_type}");
    }
}

const OWN: [u32; 4] = [0x2001_0db8, 0, 0, 5];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const OTHERS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 6];

/// Words in host order, as an address.
fn address(words: [u32; 4]) -> Address {
    Address::v6(words.map(u32::to_be))
}

fn pod(flags: u32) -> EndpointRecord {
    let [a, b, c, d, e, f] = MAC;
    EndpointRecord {
        flags,
        mac_hi: u32::from_ne_bytes([a, b, c, d]),
        mac_lo: u32::from(u16::from_ne_bytes([e, f])),
        v4: [u32::from_ne_bytes([10, 0, 0, 5]), 0, 0, 0],
        v6: [address(OWN), address([0xfe80_0000, 0, 0, 5]), Address::ZERO, Address::ZERO],
        ..EndpointRecord::default()
    }
}

/// A frame of which only what is behind the first sixteen bytes is looked at.
struct Memory(Vec<u8>);

const START: u32 = 16;

impl Memory {
    fn new(content: &[u8]) -> Self {
        Self([&[0; START as usize], content].concat())
    }
}

impl Bytes for Memory {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let bytes = self.0.get(offset as usize..offset as usize + 4 * N)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
        }
        Some(words)
    }

    fn is_gso(&self) -> bool {
        false
    }
}

fn option(kind: u8, length: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, length][..], &mac].concat()
}

/// A message with a target or without, and options; `cut` bytes of it lie behind its end.
fn said(icmp_type: u8, source: [u32; 4], target: Option<[u32; 4]>, options: &[Vec<u8>], cut: u32) -> Option<Reason> {
    let target = target.map(|words| words.map(u32::to_be_bytes).concat()).unwrap_or_default();
    let memory = Memory::new(&[&[0; 8], &target[..], &options.concat()].concat());
    let packet = Packet {
        source: address(source),
        destination: address([0xff02_0000, 0, 0, 1]),
        transport: START,
        end: memory.len() - cut,
        ..icmpv6(icmp_type, 255)
    };
    from_pod(&memory, &packet, &pod(0), true)
}

#[test]
fn options_tell_of_the_pod_alone() {
    let own = || option(1, 1, MAC);
    let (refused, passes) = (Some(Reason::SpoofedNeighbour), Some(Reason::Neighbour));
    for (options, wanted) in [
        (vec![], passes),
        (vec![own()], passes),
        (vec![option(2, 1, MAC)], passes),
        (vec![option(1, 1, OTHERS_MAC)], refused),
        (vec![option(1, 1, [9, 0, 0, 0, 0, 5])], refused),
        (vec![option(14, 1, OTHERS_MAC)], passes),
        (vec![option(14, 2, OTHERS_MAC), own()], refused),
        (vec![option(3, 1, MAC)], refused),
        (vec![own(), option(1, 1, OTHERS_MAC)], refused),
        (vec![own(), own(), option(1, 1, OTHERS_MAC)], refused),
        (vec![own(), own(), own(), own()], passes),
        (vec![own(), own(), own(), own(), own()], refused),
        (vec![own(), own(), own(), own(), vec![1]], refused),
        (vec![own(), vec![1; 4]], refused),
    ] {
        assert_eq!(said(ROUTER_SOLICITATION, OWN, None, &options, 0), wanted, "{options:?}");
        assert_eq!(said(NEIGHBOUR_SOLICITATION, OWN, Some([1; 4]), &options, 0), wanted, "{options:?}");
        assert_eq!(said(NEIGHBOUR_ADVERTISEMENT, OWN, Some(OWN), &options, 0), wanted, "{options:?}");
    }
}

#[test]
fn a_pod_advertises_itself() {
    let (refused, passes) = (Some(Reason::SpoofedNeighbour), Some(Reason::Neighbour));
    let (nobody, other) = ([0; 4], [0x2001_0db8, 0, 0, 6]);
    assert_eq!(said(NEIGHBOUR_ADVERTISEMENT, OWN, Some(other), &[], 0), refused);
    assert_eq!(said(NEIGHBOUR_ADVERTISEMENT, nobody, Some(OWN), &[], 0), refused, "nobody advertises");
    assert_eq!(said(NEIGHBOUR_SOLICITATION, OWN, Some(other), &[], 0), passes);
    assert_eq!(said(NEIGHBOUR_SOLICITATION, nobody, Some(OWN), &[], 0), passes, "is it taken already?");
    assert_eq!(said(NEIGHBOUR_SOLICITATION, nobody, Some(other), &[], 0), refused);
    // A target that lies behind the end is padding.
    assert_eq!(said(NEIGHBOUR_ADVERTISEMENT, OWN, Some(OWN), &[], 1), refused);
    assert_eq!(said(NEIGHBOUR_SOLICITATION, OWN, Some(OWN), &[], 1), refused);
    assert_eq!(said(NEIGHBOUR_SOLICITATION, OWN, None, &[], 0), refused);
    for place in 0..4 {
        let mut source = [0; 4];
        source[place] = 1;
        assert_eq!(said(ROUTER_SOLICITATION, source, None, &[], 0), Some(Reason::SpoofedAddress), "{source:?}");
    }
    // A router may say what it likes.
    let packet = Packet { source: address(other), transport: START, ..icmpv6(NEIGHBOUR_ADVERTISEMENT, 255) };
    assert_eq!(from_pod(&Memory::new(&[0; 8]), &packet, &pod(0), false), Some(Reason::Neighbour));
}

#[test]
fn what_is_of_the_link() {
    const REPORT: u8 = 143;
    let group = address([0xff02_0000, 0, 0, 22]);
    let local = address([0xfe80_0000, 0, 0, 5]);
    let report = Packet { source: local, destination: group, ..icmpv6(REPORT, 1) };
    let solicitation = icmpv6(NEIGHBOUR_SOLICITATION, 255);
    for (name, packet, wanted) in [
        ("a report", report, true),
        ("a report of no address", Packet { source: Address::ZERO, ..report }, true),
        ("a report of another address", Packet { source: address(OWN), ..report }, false),
        ("a report to one", Packet { destination: address(OWN), ..report }, false),
        ("a report that was forwarded", Packet { hop_limit: 2, ..report }, false),
        ("a question like a report", Packet { icmp_type: ECHO_REQUEST, ..report }, false),
        ("a solicitation", solicitation, true),
        ("a fragment", Packet { traits: solicitation.traits | packet_trait::FRAGMENT_FIRST, ..solicitation }, false),
        ("no ICMP", Packet { traits: packet_trait::IP, ..solicitation }, false),
        ("of another family", Packet { family: V4, ..solicitation }, false),
    ] {
        assert_eq!(is_neighbour(&packet), wanted, "{name}");
    }
}

#[test]
fn a_pod_answers_arp_for_itself() {
    let arp = |head: [u8; 6], sender: [u8; 4], target: [u8; 4], mac: [u8; 6]| {
        let content = [&head[..], &[0, 2], &mac, &sender, &[0; 6], &target].concat();
        let packet = Packet { network: START, traits: packet_trait::ARP, ..Packet::default() };
        arp_from_pod(&Memory::new(&content), &packet, &pod(0), true)
    };
    const HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let (own, other, none) = ([10, 0, 0, 5], [10, 0, 0, 6], [0; 4]);
    assert_eq!(arp(HEAD, own, other, MAC), Reason::Neighbour);
    assert_eq!(arp(HEAD, none, own, MAC), Reason::Neighbour, "is it taken already?");
    for refused in [
        arp(HEAD, other, own, MAC),
        arp(HEAD, none, other, MAC),
        arp(HEAD, own, other, OTHERS_MAC),
        arp([0, 6, 8, 0, 6, 4], own, other, MAC),
        arp([0, 1, 8, 1, 6, 4], own, other, MAC),
        arp([0, 1, 8, 0, 8, 4], own, other, MAC),
        arp([0, 1, 8, 0, 6, 16], own, other, MAC),
    ] {
        assert_eq!(refused, Reason::SpoofedNeighbour);
    }
}
