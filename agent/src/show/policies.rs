//! `palisade policies`: the policies that select pods of this node, as they are enforced.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use palisade_common::layout::{FlowKey, FlowValue, PORTS_ALL, PORTS_NONE, RuleValue};
use serde::Serialize;

use super::endpoints;
use super::page::{Page, show};
use super::rows::{Range, ranges};
use super::style;
use super::table::Columns;
use crate::compile::{Catalog, RuleEntry};
use crate::config::PoliciesFlags;
use crate::explain::flows::Judge;
use crate::kernel::{Maps, Snapshot};
use crate::observe;
use crate::pause::name_of;
use crate::tables::adopted::Found;
use crate::tables::sim::Sim;

/// Field names are part of the output of `-o json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Policy {
    /// `namespace/name`.
    name: String,
    /// The pods of this node that it isolates.
    pods: BTreeSet<String>,
    /// None: it does not isolate for the direction.
    ingress: Option<Side>,
    egress: Option<Side>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Side {
    /// Decision tables that it is part of.
    tables: BTreeSet<u32>,
    pods: BTreeSet<String>,
    /// By place; none: nothing is allowed by this policy.
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Rule {
    /// Place in spec.ingress or spec.egress, from 0.
    index: usize,
    /// The kernel's.
    number: u32,
    /// As written; none: everybody.
    peers: Option<Vec<String>>,
    /// As written; none: everything.
    ports: Option<Vec<String>>,
    /// Peer classes that it names, and how many addresses and prefixes have them.
    classes: BTreeSet<u32>,
    addresses: usize,
    prefixes: usize,
    /// What rows of the loaded tables allow by this rule, after names of ports were resolved. What a rule before it allows as well is told
    /// there.
    in_force: Vec<String>,
    /// Flows that are remembered and that this rule admits.
    flows: u64,
    /// New flows that the programs have admitted by it, since the agent that runs has it.
    admitted: u64,
}

/// What rules were asked about.
struct Traffic {
    /// That are remembered.
    flows: BTreeMap<FlowKey, FlowValue>,
    /// New flows by the rule that admitted them.
    admitted: BTreeMap<u32, u64>,
}

/// # Errors
///
/// When there is no agent's state to read, or no such policy.
pub fn policies(flags: &PoliciesFlags) -> anyhow::Result<()> {
    let maps = Maps::open_pinned(&flags.show.pin_dir)?;
    let Snapshot { config, found, flows, .. } = maps.snapshot(true)?;
    let traffic = Traffic { flows, admitted: maps.rule_hits()? };
    let catalog = observe::read_catalog(&flags.show.pin_dir)?;
    let mut policies = read(&Sim::of(found, &config), &catalog, &traffic);
    if let Some(name) = &flags.name {
        let full = if name.contains('/') { name.clone() } else { format!("{}/{name}", flags.namespace) };
        policies.retain(|policy| policy.name == full);
        if policies.is_empty() {
            bail!(
                "no policy {full} isolates a pod of this node (it is written NAMESPACE/NAME; `palisade policies` lists those that do)"
            );
        }
    }
    show(flags.show.output, &policies, |page| {
        if flags.name.is_some() || page.is_wide() {
            policies.iter().for_each(|policy| tell(page, policy));
        } else {
            summary(page, &policies);
        }
    })
}

/// By name.
fn read(sim: &Sim, catalog: &Catalog, traffic: &Traffic) -> Vec<Policy> {
    let mut policies: BTreeMap<String, Policy> = BTreeMap::new();
    for row in endpoints::rows(catalog.endpoints.clone(), sim.found(), &catalog.tables) {
        let pod = name_of(&row.entry).unwrap_or_else(|| format!("interface {}", row.entry.interface));
        let entry = &row.entry;
        let sides =
            [(true, &entry.ingress_policies, entry.ingress_table), (false, &entry.egress_policies, entry.egress_table)];
        for (ingress, names, table) in sides {
            for name in names {
                let policy = policies.entry(name.clone()).or_insert_with(|| Policy::new(name));
                policy.pods.insert(pod.clone());
                let side = if ingress { &mut policy.ingress } else { &mut policy.egress };
                let side = side.get_or_insert_default();
                side.pods.insert(pod.clone());
                side.tables.extend(table);
            }
        }
    }
    let in_force = in_force(sim.found());
    let remembered = remembered(sim, &traffic.flows);
    for (&number, entry) in &catalog.rules {
        let Some(policy) = policies.get_mut(&entry.policy) else { continue };
        let side = if entry.direction == "ingress" { &mut policy.ingress } else { &mut policy.egress };
        let Some(side) = side else { continue };
        let mut rule = Rule::new(number, entry, catalog, sim.found());
        rule.in_force = in_force.get(&number).cloned().unwrap_or_default();
        rule.flows = remembered.get(&number).copied().unwrap_or(0);
        rule.admitted = traffic.admitted.get(&number).copied().unwrap_or(0);
        side.rules.push(rule);
    }
    let mut policies: Vec<Policy> = policies.into_values().collect();
    for side in policies.iter_mut().flat_map(|policy| [&mut policy.ingress, &mut policy.egress]).flatten() {
        side.rules.sort_by_key(|rule| rule.index);
    }
    policies
}

/// By rule: what rows give by it.
fn in_force(found: &Found) -> BTreeMap<u32, Vec<String>> {
    let records = found.tables.endpoints.values().filter_map(|index| found.records.get(&index.at(found.epoch)));
    let defaults = records.flat_map(|record| [record.ingress.default, record.egress.default]);
    let rows: BTreeSet<(u32, u32, u16, u16, u8)> = found
        .tables
        .rules
        .values()
        .copied()
        .chain(defaults)
        .map(|row| (row.ports, row.rule, row.first, row.last, row.protocol))
        .collect();
    let mut sets: BTreeMap<u32, Vec<(&_, &_)>> = BTreeMap::new();
    for (key, value) in &found.tables.ports {
        sets.entry(u32::from_be(key.0.ports_be)).or_default().push((key, value));
    }
    let mut given: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for (ports, rule, first, last, protocol) in rows {
        let row = RuleValue { ports, rule, first, last, protocol, pad: [0; 3] };
        match row.ports {
            PORTS_NONE => {}
            PORTS_ALL => drop(given.entry(rule).or_default().insert("everything".to_owned())),
            _ if rule != 0 => {
                given.entry(rule).or_default().insert(Range { protocol, first, last, rule }.to_string());
            }
            set => {
                for range in ranges(sets.get(&set).into_iter().flatten().copied()) {
                    given.entry(range.rule).or_default().insert(range.to_string());
                }
            }
        }
    }
    given.into_iter().map(|(rule, ports)| (rule, ports.into_iter().collect())).collect()
}

/// Remembered flows by the rule that admits them now.
fn remembered(sim: &Sim, flows: &BTreeMap<FlowKey, FlowValue>) -> BTreeMap<u32, u64> {
    let judge = Judge::new(sim);
    let mut counts = BTreeMap::new();
    for (key, value) in flows {
        for rule in judge.judge(key, value).iter().filter_map(|judged| judged.rule) {
            *counts.entry(rule).or_default() += 1;
        }
    }
    counts
}

impl Policy {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), pods: BTreeSet::new(), ingress: None, egress: None }
    }
}

