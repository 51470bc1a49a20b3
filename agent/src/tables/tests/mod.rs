//! P3 as data: random changes, replayed write by write. After each write every look-up answers as before the change, or as
//! after it; never a third way.

mod flight;
mod interleaving;
mod services;
mod settings;
mod world;
mod written;

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::decide::{OPEN_EGRESS, Question, Tables as _, ask};
use palisade_common::layout::{Address, EndpointRecord, PORTS_FIRST, RECORD_NONE, RuleKey, RuleValue, Versioned};
use palisade_common::parse::{V4, V6, protocol};

use super::adopted::{Adopted, Found, adopted};
use super::plan::{Installed, Plan, Write};
use super::sim::{Sim, bytes_of};
use super::{Tables, address_v4, address_v6};
use world::{Chance, World};

const RECORDS: u32 = 24;
const PORTS: [(u8, u16); 5] =
    [(protocol::TCP, 80), (protocol::TCP, 81), (protocol::TCP, 8443), (protocol::UDP, 80), (protocol::SCTP, 9)];

/// Everything that look-ups tell at the epoch in force.
#[derive(Clone, Debug, PartialEq)]
struct Answers {
    records: Vec<Option<EndpointRecord>>,
    classes: Vec<u32>,
    /// By every table that a record refers to, and every class met.
    rows: BTreeMap<(u32, u32), RuleValue>,
    /// By every port set that a row refers to.
    ports: BTreeMap<u32, [Option<u32>; PORTS.len()]>,
}

fn answers(sim: &Sim) -> Answers {
    let epoch = sim.epoch();
    let probes = world::probes();
    let record = |ifindex: u32| {
        let index = sim.endpoint(ifindex)?.at(epoch);
        if index == RECORD_NONE { None } else { sim.record(index) }
    };
    let records: Vec<Option<EndpointRecord>> = world::INTERFACES.map(|ifindex| record(ifindex).copied()).collect();
    let class = |(family, address): &(u8, Address)| {
        let isolated = EndpointRecord { flags: u32::MAX, stamp: 1, ..EndpointRecord::default() };
        let (client, what, protocol) = ((0, 0), OPEN_EGRESS, protocol::TCP);
        let question = Question { peer: address, client, epoch, what, port: 0, protocol, family: *family };
        ask(sim, &isolated, &question).class()
    };
    let classes: Vec<u32> = probes.iter().map(class).collect();
    let met: BTreeSet<u32> = classes.iter().copied().collect();
    let mut rows = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for table in records.iter().flatten().flat_map(|record| [record.ingress, record.egress]) {
        for &class in &met {
            let row = sim.rule(&RuleKey { table: table.table, class }).unwrap_or(table.default);
            rows.insert((table.table, class), row);
            if row.ports >= PORTS_FIRST {
                ports.entry(row.ports).or_insert_with(|| PORTS.map(|(kind, port)| sim.port(row.ports, kind, port)));
            }
        }
    }
    Answers { records, classes, rows, ports }
}

/// Writes one by one; says after which one the answers are neither the expected ones.
fn replay(sim: &mut Sim, plan: &Plan, old: &Answers, new: &Answers, context: &str) {
    let commit = plan.commit_len();
    for (position, write) in plan.writes.iter().enumerate() {
        sim.write(write);
        let expected = if position + 1 < commit { old } else { new };
        assert_eq!(&answers(sim), expected, "{context}: after write {position} of {commit}: {write:?}");
    }
}

/// What a fresh node would answer with these tables, and no change ever seen.
fn fresh(tables: &Tables) -> Answers {
    let mut installed = Installed::new(7, RECORDS);
    let mut sim = Sim::default();
    carry_out(&mut sim, &mut installed, tables);
    answers(&sim)
}

fn carry_out(sim: &mut Sim, installed: &mut Installed, tables: &Tables) {
    let plan = installed.plan(&installed.tables().delta_to(tables)).expect("there are enough records");
    plan.writes.iter().for_each(|write| sim.write(write));
    installed.commit(&plan);
}

/// What each reference says at the epoch in force, and that it says so at every later one. The memory of records that nothing
/// refers to does not matter.
fn references(sim: &Sim, context: &str) -> Found {
    let mut found = Found { records: BTreeMap::new(), ..sim.found().clone() };
    let (epoch, tables) = (found.epoch, &mut found.tables);
    let values = tables.endpoints.values_mut().chain(tables.exact_v4.values_mut()).chain(tables.exact_v6.values_mut());
    for value in values.chain(tables.cidr_v4.values_mut()).chain(tables.cidr_v6.values_mut()) {
        assert_eq!(value.at(epoch), value.at(epoch.wrapping_add(1)), "{context}: something still waits for its epoch");
        *value = Versioned::constant(value.at(epoch));
    }
    found
}

