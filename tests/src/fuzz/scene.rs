//! Arbitrary small worlds: tables over few addresses, classes and ports, so that frames meet them, and what happens in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::{Arbitrary, Unstructured};
use ipnet::{Ipv4Net, Ipv6Net};
use palisade::tables::{Tables, address_v4, address_v6};
use palisade_common::Hook;
use palisade_common::decide::Meeting;
use palisade_common::layout::{
    EndpointRecord, PORT_PREFIX_MAX, PORTS_FIRST, PortKey, PortValue, RuleKey, RuleValue, TableRef,
};

use super::shot::Sent;

/// The interface of the first pod.
pub const FIRST_IFINDEX: u32 = 10;

/// Who there is: two pods of this node, then strangers.
pub const PEERS_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(10, 0, 0, 2),
    Ipv4Addr::new(10, 0, 0, 3),
    Ipv4Addr::new(10, 0, 0, 9),
    Ipv4Addr::new(10, 0, 1, 9),
    Ipv4Addr::new(192, 0, 2, 7),
];
pub const PEERS_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3),
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9),
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 9),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7),
];
pub const PORTS: [u16; 8] = [0, 53, 80, 81, 443, 5432, 0x8000, 65535];

/// How the programs are set.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub struct Settings {
    pub keeps_existing: bool,
    pub pressure: bool,
    /// Mid-stream admissions: as many as anybody asks for, or none.
    pub midstream: bool,
    /// Whether pods listen on port 80; `None`: that cannot be known.
    pub listens: Option<bool>,
}

/// What happens, one after the other.
#[derive(Clone, Debug)]
pub enum Event {
    /// The tables are now these.
    Tables(Box<Tables>),
    /// Nanoseconds pass.
    Wait(u64),
    Packet(Shot),
}

