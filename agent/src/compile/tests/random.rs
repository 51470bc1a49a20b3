//! Random sequences of changes: the tables reached step by step equal those made at once from the same facts in another
//! order, say what the policies say, and come from the deltas alone, none of which changes what is referred to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::judge::{allowed, class_of, literal};
use super::{World, applied};
use crate::compile::{Compiled, Direction, Limits};
use crate::index::{Identity, fixture};
use crate::tables::Tables;

/// A generator that is the same everywhere (xorshift64*).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

const ADDRESSES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.1.1",
    "10.0.1.200",
    "10.9.0.1",
    "fd00::1",
    "fd00::2",
    "fd00:0:0:1::1",
    "192.0.2.1",
];
const SELECTORS: [&str; 8] = [".", "app=0", "app=1", "app!=0", "app=0^1,!tier", "tier", "!tier", "app=1,tier=0"];
const NAMESPACES: [&str; 5] = [".", "team=0", "team!=0", "!team", "team=0^1"];
const BLOCKS: [&str; 13] = [
    "@0.0.0.0/0",
    "@10.0.0.0/8!10.0.0.0/24",
    "@10.0.0.0/16!10.0.0.2/32!10.0.1.0/24",
    "@10.0.1.0/24!10.0.1.128/25",
    "@10.0.1.128/25",
    "@10.0.0.1/32",
    "@10.0.0.3/32",
    "@10.9.0.1/32",
    "@fd00::1/128",
    "@::/0!fd00::/64",
    "@fd00::/48",
    "@fd00::/64!fd00::2/128",
    "@0.0.0.0/0!10.0.0.0/8!10.0.1.0/24",
];
const PORTS: [&str; 9] = [
    "*",
    "-",
    "TCP",
    "TCP/80",
    "TCP/80-90;UDP/53",
    "TCP/http",
    "UDP/dns;TCP/http",
    "SCTP/1-7;TCP/85-99",
    "TCP/http;TCP/81",
];

fn peers(dice: &mut Dice) -> String {
    match dice.roll(8) {
        0 => "*".to_owned(),
        1 => "-".to_owned(),
        _ => {
            let peer = |dice: &mut Dice| match dice.roll(3) {
                0 => dice.pick(&SELECTORS).to_owned(),
                1 => format!("{}//{}", dice.pick(&NAMESPACES), dice.pick(&SELECTORS)),
                _ => dice.pick(&BLOCKS).to_owned(),
            };
            let count = 1 + dice.roll(2);
            (0..count).map(|_| peer(dice)).collect::<Vec<_>>().join("+")
        }
    }
}

/// One change as a line; what begins with the same two words replaces it.
pub(super) fn line(dice: &mut Dice) -> String {
    let namespace = dice.pick(&["a", "a", "b"]);
    let gone = if dice.roll(4) == 0 { "-" } else { "" };
    match dice.roll(23) {
        0 => format!("{gone}ns {namespace} {}", dice.pick(&["team=0", "team=1", "trusted", ""])),
        1..=8 => {
            let mut line = format!("{gone}pod {namespace}/p{}#u{}", dice.roll(5), dice.roll(2));
            line += &match dice.roll(6) {
                0 => String::new(),
                1 => format!(" ip={},{}", dice.pick(&ADDRESSES[..6]), dice.pick(&ADDRESSES[6..9])),
                _ => format!(" ip={}", dice.pick(&ADDRESSES)),
            };
            for words in [
                [" node=n", " node=n", " node=m", ""],
                [" app=0", " app=1", " app=1 tier=0", " tier=0"],
                [" port=http/TCP/80", " port=http/TCP/81 port=dns/UDP/53", " port=http/TCP/80 port=http/TCP/82", ""],
            ] {
                line += dice.pick(&words);
            }
            line += dice.pick(&["", "", "", " hostport=TCP/80", " hostport=UDP/53/10.0.0.1"]);
            line + dice.pick(&["", "", "", "", "", "", " finished", " host"])
        }
        9..=14 => {
            let mut line = format!("{gone}policy {namespace}/q{} {}", dice.roll(4), dice.pick(&SELECTORS));
            for _ in 0..1 + dice.roll(3) {
                let direction = dice.pick(&["in", "out"]);
                line += &match dice.roll(5) {
                    0 => format!(" {direction}()"),
                    _ => format!(" {direction}({}|{})", peers(dice), dice.pick(&PORTS)),
                };
            }
            line
        }
        15 | 16 => {
            let ip = dice.pick(&["10.96.0.1", "10.96.0.2", "10.96.0.1,fd00:96::1"]);
            let port =
                dice.pick(&["TCP/80/0/80", "UDP/53/0/dns", "TCP/80/30080/http", "TCP/81/30080/http port=UDP/53/0/53"]);
            let selector = dice.pick(&["app=0", "app=1", "tier=0", ""]);
            format!("{gone}service {namespace}/s{} ip={ip} port={port} {selector}", dice.roll(3))
        }
        17 => dice.pick(&["own", "own 10.0.0.9 10.96.0.1 fd00:96::1", "own 10.96.0.2"]).to_owned(),
        _ => {
            let ifindex = 1 + dice.roll(5);
            let mut line = format!("{gone}veth {ifindex} mac={ifindex}");
            if dice.roll(3) > 0 {
                line += &format!(" ip={}/24", dice.pick(&ADDRESSES[..6]));
            }
            let name = format!(" pod={namespace}/p{}", dice.roll(5));
            line += &match dice.roll(3) {
                0 => String::new(),
                1 => name,
                _ => format!("{name}#u{}", dice.roll(2)),
            };
            line
        }
    }
}

