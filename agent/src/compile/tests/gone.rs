//! Nothing is kept of what has gone: a compiler whose facts were all taken away again is as empty as a new one. No verdict tells
//! of what it forgot to forget, only its memory would.

use std::collections::BTreeSet;

use super::World;
use super::random::{Dice, line};
use crate::compile::{Compiler, Limits};

/// All that a compiler remembers, but for numbers given out and for the counts of each family, which may be 0.
fn memory(compiler: &Compiler) -> Vec<String> {
    let Compiler { policies, peers, blocks, classes, decisions, endpoints, cut, desired, .. } = compiler;
    let parts: [&dyn std::fmt::Debug; 8] =
        [policies, peers, blocks, classes, decisions, endpoints, cut, &desired.tables];
    let text = |part: &dyn std::fmt::Debug| {
        let text = format!("{part:?}").replace("counts: {V4: 0, V6: 0}", "counts: {}");
        // What follows these names is a number.
        ["highest: ", "highest_side: ", "next_group: "].iter().fold(text, |text, name| {
            let mut pieces = text.split(name);
            let first = pieces.next().unwrap_or_default().to_owned();
            pieces.fold(first, |head, piece| head + name + piece.trim_start_matches(|c: char| c.is_ascii_digit()))
        })
    };
    parts.into_iter().map(text).collect()
}

fn emptied(limits: Limits, seeds: std::ops::Range<u64>) {
    let empty = memory(&Compiler::new(limits));
    for seed in seeds {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Both families, so that both are counted.
        let mut world = World::new("complete\nns a\npod a/z ip=10.0.3.1,fd00:3::1\n", limits);
        let mut facts = BTreeSet::from(["ns a".to_owned(), "pod a/z".to_owned()]);
        for _ in 0..40 {
            let line = line(&mut dice);
            let subject: Vec<&str> = line.trim_start_matches('-').split(' ').take(2).collect();
            facts.insert(subject.join(" "));
            world.apply(&line);
        }
        world.apply("policy a/q0 . in(.|TCP/80) out(.|TCP/http)\nveth 9 mac=9 ip=10.0.3.1/24 pod=a/z#a/z");
        world.apply("-policy a/q0\n-veth 9");
        let mut gone: Vec<String> = facts.iter().map(|fact| format!("-{fact}")).collect();
        for place in (1..gone.len()).rev() {
            gone.swap(place, dice.roll(place + 1));
        }
        gone.iter().for_each(|line| drop(world.apply(line)));
        assert_eq!(memory(&world.compiler), empty, "seed {seed}");
    }
}

/// Pods that no selector can match cost nothing: of a large cluster's finished pods there may be more than of others.
#[test]
fn nothing_is_kept_of_pods_that_are_no_peers() {
    let lines = "ns a\npod a/s ip=10.0.0.5 node=n app=s\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s\ncomplete\n\
                 policy a/p app=s in(app=w|*) out(app=w|TCP/http)";
    let peers = |pod: &str| {
        let world = World::new(&format!("{lines}\n{pod}"), Limits::default());
        memory(&world.compiler).swap_remove(1)
    };
    let pod = "pod a/w app=w port=http/TCP/80";
    let nothing = peers("");
    for unmatched in [format!("{pod} ip=10.1.1.1 host"), format!("{pod} ip=10.1.1.1 finished"), pod.to_owned()] {
        assert_eq!(peers(&unmatched), nothing, "{unmatched}");
    }
    assert_ne!(peers(&format!("{pod} ip=10.1.1.1")), nothing);
}

/// While the classes of its rows stay, as others ask for them too.
#[test]
fn nothing_is_kept_of_a_table_that_has_gone() {
    let lines = "ns a\npod a/w ip=10.1.1.1 app=w\ncomplete
        pod a/s ip=10.0.0.5 node=n app=s\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s
        pod a/t ip=10.0.0.6 node=n app=t\nveth 6 mac=6 ip=10.0.0.6/24 pod=a/t#a/t
        policy a/o app=t out()";
    // Also where the other table has no row for the class.
    for other in ["policy a/p app=s in(app=w|TCP/1)", "policy a/p app=s in(*|*) in(app=w|TCP/1)"] {
        let mut world = World::new(lines, Limits::default());
        world.apply(other);
        let before = memory(&world.compiler);
        world.apply("policy a/q app=t in(app=w|TCP/2)");
        assert_ne!(memory(&world.compiler), before);
        world.apply("-policy a/q");
        assert_eq!(memory(&world.compiler), before, "{other}");
    }
}

/// Lists that are walked through hold nothing that is looked at in vain.
#[test]
fn nothing_is_kept_of_ports_without_names_and_of_pods_that_changed() {
    let lines = "ns a\npod a/w ip=10.1.1.1 app=w port=http/TCP/80\ncomplete
        pod a/s ip=10.0.0.5 node=n app=s\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s";
    let mut world = World::new(&format!("{lines}\npolicy a/p app=s out(app=w|TCP/80)"), Limits::default());
    assert_eq!(world.compiler.classes.with_ports().count(), 0);
    assert!(memory(&world.compiler)[4].contains("named_everyone: {}"));
    world.apply("pod a/w ip=10.1.1.1 app=v");
    assert!(memory(&world.compiler)[1].contains("by_matcher: {MatcherId(1): {}}"));
    world.apply("policy a/p app=s out(*|TCP/http)\npod a/w ip=10.1.1.1 app=w port=http/TCP/80");
    assert_eq!(world.compiler.classes.with_ports().count(), 1);
    assert!(!memory(&world.compiler)[4].contains("named_everyone: {}"));
}

#[test]
fn nothing_is_kept_of_what_has_gone() {
    emptied(Limits::default(), 1..200);
}

#[test]
fn nothing_is_kept_of_what_has_gone_where_room_is_scarce() {
    emptied(
        Limits { endpoints_max: 3, exact_max: 2, prefixes_max: 4, rules_max: 6, ports_max: 30, ..Limits::default() },
        200..400,
    );
}
