//! What does not fit closes what it concerns, is named, and comes back when there is room.

use super::World;
use crate::compile::Limits;
use palisade_common::layout::endpoint_flag::CLOSED;

const SUBJECT: &str = "
    ns a\npod a/s ip=10.0.0.5 node=n app=s\npod a/w ip=10.0.1.1 app=w\npod a/x ip=10.0.1.2 app=w
    veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s\ncomplete
";

fn world(limits: Limits, lines: &str) -> (World, Vec<String>) {
    let mut world = World::new(SUBJECT, limits);
    let faults = world.apply(lines).faults;
    (
        world,
        faults
            .into_iter()
            .map(|fault| format!("{} {} {}: {}", fault.kind.name(), fault.object, fault.field, fault.message))
            .collect(),
    )
}

#[test]
fn a_block_that_does_not_fit_matches_nothing() {
    let limits = Limits { prefixes_max: 2, ..Limits::default() };
    // The except alone would fit; dropping only it would open 10.9.0.0/16.
    let (mut world, faults) =
        world(limits, "policy a/p . in(@10.0.0.0/8!10.8.0.0/16!10.9.0.0/16|TCP/1) in(@11.0.0.0/8|TCP/1)");
    assert_eq!(
        faults,
        ["NetworkPolicy a/p spec.ingress[0]: an ipBlock does not fit the limit of 2 prefixes: it matches nothing"]
    );
    assert_eq!(
        world.ask("5 in 10.9.0.1 TCP/1\n5 in 10.1.0.1 TCP/1\n5 in 11.0.0.1 TCP/1"),
        "5 in 10.9.0.1 TCP/1 deny\n5 in 10.1.0.1 TCP/1 deny\n5 in 11.0.0.1 TCP/1 allow\n"
    );
    assert_eq!(world.apply("policy a/p . in(@10.0.0.0/8!10.9.0.0/16|TCP/1)").faults, []);
    assert_eq!(
        world.ask("5 in 10.9.0.1 TCP/1\n5 in 10.1.0.1 TCP/1"),
        "5 in 10.9.0.1 TCP/1 deny\n5 in 10.1.0.1 TCP/1 allow\n"
    );
}

#[test]
fn an_address_that_does_not_fit_is_no_pods() {
    let limits = Limits { exact_max: 1, ..Limits::default() };
    let (mut world, faults) = world(limits, "policy a/p . in(app=w|TCP/1) in(@10.0.1.0/24|TCP/2)");
    assert_eq!(
        faults,
        [
            "Pod a/x status.podIPs: 1 pod addresses from 10.0.1.2 on do not fit the limit of 1: no selector and no named port matches them"
        ]
    );
    assert_eq!(
        world.ask("5 in 10.0.1.1 TCP/1\n5 in 10.0.1.2 TCP/1\n5 in 10.0.1.2 TCP/2"),
        "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.1.2 TCP/1 deny\n5 in 10.0.1.2 TCP/2 allow\n"
    );
    assert_eq!(world.apply("-pod a/w").faults, []);
    assert_eq!(world.ask("5 in 10.0.1.2 TCP/1"), "5 in 10.0.1.2 TCP/1 allow\n");
}

#[test]
fn a_table_that_does_not_fit_closes_its_endpoints() {
    for limits in [Limits { rules_max: 0, ..Limits::default() }, Limits { ports_max: 0, ..Limits::default() }] {
        let (mut world, faults) =
            world(limits, "policy a/p . in(app=w|TCP/1)\npod a/t ip=10.0.0.6 node=m\nveth 6 mac=6 ip=10.0.0.6/24");
        assert_eq!(faults, ["Pod a/s : there is no room for the rows of its policies: it is closed"]);
        assert_eq!(
            world.ask("5 in 10.0.1.1 TCP/1\n5 out 10.0.1.1 TCP/1"),
            "5 in 10.0.1.1 TCP/1 deny\n5 out 10.0.1.1 TCP/1 deny\n"
        );
        assert_eq!(world.compiler.tables().rules.len() + world.compiler.tables().ports.len(), 0);
        assert_eq!(world.apply("policy a/p . in(*|*)").faults, []);
        assert_eq!(world.ask("5 in 10.0.1.1 TCP/1"), "5 in 10.0.1.1 TCP/1 allow\n");
    }
}