/// The facts that hold after the lines, one line each.
fn facts<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut facts: BTreeMap<Vec<&str>, &str> = BTreeMap::new();
    for line in lines {
        // The node's own addresses are told all at once.
        let words = if line.starts_with("own") { 1 } else { 2 };
        let key = line.trim_start_matches('-').split(' ').take(words).collect();
        match line.starts_with('-') {
            true => facts.remove(&key),
            false => facts.insert(key, line),
        };
    }
    facts.into_values().collect()
}

/// What a delta must not do to tables that are in force.
fn respects(before: &Tables, compiled: &Compiled) -> Result<(), String> {
    let delta = &compiled.delta;
    let tables = before.endpoints.values().flat_map(|record| [record.ingress.table, record.egress.table]);
    let tables: BTreeSet<u32> = tables.filter(|table| *table != 0).collect();
    let exact = before.exact_v4.values().chain(before.exact_v6.values());
    let classes: BTreeSet<u32> = exact.chain(before.cidr_v4.values()).chain(before.cidr_v6.values()).copied().collect();
    for (key, value) in &delta.rules {
        if value.is_some() && tables.contains(&key.table) && (classes.contains(&key.class) || key.class == 0) {
            return Err(format!("a row of a live table and class: {key:?}"));
        }
    }
    let sets: BTreeSet<u32> = before.ports.keys().map(|(key, _)| key.ports_be).collect();
    match delta.ports.iter().find(|((key, _), value)| value.is_some() && sets.contains(&key.ports_be)) {
        Some((key, _)) => Err(format!("a row of a live port set: {key:?}")),
        None => Ok(()),
    }
}

fn verdicts(world: &World, exact: bool) -> Result<(), String> {
    let tables = world.compiler.tables();
    for (&ifindex, record) in &tables.endpoints {
        let Some(Identity::Pod(pod)) = world.index.identity(ifindex) else { continue };
        if record.flags & palisade_common::layout::endpoint_flag::CLOSED != 0 {
            continue;
        }
        for peer in ADDRESSES {
            let peer: IpAddr = peer.parse().expect("an address");
            for direction in Direction::ALL {
                let egress = direction == Direction::Egress;
                for (protocol, port) in [(6, 80), (6, 81), (6, 82), (6, 95), (17, 53), (132, 7), (1, 0)] {
                    let told = allowed(tables, record, egress, peer, protocol, port);
                    let meant = literal(&world.index, pod, egress, peer, protocol, port);
                    if told != meant && (exact || told) {
                        let class = class_of(tables, peer);
                        return Err(format!(
                            "veth {ifindex} {direction:?} {peer} {protocol}/{port}: {told}, should be {meant} (class {class})"
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Plays lines in steps. `exact`: nothing may be refused for want of room.
fn play(lines: &[String], limits: Limits, exact: bool, dice: &mut Dice) -> Result<(), String> {
    let mut world = World::new("complete", limits);
    let mut mirror = world.compiler.tables().clone();
    let mut at = 0;
    while at < lines.len() {
        let end = (at + 1 + dice.roll(4)).min(lines.len());
        let compiled = world.apply(&lines[at..end].join("\n"));
        at = end;
        respects(&mirror, &compiled)?;
        mirror = applied(mirror, &compiled.delta);
        if mirror != *world.compiler.tables() {
            return Err("the deltas do not add up".to_owned());
        }
        let mut facts = facts(lines[..end].iter().map(String::as_str));
        for place in (1..facts.len()).rev() {
            facts.swap(place, dice.roll(place + 1));
        }
        let mut fresh = World::new("", limits);
        fixture::apply(&mut fresh.index, &facts.join("\n"));
        let at_once = fresh.apply("complete");
        let (stepwise, fresh) = (world.compiler.canonical(), fresh.compiler.canonical());
        if stepwise != fresh || !fresh.orphans.is_empty() {
            return Err(format!("stepwise\n{stepwise:#?}\nat once\n{fresh:#?}"));
        }
        if at_once.faults != compiled.faults {
            return Err(format!("faults {:#?}\nat once {:#?}", compiled.faults, at_once.faults));
        }
        verdicts(&world, exact)?;
    }
    Ok(())
}

/// Finds the shortest sequence that still fails, so that it can be read.
fn shrunk(mut lines: Vec<String>, limits: Limits, exact: bool, seed: u64) -> Vec<String> {
    let mut place = lines.len();
    while place > 0 {
        place -= 1;
        let mut fewer = lines.clone();
        fewer.remove(place);
        if play(&fewer, limits, exact, &mut Dice(seed)).is_err() {
            lines = fewer;
        }
    }
    lines
}

fn sequences(count: u64, limits: Limits, exact: bool) {
    for seed in 1..=count {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let length = 4 + dice.roll(36);
        let lines: Vec<String> = (0..length).map(|_| line(&mut dice)).collect();
        if play(&lines, limits, exact, &mut Dice(seed)).is_err() {
            let lines = shrunk(lines, limits, exact, seed);
            let error = play(&lines, limits, exact, &mut Dice(seed));
            panic!("seed {seed}:\n{}\n{}", lines.join("\n"), error.err().unwrap_or_default());
        }
    }
}

#[test]
fn stepwise_is_at_once() {
    sequences(2_000, Limits::default(), true);
}

#[test]
fn stepwise_is_at_once_where_room_is_scarce() {
    let limits =
        Limits { endpoints_max: 3, exact_max: 2, prefixes_max: 4, rules_max: 6, ports_max: 30, ..Limits::default() };
    sequences(1_000, limits, false);
}
