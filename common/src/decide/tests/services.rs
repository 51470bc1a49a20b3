//! Services' addresses at the pod's own end, and marked packets where they end up.

use super::stub::{Entry, Script, Stub};
use super::*;
use crate::decide::policy::{OPEN_EGRESS, REACH_EGRESS};
use crate::flow::key;
use crate::layout::{Backends, FlowValue, Judgement, SERVICE_KNOWN, ServiceKey, flow_flag};
use crate::parse::protocol;

const EPOCH: u32 = 5;
const GENERATION: u32 = 9;
/// The pod that opens flows: its interface, and its stamp.
const CLIENT: u32 = 2;
const STAMP: u16 = 1;
const CLIENTS_ADDRESS: Address = Address::v4(100);
const VIP: Address = Address::v4(200);
const BACKEND: Address = Address::v4(201);
const MASQUERADED: Address = Address::v4(202);
const ADMITTING: u32 = 70;

fn client(flags: u32, table: u32) -> EndpointRecord {
    EndpointRecord {
        ifindex: CLIENT,
        generation: GENERATION,
        flags,
        stamp: STAMP.into(),
        egress: TableRef { table, default: RuleValue::default() },
        as_peer: CLIENTS_ADDRESS,
        v4: [100, 0, 0, 0],
        ..EndpointRecord::default()
    }
}

fn tcp(source: Address, destination: Address, traits: u32) -> Packet {
    Packet {
        traits: packet_trait::IP | traits,
        family: V4,
        protocol: protocol::TCP,
        source,
        destination,
        source_port: 40_000,
        destination_port: 80,
        ..Packet::default()
    }
}

fn service(address: Address, family: u8) -> ServiceKey {
    ServiceKey { address, port: 80, protocol: protocol::TCP, family }
}

/// The client's record and its stamp are known.
fn tables(record: EndpointRecord) -> Stub {
    Stub {
        epoch: EPOCH,
        records: vec![record],
        stamps: vec![0, CLIENT],
        endpoints: Script::new([Some(Versioned::constant(0)); 8]),
        ..Stub::default()
    }
}

/// A policy's own answer, and what the pod's end makes of it.
#[test]
fn a_services_address_is_let_go_on_if_it_can_be_judged_later() {
    use Reason::{Allowed, NoExit, NoRule, NoStamp, Service};
    let any = Address::ZERO;
    for (name, known, admits, stamp, exits_missing, wanted) in [
        ("no Service, refused", None, false, 1, false, NoRule),
        ("no Service, admitted", None, true, 1, false, Allowed),
        ("a Service", Some((VIP, V4)), false, 1, false, Service),
        ("a node port", Some((any, V4)), false, 1, false, Service),
        ("a node port of the other family", Some((any, V6)), false, 1, false, NoRule),
        ("admitted as it is", Some((VIP, V4)), true, 1, false, Allowed),
        ("exits are missing", Some((VIP, V4)), false, 1, true, NoExit),
        ("exits are missing, admitted as it is", Some((VIP, V4)), true, 1, true, NoExit),
        ("exits are missing, no Service", None, true, 1, true, Allowed),
        ("exits are missing, no Service, refused", None, false, 1, true, NoRule),
        ("no stamp is left", Some((VIP, V4)), true, 0, false, NoStamp),
        ("no stamp is left, no Service", None, true, 0, false, Allowed),
    ] {
        let services = known.map(|(address, family)| (service(address, family), SERVICE_KNOWN)).into_iter().collect();
        let tables = Stub { epoch: EPOCH, services, exits_missing, ..Stub::default() };
        let default = if admits { RuleValue::all(1) } else { RuleValue::default() };
        let egress = TableRef { table: 1, default };
        let record = EndpointRecord { stamp, egress, ingress: egress, ..EndpointRecord::default() };
        let question =
            |what| Question { peer: &VIP, client: (0, 0), epoch: EPOCH, what, port: 80, protocol: 6, family: V4 };
        assert_eq!(answer(&tables, &question(OPEN_EGRESS), &record).ruling().reason(), wanted, "{name}");
        // What is received, and what is reached in the end, is judged as it is.
        let as_is = if admits { Allowed } else { NoRule };
        for what in [OPEN_INGRESS, REACH_EGRESS] {
            assert_eq!(answer(&tables, &question(what), &record).ruling().reason(), as_is, "{name}, {what}");
        }
    }
}

#[test]
fn what_is_no_transport_is_no_services() {
    let tables = Stub { services: vec![(ServiceKey { protocol: 1, ..service(VIP, V4) }, 1)], ..Stub::default() };
    let question =
        Question { peer: &VIP, client: (0, 0), epoch: 0, what: OPEN_EGRESS, port: 80, protocol: 1, family: V4 };
    let record = EndpointRecord { stamp: 1, ..EndpointRecord::default() };
    assert_eq!(answer(&tables, &question, &record).ruling().reason(), Reason::NoRule);
}