impl Rule {
    fn new(number: u32, entry: &RuleEntry, catalog: &Catalog, found: &Found) -> Self {
        let names =
            |peers: &[String]| peers.iter().any(|peer| entry.peers.as_ref().is_some_and(|of| of.contains(peer)));
        let classes: BTreeSet<u32> =
            catalog.classes.iter().filter(|(_, class)| names(&class.peers)).map(|(id, _)| *id).collect();
        let has = |value: &palisade_common::layout::Versioned| classes.contains(&value.at(found.epoch));
        let (exact_v4, exact_v6) = (found.tables.exact_v4.values(), found.tables.exact_v6.values());
        let (cidr_v4, cidr_v6) = (found.tables.cidr_v4.values(), found.tables.cidr_v6.values());
        Self {
            index: entry.index,
            number,
            peers: entry.peers.clone(),
            ports: entry.ports.clone(),
            addresses: exact_v4.chain(exact_v6).filter(|value| has(value)).count(),
            prefixes: cidr_v4.chain(cidr_v6).filter(|value| has(value)).count(),
            classes,
            in_force: Vec::new(),
            flows: 0,
            admitted: 0,
        }
    }
}

fn summary(page: &mut Page, policies: &[Policy]) {
    let mut columns = Columns::new(&["POLICY", "PODS", "INGRESS", "EGRESS", "FLOWS", "ADMITTED"]);
    let side = |side: &Option<Side>| match side {
        None => "-".to_owned(),
        Some(side) if side.rules.is_empty() => "nothing".to_owned(),
        Some(side) if side.rules.len() == 1 => "1 rule".to_owned(),
        Some(side) => format!("{} rules", side.rules.len()),
    };
    for policy in policies {
        let rules = || [&policy.ingress, &policy.egress].into_iter().flatten().flat_map(|side| &side.rules);
        let (flows, admitted): (u64, u64) =
            (rules().map(|rule| rule.flows).sum(), rules().map(|rule| rule.admitted).sum());
        columns.row([
            policy.name.clone(),
            policy.pods.len().to_string(),
            side(&policy.ingress),
            side(&policy.egress),
            flows.to_string(),
            admitted.to_string(),
        ]);
    }
    page.columns(&columns);
}

