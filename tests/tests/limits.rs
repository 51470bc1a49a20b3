//! When a table is full: a change fails as a whole or closes what it concerns, and says so; everything else goes on.

use std::collections::BTreeSet;

use palisade::compile::Limits;
use palisade::tables::plan::Installed;
use palisade::tables::sim::{FrameBytes, Sim};
use palisade_common::Hook;
use palisade_common::decide::Meeting;
use palisade_tests::case::World;
use palisade_tests::frame::text;
use palisade_tests::judges::Pipeline;
use serde_json::Value;

const WORLD: &str = include_str!("../cases/world-pair.yaml");

/// What a small table costs, told by the flows that a generous one admits.
struct Shortage {
    name: &'static str,
    limits: fn(Limits) -> Limits,
    /// Beside the world's objects.
    objects: &'static str,
    /// Flows that are admitted with and without the shortage.
    spared: &'static [(&'static str, &'static str, u16)],
    /// Flows that are admitted only without it.
    closed: &'static [(&'static str, &'static str, u16)],
    /// Objects that faults name, and a word of each fault's message.
    faults: &'static [(&'static str, &'static str)],
    /// Makes room for all.
    room: &'static str,
}

const SHORTAGES: [Shortage; 5] = [
    Shortage {
        name: "endpoints",
        limits: |limits| Limits { endpoints_max: 2, ..limits },
        objects: "[pod x/c pod=c 10.244.0.13 fd00:244::13]",
        spared: &[("x/r", "x/a", 80), ("x/b", "x/a", 80)],
        closed: &[("x/r", "x/c", 80)],
        faults: &[("x/c", "endpoints")],
        room: "[delete pod x/a]",
    },
    Shortage {
        name: "exact addresses",
        limits: |limits| Limits { exact_max: 2, ..limits },
        objects: "['policy x/p': {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}]}, {ports: [{port: 81}]}]}]",
        spared: &[("x/b", "x/a", 80), ("x/r", "x/a", 81), ("x/a", "x/b", 80)],
        closed: &[("x/r", "x/a", 80)],
        faults: &[("x/r", "limit of 2"), ("x/r", "limit of 2")],
        room: "[delete pod x/b]",
    },
    Shortage {
        name: "prefixes",
        limits: |limits| Limits { prefixes_max: 2, ..limits },
        objects: "['policy x/p': {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.0/24}}]}]},
            'policy x/q': {podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/25]}}]}, {ports: [{port: 81}]}]}]",
        spared: &[("x/r", "x/a", 80), ("192.0.2.130", "x/b", 81)],
        closed: &[("192.0.2.130", "x/b", 80)],
        faults: &[("x/q", "limit of 2 prefixes")],
        room: "[delete policy x/p]",
    },
    Shortage {
        name: "rules",
        limits: |limits| Limits { rules_max: 2, ..limits },
        objects: "['policy x/p': {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: r}}}]}]},
            'policy x/q': {podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/26}}, {ipBlock: {cidr: 192.0.2.64/26}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}]",
        spared: &[("x/r", "x/a", 80)],
        closed: &[("192.0.2.1", "x/b", 80)],
        faults: &[("x/b", "no room for the rows")],
        room: "['policy x/q': {podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}]",
    },
    Shortage {
        name: "ports",
        limits: |limits| Limits { ports_max: 2, ..limits },
        objects: "['policy x/p': {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]},
            'policy x/q': {podSelector: {matchLabels: {pod: b}}, ingress: [{ports: [{port: 80}, {port: 82}, {port: 84}, {port: 90}]}]}]",
        spared: &[("x/r", "x/a", 80)],
        closed: &[("192.0.2.1", "x/b", 80)],
        faults: &[("x/b", "no room for the rows")],
        room: "['policy x/q': {podSelector: {matchLabels: {pod: b}}, ingress: [{ports: [{port: 80}]}]}]",
    },
];

/// A node with its tables in userspace.
struct Node {
    world: World,
    pipeline: Pipeline,
    installed: Installed,
    sim: Sim,
    faults: Vec<(String, String)>,
}

impl Node {
    fn new(limits: Limits) -> Self {
        Self {
            world: World::new("n1"),
            pipeline: Pipeline::with_limits("n1", limits),
            installed: Installed::new(0, 4096),
            sim: Sim::default(),
            faults: Vec::new(),
        }
    }

    fn change(&mut self, items: &str) {
        let items: Vec<Value> = serde_norway::from_str(items).expect("changes can be read");
        for item in items {
            for change in self.world.change(&item).expect("it is legal").expect("it is a change") {
                self.pipeline.apply(&change);
            }
        }
        let compiled = self.pipeline.update();
        self.faults = compiled.faults.into_iter().map(|fault| (fault.object, fault.message)).collect();
        let plan = self.installed.plan(&compiled.delta).expect("fewer endpoints than records");
        plan.writes.iter().for_each(|write| self.sim.write(write));
        self.installed.commit(&plan);
    }