struct Run {
    chance: Chance,
    world: World,
    sim: Sim,
    installed: Installed,
}

impl Run {
    fn new(seed: u64) -> Self {
        // Some runs cross the wrap of the epoch.
        let epoch = if seed.is_multiple_of(3) { u32::MAX - 5 } else { seed as u32 };
        let mut sim = Sim::default();
        sim.write(&Write::Epoch(epoch));
        let (chance, world) = (Chance::new(seed), World::default());
        Self { chance, world, sim, installed: Installed::new(epoch, RECORDS) }
    }

    /// The next state of the world, and the plan that leads there.
    fn next(&mut self) -> Plan {
        self.world.change(&mut self.chance);
        let delta = self.installed.tables().delta_to(&self.world.tables);
        self.installed.plan(&delta).expect("there are enough records")
    }

    fn finish(&mut self, plan: &Plan) {
        plan.writes.iter().for_each(|write| self.sim.write(write));
        self.installed.commit(plan);
    }
}

#[test]
fn every_write_leaves_old_or_new() {
    let (mut plans, mut writes) = (0, 0);
    for seed in 0..60 {
        let mut run = Run::new(seed);
        for step in 0..20 {
            let context = format!("seed {seed}, step {step}");
            let old = answers(&run.sim);
            let plan = run.next();
            let new = fresh(&run.world.tables);
            replay(&mut run.sim, &plan, &old, &new, &context);
            run.installed.commit(&plan);
            assert_eq!(run.installed.tables(), &run.world.tables, "{context}");
            assert_eq!(run.sim.epoch(), run.installed.epoch(), "{context}");
            plans += 1;
            writes += plan.writes.len();
        }
    }
    assert!(plans >= 1_000 && writes > plans * 5, "{plans} plans, {writes} writes");
}

/// Whatever is written after many changes is what a fresh node would have, with nothing left behind.
#[test]
fn nothing_is_left_behind() {
    for seed in 1000..1400 {
        let mut run = Run::new(seed);
        for _ in 0..12 {
            let plan = run.next();
            run.finish(&plan);
        }
        let found = run.sim.found().clone();
        let epoch = found.epoch;
        let Adopted { tables, writes, .. } = adopted(found);
        assert_eq!(tables, run.world.tables, "seed {seed}");
        assert_eq!(writes, [Write::Epoch(epoch.wrapping_add(1))], "seed {seed}: nothing waits and nothing is gone");
    }
}

#[test]
fn every_abort_is_taken_back() {
    let mut aborts = 0;
    for seed in 2000..2300 {
        let mut run = Run::new(seed);
        for step in 0..6 {
            let plan = run.next();
            let context = format!("seed {seed}, step {step}");
            let before = references(&run.sim, &context);
            let old = answers(&run.sim);
            for done in 0..plan.commit_len() {
                let mut sim = run.sim.clone();
                plan.writes[..done].iter().for_each(|write| sim.write(write));
                let checked = done + 1 == plan.commit_len();
                for write in plan.undo(done) {
                    sim.write(&write);
                    if checked {
                        assert_eq!(answers(&sim), old, "seed {seed}, step {step}, {done} done, undoing {write:?}");
                    }
                }
                assert_eq!(references(&sim, &context), before, "{context}, {done} done");
                aborts += 1;
            }
            run.finish(&plan);
        }
    }
    assert!(aborts > 10_000, "{aborts} aborts");
}

/// An agent dies after any write; the next one finds the maps, settles them, and goes somewhere else from there.
#[test]
fn every_death_is_survived() {
    for seed in 3000..3100 {
        let mut run = Run::new(seed);
        for step in 0..4 {
            let old = answers(&run.sim);
            let plan = run.next();
            let new = fresh(&run.world.tables);
            let done = run.chance.below(plan.writes.len() as u64 + 1) as usize;
            let context = format!("seed {seed}, step {step}, {done} of {} done", plan.writes.len());
            plan.writes[..done].iter().for_each(|write| run.sim.write(write));
            let in_force = if !plan.is_empty() && done >= plan.commit_len() { &new } else { &old };
            let Adopted { writes, epoch, tables, records } = adopted(run.sim.found().clone());
            for write in &writes {
                run.sim.write(write);
                assert_eq!(&answers(&run.sim), in_force, "{context}: settling {write:?}");
            }
            run.installed = Installed::adopt(epoch, RECORDS, tables, records);
            let plan = run.installed.plan(&run.installed.tables().delta_to(&run.world.tables));
            let plan = plan.expect("there are enough records");
            replay(&mut run.sim, &plan, in_force, &new, &context);
            run.installed.commit(&plan);
            assert_eq!(run.installed.tables(), &run.world.tables, "{context}");
        }
    }
}

