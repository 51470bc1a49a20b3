//! A table of what must work and what must not, asked of a world.
//!
//!     # anything behind a # is said to people
//!     must-work      shop/web          shop/api     tcp/8080
//!     must-not-work  shop/web          deploy/shop/db  5432
//!     must-not-work  192.0.2.1         shop/web     http
//!
//! Who is meant is written as for `palisade explain`. Where several are (a Deployment's pods, both families, a port's name), all must be as
//! it is said.

use std::net::IpAddr;

use super::world::World;
use crate::explain::names::{KnownPod, Reference, find};
use crate::explain::port::{PortSpec, port_text};
use crate::explain::way::{Flow, Hop, Seat, is_allowed, way};
use crate::facts::NamedPort;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Of the file, from 1.
    pub line: usize,
    pub works: bool,
    pub source: Reference,
    pub destination: Reference,
    pub port: PortSpec,
    pub text: String,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    pub line: usize,
    /// The line as it is written.
    pub text: String,
    /// What is so instead.
    pub found: String,
}

/// # Errors
///
/// Sentences, each with the number of its line.
pub fn read(text: &str, namespace: &str) -> Result<Vec<Expectation>, Vec<String>> {
    let mut expectations = Vec::new();
    let mut wrong = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let said = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = said.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        match expectation(number, &words, namespace) {
            Ok(expectation) => expectations.push(expectation),
            Err(error) => wrong.push(format!("line {number}: {error}")),
        }
    }
    if wrong.is_empty() { Ok(expectations) } else { Err(wrong) }
}

fn expectation(line: usize, words: &[&str], namespace: &str) -> Result<Expectation, String> {
    let [verdict, source, destination, port] = words else {
        return Err("a line is `must-work SOURCE DESTINATION PORT`, or the same with must-not-work".to_owned());
    };
    let works = match *verdict {
        "must-work" => true,
        "must-not-work" => false,
        other => return Err(format!("{other:?} is neither must-work nor must-not-work")),
    };
    let (source, destination) = (Reference::parse(source, namespace)?, Reference::parse(destination, namespace)?);
    Ok(Expectation { line, works, source, destination, port: port.parse()?, text: words.join(" ") })
}

/// What is not as it must be, in the order of the lines.
pub fn unmet(world: &World, expectations: &[Expectation]) -> Vec<Unmet> {
    expectations.iter().filter_map(|expectation| unmet_line(world, expectation)).collect()
}

fn unmet_line(world: &World, expectation: &Expectation) -> Option<Unmet> {
    let Expectation { line, works, source, destination, port, text } = expectation;
    let unmet = |found: String| Some(Unmet { line: *line, text: text.clone(), found });
    let flows = match flows(world, source, destination, port) {
        Ok(flows) => flows,
        Err(error) => return unmet(error),
    };
    for (flow, names) in flows {
        let hops = way(&world.sim, &flow);
        if is_allowed(&hops) != *works {
            let port = port_text(flow.protocol, flow.reached.1);
            let at = format!("{names} ({} -> {} {port})", flow.source, flow.reached.0);
            return unmet(if *works {
                format!("{at} is refused: {}", refused(world, &hops))
            } else {
                format!("{at} is allowed{}", by(world, &hops))
            });
        }
    }
    None
}

/// The first hop that refuses, and by which policies.
fn refused(world: &World, hops: &[Hop]) -> String {
    let Some(hop) = hops.iter().find(|hop| !hop.passes()) else { return String::new() };
    let table = hop.asked.last().and_then(|asked| world.catalog.tables.get(&asked.table));
    match table {
        Some(table) => format!("no {} rule of {} admits it", table.direction, table.policies.join(", ")),
        None => hop.ruling.reason().text().to_owned(),
    }
}