/// One frame at one hook.
#[derive(Clone, Debug)]
pub struct Shot {
    pub meeting: Meeting,
    pub gso: bool,
    pub frame: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
struct World {
    pods: [Pod; 2],
    exact: Vec<(u8, u8)>,
    blocks: Vec<(u8, u8, u8)>,
    rows: Vec<(u8, u8, u8)>,
    ports: Vec<(u8, u8, u8, u8)>,
}

#[derive(Debug, Arbitrary)]
struct Pod {
    there: bool,
    flags: u8,
    /// Another pod than before, on the same interface.
    reborn: bool,
    addresses_v4: u8,
    addresses_v6: u8,
    ingress: (u8, u8),
    egress: (u8, u8),
}

#[derive(Debug, Arbitrary)]
enum Step {
    Packet(Sent),
    Again,
    Wait(u8),
    World(bool),
}

/// Reads a scene; whatever the input ends within is left out.
pub fn read(input: &[u8]) -> Option<(Settings, Vec<Event>)> {
    const STEPS_MAX: usize = 32;
    let mut input = Unstructured::new(input);
    let settings = Settings::arbitrary(&mut input).ok()?;
    let worlds: [World; 2] = [World::arbitrary(&mut input).ok()?, World::arbitrary(&mut input).ok()?];
    let mut events = vec![Event::Tables(Box::new(worlds[0].tables()))];
    while !input.is_empty() && events.len() < STEPS_MAX {
        match Step::arbitrary(&mut input).ok()? {
            Step::Packet(sent) => events.push(Event::Packet(sent.shot())),
            Step::Again => {
                let last = events.iter().rev().find(|event| matches!(event, Event::Packet(_)));
                events.extend(last.cloned());
            }
            Step::Wait(choice) => {
                const SECONDS: [u64; 8] = [1, 2, 3, 11, 31, 61, 200, 700];
                // Half a second more, so that nobody stands on a limit.
                events.push(Event::Wait(SECONDS[usize::from(choice) % 8] * 1_000_000_000 + 500_000_000));
            }
            Step::World(which) => events.push(Event::Tables(Box::new(worlds[usize::from(which)].tables()))),
        }
    }
    Some((settings, events))
}

/// MAC address of a pod.
pub fn mac(pod: u8) -> [u8; 6] {
    [0x02, 0x42, 0, 0, 0, pod]
}

impl Shot {
    pub fn new(hook: Hook, pod: u8, from_node: bool, gso: bool, frame: Vec<u8>) -> Self {
        let from_node = from_node && hook == Hook::ToPod;
        // One interface more than there are pods.
        Self { meeting: Meeting { hook, ifindex: FIRST_IFINDEX + u32::from(pod % 3), from_node, stamp: 0 }, gso, frame }
    }
}

// === impl World ===

impl World {
    fn tables(&self) -> Tables {
        const BLOCK_BITS: [(u8, u8); 6] = [(0, 0), (8, 16), (16, 48), (24, 64), (31, 127), (32, 128)];
        let mut tables = Tables::default();
        for (pod, number) in self.pods.iter().zip(0..).filter(|(pod, _)| pod.there) {
            tables.endpoints.insert(FIRST_IFINDEX + number, pod.record(number));
        }
        for (peer, class) in &self.exact {
            let at = usize::from(*peer) % 5;
            match peer & 0x80 {
                0 => drop(tables.exact_v4.insert(address_v4(PEERS_V4[at]), class_of(*class))),
                _ => drop(tables.exact_v6.insert(address_v6(PEERS_V6[at]), class_of(*class))),
            }
        }
        for (peer, bits, class) in &self.blocks {
            let (at, (short, long)) = (usize::from(*peer) % 5, BLOCK_BITS[usize::from(*bits) % 6]);
            if peer & 0x80 == 0 {
                let net = Ipv4Net::new_assert(PEERS_V4[at], short).trunc();
                tables.cidr_v4.insert(net, class_of(*class));
            } else {
                let net = Ipv6Net::new_assert(PEERS_V6[at], long).trunc();
                tables.cidr_v6.insert(net, class_of(*class));
            }
        }
        for (table, class, ports) in &self.rows {
            let key = RuleKey { table: table_of(*table), class: class_of(*class) };
            tables.rules.insert(key, row(*ports));
        }
        for (set, protocol, port, bits) in &self.ports {
            let length = PORT_PREFIX_MAX - [0, 0, 1, 4, 15, 16][usize::from(*bits) % 6];
            let mask = u16::MAX.checked_shl(PORT_PREFIX_MAX - length).unwrap_or(0);
            let key = PortKey {
                ports_be: (PORTS_FIRST + u32::from(set % 2)).to_be(),
                protocol: [6, 17, 132][usize::from(*protocol) % 3],
                pad: 0,
                port_be: (PORTS[usize::from(*port) % 8] & mask).to_be(),
            };
            tables.ports.insert((key, length), PortValue { rule: 8 });
        }
        tables
    }
}

/// Nothing, everything, one of two port sets, or a set of one range.
fn row(byte: u8) -> RuleValue {
    let first = PORTS[usize::from(byte / 5 % 8)];
    match byte % 5 {
        1 => RuleValue::all(7),
        4 => RuleValue {
            ports: PORTS_FIRST + 2,
            rule: 7,
            first,
            last: first.max(443),
            protocol: [6, 17, 132][usize::from(byte / 40 % 3)],
            pad: [0; 3],
        },
        set => RuleValue::set(u32::from(set)),
    }
}

fn class_of(byte: u8) -> u32 {
    u32::from(byte % 4)
}

fn table_of(byte: u8) -> u32 {
    1 + u32::from(byte % 2)
}

impl Pod {
    /// Each pod has the first address of its own, and up to one more in each family.
    fn record(&self, number: u32) -> EndpointRecord {
        let pod = number as u8;
        let [a, b, c, d, e, f] = mac(pod);
        let table = |(table, ports): (u8, u8)| TableRef { table: table_of(table), default: row(ports) };
        let mut record = EndpointRecord {
            ifindex: FIRST_IFINDEX + number,
            generation: 1 + number + if self.reborn { 2 } else { 0 },
            number,
            flags: u32::from(self.flags % 32),
            ingress: table(self.ingress),
            egress: table(self.egress),
            netns_id: -1,
            mac_hi: u32::from_ne_bytes([a, b, c, d]),
            mac_lo: u16::from_ne_bytes([e, f]).into(),
            v4_count: u32::from(self.addresses_v4 % 3),
            v6_count: u32::from(self.addresses_v6 % 3),
            ..EndpointRecord::default()
        };
        let count = record.v4_count as usize;
        for (at, address) in own_v4(pod).into_iter().enumerate().take(count) {
            record.v4[at] = address_v4(address);
            record.v4_broadcast[at] = address_v4(Ipv4Addr::new(10, 0, 0, 255));
        }
        let count = record.v6_count as usize;
        for (at, address) in own_v6(pod).into_iter().enumerate().take(count) {
            record.v6[at] = address_v6(address);
        }
        record
    }
}

fn own_v4(pod: u8) -> [Ipv4Addr; 2] {
    [PEERS_V4[usize::from(pod % 2)], Ipv4Addr::new(10, 0, 5, pod)]
}

fn own_v6(pod: u8) -> [Ipv6Addr; 2] {
    [PEERS_V6[usize::from(pod % 2)], Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, pod.into())]
}

/// One of a pod's own addresses.
pub fn own(pod: u8, six: bool, second: bool) -> IpAddr {
    let at = usize::from(second);
    if six { own_v6(pod)[at].into() } else { own_v4(pod)[at].into() }
}