    fn admits(&self, (source, destination, port): (&str, &str, u16)) -> bool {
        let address = |name| self.world.address_of(name, false).expect("it has an IPv4 address");
        let (source, destination) = (address(source), address(destination));
        let line = format!("tcp {source}:4000 > {destination}:{port} flags=S");
        let frame = text::frame(&line, &self.world).expect("it is legal").bytes();
        let judge = |hook, address| {
            let Some(endpoint) = self.world.endpoint_at(address) else { return true };
            let meeting = Meeting { hook, ifindex: endpoint.ifindex, from_node: false, stamp: 0 };
            let passes = self.sim.judge(FrameBytes { bytes: &frame, gso: false }, meeting).passes();
            self.sim.forget_flows();
            passes
        };
        judge(Hook::FromPod, source) && judge(Hook::ToPod, destination)
    }
}

/// And opened as soon as there is room.
#[test]
fn what_does_not_fit_is_closed_and_named() {
    for shortage in SHORTAGES {
        let Shortage { name, limits, objects, spared, closed, faults, room } = shortage;
        let mut generous = Node::new(Limits::default());
        let mut short = Node::new(limits(Limits::default()));
        for node in [&mut generous, &mut short] {
            node.change(WORLD);
            node.change(objects);
        }
        assert_eq!(generous.faults, [], "{name}");
        for flow in spared.iter().chain(closed) {
            assert!(generous.admits(*flow), "{name}: {flow:?} with room for all");
        }
        for flow in spared {
            assert!(short.admits(*flow), "{name}: {flow:?}: {:?}", short.faults);
        }
        for flow in closed {
            assert!(!short.admits(*flow), "{name}: {flow:?}: {:?}", short.faults);
        }
        let told: BTreeSet<&str> = short.faults.iter().map(|(object, _)| object.as_str()).collect();
        let wanted: BTreeSet<&str> = faults.iter().map(|(object, _)| *object).collect();
        assert_eq!(told, wanted, "{name}: {:?}", short.faults);
        for (object, word) in faults {
            let is_it = |(own, message): &(String, String)| own == object && message.contains(word);
            assert!(short.faults.iter().any(is_it), "{name}: {word:?} in {:?}", short.faults);
        }
        short.change(room);
        assert_eq!(short.faults, [], "{name}");
        for flow in closed {
            assert!(short.admits(*flow), "{name}: {flow:?} now that there is room");
        }
    }
}

#[cfg(feature = "live")]
mod live {
    use std::collections::BTreeMap;

    use ipnet::IpNet;
    use palisade::kernel::{AttachMode, FlowWatch, Kernel, PinDir, Settings, Sizes};
    use palisade::tables::Tables;
    use palisade::tables::adopted::Found;
    use palisade::tables::plan::Installed;
    use palisade_common::layout::{
        Address, Config, EndpointRecord, FlowKey, FlowValue, PortKey, PortValue, RuleKey, RuleValue, Versioned,
    };
    use palisade_tests::judges::{Memory, bpffs};

    /// Entries of every table.
    const SIZE: u32 = 8;

    /// So many entries of one kind, others by `shift`.
    type Fill = fn(&mut Tables, count: u32, shift: u32);

    const KINDS: [(&str, Fill); 7] = [
        ("endpoints", |tables, count, shift| {
            let record = |n| EndpointRecord { ifindex: n, generation: 1, number: n % 16, ..EndpointRecord::default() };
            tables.endpoints.extend((0..count).map(|n| (100 + n + shift, record(100 + n + shift))));
        }),
        ("exact_v4", |tables, count, shift| tables.exact_v4.extend((0..count).map(|n| (n + shift, n + shift + 1)))),
        ("exact_v6", |tables, count, shift| {
            let address = |n| palisade_common::layout::Address { words: [n, 1, 2, 3] };
            tables.exact_v6.extend((0..count).map(|n| (address(n + shift), n + shift + 1)));
        }),
        ("cidr_v4", |tables, count, shift| {
            for n in 0..count {
                let IpNet::V4(net) = format!("10.{}.0.0/16", n + shift).parse().expect("a prefix") else { continue };
                tables.cidr_v4.insert(net, n + shift + 1);
            }
        }),
        ("cidr_v6", |tables, count, shift| {
            for n in 0..count {
                let IpNet::V6(net) = format!("fd{:02x}::/16", n + shift).parse().expect("a prefix") else { continue };
                tables.cidr_v6.insert(net, n + shift + 1);
            }
        }),
        ("rules", |tables, count, shift| {
            let key = |n| RuleKey { table: n + shift, class: 1 };
            tables.rules.extend((0..count).map(|n| (key(n), RuleValue::all(n + shift))));
        }),
        ("ports", |tables, count, shift| {
            let key = |n: u32| PortKey { ports_be: (n + shift).to_be(), protocol: 6, pad: 0, port_be: 0 };
            tables.ports.extend((0..count).map(|n| ((key(n), 48), PortValue { rule: n + shift })));
        }),
    ];

