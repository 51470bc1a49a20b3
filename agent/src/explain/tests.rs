//! Ways as text: facts in, every hop with its reason and rule out.

use std::net::IpAddr;

use palisade_common::decide::Tables;

use super::port::PortSpec;
use super::way::{Flow, Seat, Stage, way};
use crate::compile::{Compiler, Limits};
use crate::index::fixture;
use crate::tables::sim::Sim;

/// `web` may reach `db` and ask its own Service; `db` admits `api` alone, on one port; `api` is not isolated.
const SHOP: &str = "
    ns shop team=shop
    pod shop/web ip=10.0.0.2,fd00::2 node=n app=web
    pod shop/api ip=10.0.0.3,fd00::3 node=n app=api
    pod shop/db ip=10.0.0.4,fd00::4 node=n port=sql/TCP/5432 app=db
    pod shop/far ip=10.0.1.5,fd00:1::5 node=m app=db
    policy shop/web app=web out(app=db|TCP/sql;TCP/80)
    policy shop/db app=db in(app=api|TCP/5432)
    service shop/db ip=10.96.0.4,fd00:96::4 port=TCP/5432/0/sql app=db
    veth 2 mac=2 ip=10.0.0.2/24,fd00::2/64 pod=shop/web
    veth 3 mac=3 ip=10.0.0.3/24,fd00::3/64 pod=shop/api
    veth 4 mac=4 ip=10.0.0.4/24,fd00::4/64 pod=shop/db
    node n
    complete";

struct World {
    compiler: Compiler,
    index: crate::index::Index,
    sim: Sim,
}

impl World {
    fn new(lines: &str) -> Self {
        let mut index = fixture::index(lines);
        let mut compiler = Compiler::new(Limits::default());
        compiler.update(&mut index, 1);
        let sim = Sim::holding(compiler.tables());
        Self { compiler, index, sim }
    }

    /// `10.0.0.2 -> 10.0.0.4 tcp/80`, or `… -> 10.96.0.4:5432 via 10.0.0.4 tcp/5432`; `node -> …`.
    fn tell(&self, question: &str) -> String {
        let words: Vec<&str> = question.split_whitespace().collect();
        let seat = |address: IpAddr| {
            let mut records = self.compiler.tables().endpoints.values();
            let own = |record: &&palisade_common::layout::EndpointRecord| match address {
                IpAddr::V4(address) => record.v4.contains(&crate::tables::address_v4(address)),
                IpAddr::V6(address) => record.v6.contains(&crate::tables::address_v6(address)),
            };
            records.find(own).map_or(Seat::Elsewhere, |record| Seat::Pod(record.ifindex))
        };
        let (from, source) = match words[0] {
            "node" => (Seat::Node, "10.0.0.1".parse().expect("an address")),
            address => {
                let address = address.parse().expect("an address");
                (seat(address), address)
            }
        };
        let addressed: IpAddr = words[2].parse().expect("an address");
        let reached: IpAddr = if words[3] == "via" { words[4].parse().expect("an address") } else { addressed };
        let port: PortSpec = words.last().expect("a port").parse().expect("a port");
        let (protocol, port) = port.resolved(&[])[0];
        let to = if reached.to_string() == "10.0.0.1" { Seat::Node } else { seat(reached) };
        let flow = Flow { from, source, addressed: (addressed, port), to, reached: (reached, port), protocol };
        let catalog = self.compiler.catalog(&self.index, &[]);
        let hops = way(&self.sim, &flow).into_iter().map(|hop| {
            let stage = match hop.stage {
                Stage::FromPod => "from",
                Stage::ToPod => "to",
                Stage::Exit => "exit",
                Stage::Process => "process",
            };
            let rules: Vec<String> = hop
                .asked
                .iter()
                .filter_map(|asked| catalog.rules.get(&asked.rule?))
                .map(|rule| format!(" by {} {} {}", rule.policy, rule.direction, rule.index))
                .collect();
            let far = if hop.reached { "" } else { "!" };
            format!("{far}{stage} {}{}", hop.ruling.reason().name(), rules.concat())
        });
        hops.collect::<Vec<_>>().join(", ")
    }
}

