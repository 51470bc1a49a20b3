//! P3 with packets in flight: one thread changes everything as fast as it can, others judge packets whose verdict is the same in
//! every state, though each state has other tables, classes, port sets and places in which they are found.
//!
//! Needs root and the built programs (feature `live`).
#![cfg(feature = "live")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::TestRun as _;
use aya::programs::{SchedClassifier, TestRunOptions};
use palisade::kernel::{AttachMode, FROM_POD, Kernel, PinDir, Settings, Sizes, TO_POD};
use palisade::tables::{Tables, address_v4, address_v6};
use palisade_common::Reason;
use palisade_common::layout::{
    EndpointRecord, PORT_PREFIX_MAX, PORTS_ALL, PORTS_FIRST, PORTS_NONE, PortKey, PortValue, RuleKey, RuleValue,
    TableRef, endpoint_flag,
};
use palisade_tests::judges::bpffs;

const LENGTH: Duration = Duration::from_secs(4);
/// The two pods' interfaces; their programs run on bridges of these indices.
const PODS: [u32; 2] = [10, 11];
/// Peers of each kind: allowed in every state, refused in every state.
const PEERS: u32 = 24;
const PORT: u16 = 80;

fn main_namespace() {
    // SAFETY: only this thread, and those it starts later, change their namespace.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a network namespace");
    for index in PODS {
        let line = format!("link add t{index} index {index} type bridge");
        let status = std::process::Command::new("ip").args(line.split(' ')).status().expect("ip can be run");
        assert!(status.success(), "no interface with index {index}");
    }
}

fn mac(pod: u32) -> [u8; 6] {
    [2, 0x42, 0, 0, 0, pod as u8]
}

fn address(six: bool, pod: u32) -> IpAddr {
    if six {
        Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, pod as u16).into()
    } else {
        Ipv4Addr::new(10, 244, 0, pod as u8).into()
    }
}

/// Peers in a /24 (/64) of their own kind.
fn peer(six: bool, allowed: bool, number: u32) -> IpAddr {
    let net = u8::from(allowed);
    if six {
        Ipv6Addr::new(0xfd01, 0, 0, u16::from(net), 0, 0, 0, number as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 1, net, number as u8 + 1).into()
    }
}

/// State `n`: its tables and port sets are no earlier state's.
fn state(n: u32) -> Tables {
    let mut tables = Tables::default();
    let first = n * 16;
    // Classes: allowed by a row for all ports, by a row with a port set; refused without a row, and by one. What one state's tables
    // allow the next one's refuse, and the peers change their classes: a class of one state under a table of the other is wrong.
    let [by_all, by_set, none, lowered] = if n.is_multiple_of(2) { [1, 2, 3, 4] } else { [3, 4, 1, 2] };
    let set = PORTS_FIRST + first;
    let key = PortKey { ports_be: set.to_be(), protocol: 6, pad: 0, port_be: PORT.to_be() };
    tables.ports.insert((key, PORT_PREFIX_MAX), PortValue { rule: first + 5 });
    for pod in PODS {
        let table = |direction: u32| TableRef {
            table: first + 6 + direction + 2 * (pod - PODS[0]),
            default: RuleValue::set(PORTS_NONE),
        };
        let (ingress, egress) = (table(0), table(1));
        for table in [ingress.table, egress.table] {
            let row = |class, ports, rule| (RuleKey { table, class }, RuleValue { rule, ..RuleValue::set(ports) });
            tables.rules.extend([row(by_all, PORTS_ALL, first + 6), row(by_set, set, 0), row(lowered, PORTS_NONE, 0)]);
        }
        tables.endpoints.insert(pod, record(pod, n, ingress, egress));
    }
    for six in [false, true] {
        for number in 0..PEERS {
            // Where each peer is found moves about: on its own or by prefix, next to one of the other kind.
            let by_prefix = |allowed: u32| (number + n + allowed).is_multiple_of(3);
            let good = if (number + n).is_multiple_of(2) { by_all } else { by_set };
            let bad = if (number + n).is_multiple_of(2) { none } else { lowered };
            if !by_prefix(0) {
                exact(&mut tables, peer(six, false, number), bad);
            }
            if !by_prefix(1) {
                exact(&mut tables, peer(six, true, number), good);
            }
        }
        prefixes(&mut tables, six, n, [by_all, by_set, none, lowered]);
    }
    tables
}