/// The rules that admit.
fn by(world: &World, hops: &[Hop]) -> String {
    let rules = hops.iter().flat_map(|hop| &hop.asked).filter_map(|asked| world.catalog.rules.get(&asked.rule?));
    let rules: Vec<String> = rules.map(ToString::to_string).collect();
    if rules.is_empty() { ": no policy isolates either end".to_owned() } else { format!(" by {}", rules.join(" and ")) }
}

struct End {
    name: String,
    address: IpAddr,
    seat: Seat,
    ports: Vec<NamedPort>,
}

fn ends(world: &World, who: &Reference) -> Result<Vec<End>, String> {
    let of = |pod: &KnownPod| {
        let seat = world.pods.get(&pod.name).map_or(Seat::Elsewhere, |ifindex| Seat::Pod(*ifindex));
        let end = |&address: &IpAddr| End { name: pod.name.to_string(), address, seat, ports: pod.ports.clone() };
        pod.addresses.iter().map(end).collect::<Vec<_>>()
    };
    let known = find(&world.index, who);
    let ends: Vec<End> = match who {
        Reference::Node => return Err("what a node's own processes send to its pods is always let through".to_owned()),
        Reference::Address(address) if known.pods.is_empty() => {
            vec![End { name: address.to_string(), address: *address, seat: Seat::Elsewhere, ports: Vec::new() }]
        }
        _ => known.pods.iter().flat_map(of).collect(),
    };
    if ends.is_empty() { Err(format!("nobody is known as {who}")) } else { Ok(ends) }
}

/// Every flow that is meant, with the names of its ends.
fn flows(world: &World, from: &Reference, to: &Reference, port: &PortSpec) -> Result<Vec<(Flow, String)>, String> {
    let sources = ends(world, from)?;
    let known = find(&world.index, to);
    let mut flows = Vec::new();
    if let [service] = &known.services[..] {
        let backends = service
            .backends
            .as_ref()
            .ok_or_else(|| format!("{to} has no selector, so nobody knows whom it stands for"))?;
        for own in &service.ports {
            let named = match &own.target {
                crate::facts::TargetPort::Named(name) => name.clone(),
                crate::facts::TargetPort::Number(_) => "".into(),
            };
            let meant = port.resolved(&[NamedPort { name: named, protocol: own.protocol, port: own.port }]);
            if !meant.contains(&(own.protocol.number(), own.port)) {
                continue;
            }
            for pod in backends {
                let Some(ifindex) = world.pods.get(&pod.name) else { continue };
                for (&address, reached) in pod
                    .addresses
                    .iter()
                    .flat_map(|address| own.resolved(&pod.ports).into_iter().map(move |port| (address, port)))
                {
                    for source in sources.iter().filter(|source| meets(source.address, address)) {
                        // Whether it is known as a Service's changes nothing of who may be reached.
                        let to = (address, reached);
                        let names = format!("{} -> {}", source.name, pod.name);
                        flows.push((flow(source, Seat::Pod(*ifindex), to, own.protocol.number()), names));
                    }
                }
            }
        }
    } else {
        for target in ends(world, to)? {
            for (protocol, number) in port.resolved(&target.ports) {
                for source in sources.iter().filter(|source| meets(source.address, target.address)) {
                    let names = format!("{} -> {}", source.name, target.name);
                    flows.push((flow(source, target.seat, (target.address, number), protocol), names));
                }
            }
        }
    }
    let between_others = |(flow, _): &(Flow, String)| flow.from == Seat::Elsewhere && flow.to == Seat::Elsewhere;
    if flows.iter().any(between_others) {
        return Err(format!("neither {from} nor {to} is a pod that policies know"));
    }
    if flows.is_empty() {
        Err(format!("{from} and {to} have no such port, or no addresses of the same family"))
    } else {
        Ok(flows)
    }
}

fn meets(source: IpAddr, destination: IpAddr) -> bool {
    source.is_ipv4() == destination.is_ipv4() && source != destination
}

fn flow(source: &End, to: Seat, reached: (IpAddr, u16), protocol: u8) -> Flow {
    Flow { from: source.seat, source: source.address, addressed: reached, to, reached, protocol }
}
