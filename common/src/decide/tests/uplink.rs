//! What is refused where it comes in, and everything that is not.

use super::stub::{Entry, Script, Stub};
use super::*;
use crate::flow::key;
use crate::layout::{
    AWAITED_SECONDS, AWAITED_SLOTS, FlowValue, SERVICE_KNOWN, ServiceKey, TunnelEnd, awaited_slot, is_awaited,
};
use crate::parse::protocol;

const EPOCH: u32 = 5;
const POD: u32 = 3;
const PODS_ADDRESS: Address = Address::v4(100);
const PEER: Address = Address::v4(200);
const GATEWAY: Address = Address::v4(7);
const TABLE: u32 = 70;
const ISOLATED: u32 = endpoint_flag::ISOLATED_INGRESS;

/// A stub, and what is asked beside [`Tables`].
struct Uplink {
    stub: Stub,
    endpoint: Option<u32>,
    masquerade: Option<Address>,
    awaits: bool,
}

/// Everything else is the stub's to say.
macro_rules! as_stub {
    ($(fn $name:ident(&self $(, $argument:ident: $kind:ty)*) -> $returned:ty;)+) => {
        $(fn $name(&self $(, $argument: $kind)*) -> $returned { self.stub.$name($($argument),*) })+
    };
}

impl Tables for Uplink {
    type Flow<'a> = Entry;

