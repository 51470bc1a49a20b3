//! Facts as text in, verdicts and deltas out.

mod blocks;
mod canonical;
mod cases;
mod gone;
mod hosts;
mod judge;
mod limits;
mod ports;
mod random;
mod scale;
mod stays;

use std::fmt::Write;
use std::net::IpAddr;

use super::{Compiled, Compiler, Limits};
use crate::facts::Protocol;
use crate::index::{Index, fixture};
use crate::tables::{Delta, Tables};

/// An index and its compiler.
struct World {
    index: Index,
    compiler: Compiler,
    second: u32,
}

impl World {
    fn new(lines: &str, limits: Limits) -> Self {
        let mut world = Self { index: Index::new(fixture::NODE), compiler: Compiler::new(limits), second: 1 };
        world.apply(lines);
        world
    }

    fn apply(&mut self, lines: &str) -> Compiled {
        fixture::apply(&mut self.index, lines);
        self.compiler.update(&mut self.index, self.second)
    }

    /// Answers questions, one a line: `5 in 10.0.0.1 TCP/80`, the interface, the direction, the peer, the port.
    fn ask(&self, questions: &str) -> String {
        let mut answers = String::new();
        for question in questions.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [ifindex, direction, peer, port] = question.split(' ').collect::<Vec<_>>()[..4] else { panic!() };
            let (protocol, port) = port.split_once('/').expect("protocol/port");
            let protocol = Protocol::ALL.iter().find(|known| known.name() == protocol).map_or(1, |it| it.number());
            let record = &self.compiler.tables().endpoints[&ifindex.parse().expect("an interface index")];
            let egress = direction == "out";
            let peer: IpAddr = peer.parse().expect("an address");
            let port = port.parse().expect("a port");
            let allowed = judge::allowed(self.compiler.tables(), record, egress, peer, protocol, port);
            let answer = if allowed { "allow" } else { "deny" };
            let words: Vec<&str> = question.split(' ').take(4).collect();
            writeln!(answers, "{} {answer}", words.join(" ")).expect("a string takes all");
        }
        answers
    }
}

/// The one place where facts become verdicts: each question ends with the answer that is expected.
fn check(lines: &str, questions: &str) {
    let world = World::new(lines, Limits::default());
    let expected: String =
        questions.lines().map(str::trim).filter(|line| !line.is_empty()).fold(String::new(), |mut expected, line| {
            writeln!(expected, "{line}").expect("a string takes all");
            expected
        });
    assert_eq!(world.ask(questions), expected, "for\n{lines}");
}

/// Tables with a delta carried out.
fn applied(mut tables: Tables, delta: &Delta) -> Tables {
    fn apply<K: Ord + Clone, V: Clone>(
        now: &mut std::collections::BTreeMap<K, V>,
        delta: &std::collections::BTreeMap<K, Option<V>>,
    ) {
        for (key, value) in delta {
            match value {
                Some(value) => now.insert(key.clone(), value.clone()),
                None => now.remove(key),
            };
        }
    }
    let Delta { endpoints, exact_v4, exact_v6, cidr_v4, cidr_v6, rules, ports, services, backends } = delta;
    apply(&mut tables.services, services);
    apply(&mut tables.backends, backends);
    apply(&mut tables.endpoints, endpoints);
    apply(&mut tables.exact_v4, exact_v4);
    apply(&mut tables.exact_v6, exact_v6);
    apply(&mut tables.cidr_v4, cidr_v4);
    apply(&mut tables.cidr_v6, cidr_v6);
    apply(&mut tables.rules, rules);
    apply(&mut tables.ports, ports);
    tables
}

/// How many entries a delta has.
fn size(delta: &Delta) -> usize {
    let Delta { endpoints, exact_v4, exact_v6, cidr_v4, cidr_v6, rules, ports, services, backends } = delta;
    let policy = endpoints.len() + exact_v4.len() + exact_v6.len() + cidr_v4.len() + cidr_v6.len();
    policy + rules.len() + ports.len() + services.len() + backends.len()
}
