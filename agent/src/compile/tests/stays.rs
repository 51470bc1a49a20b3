//! What outlives a change: numbers, generations, what is known of connections; and records field by field.

use palisade_common::layout::{CLASS_ASK_CIDR, EndpointRecord, endpoint_flag::*};

use super::World;
use crate::compile::{Catalog, Compiler, Limits, Numbers};
use crate::index::{Index, fixture};
use crate::tables::Tables;

const SUBJECT: &str = "
    ns a\npod a/s#u1 ip=10.0.0.5 node=n app=s
    veth 5 mac=5 ip=10.0.0.5/24,fe80::9/64 pod=a/s#u1
    complete
";

fn record(world: &World, ifindex: u32) -> EndpointRecord {
    world.compiler.tables().endpoints[&ifindex]
}

fn flags(world: &World) -> u32 {
    record(world, 5).flags
}

#[test]
fn a_record_is_what_lies_in_packets() {
    let world = World::new(&format!("{SUBJECT}pod a/s#u1 ip=10.0.0.5,fd00::5,10.0.0.200 node=n"), Limits::default());
    let record = record(&world, 5);
    let bytes = |word: u32| word.to_ne_bytes();
    assert_eq!((record.ifindex, record.netns_id, record.v4_count, record.v6_count), (5, -1, 2, 3));
    assert_eq!((bytes(record.mac_hi), bytes(record.mac_lo)[..2].to_vec()), ([2, 0, 0, 0], vec![0, 5]));
    assert_eq!([bytes(record.v4[0]), bytes(record.v4[1])], [[10, 0, 0, 5], [10, 0, 0, 200]]);
    // The directed broadcast address is known where the interface tells the length.
    assert_eq!([bytes(record.v4_broadcast[0]), bytes(record.v4_broadcast[1])], [[10, 0, 0, 255], [0; 4]]);
    // From the status, from the MAC (02:… loses its local bit), from the interface.
    let v6: Vec<[u8; 4]> =
        record.v6.iter().flat_map(|address| [bytes(address.words[0]), bytes(address.words[3])]).collect();
    assert_eq!(
        v6[..6],
        [[0xfd, 0, 0, 0], [0, 0, 0, 5], [0xfe, 0x80, 0, 0], [0, 0, 0, 9], [0xfe, 0x80, 0, 0], [0xfe, 0, 0, 5]]
    );
    assert_eq!(bytes(record.v6[2].words[2]), [0, 0, 0, 0xff]);
    // FNV-1a of "u1", from its definition.
    let identity = u64::from(record.identity_hi) << 32 | u64::from(record.identity_lo);
    assert_eq!(identity, 0x08c4_7b07_b567_47f3);
}

#[test]
fn broadcast_addresses() {
    for (length, broadcast) in
        [(24, [10, 0, 0, 255]), (30, [10, 0, 0, 7]), (31, [0; 4]), (32, [0; 4]), (8, [10, 255, 255, 255])]
    {
        let world = World::new(&format!("{SUBJECT}veth 5 mac=5 ip=10.0.0.5/{length} pod=a/s#u1"), Limits::default());
        assert_eq!(record(&world, 5).v4_broadcast[0].to_ne_bytes(), broadcast, "/{length}");
    }
}

#[test]
fn what_is_closed() {
    for (lines, closed) in [
        ("", None),
        ("-pod a/s#u1", Some("the CNI result names pod a/s, which the API has not shown yet")),
        ("veth 5 ip=10.0.0.5/24 pod=a/s#u1", Some("the MAC address of the pod's interface is not known yet")),
        ("veth 5 mac=5", Some("no CNI result names its pod and no pod of this node has its address")),
        (
            "veth 5 mac=5 ip=10.0.0.5/24\nveth 6 mac=6 ip=10.0.0.5/24",
            Some("it has the address of pod a/s, which has another interface"),
        ),
    ] {
        let world = World::new(&format!("{SUBJECT}{lines}"), Limits::default());
        assert_eq!(flags(&world) & CLOSED != 0, closed.is_some(), "{lines}");
        assert_eq!(world.compiler.catalog(&world.index, &[]).endpoints[0].closed.as_deref(), closed, "{lines}");
    }
    let mut world = World::new(&SUBJECT.replace("complete", ""), Limits::default());
    assert!(flags(&world) & CLOSED != 0, "nothing was listed yet");
    assert_eq!(world.apply("complete").delta.endpoints.len(), 1);
    assert!(flags(&world) & CLOSED == 0);
}