#[test]
fn a_class_may_go_while_its_table_does_not_fit() {
    let limits = Limits { rules_max: 1, ..Limits::default() };
    let two = "policy a/p . in(app=w|TCP/1) in(app=v|TCP/2)";
    let (mut world, faults) = world(limits, &format!("pod a/v ip=10.0.1.3 app=v\n{two}"));
    assert_eq!(faults, ["Pod a/s : there is no room for the rows of its policies: it is closed"]);
    assert_eq!(world.apply("-pod a/v").faults, []);
    assert_eq!(
        world.ask("5 in 10.0.1.1 TCP/1\n5 in 10.0.1.3 TCP/2"),
        "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.1.3 TCP/2 deny\n"
    );
    assert_eq!(world.compiler.tables().rules.len(), 1);
}

/// The first in the order of their policies' names; a limit is what still fits.
#[test]
fn tables_fit_up_to_the_limit() {
    for limits in [Limits { rules_max: 1, ..Limits::default() }, Limits { ports_max: 1, ..Limits::default() }] {
        let second = "pod a/t ip=10.0.0.6 node=n app=t\nveth 6 mac=6 ip=10.0.0.6/24 pod=a/t#a/t";
        let policies = "policy a/q app=t in(app=w|TCP/2)\npolicy a/p app=s in(app=w|TCP/1)";
        let (mut world, faults) = world(limits, &format!("{second}\n{policies}"));
        assert_eq!(faults, ["Pod a/t : there is no room for the rows of its policies: it is closed"], "{limits:?}");
        assert_eq!(
            world.ask("5 in 10.0.1.1 TCP/1\n6 in 10.0.1.1 TCP/2"),
            "5 in 10.0.1.1 TCP/1 allow\n6 in 10.0.1.1 TCP/2 deny\n"
        );
        assert_eq!(world.apply("-policy a/p").faults, [], "{limits:?}");
        assert_eq!(world.ask("6 in 10.0.1.1 TCP/2"), "6 in 10.0.1.1 TCP/2 allow\n");
    }
}

#[test]
fn an_endpoint_that_does_not_fit_has_no_entry() {
    let limits = Limits { endpoints_max: 1, ..Limits::default() };
    let (mut world, faults) = world(limits, "pod a/t ip=10.0.0.6 node=n\nveth 6 mac=6 ip=10.0.0.6/24");
    assert_eq!(faults, ["Pod a/t : there is no room for it among 1 endpoints: it is closed"]);
    assert_eq!(world.compiler.tables().endpoints.keys().collect::<Vec<_>>(), [&5]);
    let closed = world.compiler.catalog(&world.index, &[]).endpoints.into_iter().map(|entry| entry.closed);
    assert_eq!(closed.collect::<Vec<_>>(), [None, Some("there is no room for it among 1 endpoints".to_owned())]);
    assert_eq!(world.apply("-veth 5").faults, []);
    assert_eq!(world.compiler.tables().endpoints[&6].number, 0);
}

#[test]
fn an_endpoint_that_loses_its_room_gives_its_number_back() {
    let limits = Limits { endpoints_max: 1, ..Limits::default() };
    let (mut world, _) = world(limits, "");
    assert_eq!(world.compiler.tables().endpoints[&5].number, 0);
    world.apply("veth 4 mac=4");
    let endpoints = world.compiler.tables().endpoints.values().map(|record| (record.ifindex, record.number));
    assert_eq!(endpoints.collect::<Vec<_>>(), [(4, 0)]);
}

#[test]
fn as_many_addresses_as_a_record_holds() {
    let many = "pod a/s ip=10.0.0.5,10.0.0.6,10.0.0.7,10.0.0.8 node=n app=s";
    let (world, faults) = world(Limits::default(), many);
    let record = world.compiler.tables().endpoints[&5];
    assert_eq!((faults.len(), record.flags & CLOSED, record.v4_count), (0, 0, 4));
}

#[test]
fn more_addresses_than_a_record_holds_close_the_endpoint() {
    let many = "pod a/s ip=10.0.0.5,10.0.0.6,10.0.0.7,10.0.0.8,10.0.0.9 node=n app=s";
    let (world, faults) = world(Limits::default(), many);
    assert_eq!(faults, ["Pod a/s status.podIPs: it has 5 addresses of one family, which is too many: it is closed"]);
    assert!(world.compiler.tables().endpoints[&5].flags & CLOSED != 0);
}