    /// Some of every kind.
    fn base() -> Tables {
        let mut tables = Tables::default();
        KINDS.iter().for_each(|(_, fill)| fill(&mut tables, 5, 0));
        tables
    }

    /// All that can be seen of the maps, but the memory of records that nothing refers to and what references said before.
    fn in_force(kernel: &Kernel) -> (Config, Found) {
        let snapshot = kernel.maps().snapshot(false).expect("the maps can be read");
        let mut found = snapshot.found;
        let (epoch, tables) = (found.epoch, &mut found.tables);
        let classes = tables.exact_v4.values_mut().chain(tables.exact_v6.values_mut());
        let classes = classes.chain(tables.cidr_v4.values_mut()).chain(tables.cidr_v6.values_mut());
        for value in tables.endpoints.values_mut().chain(classes) {
            assert_eq!(value.at(epoch), value.at(epoch + 1), "something still waits for an epoch");
            *value = Versioned::constant(value.at(epoch));
        }
        let referred = |index| tables.endpoints.values().any(|value| value.at(epoch) == index);
        found.records.retain(|index, _| referred(*index));
        (snapshot.config, found)
    }

    fn same(kernel: &Kernel, before: &(Config, Found), context: &str) {
        assert_eq!(&in_force(kernel), before, "{context}");
    }

    fn open(folder: &std::path::Path) -> Kernel {
        let sizes =
            Sizes { endpoints: SIZE, exact: SIZE, prefixes: SIZE, rules: SIZE, ports: SIZE, ..Sizes::default() };
        let pins = PinDir::open(folder).expect("a folder for pins");
        Kernel::open(pins, sizes, Settings::default(), AttachMode::Auto).expect("the programs can be loaded")
    }