#[test]
fn trust_is_the_namespaces() {
    let mut world = World::new(SUBJECT, Limits::default());
    assert_eq!(flags(&world) & TRUSTED, 0);
    world.apply("ns a trusted");
    assert_eq!(flags(&world) & TRUSTED, TRUSTED);
    world.apply("-ns a");
    assert_eq!(flags(&world) & TRUSTED, 0);
}

#[test]
fn an_address_of_another_pod_is_not_its_own() {
    // A CNI result of this node gives; what a status or an interface says beside that is old, or was put there by the pod.
    let mut world = World::new(&format!("{SUBJECT}veth 6 mac=6 ip=10.0.0.6/24 pod=b/t#u2"), Limits::default());
    let faults = world.apply("pod b/t#u2 ip=10.0.0.6,10.0.0.5 node=n").faults;
    assert_eq!(faults[0].message, "its status has 10.0.0.5, which is pod a/s's: it may not use it");
    assert_eq!((record(&world, 6).v4_count, record(&world, 6).v4[0].to_ne_bytes()), (1, [10, 0, 0, 6]));
    assert_eq!((record(&world, 5).v4_count, record(&world, 5).v4[0].to_ne_bytes()), (1, [10, 0, 0, 5]));
    // A status elsewhere takes nothing away.
    world.apply("pod b/far ip=10.0.0.5 node=m");
    assert_eq!(record(&world, 5).v4_count, 1);
}

#[test]
fn what_a_pod_gave_itself_is_not_its_own() {
    // No CNI result names the pod: it is found by an address of its status.
    let lines =
        "ns a\npod a/s#u1 ip=10.0.0.5 node=n app=s\nveth 5 mac=5 ip=10.0.0.5/24,10.0.0.1/24,fe80::9/64\ncomplete";
    let record = record(&World::new(lines, Limits::default()), 5);
    assert_eq!((record.v4_count, record.v4[0].to_ne_bytes(), record.v6_count), (1, [10, 0, 0, 5], 2));
    assert_eq!(record.v4_broadcast[0].to_ne_bytes(), [10, 0, 0, 255]);
}

#[test]
fn midstream_stays_for_the_pods_life() {
    let both = "policy a/p . in() out()";
    let mut world = World::new(&format!("{SUBJECT}{both}"), Limits::default());
    assert_eq!(flags(&world) & MIDSTREAM, 0);
    world.apply("policy a/p . in()");
    assert_eq!(flags(&world) & MIDSTREAM, 0, "isolated for one direction, the flows of both are remembered");
    world.apply("-policy a/p");
    assert_eq!(flags(&world) & MIDSTREAM, MIDSTREAM);
    world.apply(both);
    assert_eq!(flags(&world) & MIDSTREAM, MIDSTREAM, "it was open once");
    world.apply("-pod a/s#u1\npod a/s#u2 ip=10.0.0.5 node=n\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u2");
    assert_eq!(flags(&world) & MIDSTREAM, 0, "another pod");
    world.apply("veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u2 older");
    assert_eq!(flags(&world) & MIDSTREAM, MIDSTREAM);
    // Closed until all is listed is not open.
    let mut world = World::new(&SUBJECT.replace("complete", ""), Limits::default());
    world.apply(&format!("{both}\ncomplete"));
    assert_eq!(flags(&world) & MIDSTREAM, 0);
}