fn tell(page: &mut Page, policy: &Policy) {
    page.line(format_args!("{}{}{:#}", style::HEADING, policy.name, style::HEADING));
    for (direction, from, side) in [("ingress", "FROM", &policy.ingress), ("egress", "TO", &policy.egress)] {
        let Some(Side { tables, pods, rules }) = side else { continue };
        let tables: Vec<String> = tables.iter().map(ToString::to_string).collect();
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        let label = if tables.len() == 1 { "table" } else { "tables" };
        page.line(format_args!("{direction} of {}: {label} {}", pods.join(", "), tables.join(", ")));
        if rules.is_empty() {
            page.line("  no rule: nothing is allowed by this policy");
            continue;
        }
        let mut columns = Columns::new(&[
            "  RULE",
            "NUMBER",
            from,
            "PORTS",
            "CLASSES",
            "ADDRESSES",
            "PREFIXES",
            "IN FORCE",
            "FLOWS",
            "ADMITTED",
        ]);
        for rule in rules {
            let list = |list: &Option<Vec<String>>, all: &str| match list {
                None => all.to_owned(),
                Some(list) if list.is_empty() => "nobody".to_owned(),
                Some(list) => list.join("; "),
            };
            let classes: Vec<String> = rule.classes.iter().map(ToString::to_string).collect();
            let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
            columns.row([
                format!("  {}", rule.index),
                rule.number.to_string(),
                list(&rule.peers, "everybody"),
                list(&rule.ports, "everything"),
                or_dash(classes.join(",")),
                rule.addresses.to_string(),
                rule.prefixes.to_string(),
                or_dash(rule.in_force.join(", ")),
                rule.flows.to_string(),
                rule.admitted.to_string(),
            ]);
        }
        page.columns(&columns);
    }
    page.line("");
}

#[cfg(test)]
mod tests {
    use palisade_common::layout::{Address, EndpointRecord, Judgement, flow_flag};

    use super::*;
    use crate::compile::{Compiler, Limits};
    use crate::index::fixture::index;
    use crate::tables::address_v4;