/// Who has the stamp is asked, whatever address the packet bears.
#[test]
fn whose_mark_it_is_is_asked() {
    const EGRESS_ONLY: u32 = endpoint_flag::ISOLATED_EGRESS;
    for (name, flags, table, stamp, wanted) in [
        ("admitted", EGRESS_ONLY, ADMITTING, STAMP, Reason::Allowed),
        ("refused", EGRESS_ONLY, 1, STAMP, Reason::NoRule),
        ("without an egress policy", endpoint_flag::ISOLATED_INGRESS, 1, STAMP, Reason::NotIsolated),
        ("closed", EGRESS_ONLY | endpoint_flag::CLOSED, ADMITTING, STAMP, Reason::Closed),
        ("closed, without a policy", endpoint_flag::CLOSED, ADMITTING, STAMP, Reason::Closed),
        ("nobody's mark", EGRESS_ONLY, ADMITTING, 7, Reason::UnknownStamp),
    ] {
        let tables = Stub { admitting: vec![ADMITTING], ..tables(client(flags, table)) };
        let packet = tcp(MASQUERADED, BACKEND, packet_trait::OPENING);
        let ruling = decide_leaving(|| &packet, &tables, stamp, Place::Device);
        assert_eq!((ruling.reason(), ruling.stamp()), (wanted, stamp), "{name}");
        let counted = if wanted == Reason::Allowed { vec![ServiceCount::Judged] } else { vec![] };
        assert_eq!(*tables.counted.borrow(), counted, "{name}");
    }
}

/// What the pod's own end has judged need not be judged again, unless it only let it go on.
#[test]
fn a_judgement_of_the_same_addresses_holds_where_they_leave() {
    let packet = tcp(CLIENTS_ADDRESS, BACKEND, 0);
    let (key, sender) = key(&packet);
    let judged = Judgement { epoch: EPOCH, generation: GENERATION };
    let opened = flow_flag::OPENED << sender;
    for (name, judged, flags, wanted) in [
        ("judged", judged, opened, Reason::Established),
        ("only let go on", judged, opened | flow_flag::DEFERRED << sender, Reason::NoRule),
        ("the other end's was let go on", judged, opened | flow_flag::DEFERRED << (1 - sender), Reason::Established),
        ("at an earlier epoch", Judgement { epoch: 4, ..judged }, opened, Reason::Revoked),
        ("of another pod", Judgement { generation: 8, ..judged }, opened, Reason::NoRule),
    ] {
        let tables = tables(client(endpoint_flag::ISOLATED_EGRESS, 1));
        let mut value = FlowValue { flags, ..FlowValue::default() };
        value.judged[sender][EGRESS] = judged;
        *tables.flow.borrow_mut() = Some((key, Entry::of(value)));
        let ruling = decide_leaving(|| &packet, &tables, STAMP, Place::Device);
        assert_eq!(ruling.reason(), wanted, "{name}");
    }
}

/// At a process of the node an address that was not translated stands for all of the Service's backends.
#[test]
fn a_process_that_serves_a_service_stands_for_its_backends() {
    const ROW: u32 = 2;
    let backends = |count| Backends { count, ports: [53; 4], addresses: [BACKEND; 4] };
    let packet = tcp(CLIENTS_ADDRESS, VIP, packet_trait::OPENING);
    let (key, sender) = key(&packet);
    let deferred = flow_flag::OPENED << sender | flow_flag::DEFERRED << sender;
    for (name, place, flags, row, count, table, wanted) in [
        ("admitted", Place::Process, deferred, ROW, 1, ADMITTING, true),
        ("all four", Place::Process, deferred, ROW, 4, ADMITTING, true),
        ("refused", Place::Process, deferred, ROW, 1, 1, false),
        ("none", Place::Process, deferred, ROW, 0, ADMITTING, false),
        ("more than are known", Place::Process, deferred, ROW, 5, ADMITTING, false),
        ("not served here", Place::Process, deferred, SERVICE_KNOWN, 1, ADMITTING, false),
        ("not let go on as a Service's", Place::Process, flow_flag::OPENED << sender, ROW, 1, ADMITTING, false),
        ("on its way out", Place::Device, deferred, ROW, 1, ADMITTING, false),
    ] {
        let mut tables = tables(client(endpoint_flag::ISOLATED_EGRESS, table));
        tables.services = vec![(service(VIP, V4), row)];
        tables.backends = Some(backends(count));
        // The policy admits port 53 alone.
        tables.admitting_port = Some((ADMITTING, 53));
        let mut value = FlowValue { flags, ..FlowValue::default() };
        value.judged[sender][EGRESS] = Judgement { epoch: EPOCH - 1, generation: GENERATION };
        *tables.flow.borrow_mut() = Some((key, Entry::of(value)));
        let ruling = decide_leaving(|| &packet, &tables, STAMP, place);
        assert_eq!(ruling.passes(), wanted, "{name}: {ruling:?}");
    }
}