#[test]
fn isolation_begins_when_a_policy_takes_what_was_free() {
    let at = |world: &World| record(world, 5).isolated_at;
    let mut world = World::new(&format!("{SUBJECT}policy a/p . in()"), Limits::default());
    world.second = 50;
    world.apply("policy a/p . in() out()");
    assert_eq!(at(&world), 0, "isolated from the first on");
    world.apply("-policy a/p");
    assert_eq!(at(&world), 0);
    world.apply("policy a/p . out()");
    assert_eq!(at(&world), 50);
    world.second = 60;
    world.apply("policy a/p . in() out()\n-pod a/s#u1");
    world.apply("pod a/s#u1 ip=10.0.0.5 node=n app=s");
    assert_eq!(at(&world), 50, "it was isolated all the time");
    world.apply("-pod a/s#u1\npod a/s#u2 ip=10.0.0.5 node=n\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u2");
    assert_eq!(at(&world), 0, "another pod");
    let older = format!("{}\npolicy a/p . in()", SUBJECT.replace("pod=a/s#u1", "pod=a/s#u1 older"));
    assert_eq!(at(&World::new(&older, Limits::default())), 1, "what an older veth's pod did nobody saw");
}

#[test]
fn generations_are_for_one_pod() {
    let mut world = World::new(SUBJECT, Limits::default());
    let first = record(&world, 5).generation;
    assert_ne!(first, 0);
    world.apply("policy a/p . in()\npod a/s#u1 ip=10.0.0.5 node=n app=t");
    assert_eq!(record(&world, 5).generation, first);
    world.apply("veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u2");
    world.apply("veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u1");
    assert_eq!(record(&world, 5).generation, first, "it was not known for a while");
    world.apply("pod a/s#u2 ip=10.0.0.5 node=n\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u2");
    assert!(record(&world, 5).generation > first);
}

#[test]
fn a_generation_is_kept_when_the_pod_is_found_out() {
    let mut world = World::new("ns a\nveth 5 mac=5\ncomplete", Limits::default());
    let unknown = record(&world, 5).generation;
    assert_ne!(unknown, 0);
    world.apply("pod a/s#u1 ip=10.0.0.5 node=n\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u1");
    assert_eq!((record(&world, 5).generation, flags(&world) & CLOSED), (unknown, 0));
}

/// Its tables are not asked; they may be others by the time it is opened.
#[test]
fn a_closed_endpoint_refers_to_no_table() {
    let policy = "policy a/p . in(*|TCP/1) out(*|TCP/2)";
    let mut world = World::new(&format!("{}{policy}", SUBJECT.replace("complete", "")), Limits::default());
    let tables = |world: &World| [record(world, 5).ingress, record(world, 5).egress].map(|table| table.table != 0);
    assert_eq!((flags(&world) & CLOSED, tables(&world)), (CLOSED, [false, false]));
    world.apply("complete");
    assert_eq!((flags(&world) & CLOSED, tables(&world)), (0, [true, true]));
}

#[test]
fn numbers_are_small_and_stay() {
    let mut world = World::new(SUBJECT, Limits::default());
    world.apply("veth 7 mac=7\nveth 6 mac=6");
    let numbers = |world: &World| {
        world.compiler.tables().endpoints.values().map(|it| (it.ifindex, it.number)).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&world), [(5, 0), (6, 1), (7, 2)]);
    world.apply("-veth 6");
    world.apply("veth 4 mac=4");
    assert_eq!(numbers(&world), [(4, 1), (5, 0), (7, 2)]);
}

