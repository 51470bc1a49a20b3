//! A change costs what it touches; large policies and many prefixes work.

use std::fmt::Write;

use super::{World, size};
use crate::compile::Limits;

const SUBJECT: &str = "ns a\npod a/s ip=10.0.0.5 node=n app=s\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s\ncomplete\n";

/// Pods 172.16.x.y in namespace a, and policies that select 5 and let in one app each.
fn cluster(pods: u32, policies: u32) -> World {
    let mut lines = SUBJECT.to_owned();
    for pod in 0..pods {
        let address = std::net::Ipv4Addr::from(0xac10_0000 + pod);
        writeln!(lines, "pod a/p{pod} ip={address} app=w{} port=http/TCP/80", pod % 1_000).expect("a string takes all");
    }
    for policy in 0..policies {
        let egress = if policy % 2 == 0 { "out(*|TCP/http)" } else { "out(.//.|UDP/53)" };
        writeln!(lines, "policy a/q{policy} app=s in(app=w{policy}|TCP/{}) {egress}", policy + 1)
            .expect("a string takes all");
    }
    World::new(&lines, Limits::default())
}

#[test]
fn a_birth_is_a_handful_of_entries() {
    let mut world = cluster(20_000, 500);
    // A class that is there: one entry. A new one (another port): its rows besides.
    let birth = world.apply("pod a/new ip=172.31.0.1 app=w7 port=http/TCP/80").delta;
    assert_eq!(size(&birth), 1, "{birth:?}");
    let birth = world.apply("pod a/other ip=172.31.0.2 app=w7 port=http/TCP/81").delta;
    assert!(size(&birth) <= 8, "{birth:?}");
    assert_eq!(size(&world.apply("-pod a/new").delta), 1);
    let death = world.apply("-pod a/other").delta;
    assert!(size(&death) <= 8, "{death:?}");
    // A pod that no policy of this node names.
    let mut world = cluster(0, 0);
    assert_eq!(size(&world.apply("policy a/p . in(app=w|*)\npod a/x ip=10.9.9.9 app=x").delta), 1);
    assert_eq!(size(&world.apply("pod a/y ip=10.9.9.8 app=x").delta), 0);
}

#[test]
fn a_policy_that_says_the_same_changes_nothing() {
    let mut world = cluster(100, 10);
    assert_eq!(size(&world.apply("policy a/q1 app=s in(app=w1|TCP/2) out(.//.|UDP/53)").delta), 0);
    // Another way to select the same pods, and the rules are the same.
    assert_eq!(size(&world.apply("policy a/q1 app=s^t in(app=w1|TCP/2) out(.//.|UDP/53)").delta), 0);
    // What a policy of pods elsewhere says is nobody's business here.
    assert_eq!(size(&world.apply("policy a/z app=nobody in(app=w1+@1.2.3.0/24|TCP/2)").delta), 0);
    assert_eq!(size(&world.apply("policy b/z . in(app=w1+@1.2.3.0/24|TCP/2)").delta), 0);
}

/// A row is there only where a class differs from everybody.
#[test]
fn what_everybody_may_use_has_no_row() {
    for (policy, rows) in [
        ("in(*|TCP/1) in(app=w|TCP/1)", 0),
        ("in(*|TCP/1-9) in(app=w|TCP/2)", 0),
        ("in(*|*) in(app=w|TCP/1)", 0),
        ("in(app=w|-)", 0),
        ("in(*|TCP/1) in(app=w|TCP/2)", 1),
    ] {
        let world =
            World::new(&format!("{SUBJECT}pod a/w ip=10.1.1.1 app=w\npolicy a/p . {policy}"), Limits::default());
        assert_eq!(world.compiler.tables().rules.len(), rows, "{policy}");
    }
}

#[test]
fn many_rules_and_blocks() {
    let mut policy = "policy a/p . ".to_owned();
    for rule in 0..10_000_u32 {
        write!(policy, "in(@20.{}.{}.0/24|TCP/{}) ", rule / 256, rule % 256, rule + 1).expect("a string takes all");
    }
    let mut world = World::new(SUBJECT, Limits::default());
    world.apply(&policy);
    assert_eq!(world.compiler.tables().rules.len(), 10_000);
    let asked = world.ask("5 in 20.0.7.1 TCP/8\n5 in 20.0.7.1 TCP/9\n5 in 20.39.15.9 TCP/10000");
    assert_eq!(asked, "5 in 20.0.7.1 TCP/8 allow\n5 in 20.0.7.1 TCP/9 deny\n5 in 20.39.15.9 TCP/10000 allow\n");
    // One rule less is one row less of a new table, and one prefix.
    world.apply("-policy a/p");
    let tables = world.compiler.tables();
    assert_eq!((tables.rules.len(), tables.ports.len(), tables.cidr_v4.len()), (0, 0, 0));
}

#[test]
fn many_port_ranges() {
    let ranges: Vec<String> = (0..1_500).map(|range| format!("TCP/{}-{}", range * 40 + 1, range * 40 + 33)).collect();
    let world = World::new(&format!("{SUBJECT}policy a/p . in(*|{})", ranges.join(";")), Limits::default());
    let asked = world.ask("5 in 9.9.9.9 TCP/33\n5 in 9.9.9.9 TCP/34\n5 in 9.9.9.9 TCP/59961\n5 in 9.9.9.9 TCP/59960");
    assert_eq!(
        asked,
        "5 in 9.9.9.9 TCP/33 allow\n5 in 9.9.9.9 TCP/34 deny\n5 in 9.9.9.9 TCP/59961 allow\n5 in 9.9.9.9 TCP/59960 deny\n"
    );
}

#[test]
fn a_hundred_thousand_prefixes() {
    let mut policy = "policy a/p . in(".to_owned();
    for block in 0..100_000_u32 {
        let address = std::net::Ipv4Addr::from(0x2000_0000 + block * 256);
        write!(policy, "{}@{address}/24", if block == 0 { "" } else { "+" }).expect("a string takes all");
    }
    let mut world = World::new(SUBJECT, Limits::default());
    world.apply(&format!("{policy}|TCP/1)"));
    assert_eq!(world.compiler.tables().cidr_v4.len(), 100_000);
    // Another block of its own touches nothing else; one over all touches all.
    let small = world.apply("policy a/q . out(@9.9.9.0/24|*)").delta;
    assert_eq!((small.cidr_v4.len(), small.endpoints.len(), small.rules.len()), (1, 1, 1));
    assert_eq!(
        world.ask("5 in 32.0.1.1 TCP/1\n5 in 31.0.1.1 TCP/1"),
        "5 in 32.0.1.1 TCP/1 allow\n5 in 31.0.1.1 TCP/1 deny\n"
    );
}