/// A new epoch has every flow judged again: none without need.
#[test]
fn what_is_there_already_is_no_plan() {
    let mut run = Run::new(1);
    for _ in 0..5 {
        let plan = run.next();
        run.finish(&plan);
    }
    assert_ne!(run.installed.tables(), &Tables::default());
    let epoch = run.installed.epoch();
    let again = Tables::default().delta_to(run.installed.tables());
    let plan = run.installed.plan(&again).expect("nothing is added");
    assert_eq!((&plan.writes[..], plan.is_empty(), plan.commit_len()), (&[][..], true, 0));
    run.finish(&plan);
    assert_eq!(run.installed.epoch(), epoch);
}

#[test]
fn a_plan_is_taken_back_write_by_write() {
    let record = EndpointRecord { ifindex: 1, generation: 1, ..EndpointRecord::default() };
    let one = Tables { endpoints: [(1, record)].into(), exact_v4: [(9, 5)].into(), ..Tables::default() };
    let installed = Installed::new(41, 2);
    assert_eq!(installed.epoch(), 41);
    let plan = installed.plan(&Tables::default().delta_to(&one)).expect("there is a record");
    assert_eq!(plan.undo(0), []);
    // The record's memory needs no taking back, nor does the epoch.
    let done = plan.commit_len() - 1;
    assert_eq!(plan.undo(done), [Write::Endpoint(1, None), Write::ExactV4(9, None)]);
}

/// Packets that bear a stamp may be under way when it is given to another.
#[test]
fn a_stamp_that_is_not_given_after_all_is_whose_it_was() {
    let mut installed = Installed::new(0, RECORDS);
    let with = |ifindex: u32| {
        let record = EndpointRecord { ifindex, stamp: 7, ..EndpointRecord::default() };
        Tables { endpoints: BTreeMap::from([(ifindex, record)]), ..Tables::default() }
    };
    let mut undone = |wanted: &Tables| {
        let plan = installed.plan(&installed.tables().delta_to(wanted)).expect("there are records");
        let undo = plan.undo(plan.commit_len() - 1);
        installed.commit(&plan);
        undo.into_iter().filter(|write| matches!(write, Write::Stamp(..))).collect::<Vec<_>>()
    };
    assert_eq!(undone(&with(3)), [Write::Stamp(7, 0)]);
    assert_eq!(undone(&Tables::default()), []);
    assert_eq!(undone(&with(4)), [Write::Stamp(7, 3)]);
}

#[test]
fn addresses_lie_in_tables_as_in_packets() {
    assert_eq!(address_v4("10.1.2.3".parse().expect("an address")).to_ne_bytes(), [10, 1, 2, 3]);
    let address = address_v6("2001:db8:3:4:5:6:7:8".parse().expect("an address"));
    let bytes = [0x20, 1, 0xd, 0xb8, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8];
    assert_eq!((bytes_of(&address), address_v6(bytes.into())), (bytes, address));
}

#[test]
fn too_many_endpoints_are_refused_as_a_whole() {
    let record = |ifindex| EndpointRecord { ifindex, generation: 1, ..EndpointRecord::default() };
    let three = Tables { endpoints: (1..=3).map(|n| (n, record(n))).collect(), ..Tables::default() };
    let mut installed = Installed::new(0, 2);
    assert!(installed.plan(&installed.tables().delta_to(&three)).is_err());
    let two = Tables { endpoints: (1..=2).map(|n| (n, record(n))).collect(), ..Tables::default() };
    let mut sim = Sim::default();
    carry_out(&mut sim, &mut installed, &two);
    assert!(sim.endpoint(2).is_some_and(|value| value.at(sim.epoch()) != RECORD_NONE));
    assert!(installed.plan(&two.delta_to(&three)).is_err(), "no record is free");
}

/// The probes stand in and around all prefixes, in both families.
#[test]
fn probes_tell_prefixes_apart() {
    let probes = world::probes();
    assert!(probes.iter().any(|(family, _)| *family == V4) && probes.iter().any(|(family, _)| *family == V6));
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let mut run = Run::new(seed);
        for _ in 0..10 {
            let plan = run.next();
            run.finish(&plan);
            seen.extend(answers(&run.sim).classes);
        }
    }
    assert!(seen.len() > 20, "{} classes were ever met", seen.len());
}
