use palisade_common::layout::{
    Address, Config, EndpointRecord, FlowValue, Judgement, PauseKey, RuleValue, TableRef, Versioned, endpoint_flag,
    flow_flag,
};

use super::*;
use crate::compile::{Catalog, EndpointEntry, RuleEntry};
use crate::kernel::Snapshot;

const EPOCH: u32 = 9;
const NOW: u64 = 1_000_000_000_000;

fn v4(text: &str) -> u32 {
    u32::from(text.parse::<std::net::Ipv4Addr>().expect("an address")).to_be()
}

/// Pod `shop/web` (10.0.0.1, interface 3, egress isolated: everything by rule 7) and `shop/db` (10.0.0.2, interface 4, ingress isolated:
/// nothing).
fn scene() -> Scene {
    let record = |ifindex: u32, address: &str, flags: u32, egress: RuleValue| EndpointRecord {
        ifindex,
        generation: ifindex * 10,
        flags,
        egress: TableRef { table: 1, default: egress },
        stamp: ifindex,
        v4_count: 1,
        v4: [v4(address), 0, 0, 0],
        ..EndpointRecord::default()
    };
    let web = record(3, "10.0.0.1", endpoint_flag::ISOLATED_EGRESS, RuleValue::all(7));
    let db = record(4, "10.0.0.2", endpoint_flag::ISOLATED_INGRESS, RuleValue::default());
    let mut snapshot = Snapshot { config: Config { epoch: EPOCH, ..Config::default() }, ..Snapshot::default() };
    snapshot.found.epoch = EPOCH;
    snapshot.found.records = [(0, web), (1, db)].into();
    snapshot.found.tables.endpoints = [(3, Versioned::constant(0)), (4, Versioned::constant(1))].into();
    let entry = |ifindex: u32, pod: &str| EndpointEntry {
        ifindex,
        generation: ifindex * 10,
        namespace: Some("shop".to_owned()),
        pod: Some(pod.to_owned()),
        ..EndpointEntry::default()
    };
    let rule =
        RuleEntry { policy: "shop/p".to_owned(), direction: "egress".to_owned(), index: 2, peers: None, ports: None };
    let catalog =
        Catalog { endpoints: vec![entry(3, "web"), entry(4, "db")], rules: [(7, rule)].into(), ..Catalog::default() };
    Scene::new(snapshot, catalog)
}

fn key(low: &str, high: &str) -> FlowKey {
    let (low, high) = (Address::v4(v4(low)), Address::v4(v4(high)));
    FlowKey { low, high, low_port: 40_000, high_port: 80, protocol: 6, family: 4, ..FlowKey::default() }
}

fn value(flags: u32) -> FlowValue {
    let judged = [[Judgement { epoch: EPOCH, generation: 30 }, Judgement::default()], [Judgement::default(); 2]];
    FlowValue { judged, flags, seen: NOW - 3_500_000_000, ..FlowValue::default() }
}

fn moment<'a>(names: &'a BTreeMap<IpAddr, Option<String>>, pauses: &'a BTreeMap<PauseKey, u64>) -> Moment<'a> {
    Moment { now: NOW, names, pauses }
}

fn row(key: &FlowKey, value: &FlowValue) -> Row {
    let names = [("192.0.2.1".parse().expect("an address"), Some("ops/far".to_owned()))].into();
    let rows = scene().rows(key, value, &moment(&names, &BTreeMap::new()));
    assert_eq!(rows.len(), 1);
    rows[0].1.clone()
}

#[test]
fn a_flow_has_names_and_the_rule_that_admits_it() {
    let row = row(&key("10.0.0.1", "192.0.2.1"), &value(flow_flag::OPENED));
    assert_eq!((row.source.to_string(), row.destination.to_string()), ("shop/web:40000".into(), "ops/far:80".into()));
    assert_eq!((row.verdict, row.state, row.idle_seconds), ("admitted", "open", 3));
    assert_eq!(row.by(), "shop/p egress rule 2");
    let egress = row.egress.expect("it is isolated");
    assert!(egress.judged && egress.admits && egress.reason == "allowed");
    assert!(row.ingress.is_none());
}

#[test]
fn what_the_tables_no_longer_admit_stands_out() {
    let row = row(&key("10.0.0.1", "10.0.0.2"), &value(flow_flag::OPENED));
    assert_eq!(row.verdict, "refused");
    let ingress = row.ingress.expect("it is isolated");
    assert_eq!((ingress.admits, ingress.reason, ingress.judged, ingress.rule), (false, "no-rule", false, None));
}

