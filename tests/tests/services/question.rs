//! What is asked: `a same-node -> vxlan@one udp v4 = b c` says who reaches which targets, over what, and who may answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use palisade_tests::lab::probe::{DEADLINE, Probe, ask_all_within};
use palisade_tests::lab::{Outcome, Transport};

use crate::catalogue::{Entry, SERVICE_PORT, TARGET_PORT};
use crate::world::World;

/// Short, as a repeated SYN (after a second) would hide that the first one was dropped.
const AT_ONCE: Duration = Duration::from_millis(300);
/// Between the two, for where either may come.
const EITHER: Duration = Duration::from_millis(500);
/// Connections for each backend that there is, so that chance spares none (two of three: 1 in 50,000).
const CONNECTIONS: usize = 9;

/// What is right.
#[derive(Clone, Copy, PartialEq)]
enum Judge {
    /// Exactly what is expected.
    Exact,
    /// Nothing that is not.
    NotMore,
}

/// Connections from one place to one address, and the backends behind it.
pub struct Question {
    pub text: String,
    from: String,
    to: SocketAddr,
    transport: Transport,
    /// A client stays with one backend.
    sticky: bool,
    backends: BTreeSet<String>,
    /// Those of them that answer.
    answering: BTreeSet<String>,
    judge: Judge,
}

/// What is after the `=`.
enum Answering {
    All,
    These(BTreeSet<String>),
}

/// All questions of a line.
pub fn parse(world: &World, line: &str) -> Vec<Question> {
    let (asked, answering) = line.split_once('=').unwrap_or_else(|| panic!("{line}: FROM -> TO = BACKENDS"));
    let (from, rest) = asked.split_once("->").unwrap_or_else(|| panic!("{line}: FROM -> TO = BACKENDS"));
    let answering = match answering.trim() {
        "*" => Answering::All,
        names => Answering::These(names.split_whitespace().map(str::to_owned).collect()),
    };
    let (mut targets, mut transports, mut families) = (Vec::new(), vec![Transport::Tcp], vec![true, false]);
    for word in rest.split_whitespace() {
        match word {
            "udp" => transports.push(Transport::Udp),
            "v4" => families = vec![true],
            "v6" => families = vec![false],
            target => targets.push(target),
        }
    }
    let mut questions = Vec::new();
    for (from, target) in from.split_whitespace().flat_map(|from| targets.iter().map(move |target| (from, *target))) {
        assert!(world.places.contains_key(from), "{line}: nobody is called {from}");
        let way = world.addresses(target).into_iter().filter(|(to, _)| families.contains(&to.is_ipv4()));
        for ((to, backends), transport) in way.flat_map(|way| transports.iter().map(move |over| (way.clone(), *over))) {
            let answering = match &answering {
                Answering::All => backends.clone(),
                Answering::These(names) => names.intersection(&backends).cloned().collect(),
            };
            questions.push(Question {
                text: format!("{from} -> {target} {transport:?} {to}"),
                from: from.to_owned(),
                to,
                transport,
                sticky: world.catalogue.get(target).is_some_and(Entry::sticky),
                backends,
                answering,
                judge: Judge::Exact,
            });
        }
    }
    questions
}

// === impl World ===