/// The refused net is excepted from one that is allowed, in other lengths from state to state.
fn prefixes(tables: &mut Tables, six: bool, n: u32, [by_all, by_set, none, lowered]: [u32; 4]) {
    let (good, bad) = if n.is_multiple_of(2) { (by_all, none) } else { (by_set, lowered) };
    let mut put = |text: &str, class| match text.parse().expect("a prefix") {
        ipnet::IpNet::V4(net) => drop(tables.cidr_v4.insert(net, class)),
        ipnet::IpNet::V6(net) => drop(tables.cidr_v6.insert(net, class)),
    };
    match (six, n % 3) {
        (false, 0) => [("10.1.0.0/16", good), ("10.1.0.0/24", bad)].map(|(net, class)| put(net, class)),
        (false, 1) => [("10.0.0.0/8", bad), ("10.1.1.0/24", good)].map(|(net, class)| put(net, class)),
        (false, _) => [("10.1.0.0/23", good), ("10.1.0.0/25", bad)].map(|(net, class)| put(net, class)),
        (true, 0) => [("fd01::/48", good), ("fd01::/64", bad)].map(|(net, class)| put(net, class)),
        (true, 1) => [("fd00::/8", bad), ("fd01:0:0:1::/64", good)].map(|(net, class)| put(net, class)),
        (true, _) => [("fd01::/63", good), ("fd01::/66", bad)].map(|(net, class)| put(net, class)),
    };
}

fn exact(tables: &mut Tables, address: IpAddr, class: u32) {
    match address {
        IpAddr::V4(address) => drop(tables.exact_v4.insert(address_v4(address), class)),
        IpAddr::V6(address) => drop(tables.exact_v6.insert(address_v6(address), class)),
    }
}

fn record(pod: u32, n: u32, ingress: TableRef, egress: TableRef) -> EndpointRecord {
    let [a, b, c, d, e, f] = mac(pod);
    let mut record = EndpointRecord {
        ifindex: pod,
        // Sometimes another pod has come to the address.
        generation: 1 + n / 4,
        number: pod - PODS[0],
        flags: endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS,
        ingress,
        egress,
        netns_id: -1,
        mac_hi: u32::from_ne_bytes([a, b, c, d]),
        mac_lo: u32::from(u16::from_ne_bytes([e, f])),
        v4_count: 1,
        v6_count: 1,
        ..EndpointRecord::default()
    };
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(false, pod), address(true, pod)) else {
        unreachable!("one of each")
    };
    record.v4[0] = address_v4(v4);
    record.v6[0] = address_v6(v6);
    record
}

/// A TCP SYN between the pod and a peer.
fn syn(from_pod: bool, pod: u32, peer: IpAddr, source_port: u16) -> Vec<u8> {
    let own = address(peer.is_ipv6(), pod);
    let (source, destination) = if from_pod { (own, peer) } else { (peer, own) };
    let router = [2, 0, 0, 0, 0, 1];
    let mut frame = Vec::new();
    frame.extend(if from_pod { [router, mac(pod)] } else { [mac(pod), router] }.concat());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0, 0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
            frame.extend([source.octets(), destination.octets()].concat());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend([source.octets(), destination.octets()].concat());
        }
        _ => unreachable!("one family"),
    }
    frame.extend(source_port.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]);
    frame
}

/// `struct __sk_buff` with its interface.
fn context(pod: u32) -> [u8; 192] {
    let mut context = [0; 192];
    context[36..40].copy_from_slice(&77_u32.to_ne_bytes());
    context[40..44].copy_from_slice(&pod.to_ne_bytes());
    context
}

/// What one thread of packets found.
#[derive(Debug, Default)]
struct Tally {
    packets: u64,
    wrong: u64,
}

const PASS: i32 = -1;