    as_stub! {
        fn epoch(&self) -> u32;
        fn endpoint(&self, ifindex: u32) -> Option<Versioned>;
        fn hint(&self, ifindex: u32, epoch: u32) -> Option<u32>;
        fn put_hint(&self, ifindex: u32, epoch: u32, index: u32) -> ();
        fn record(&self, index: u32) -> Option<&EndpointRecord>;
        fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned>;
        fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned>;
        fn rule(&self, key: &crate::layout::RuleKey) -> Option<RuleValue>;
        fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32>;
        fn has_service_port(&self, port: u16) -> bool;
        fn service(&self, key: &ServiceKey) -> Option<Versioned>;
        fn backends(&self, row: u32) -> Option<&crate::layout::Backends>;
        fn stamp_owner(&self, stamp: u16) -> Option<u32>;
        fn exits_missing(&self) -> bool;
        fn count_service(&self, what: ServiceCount) -> ();
        fn flow(&self, key: &crate::layout::FlowKey) -> Option<Entry>;
        fn fragment(&self, key: &crate::layout::FragmentKey) -> Option<crate::layout::FragmentValue>;
        fn now(&self) -> u64;
        fn pressure(&self, now: u64) -> bool;
        fn paused_until(&self) -> u32;
        fn keeps_existing(&self) -> bool;
        fn listens(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool>;
        fn is_connected(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool>;
    }

    /// The node's own address is admitted.
    fn answer(&self, question: &Question<'_>, record: &EndpointRecord) -> Answer {
        if *question.peer == GATEWAY { Answer::ALLOWED } else { self.stub.answer(question, record) }
    }

    fn put_flow(&self, _key: &crate::layout::FlowKey, _value: &FlowValue, _new: bool) -> bool {
        panic!("nothing is remembered here")
    }

    fn put_fragment(&self, _key: &crate::layout::FragmentKey, _value: &crate::layout::FragmentValue) -> bool {
        panic!("nothing is remembered here")
    }

    fn take_midstream(&self, _number: u32, _now: u64) -> bool {
        panic!("nothing is admitted here")
    }
}

impl UplinkTables for Uplink {
    fn endpoint_of(&self, _address: &Address) -> Option<u32> {
        self.endpoint
    }

    fn masquerade(&self, _family: u8) -> Option<Address> {
        self.masquerade
    }

    fn awaits(&self, _address: &Address, _port: u16, _second: u32) -> bool {
        self.awaits
    }
}

fn tables(flags: u32) -> Uplink {
    let record = EndpointRecord {
        ifindex: POD,
        generation: 1,
        flags,
        ingress: TableRef { table: TABLE, default: RuleValue::default() },
        v4: [100, 0, 0, 0],
        ..EndpointRecord::default()
    };
    let endpoints = Script::new([Some(Versioned::constant(0)); 8]);
    let stub = Stub { epoch: EPOCH, records: vec![record], endpoints, now: 1000 * SECOND, ..Stub::default() };
    Uplink { stub, endpoint: Some(POD), masquerade: Some(Address::ZERO), awaits: false }
}

fn opening(protocol: u8) -> Packet {
    let icmp = protocol == protocol::ICMP;
    Packet {
        traits: packet_trait::IP | packet_trait::OPENING | if icmp { packet_trait::ICMP } else { 0 },
        family: V4,
        protocol,
        icmp_type: if icmp { 8 } else { 0 },
        source: PEER,
        destination: PODS_ADDRESS,
        source_port: 40_000,
        destination_port: 80,
        network: 14,
        transport: 34,
        hop_limit: 64,
        ..Packet::default()
    }
}

fn is_refused(tables: &Uplink, packet: &Packet) -> bool {
    let refused = refused_early(tables, packet);
    assert!(refused.is_none_or(|(ruling, ifindex)| ruling.reason() == Reason::NoRule && ifindex == POD));
    refused.is_some()
}

const ALL: [u8; 4] = [protocol::TCP, protocol::SCTP, protocol::UDP, protocol::ICMP];

#[test]
fn an_opening_that_no_rule_admits() {
    for protocol in ALL {
        assert!(is_refused(&tables(ISOLATED), &opening(protocol)), "{protocol}");
    }
    let packet = Packet {
        family: V6,
        protocol: protocol::ICMPV6,
        icmp_type: 128,
        transport: 54,
        destination: Address::v6([1, 2, 3, 4]),
        ..opening(protocol::ICMP)
    };
    let mut tables = tables(ISOLATED);
    tables.stub.records[0].v6[1] = packet.destination;
    assert!(is_refused(&tables, &packet));
    assert!(!is_refused(&tables, &Packet { icmp_type: 135, ..packet }), "neighbours are looked for");
    assert!(!is_refused(&tables, &Packet { transport: 62, ..packet }), "an extension header");
}

#[test]
fn packets_that_leave_something_open_go_on() {
    let syn = opening(protocol::TCP);
    let with = |bit| Packet { traits: syn.traits | bit, ..syn };
    for (name, packet) in [
        ("a segment of a connection", Packet { traits: packet_trait::IP, ..syn }),
        ("another protocol", Packet { protocol: 47, ..syn }),
        ("not IP", Packet { traits: packet_trait::OPENING, ..syn }),
        ("malformed", with(packet_trait::MALFORMED)),
        ("a first fragment", with(packet_trait::FRAGMENT_FIRST)),
        ("a later fragment", with(packet_trait::FRAGMENT_LATER)),
        ("an error", with(packet_trait::ICMP_ERROR)),
        ("IP options", Packet { transport: 38, ..syn }),
        ("it ends here", Packet { hop_limit: 1, ..syn }),
        ("a timestamp request", Packet { icmp_type: 13, ..opening(protocol::ICMP) }),
        ("ICMPv6 in IPv4", Packet { protocol: protocol::ICMPV6, icmp_type: 128, ..syn }),
    ] {
        assert!(!is_refused(&tables(ISOLATED), &packet), "{name}");
    }
}

#[test]
fn endpoints_of_which_it_is_not_certain_go_on() {
    let syn = opening(protocol::TCP);
    let check = |name: &str, flags: u32, change: &dyn Fn(&mut Uplink)| {
        let mut tables = tables(flags);
        change(&mut tables);
        assert!(!is_refused(&tables, &syn), "{name}");
    };
    check("no policy", 0, &|_| {});
    check("a policy for egress alone", endpoint_flag::ISOLATED_EGRESS, &|_| {});
    check("closed", ISOLATED | endpoint_flag::CLOSED, &|_| {});
    check("nobody's address", ISOLATED, &|tables| tables.endpoint = None);
    check("another's address", ISOLATED, &|tables| tables.stub.records[0].v4 = [101, 0, 0, 0]);
    check("another's record", ISOLATED, &|tables| tables.stub.records[0].ifindex = 9);
    check("admitted", ISOLATED, &|tables| tables.stub.admitting = vec![TABLE]);
    check("a source that nobody knows", ISOLATED, &|tables| tables.masquerade = None);
    check("a change meanwhile", ISOLATED, &|tables| tables.stub.epochs = Script::new([EPOCH, EPOCH + 1]));
    let key = ServiceKey { address: PODS_ADDRESS, port: 80, protocol: protocol::TCP, family: V4 };
    check("a Service's address", ISOLATED, &|tables| tables.stub.services = vec![(key, SERVICE_KNOWN)]);
    let other = ServiceKey { address: PEER, ..key };
    let mut tables = tables(ISOLATED);
    tables.stub.services = vec![(other, SERVICE_KNOWN)];
    assert!(is_refused(&tables, &syn), "another Service has the port");
}

#[test]
fn who_may_be_masqueraded_is_asked_for_as_well() {
    let mut tables = tables(ISOLATED);
    assert!(is_refused(&tables, &opening(protocol::TCP)));
    tables.masquerade = Some(GATEWAY);
    assert!(!is_refused(&tables, &opening(protocol::TCP)));
}

#[test]
fn datagrams_that_may_be_answers_go_on() {
    let packet = opening(protocol::UDP);
    let check = |name: &str, change: &dyn Fn(&mut Uplink)| {
        let mut tables = tables(ISOLATED);
        change(&mut tables);
        assert!(!is_refused(&tables, &packet), "{name}");
        // That is no matter for what opens connections.
        tables.stub.endpoints = Script::new([Some(Versioned::constant(0)); 8]);
        assert!(is_refused(&tables, &opening(protocol::TCP)), "{name}");
    };
    check("the pod awaits something there", &|tables| tables.awaits = true);
    check("the table may have forgotten", &|tables| tables.stub.pressure = true);
    check("isolated a moment ago", &|tables| tables.stub.records[0].isolated_at = 990);
    check("a pause a moment ago", &|tables| tables.stub.paused_until = 990);
    check("a flow is known", &|tables| {
        *tables.stub.flow.borrow_mut() = Some((key(&packet).0, Entry::of(FlowValue::default())));
    });
}

#[test]
fn answers_are_awaited_as_long_as_flows_are_remembered() {
    for (name, then, since, second, wanted) in [
        ("not written down", 0, 0, 1000, true),
        ("not for long enough", 0, 900, 1000, true),
        ("just not long enough", 0, 1000 - AWAITED_SECONDS, 1000, true),
        ("nothing was sent", 0, 1, 1000, false),
        ("sent now", 1000, 1, 1000, true),
        ("as late as can be", 1000 - AWAITED_SECONDS, 1, 1000, true),
        ("too late", 999 - AWAITED_SECONDS, 1, 1000, false),
        ("a clock that is behind", 1001, 1, 1000, true),
    ] {
        assert_eq!(is_awaited(then, since, second), wanted, "{name}");
    }
}

#[test]
fn slots_are_spread() {
    let slots: std::collections::BTreeSet<u32> = (0..1000_u32)
        .flat_map(|pod| [53, 40_000].map(|port| awaited_slot(&Address::v4((0x0af4_0000 | pod).to_be()), port)))
        .collect();
    assert!(slots.iter().all(|slot| *slot < AWAITED_SLOTS) && slots.len() > 1900, "{}", slots.len());
}

#[test]
fn only_what_is_addressed_to_this_end_of_the_tunnel_is_unwrapped() {
    let end = TunnelEnd { address: PODS_ADDRESS, vni: 1, port: 80, pad: 0 };
    let packet = opening(protocol::UDP);
    assert_eq!(tunnelled(&packet, &end), Some(42));
    for (name, packet, end) in [
        ("no tunnel", Packet { destination_port: 0, ..packet }, TunnelEnd { port: 0, ..end }),
        ("another port", Packet { destination_port: 81, ..packet }, end),
        ("another's address", packet, TunnelEnd { address: PEER, ..end }),
        ("TCP", opening(protocol::TCP), end),
        ("options", Packet { transport: 38, ..packet }, end),
        ("a fragment", Packet { traits: packet.traits | packet_trait::FRAGMENT_FIRST, ..packet }, end),
    ] {
        assert_eq!(tunnelled(&packet, &end), None, "{name}");
    }
    let header = |first: u32, second: u32| [first.to_be(), second.to_be()];
    assert!(is_network(header(0x0800_0000, 0x100), 1));
    for wrong in [header(0, 0x100), header(0x0800_0000, 0x200), header(0x8800_0000, 0x100), header(0x0800_0000, 0x101)]
    {
        assert!(!is_network(wrong, 1), "{wrong:?}");
    }
}