impl World {
    /// Where a target is, in both families if it is, and who is behind it there. `NAME`: a Service's cluster IPs, or a place
    /// itself; `NAME@external` and `NAME@balancer`: its other addresses; `NAME@PLACE`: its node port there.
    pub fn addresses(&self, target: &str) -> Vec<(SocketAddr, BTreeSet<String>)> {
        let (name, way) = target.split_once('@').map_or((target, None), |(name, way)| (name, Some(way)));
        let Some(entry) = self.catalogue.get(name) else {
            return self.place_addresses(name);
        };
        if entry.headless() {
            return entry.backends.iter().flat_map(|name| self.place_addresses(name)).collect();
        }
        let (addresses, port): (Vec<IpAddr>, u16) = match way {
            None => (self.cluster_ips[name].clone(), SERVICE_PORT),
            Some("external") => (entry.external(), SERVICE_PORT),
            Some("balancer") => (entry.balancer.clone(), SERVICE_PORT),
            Some(place) => {
                let port = entry.node_port.or(entry.host_port).unwrap_or_else(|| panic!("{name} has no such port"));
                (self.places[place].addresses.to_vec(), port)
            }
        };
        assert!(!addresses.is_empty(), "{target} has no address");
        let backends: BTreeSet<String> = entry.backends.iter().cloned().collect();
        addresses.into_iter().map(|address| (SocketAddr::new(address, port), backends.clone())).collect()
    }

    fn place_addresses(&self, name: &str) -> Vec<(SocketAddr, BTreeSet<String>)> {
        let place = self.places.get(name).unwrap_or_else(|| panic!("nothing is called {name}"));
        let backends = BTreeSet::from([name.to_owned()]);
        place.addresses.map(|address| (SocketAddr::new(address, TARGET_PORT), backends.clone())).to_vec()
    }
}

// === impl Question ===

impl Question {
    /// As if nothing were forbidden.
    pub fn expect_all(&mut self) {
        self.answering = self.backends.clone();
        self.judge = Judge::Exact;
    }

    /// Silence is right as well.
    pub fn not_more(self) -> Self {
        Self { judge: Judge::NotMore, ..self }
    }

    /// The connections to open.
    pub fn probes(&self, world: &World) -> Vec<(Probe, Duration)> {
        let count = if self.backends.len() == 1 { 1 } else { CONNECTIONS * self.backends.len() };
        let deadline = match (self.judge, self.answering.len()) {
            (_, 0) | (Judge::NotMore, _) => AT_ONCE,
            (Judge::Exact, length) if length == self.backends.len() => DEADLINE,
            (Judge::Exact, _) => EITHER,
        };
        let from = &world.places[&self.from].netns;
        (0..count).map(|_| (Probe { from: from.clone(), transport: self.transport, to: self.to }, deadline)).collect()
    }

    /// What is wrong with these answers.
    pub fn wrong(&self, outcomes: &[Outcome]) -> Option<String> {
        let (mut seen, mut silent, mut odd) = (BTreeSet::new(), 0, BTreeSet::new());
        for outcome in outcomes {
            match outcome {
                Outcome::Reached(name) => drop(seen.insert(name.clone())),
                Outcome::TimedOut => silent += 1,
                Outcome::Refused | Outcome::Unreachable(_) => drop(odd.insert(outcome.to_string())),
            }
        }
        let forbidden = self.backends.len() > self.answering.len();
        let right = odd.is_empty()
            && match self.judge {
                Judge::NotMore => seen.is_subset(&self.answering),
                // One backend of the client's, whichever it is: all connections or none.
                Judge::Exact if self.sticky && seen.is_empty() => forbidden,
                Judge::Exact if self.sticky => seen.len() == 1 && seen.is_subset(&self.answering) && silent == 0,
                Judge::Exact => seen == self.answering && (silent > 0) == forbidden,
            };
        (!right).then(|| {
            let Self { text, backends, answering, .. } = self;
            let asked = outcomes.len();
            format!("{text}: answered by {seen:?} of {backends:?}, {silent} of {asked} silent, {odd:?}; expected: {answering:?}")
        })
    }
}

/// Asks all of them at once. The answers are in the order of the questions.
pub fn ask(world: &World, questions: &[Question]) -> Vec<Vec<Outcome>> {
    let probes: Vec<Vec<(Probe, Duration)>> = questions.iter().map(|question| question.probes(world)).collect();
    let mut outcomes = ask_all_within(&probes.concat()).into_iter();
    probes.iter().map(|probes| outcomes.by_ref().take(probes.len()).collect()).collect()
}