/// Judges packets of peers that are allowed (or refused) in every state, until told to stop. A packet that is refused leaves
/// nothing behind, so that it can be run many times in one call; one that is admitted needs a new port each time.
fn packets(pins: &[PathBuf; 2], allowed: bool, stop: &AtomicBool) -> Tally {
    let programs = pins.each_ref().map(|pin| SchedClassifier::from_pin(pin).expect("the pinned program"));
    let mut tally = Tally::default();
    let repeat = if allowed { 1 } else { 64 };
    let mut port = 1024_u16;
    'out: loop {
        port = if port == u16::MAX { 1024 } else { port + 1 };
        for six in [false, true] {
            for number in 0..PEERS {
                for pod in PODS {
                    for (from_pod, program) in [true, false].into_iter().zip(&programs) {
                        if stop.load(Ordering::Relaxed) {
                            break 'out;
                        }
                        let frame = syn(from_pod, pod, peer(six, allowed, number), port);
                        let context = context(pod);
                        let options = TestRunOptions {
                            data_in: Some(&frame),
                            ctx_in: Some(&context),
                            repeat,
                            ..TestRunOptions::default()
                        };
                        let verdict = program.test_run(options).expect("a test run").return_value as i32;
                        tally.packets += u64::from(repeat);
                        tally.wrong += u64::from((verdict == PASS) != allowed);
                    }
                }
            }
        }
    }
    tally
}

fn counted(kernel: &Kernel, wanted: impl Fn(Reason) -> bool) -> Vec<(&'static str, u64)> {
    let counters = kernel.maps().counters().expect("counters can be read");
    counters.into_iter().filter(|(reason, n)| *n > 0 && wanted(*reason)).map(|(r, n)| (r.name(), n)).collect()
}

fn count(kernel: &Kernel, reason: Reason) -> u64 {
    counted(kernel, |other| other == reason).iter().map(|(_, n)| n).sum()
}

fn stress(keep_existing: bool) {
    main_namespace();
    let folder = bpffs("stress").expect("a bpffs can be mounted");
    let sizes = Sizes { flows: 65_536, ..Sizes::default() };
    let settings = Settings { keep_existing, ..Settings::default() };
    let pins = PinDir::open(&folder.path().join("maps")).expect("a folder for pins");
    let mut kernel = Kernel::open(pins, sizes, settings, AttachMode::Auto).expect("the programs can be loaded");
    let programs = [FROM_POD, TO_POD].map(|name| {
        let path = folder.path().join(name);
        kernel.program_mut(name).expect("it is in the object").pin(&path).expect("it can be pinned");
        path
    });
    let mut change = |n: u32| {
        let delta = kernel.tables().delta_to(&state(n));
        kernel.apply(&delta).expect("the maps take a change");
    };
    change(0);
    let stop = AtomicBool::new(false);
    let epochs = AtomicU64::new(0);
    let tallies = std::thread::scope(|scope| {
        let threads = [true, false].map(|allowed| {
            let (programs, stop) = (&programs, &stop);
            scope.spawn(move || packets(programs, allowed, stop))
        });
        let start = Instant::now();
        let mut n = 0;
        while start.elapsed() < LENGTH {
            n += 1;
            change(n);
            epochs.fetch_add(1, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().expect("a thread of packets ends well"))
    });
    let unsettled = count(&kernel, Reason::Unsettled);
    let epochs = epochs.load(Ordering::Relaxed);
    println!("{epochs} epochs, allowed {:?}, refused {:?}, {unsettled} unsettled", tallies[0], tallies[1]);
    println!("{:?}", counted(&kernel, |_| true));
    // Neither of the repeated runs may have been anything else, whatever the last one was.
    let fine = [Reason::Allowed, Reason::Established, Reason::NoRule, Reason::Unsettled, Reason::Kept];
    assert_eq!(counted(&kernel, |reason| !fine.contains(&reason)), [], "reasons that no state has");
    let admitted: u64 = [Reason::Allowed, Reason::Established, Reason::Kept].map(|r| count(&kernel, r)).iter().sum();
    assert_eq!(
        admitted + unsettled.min(tallies[0].wrong),
        tallies[0].packets,
        "admitted are all that are allowed, no other"
    );
    assert!(tallies[0].wrong <= unsettled, "{tallies:?}: refused, though every state allows it");
    assert_eq!(tallies[1].wrong, 0, "{tallies:?}: admitted, though every state refuses it");
    assert!(epochs > 100 && tallies[0].packets > 10_000 && tallies[1].packets > 10_000, "too little happened");
    // A packet is given up only if the tables change in each of its attempts, which takes a processor that is taken away from it
    // each time: in a virtual machine that shares its processors this is seen, rarely.
    let packets = tallies[0].packets + tallies[1].packets;
    assert!(unsettled * 10_000 <= packets, "{unsettled} of {packets} packets were never settled");
}

#[test]
fn packets_in_flight() {
    stress(false);
}

/// What was judged between two states must not be remembered either.
#[test]
fn packets_in_flight_keeping_flows() {
    stress(true);
}