/// Of the pod that refuses, or of the node; another's changes nothing, nor does one that is over.
#[test]
fn nothing_is_refused_while_enforcement_is_paused() {
    let (flow, known) = (key("10.0.0.1", "10.0.0.2"), value(flow_flag::OPENED));
    let pod = |ifindex: u32, generation: u32| PauseKey { ifindex, generation };
    for (paused, until, verdict) in [
        (pod(4, 40), NOW + 1, "paused"),
        (PauseKey::NODE, NOW + 1, "paused"),
        (pod(3, 30), NOW + 1, "refused"),
        (pod(4, 41), NOW + 1, "refused"),
        (PauseKey::NODE, NOW, "refused"),
    ] {
        let rows = scene().rows(&flow, &known, &moment(&BTreeMap::new(), &[(paused, until)].into()));
        assert_eq!(rows[0].1.verdict, verdict, "{paused:?}");
    }
}

#[test]
fn who_opened_it_and_what_became_of_it() {
    let both = scene().rows(
        &key("10.0.0.1", "192.0.2.1"),
        &value(flow_flag::OPENED * 3),
        &moment(&BTreeMap::new(), &BTreeMap::new()),
    );
    let from: Vec<String> = both.iter().map(|(_, row)| row.source.to_string()).collect();
    assert_eq!(from, ["shop/web:40000", "192.0.2.1:80"]);
    let node = row(&key("10.0.0.1", "10.0.0.2"), &value(flow_flag::OPENED | flow_flag::NODE));
    assert_eq!((node.verdict, node.egress, node.ingress), ("node", None, None));
    for (flags, state) in [
        (flow_flag::FIN, "closing"),
        (flow_flag::FIN_ACKED * 3, "closed"),
        (flow_flag::RESET, "reset"),
        (flow_flag::UNCONFIRMED, "doubtful"),
    ] {
        assert_eq!(row(&key("10.0.0.1", "192.0.2.1"), &value(flow_flag::OPENED | flags)).state, state);
    }
    let over = FlowValue { seen: 0, ..value(flow_flag::OPENED | flow_flag::RESET) };
    assert!(scene().rows(&key("10.0.0.1", "10.0.0.2"), &over, &moment(&BTreeMap::new(), &BTreeMap::new())).is_empty());
}

/// Behind the node's address its pod is known all the same.
#[test]
fn a_masqueraded_pod_is_named() {
    let flow = FlowValue { client: 3, client_generation: 30, ..value(flow_flag::OPENED | flow_flag::LEAVING) };
    let row = row(&key("172.16.0.9", "192.0.2.1"), &flow);
    assert_eq!(row.source.to_string(), "shop/web:40000");
    assert_eq!((row.verdict, row.by()), ("admitted", "shop/p egress rule 2".to_owned()));
    let another = FlowValue { client_generation: 31, ..flow };
    let rows = scene().rows(&key("172.16.0.9", "192.0.2.1"), &another, &moment(&BTreeMap::new(), &BTreeMap::new()));
    assert_eq!(rows[0].1.source.to_string(), "172.16.0.9:40000");
}

#[test]
fn a_stream_tells_what_comes_changes_and_goes() {
    let (flow, other) = ((key("10.0.0.1", "192.0.2.1"), 0), (key("10.0.0.1", "192.0.2.2"), 0));
    let open = row(&flow.0, &value(flow_flag::OPENED));
    let closed = row(&flow.0, &value(flow_flag::OPENED | flow_flag::RESET));
    let events = |known: &BTreeMap<Id, Row>, now: &BTreeMap<Id, Row>| -> Vec<&'static str> {
        differences(known, now, false).into_iter().map(|told| told.event).collect()
    };
    let (none, one) = (BTreeMap::new(), BTreeMap::from([(flow, open.clone())]));
    assert_eq!(differences(&none, &one, true)[0].event, "is");
    assert_eq!(events(&none, &one), ["new"]);
    assert!(events(&one, &one).is_empty());
    assert!(events(&one, &BTreeMap::from([(flow, Row { idle_seconds: 7, ..open.clone() })])).is_empty());
    assert_eq!(events(&one, &BTreeMap::from([(flow, closed)])), ["changed"]);
    assert_eq!(events(&one, &BTreeMap::from([(other, open)])), ["new", "gone"]);
}