#[test]
fn the_next_agent_goes_on() {
    let before = EndpointRecord {
        number: 3,
        generation: 40,
        flags: MIDSTREAM,
        isolated_at: 7,
        ..record(&World::new(SUBJECT, Limits::default()), 5)
    };
    let other = EndpointRecord { ifindex: 6, identity_lo: 1, number: 0, generation: 50, ..before };
    let numbers = Numbers { class: 100, table: 200, ports: 300, rule: 400, generation: 45, backends: 500 };
    let mut index = Index::new(fixture::NODE);
    let mut compiler = Compiler::new(Limits::default()).start_above(numbers);
    compiler.adopt([before, other]);
    let policy = "policy a/p . in(.|TCP/1) out()\npod a/w ip=10.1.1.1";
    fixture::apply(
        &mut index,
        &format!("{SUBJECT}{policy}\npod a/t#u9 ip=10.0.0.6 node=n\nveth 6 mac=6 pod=a/t#u9\nveth 7 mac=7"),
    );
    compiler.update(&mut index, 9);
    let of = |ifindex: u32| compiler.tables().endpoints[&ifindex];
    assert_eq!((of(5).number, of(5).generation, of(5).flags & MIDSTREAM), (3, 40, MIDSTREAM));
    assert_eq!(of(5).isolated_at, 9, "isolated by what is new to this agent");
    let mut next = Compiler::new(Limits::default());
    next.adopt([EndpointRecord { flags: MIDSTREAM | ISOLATED_EGRESS, ..before }]);
    fixture::apply(&mut index, "-veth 5\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u1 older");
    next.update(&mut index, 9);
    assert_eq!(next.tables().endpoints[&5].isolated_at, 7, "isolated already");
    let mut third = Compiler::new(Limits::default());
    third.adopt([EndpointRecord { flags: ISOLATED_EGRESS, ..before }]);
    fixture::apply(&mut index, "-veth 5\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u1");
    third.update(&mut index, 9);
    assert_eq!(third.tables().endpoints[&5].flags & MIDSTREAM, 0, "isolated from its first packet on");
    // Another pod behind the interface: its number, nothing else.
    assert_eq!((of(6).number, of(6).flags & MIDSTREAM), (0, 0));
    assert!(of(6).generation > 50 && of(7).generation > 50);
    assert_eq!(of(7).number, 1);
    let now = Numbers::highest(compiler.tables());
    assert!(now.class > 100 && now.table > 200 && now.ports > 300 && now.rule > 400, "{now:?}");
    let given = compiler.numbers();
    assert_eq!((given.class, given.table, given.ports, given.rule), (now.class, now.table, now.ports, now.rule));
    assert_eq!(Numbers::highest(&Default::default()), Numbers::default());
    // That an address is to ask the trie is no class.
    let classes = [(1, 7), (2, CLASS_ASK_CIDR)];
    assert_eq!(Numbers::highest(&Tables { exact_v4: classes.into(), ..Tables::default() }).class, 7);
}

/// What an earlier agent said of a pod holds for the first one behind the interface, and if it was in use.
#[test]
fn an_earlier_record_is_for_the_first_pod() {
    let first = record(&World::new(SUBJECT, Limits::default()), 5);
    for (earlier, kept) in [(40, true), (0, false)] {
        let mut index = Index::new(fixture::NODE);
        let mut compiler = Compiler::new(Limits::default());
        compiler.adopt([EndpointRecord { generation: earlier, ..first }]);
        let mut generation = |lines: &str| {
            fixture::apply(&mut index, lines);
            compiler.update(&mut index, 0);
            compiler.tables().endpoints[&5].generation
        };
        let first = generation(SUBJECT);
        assert!(first != 0 && (first == earlier) == kept, "{earlier}, {first}");
        let second = generation("pod a/s#u2 ip=10.0.0.5 node=n\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u2");
        assert!(second > first);
        let third = generation("pod a/s#u1 ip=10.0.0.5 node=n\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#u1");
        assert!(third > second, "it is not the same life");
    }
}

/// Numbers of earlier records wait for their interfaces, as far as they are in bounds.
#[test]
fn numbers_of_earlier_records_are_kept_free() {
    let earlier = |ifindex, number| EndpointRecord { ifindex, number, generation: 1, ..EndpointRecord::default() };
    let mut index = Index::new(fixture::NODE);
    let mut compiler = Compiler::new(Limits { endpoints_max: 4, ..Limits::default() });
    compiler.adopt([earlier(6, 0), earlier(7, 2), earlier(8, 4)]);
    let mut numbers = |lines: &str| {
        fixture::apply(&mut index, lines);
        compiler.update(&mut index, 0);
        Vec::from_iter(compiler.tables().endpoints.values().map(|record| (record.ifindex, record.number)))
    };
    assert_eq!(numbers("complete\nveth 5 mac=5"), [(5, 1)]);
    assert_eq!(numbers("veth 8 mac=8"), [(5, 1), (8, 3)]);
    assert_eq!(numbers("veth 6 mac=6\nveth 7 mac=7"), [(5, 1), (6, 0), (7, 2), (8, 3)]);
}