#[track_caller]
fn check(facts: &str, ways: &str) {
    let world = World::new(facts);
    for line in ways.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (question, expected) = line.split_once(": ").expect("QUESTION: ANSWER");
        assert_eq!(world.tell(question), expected, "{question}");
    }
}

#[test]
fn each_hook_on_the_way() {
    check(
        SHOP,
        "10.0.0.2 -> 10.0.0.4 tcp/5432: from allowed by shop/web egress 0, to no-rule
         fd00::2 -> fd00::4 tcp/5432: from allowed by shop/web egress 0, to no-rule
         10.0.0.2 -> 10.0.0.4 tcp/81: from no-rule, !to no-rule
         10.0.0.3 -> 10.0.0.4 tcp/5432: from not-isolated, to allowed by shop/db ingress 0
         10.0.0.3 -> 10.0.0.4 udp/5432: from not-isolated, to no-rule
         10.0.0.3 -> 10.0.0.4 icmp: from not-isolated, to no-rule
         10.0.0.3 -> 10.0.0.2 icmp: from not-isolated, to allowed
         fd00::3 -> fd00::2 icmp: from not-isolated, to allowed",
    );
}

#[test]
fn what_leaves_the_node_is_judged_by_its_mark() {
    check(
        SHOP,
        "10.0.0.2 -> 10.0.1.5 tcp/80: from allowed by shop/web egress 0, exit established
         10.0.0.2 -> 10.0.1.5 tcp/5432: from no-rule
         10.0.0.3 -> 10.0.1.5 tcp/80: from not-isolated",
    );
}

#[test]
fn a_service_is_judged_by_whom_it_stands_for() {
    check(
        SHOP,
        "10.0.0.2 -> 10.96.0.4 via 10.0.0.4 tcp/5432: from service, to no-rule by shop/web egress 0
         10.0.0.2 -> 10.96.0.4 via 10.0.0.3 tcp/5432: from service, to no-rule
         10.0.0.2 -> 10.96.0.4 via 10.0.1.5 tcp/5432: from service, exit no-rule
         10.0.0.2 -> 10.96.0.4 via 10.0.0.1 tcp/5432: from service, process no-rule
         10.0.0.2 -> 10.96.0.4 via 10.0.0.2 tcp/5432: from service, to allowed",
    );
}

#[test]
fn from_elsewhere_and_from_the_node() {
    check(
        SHOP,
        "10.0.1.5 -> 10.0.0.4 tcp/5432: to no-rule
         192.0.2.1 -> 10.0.0.3 tcp/1: to not-isolated
         node -> 10.0.0.4 tcp/1: to node",
    );
}

#[test]
fn a_question_tells_what_was_looked_up() {
    let world = World::new(SHOP);
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let flow = Flow {
        from: Seat::Pod(3),
        source: address("10.0.0.3"),
        addressed: (address("10.0.0.4"), 5432),
        to: Seat::Pod(4),
        reached: (address("10.0.0.4"), 5432),
        protocol: 6,
    };
    let hops = way(&world.sim, &flow);
    let [asked] = &hops[1].asked[..] else { panic!("{hops:?}") };
    let record = &world.compiler.tables().endpoints[&4];
    assert_eq!((asked.ifindex, asked.ingress, asked.table), (4, true, record.ingress.table));
    assert_eq!(asked.found, super::trace::ClassFrom::Exact);
    assert!(asked.own_row && asked.allowed);
    let class = world.sim.class_exact(4, &asked.peer).map(|class| class.at(world.sim.epoch()));
    assert_eq!(asked.class, class);
    let row = asked.row.expect("it was looked up");
    assert_eq!(super::trace::admits(&world.sim, &row, 6, 5432), asked.rule);
    assert_eq!(super::trace::admits(&world.sim, &row, 6, 5433), None);
}
