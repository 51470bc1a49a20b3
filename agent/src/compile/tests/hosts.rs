//! ipBlocks and excepts of one host are answered by the address, with what covers it; the rest of them by the trie.

use super::World;
use crate::compile::Limits;

const SUBJECT: &str = "
    ns a\npod a/s ip=10.0.0.5 node=n app=s\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s\ncomplete
";

/// The addresses that have an entry of their own, and the prefixes of the trie.
fn places(world: &World) -> (Vec<String>, Vec<String>) {
    let canonical = world.compiler.canonical();
    let exact = canonical.exact.keys().map(ToString::to_string).collect();
    (exact, canonical.cidrs.keys().map(ToString::to_string).collect())
}

fn expect_places(world: &World, exact: &[&str], cidrs: &[&str], when: &str) {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(places(world), (owned(exact), owned(cidrs)), "{when}");
}

#[test]
fn a_block_of_one_host_has_what_covers_it() {
    let mut world = World::new(SUBJECT, Limits::default());
    world.apply(
        "policy a/p . in(@192.0.2.7/32+@2001:db8::7/128|TCP/1) in(@192.0.2.0/24+@2001:db8::/32|TCP/2) in(@0.0.0.0/0!192.0.2.8/32|TCP/3)",
    );
    let cidrs = ["0.0.0.0/0", "192.0.2.0/24", "2001:db8::/32"];
    expect_places(&world, &["192.0.2.7", "192.0.2.8", "2001:db8::7"], &cidrs, "hosts and an except of one");
    let questions = "5 in 192.0.2.7 TCP/1\n5 in 192.0.2.7 TCP/2\n5 in 192.0.2.7 TCP/3\n5 in 192.0.2.8 TCP/1\n5 in 192.0.2.8 TCP/2\n\
         5 in 192.0.2.8 TCP/3\n5 in 192.0.2.9 TCP/1\n5 in 2001:db8::7 TCP/1\n5 in 2001:db8::7 TCP/2\n5 in 2001:db8::7 TCP/3";
    assert_eq!(
        world.ask(questions),
        "5 in 192.0.2.7 TCP/1 allow\n5 in 192.0.2.7 TCP/2 allow\n5 in 192.0.2.7 TCP/3 allow\n5 in 192.0.2.8 TCP/1 deny\n\
         5 in 192.0.2.8 TCP/2 allow\n5 in 192.0.2.8 TCP/3 deny\n5 in 192.0.2.9 TCP/1 deny\n5 in 2001:db8::7 TCP/1 allow\n\
         5 in 2001:db8::7 TCP/2 allow\n5 in 2001:db8::7 TCP/3 deny\n"
    );
    // What covers it is another.
    world.apply("policy a/p . in(@192.0.2.7/32|TCP/1) in(@192.0.0.0/16|TCP/2)");
    expect_places(&world, &["192.0.2.7"], &["192.0.0.0/16"], "another cover");
    assert_eq!(
        world.ask("5 in 192.0.2.7 TCP/1\n5 in 192.0.2.7 TCP/2"),
        "5 in 192.0.2.7 TCP/1 allow\n5 in 192.0.2.7 TCP/2 allow\n"
    );
    world.apply("-policy a/p");
    expect_places(&world, &[], &[], "no policy");
}

/// The pod's entry has the block too, whichever comes or goes first.
#[test]
fn a_pod_at_the_address_of_a_block_is_both() {
    let mut world = World::new(SUBJECT, Limits::default());
    let asked = "5 in 10.0.1.1 TCP/1\n5 in 10.0.1.1 TCP/2";
    let answers =
        |selector: &str, block: &str| format!("5 in 10.0.1.1 TCP/1 {selector}\n5 in 10.0.1.1 TCP/2 {block}\n");
    let both = "policy a/p . in(app=w|TCP/1) in(@10.0.1.1/32|TCP/2)";
    for (lines, expected, when) in [
        (both, answers("deny", "allow"), "the block alone"),
        ("pod a/w ip=10.0.1.1 app=w", answers("allow", "allow"), "a pod comes"),
        ("pod a/w ip=10.0.1.1 app=v", answers("deny", "allow"), "no selector matches it"),
        ("pod a/w ip=10.0.1.1 app=w\npod a/x ip=10.0.1.1 app=w", answers("deny", "allow"), "two claim it"),
        ("-pod a/x", answers("allow", "allow"), "one is left"),
        ("policy a/p . in(app=w|TCP/1)", answers("allow", "deny"), "the block goes"),
        (both, answers("allow", "allow"), "and comes back"),
        ("-pod a/w", answers("deny", "allow"), "the pod goes"),
    ] {
        world.apply(lines);
        assert_eq!(world.ask(asked), expected, "{when}");
        expect_places(&world, &["10.0.1.1"], &[], when);
    }
}