    const SHOP: &str = "
        ns shop
        ns ops team=ops
        pod shop/web ip=10.0.0.2 node=n app=web
        pod shop/db ip=10.0.0.4 node=n port=sql/TCP/5432 app=db
        pod shop/far ip=10.0.1.5 node=m app=web
        pod ops/any ip=10.0.1.6 node=m
        policy shop/db app=db in(app=web|TCP/sql;TCP/8000-8003) in(team=ops//.|*) out()
        policy shop/all . in(@10.0.0.0/8!10.1.0.0/16|TCP/5433)
        policy shop/none app=nobody in()
        veth 2 mac=2 ip=10.0.0.2/24 pod=shop/web
        veth 4 mac=4 ip=10.0.0.4/24 pod=shop/db
        node n
        complete";

    fn world(flow: impl Fn(&EndpointRecord) -> (FlowKey, FlowValue)) -> Vec<Policy> {
        let mut index = index(SHOP);
        let mut compiler = Compiler::new(Limits::default());
        compiler.update(&mut index, 1);
        let (key, value) = flow(&compiler.tables().endpoints[&4]);
        let catalog = compiler.catalog(&index, &[]);
        let admitted =
            catalog.rules.iter().filter(|(_, rule)| rule.policy == "shop/db").map(|(number, _)| (*number, 7));
        let traffic = Traffic { flows: [(key, value)].into(), admitted: admitted.take(1).collect() };
        read(&Sim::holding(compiler.tables()), &catalog, &traffic)
    }

    /// `low` has opened it to `high`, which is the pod's.
    fn flow(low: [u8; 4], high: [u8; 4], port: u16, generation: u32) -> (FlowKey, FlowValue) {
        let address = |octets: [u8; 4]| Address::v4(address_v4(octets.into()));
        let key = FlowKey {
            low: address(low),
            high: address(high),
            low_port: 50_000,
            high_port: port,
            protocol: 6,
            family: 4,
            ..FlowKey::default()
        };
        let mut value = FlowValue { flags: flow_flag::OPENED, ..FlowValue::default() };
        value.judged[0][1] = Judgement { epoch: 1, generation };
        (key, value)
    }

    #[test]
    fn rules_as_they_are_enforced() {
        let policies = world(|db| flow([10, 0, 0, 2], [10, 0, 0, 4], 8001, db.generation));
        assert_eq!(policies.iter().map(|policy| &*policy.name).collect::<Vec<_>>(), ["shop/all", "shop/db"]);
        let [all, db] = &policies[..] else { panic!("{policies:?}") };
        assert_eq!(all.pods, ["shop/db", "shop/web"].map(str::to_owned).into());
        assert_eq!(all.egress, None);
        let block = &all.ingress.as_ref().expect("it isolates").rules[0];
        assert_eq!(block.peers, Some(vec!["10.0.0.0/8 except 10.1.0.0/16".to_owned()]));
        assert_eq!((&*block.in_force, block.prefixes), (&["tcp/5433".to_owned()][..], 1));
        assert_eq!(db.egress.as_ref().expect("it isolates").rules, []);
        let [web, ops] = &db.ingress.as_ref().expect("it isolates").rules[..] else { panic!("{db:?}") };
        assert_eq!(web.ports, Some(vec!["tcp/sql".to_owned(), "tcp/8000-8003".to_owned()]));
        assert_eq!(web.in_force, ["tcp/5432", "tcp/8000-8003"]);
        assert_eq!((web.addresses, web.flows, web.admitted), (2, 1, 7));
        assert_eq!((ops.addresses, ops.flows, ops.admitted), (1, 0, 0));
        assert_eq!(ops.in_force, ["everything"]);
    }

    #[test]
    fn a_flow_counts_for_the_rule_that_admits_it_now() {
        let flows = |port, of: fn(&EndpointRecord) -> u32| {
            let policies = world(|db| flow([10, 0, 0, 2], [10, 0, 0, 4], port, of(db)));
            let rules = policies.iter().flat_map(|policy| &policy.ingress).flat_map(|side| &side.rules);
            rules.map(|rule| rule.flows).collect::<Vec<_>>()
        };
        // Of shop/all, and of shop/db's two.
        assert_eq!(flows(8000, |db| db.generation), [0, 1, 0]);
        assert_eq!(flows(9000, |db| db.generation), [0, 0, 0]);
        assert_eq!(flows(8000, |db| db.generation + 100), [0, 0, 0]);
    }
}