#[test]
fn a_rule_that_stays_keeps_its_number() {
    let mut world = World::new(&format!("{SUBJECT}policy a/p . in(*|TCP/1) in(*|TCP/3)"), Limits::default());
    let rules = |world: &World| Vec::from_iter(world.compiler.catalog(&world.index, &[]).rules.into_keys());
    let before = rules(&world);
    world.apply("policy a/p app=s in(*|TCP/1) in(*|TCP/4)");
    let after = rules(&world);
    assert_eq!((before[0], before.len(), after.len()), (after[0], 2, 2));
    assert!(after[1] > before[1]);
}

#[test]
fn the_catalog_names_numbers() {
    let lines = "
        pod a/web ip=10.1.2.3 app=web port=http/TCP/80
        policy a/p app=s in(app=web+@10.0.0.0/8!10.1.0.0/16|TCP/1)
        policy a/q . in(team=x//.+tier!=1^2|*) out(*|TCP/http)
        ns a team=x
    ";
    let world = World::new(&format!("{SUBJECT}{lines}"), Limits::default());
    let catalog = world.compiler.catalog(&world.index, &[]);
    let endpoint = &catalog.endpoints[0];
    assert_eq!((endpoint.namespace.as_deref(), endpoint.pod.as_deref()), (Some("a"), Some("s")));
    assert_eq!(
        (&endpoint.ingress_policies[..], &endpoint.egress_policies[..]),
        (&["a/p".to_owned(), "a/q".to_owned()][..], &["a/q".to_owned()][..])
    );
    let classes: Vec<&str> = catalog.classes.values().map(|class| &*class.description).collect();
    let expected = [
        "nobody that a policy names",
        "10.0.0.0/8 except 10.1.0.0/16",
        "pods tier notin (1,2) in namespace a; pods in namespaces team=x; 10.0.0.0/8 except 10.1.0.0/16",
        "pods app=web in namespace a; pods tier notin (1,2) in namespace a; pods in namespaces team=x; port http=80/TCP",
    ];
    for class in expected {
        assert!(classes.contains(&class), "{class} is not in {classes:#?}");
    }
    assert_eq!(classes.len(), expected.len(), "{classes:#?}");
    let rules: Vec<String> =
        catalog.rules.values().map(|it| format!("{} {} {}", it.policy, it.direction, it.index)).collect();
    assert_eq!(rules, ["a/p ingress 0", "a/q ingress 0", "a/q egress 0"]);
    let tables: Vec<String> =
        catalog.tables.values().map(|it| format!("{} {}", it.direction, it.policies.join(" "))).collect();
    assert_eq!(tables, ["ingress a/p a/q", "egress a/q"]);
    let text = serde_json::to_string(&catalog).expect("a catalog is plain data");
    assert_eq!(serde_json::from_str::<Catalog>(&text).expect("what was written"), catalog);
}

#[test]
fn classes_are_described_as_kubectl_writes_selectors() {
    for (peer, wanted) in [
        ("app=w", "pods app=w in namespace a"),
        (".", "pods in namespace a"),
        ("app=w^x,!tier", "pods app in (w,x),!tier in namespace a"),
        ("app", "pods app in namespace a"),
        (".//.", "pods in any namespace"),
        (".//app=w", "pods app=w in any namespace"),
        ("team=x//app!=v", "pods app notin (v) in namespaces team=x"),
        ("@10.0.0.0/8", "10.0.0.0/8"),
        ("@10.0.0.0/8!10.1.0.0/16!10.2.0.0/16", "10.0.0.0/8 except 10.1.0.0/16, 10.2.0.0/16"),
    ] {
        let lines = format!("{SUBJECT}ns a team=x\npod a/w ip=172.16.0.1 app=w\npolicy a/p . in({peer}|*)");
        let world = World::new(&lines, Limits::default());
        let classes = world.compiler.catalog(&world.index, &[]).classes;
        let told: Vec<String> = classes.into_values().map(|class| class.description).collect();
        assert!(told.iter().any(|description| description == wanted), "{wanted} is not in {told:?}");
    }
}

#[test]
fn the_first_rule_in_the_order_of_names_is_the_one_that_is_named() {
    // The later policy's matcher has the lower number, as it came first.
    let peer = "pod a/web ip=10.1.2.3 app=web";
    let mut world = World::new(&format!("{SUBJECT}{peer}\npolicy a/z . in(.|*)"), Limits::default());
    world.apply("policy a/b . in(app=web|*)");
    let named = |world: &World| {
        let canonical = world.compiler.canonical();
        let rule = canonical.rules.into_iter().find(|((_, class), _)| class.matchers.len() == 2);
        format!("{:?}", rule.expect("the row of a/web").1)
    };
    assert!(named(&world).contains("name: \"b\""), "{}", named(&world));
    world.apply("policy a/b . in(*|TCP/1) in(app=web|*)\n-policy a/z\npolicy a/z . in(.|*)");
    assert!(named(&world).contains("place: 1"), "{}", named(&world));
}

#[test]
fn neighbouring_ports_share_prefixes() {
    for (ports, rows) in [
        // 10-31: two, four and sixteen ports.
        ("TCP/10-20;TCP/15-30;TCP/31", vec![(10, 63), (12, 62), (16, 60)]),
        ("TCP", vec![(0, 48)]),
        ("TCP/1-65535", (0..16).map(|bit| (1 << bit, 64 - bit)).collect()),
        ("TCP/65535;TCP/65535", vec![(65535, 64)]),
    ] {
        let world = World::new(&format!("{SUBJECT}policy a/p . in(*|{ports})"), Limits::default());
        let found = world.compiler.tables().ports.keys().map(|(key, bits)| (u16::from_be(key.port_be), *bits));
        let mut found: Vec<(u16, u32)> = found.collect();
        found.sort_unstable();
        assert_eq!(found, rows, "{ports}");
    }
}

#[test]
fn a_policy_stays_for_those_it_still_selects() {
    let both = "pod a/t ip=10.0.0.6 node=n app=s\nveth 6 mac=6 ip=10.0.0.6/24 pod=a/t#a/t\npolicy a/p app=s in()";
    let mut world = World::new(&format!("{SUBJECT}{both}"), Limits::default());
    for away in ["pod a/t ip=10.0.0.6 node=n app=t", "-veth 6"] {
        world.apply(both);
        world.apply(away);
        // The other endpoint is looked at again.
        world.apply("pod a/s#u1 ip=10.0.0.5 node=n app=s seen=again");
        assert_eq!(flags(&world) & (ISOLATED_INGRESS | CLOSED), ISOLATED_INGRESS, "{away}");
        assert_eq!(world.ask("5 in 9.9.9.9 TCP/1"), "5 in 9.9.9.9 TCP/1 deny\n", "{away}");
        world.apply("pod a/s#u1 ip=10.0.0.5 node=n app=s");
    }
}

#[test]
fn a_new_policy_finds_those_that_are_left() {
    let two = "pod a/t ip=10.0.0.6 node=n app=s\nveth 6 mac=6 ip=10.0.0.6/24 pod=a/t#a/t";
    let mut world = World::new(&format!("{SUBJECT}{two}"), Limits::default());
    world.apply("-veth 6");
    world.apply("policy a/p . in()");
    assert_eq!(flags(&world) & (ISOLATED_INGRESS | CLOSED), ISOLATED_INGRESS);
}