/// Pods come first; what finds no room is in the trie and means the same. It is no fault.
#[test]
fn hosts_without_room_stay_in_the_trie() {
    let limits = Limits { exact_max: 2, ..Limits::default() };
    let mut world = World::new(SUBJECT, limits);
    let blocks = "policy a/p . in(app=w|TCP/1) in(@10.0.2.1/32+@10.0.2.2/32+@10.0.2.3/32+@fd00::1/128|TCP/2)";
    assert_eq!(world.apply(blocks).faults, []);
    let asked =
        "5 in 10.0.1.1 TCP/1\n5 in 10.0.2.1 TCP/2\n5 in 10.0.2.2 TCP/2\n5 in 10.0.2.3 TCP/2\n5 in fd00::1 TCP/2";
    let answers = |pod: &str| {
        format!(
            "5 in 10.0.1.1 TCP/1 {pod}\n5 in 10.0.2.1 TCP/2 allow\n5 in 10.0.2.2 TCP/2 allow\n5 in 10.0.2.3 TCP/2 allow\n\
             5 in fd00::1 TCP/2 allow\n"
        )
    };
    let mut step = |lines: &str, pod: &str, exact: &[&str], cidrs: &[&str]| {
        assert_eq!(world.apply(lines).faults, [], "{lines}");
        assert_eq!(world.ask(asked), answers(pod), "{lines}");
        expect_places(&world, exact, cidrs, lines);
    };
    step("", "deny", &["10.0.2.1", "10.0.2.2", "fd00::1"], &["10.0.2.3/32"]);
    step("pod a/w ip=10.0.1.1 app=w", "allow", &["10.0.1.1", "10.0.2.1", "fd00::1"], &["10.0.2.2/32", "10.0.2.3/32"]);
    step(
        "pod a/x ip=10.0.1.2 app=w",
        "allow",
        &["10.0.1.1", "10.0.1.2", "fd00::1"],
        &["10.0.2.1/32", "10.0.2.2/32", "10.0.2.3/32"],
    );
    step("-pod a/x\n-pod a/w", "deny", &["10.0.2.1", "10.0.2.2", "fd00::1"], &["10.0.2.3/32"]);
    // Other prefixes take no room of them.
    let more =
        "policy a/p . in(app=w|TCP/1) in(@10.0.2.0/31+@10.0.2.1/32+@10.0.2.2/32+@10.0.2.3/32+@fd00::1/128|TCP/2)";
    step(more, "deny", &["10.0.2.1", "10.0.2.2", "fd00::1"], &["10.0.2.0/31", "10.0.2.3/32"]);
    let fewer = "policy a/p . in(app=w|TCP/1) in(@10.0.2.0/31+@10.0.2.2/32+@10.0.2.3/32+@fd00::1/128|TCP/2)";
    step(fewer, "deny", &["10.0.2.2", "10.0.2.3", "fd00::1"], &["10.0.2.0/31"]);
}

/// A pod that does not fit keeps what the blocks of its address admit.
#[test]
fn a_pod_without_room_is_what_the_block_says() {
    let limits = Limits { exact_max: 1, ..Limits::default() };
    let mut world = World::new(SUBJECT, limits);
    let pods = "pod a/v ip=10.0.1.1 app=w\npod a/w ip=10.0.1.2 app=w";
    let faults = world.apply(&format!("{pods}\npolicy a/p . in(app=w|TCP/1) in(@10.0.1.2/32|TCP/2)")).faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(
        world.ask("5 in 10.0.1.2 TCP/1\n5 in 10.0.1.2 TCP/2"),
        "5 in 10.0.1.2 TCP/1 deny\n5 in 10.0.1.2 TCP/2 allow\n"
    );
    expect_places(&world, &["10.0.1.1"], &["10.0.1.2/32"], "no room");
}