    #[test]
    fn full_maps_refuse_a_change_as_a_whole() {
        let folder = bpffs("limits").expect("a bpffs can be mounted");
        let mut kernel = open(&folder.path().join("maps"));
        let base = base();
        kernel.apply(&kernel.tables().delta_to(&base)).expect("five of each fit");
        for (name, fill) in KINDS {
            let before = in_force(&kernel);
            // Of all kinds something is added, changed and removed; of this kind too much.
            let mut wanted = Tables::default();
            KINDS.iter().for_each(|(_, fill)| fill(&mut wanted, 4, 2));
            wanted.exact_v4.values_mut().chain(wanted.cidr_v4.values_mut()).for_each(|class| *class += 50);
            fill(&mut wanted, 2 * SIZE + 1, 0);
            let error = kernel.apply(&kernel.tables().delta_to(&wanted)).expect_err(name);
            assert_eq!(kernel.tables(), &base, "{name}: {error:#}");
            same(&kernel, &before, &format!("{name}: {error:#}"));
            // A second attempt ends the same way.
            kernel.apply(&kernel.tables().delta_to(&wanted)).expect_err(name);
            same(&kernel, &before, name);
            // What fits is taken, and with it the room is there for all that did not fit beside the old.
            let mut fitting = Tables::default();
            fill(&mut fitting, SIZE, 0);
            kernel.apply(&kernel.tables().delta_to(&fitting)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(kernel.tables(), &fitting, "{name}");
            kernel.apply(&kernel.tables().delta_to(&base)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(kernel.tables(), &base, "{name}");
        }
    }

    /// The maps take all that may be wanted, and then as much of something else.
    #[test]
    fn a_change_of_everything_fits_beside_what_it_replaces() {
        let folder = bpffs("limits").expect("a bpffs can be mounted");
        let mut kernel = open(&folder.path().join("maps"));
        for (name, fill) in KINDS {
            for shift in [0, 100, 50] {
                let mut wanted = Tables::default();
                fill(&mut wanted, SIZE, shift);
                let applied = kernel.apply(&kernel.tables().delta_to(&wanted));
                applied.unwrap_or_else(|error| panic!("{name}, {shift}: {error:#}"));
            }
        }
    }

    /// Pinned maps keep their size, and what they hold is the limit; whoever comes next is told.
    #[test]
    fn maps_of_an_earlier_agent_are_the_limits() {
        let folder = bpffs("limits").expect("a bpffs can be mounted");
        let folder = folder.path().join("maps");
        let small = open(&folder);
        assert_eq!((small.sizes().rules, small.other_sizes().len()), (SIZE, 0));
        drop(small);
        let pins = PinDir::open(&folder).expect("a folder for pins");
        let next = Kernel::open(pins, Sizes::default(), Settings::default(), AttachMode::Auto).expect("it is adopted");
        let Sizes { endpoints, exact, prefixes, rules, ports, .. } = next.sizes();
        assert_eq!([endpoints, exact, prefixes, rules, ports], [SIZE; 5]);
        let others: Vec<&str> = next.other_sizes().iter().map(|other| other.map).collect();
        assert!(others.contains(&"RULES") && !others.contains(&"FLOWS"), "{others:?}");
    }

    /// What was evicted while no agent looked may still be wanted.
    #[test]
    fn pressure_on_the_flow_table_outlives_the_agent() {
        let folder = bpffs("limits").expect("a bpffs can be mounted");
        let folder = folder.path().join("maps");
        let pressure = |kernel: &Kernel| {
            let config = kernel.maps().snapshot(false).expect("the maps can be read").config;
            (config.inserts_safe, config.pressure_until)
        };
        let first = open(&folder);
        assert_eq!(pressure(&first), (u64::MAX, 0), "nothing was counted yet");
        first.maps().config.store_pressure(7, 1 << 60);
        drop(first);
        let next = open(&folder);
        assert_eq!(pressure(&next), (7, 1 << 60));
        FlowWatch::new(&folder, &next).look(next.maps()).expect("the maps can be read");
        assert_eq!(pressure(&next), (7, 1 << 60), "before the first count");
    }

    /// More than the kernel gives in one call.
    #[test]
    fn every_flow_is_read_once_and_as_it_is() {
        let folder = bpffs("limits").expect("a bpffs can be mounted");
        let folder = folder.path().join("maps");
        let kernel = open(&folder);
        let mut memory = Memory::open(&folder).expect("the maps are pinned");
        let flows: BTreeMap<FlowKey, FlowValue> = (0..10_000)
            .map(|n| {
                (FlowKey { low: Address::v4(n), ..FlowKey::default() }, FlowValue { flags: n, ..FlowValue::default() })
            })
            .collect();
        for (key, value) in &flows {
            memory.put_flow(*key, *value).expect("there is room");
        }
        assert_eq!(kernel.maps().snapshot(true).expect("the maps can be read").flows, flows);
    }

    /// The next agent finds what was in force, whatever failed last.
    #[test]
    fn a_failed_change_is_not_adopted() {
        let folder = bpffs("limits").expect("a bpffs can be mounted");
        let folder = folder.path().join("maps");
        let base = base();
        let mut kernel = open(&folder);
        kernel.apply(&kernel.tables().delta_to(&base)).expect("five of each fit");
        for (name, fill) in KINDS {
            let mut wanted = base.clone();
            fill(&mut wanted, 2 * SIZE + 1, 0);
            kernel.apply(&kernel.tables().delta_to(&wanted)).expect_err(name);
        }
        // As if the agent died in the middle of another change.
        let mut other = Tables::default();
        KINDS.iter().for_each(|(_, fill)| fill(&mut other, 5, 1));
        let epoch = kernel.epoch();
        let endpoints = kernel.maps().found().expect("the maps can be read").tables.endpoints;
        let records = endpoints.iter().map(|(key, value)| (*key, value.at(epoch))).collect();
        let installed = Installed::adopt(epoch, 2 * SIZE, kernel.tables().clone(), records);
        let plan = installed.plan(&kernel.tables().delta_to(&other)).expect("there are enough records");
        for write in &plan.writes[..plan.commit_len() - 1] {
            kernel.maps_mut().write(write).expect("it fits");
        }
        drop(kernel);
        let mut kernel = open(&folder);
        assert_eq!(without_added(kernel.tables(), &base), base);
        kernel.apply(&kernel.tables().delta_to(&other)).expect("it fits");
        assert_eq!(kernel.tables(), &other);
    }

    /// Without what an unfinished change added: rows that nothing refers to, and prefixes that say what is said without them. The
    /// first change takes them away.
    fn without_added(tables: &Tables, base: &Tables) -> Tables {
        let mut tables = tables.clone();
        tables.rules.retain(|key, _| base.rules.contains_key(key));
        tables.ports.retain(|key, _| base.ports.contains_key(key));
        tables.cidr_v4.retain(|net, class| base.cidr_v4.contains_key(net) || *class != 0);
        tables.cidr_v6.retain(|net, class| base.cidr_v6.contains_key(net) || *class != 0);
        tables
    }
}
