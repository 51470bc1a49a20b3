//! The form without numbers, of which other tests only compare one with another: it says what is in the tables.

use palisade_common::layout::endpoint_flag::{ISOLATED_INGRESS, MIDSTREAM};
use palisade_common::layout::{PORTS_FIRST, PortKey};

use super::World;
use crate::compile::{Allowed, Limits};

#[test]
fn the_form_without_numbers_says_what_is_there() {
    let lines = "
        ns a\npod a/s ip=10.0.0.5 node=n app=s\npod a/w ip=fd00:1:2:3:4:5:6:7,10.1.2.3 app=w
        veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s older\ncomplete
        policy a/p app=s in(app=w+@10.0.0.0/8|TCP/80-83) in(*|UDP/53)
    ";
    let world = World::new(lines, Limits::default());
    assert_eq!(world.compiler.tables().endpoints[&5].flags, ISOLATED_INGRESS | MIDSTREAM);
    let canonical = world.compiler.canonical();
    let endpoint = &canonical.endpoints[&5];
    assert_eq!((endpoint.record.flags, endpoint.record.generation, endpoint.record.ifindex), (ISOLATED_INGRESS, 0, 5));
    let [Some((table, default)), None] = &endpoint.tables else { panic!("{:?}", endpoint.tables) };
    assert_eq!(table.policies.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a/p"]);
    let ports = |allowed: &Allowed| match allowed {
        Allowed::Ports(rows) => Vec::from_iter(rows.iter().map(|(key, rule)| (*key, rule.place))),
        other => panic!("{other:?}"),
    };
    assert_eq!(ports(default), [((17, 53, 64), 1)]);
    let addresses: Vec<String> = canonical.exact.keys().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.2.3", "fd00:1:2:3:4:5:6:7"]);
    assert_eq!(canonical.cidrs.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8"]);
    let mut sizes: Vec<usize> = canonical.rules.keys().map(|(_, class)| class.matchers.len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 2]);
    for allowed in canonical.rules.values() {
        assert_eq!(ports(allowed), [((6, 80, 62), 0), ((17, 53, 64), 1)]);
    }
    assert!(canonical.orphans.is_empty());
}

/// PORTS is asked of sets of several ranges only.
#[test]
fn a_row_of_one_range_says_it_itself() {
    let subject = "ns a\npod a/s ip=10.0.0.5 node=n\nveth 5 mac=5 pod=a/s#a/s\ncomplete\npolicy a/p . ";
    for (rule, wanted) in [
        ("in(*|TCP/80-90)", Some((6, 80, 90))),
        ("in(*|UDP/53)", Some((17, 53, 53))),
        ("in(*|TCP/80-85;TCP/86-90)", Some((6, 80, 90))),
        ("in(*|TCP/80;UDP/80)", None),
    ] {
        let world = World::new(&format!("{subject}{rule}"), Limits::default());
        let row = world.compiler.tables().endpoints[&5].ingress.default;
        let told = (row.rule != 0).then_some((row.protocol, row.first, row.last));
        assert_eq!(told, wanted, "{rule}");
    }
}

#[test]
fn a_port_set_that_nothing_refers_to_is_an_orphan() {
    let lines = "ns a\npod a/s ip=10.0.0.5 node=n\nveth 5 mac=5 pod=a/s#a/s\ncomplete\npolicy a/p . in(*|TCP/80)";
    let mut world = World::new(lines, Limits::default());
    let ports = &mut world.compiler.desired.tables.ports;
    let (&(key, bits), &value) = ports.first_key_value().expect("the row of port 80");
    assert_eq!(u32::from_be(key.ports_be), PORTS_FIRST);
    ports.insert((PortKey { ports_be: 99_u32.to_be(), ..key }, bits), value);
    assert_eq!(Vec::from_iter(world.compiler.canonical().orphans), [99]);
}
