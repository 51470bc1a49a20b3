//! What one set of policies allows and another does not: for every pair of pods, those outside, and every port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use palisade_common::decide::{self, OPEN_INGRESS, Question, REACH_EGRESS, Tables as _};
use palisade_common::layout::{EndpointRecord, TableRef, endpoint_flag};
use palisade_common::parse::protocol;

use super::peers::{Peer, Who, as_laid, outside, pods};
use super::world::World;
use crate::explain::port::port_text;
use crate::observe::events::protocol_name;

/// What would be otherwise between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub from: Who,
    pub to: Who,
    /// `IPv4`, `IPv6`, or both.
    pub families: &'static str,
    /// As in `tcp/80-90`, `udp`, `icmp`; `everything`.
    pub ports: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub refused: Vec<Change>,
    pub allowed: Vec<Change>,
}

/// Ports of a protocol that no row of either world tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    protocol: u8,
    first: u16,
    last: u16,
}

/// Stands for every protocol that has no ports and is not ICMP.
const OTHER: u8 = 47;

/// From the first world to the second.
pub fn compare(before: &World, after: &World) -> Comparison {
    let worlds = [before, after];
    let spans = spans(worlds);
    let judges = worlds.map(|world| Judge { world, spans: &spans, known: HashMap::new() });
    let mut judges = judges;
    let pods = pods(worlds);
    let outside = outside(worlds);
    let mut comparison = Comparison::default();
    for (from, other) in &pods {
        for (to, _) in &pods {
            // One with another of its kind, if there is one.
            let to = if to.who == from.who { other.as_ref() } else { Some(to) };
            if let Some(to) = to {
                comparison.add(&mut judges, from, to, &spans);
            }
        }
    }
    for (pod, _) in &pods {
        for outside in &outside {
            comparison.add(&mut judges, pod, outside, &spans);
            comparison.add(&mut judges, outside, pod, &spans);
        }
    }
    comparison
}

impl Comparison {
    pub fn is_empty(&self) -> bool {
        self.refused.is_empty() && self.allowed.is_empty()
    }

    fn add(&mut self, judges: &mut [Judge<'_>; 2], from: &Peer, to: &Peer, spans: &[Span]) {
        let mut by_family: Vec<[Vec<String>; 2]> = Vec::new();
        for family in 0..2 {
            if from.addresses[family].is_none() || to.addresses[family].is_none() {
                by_family.push([Vec::new(), Vec::new()]);
                continue;
            }
            let [before, after] = [0, 1].map(|world| judges[world].between(world, from, to, family));
            let refused = text(spans, |at| before[at] && !after[at]);
            let allowed = text(spans, |at| !before[at] && after[at]);
            by_family.push([refused, allowed]);
        }
        for (which, changes) in [&mut self.refused, &mut self.allowed].into_iter().enumerate() {
            let [v4, v6] = [0, 1].map(|family: usize| by_family[family][which].clone());
            let mut push = |families, ports: Vec<String>| {
                if !ports.is_empty() {
                    changes.push(Change { from: from.who.clone(), to: to.who.clone(), families, ports });
                }
            };
            if v4 == v6 {
                push("IPv4 and IPv6", v4);
            } else {
                push("IPv4", v4);
                push("IPv6", v6);
            }
        }
    }
}

/// One world, and what it has said.
struct Judge<'w> {
    world: &'w World,
    spans: &'w [Span],
    /// By endpoint's table, direction and the peer's address: whether each span is allowed.
    known: HashMap<(TableRef, bool, std::net::IpAddr), Rc<[bool]>>,
}

impl Judge<'_> {
    /// Whether each span is allowed from one to the other.
    fn between(&mut self, number: usize, from: &Peer, to: &Peer, family: usize) -> Rc<[bool]> {
        let side = |of: &Peer, peer: &Peer| Some((of.pod?[number], peer.addresses[family]?));
        let (egress, ingress) = (side(from, to), side(to, from));
        let sides = [(egress, false), (ingress, true)];
        let mut all: Vec<bool> = vec![true; self.spans.len()];
        for (side, is_ingress) in sides {
            let Some((ifindex, peer)) = side else { continue };
            let allowed = self.side(ifindex, is_ingress, peer);
            all.iter_mut().zip(&*allowed).for_each(|(all, allowed)| *all &= allowed);
        }
        all.into()
    }

    fn side(&mut self, ifindex: u32, ingress: bool, peer: std::net::IpAddr) -> Rc<[bool]> {
        let (world, spans) = (self.world, self.spans);
        let Some(record) = world.record(ifindex) else { return vec![false; spans.len()].into() };
        if record.flags & endpoint_flag::CLOSED != 0 {
            return vec![false; spans.len()].into();
        }
        let isolated = if ingress { endpoint_flag::ISOLATED_INGRESS } else { endpoint_flag::ISOLATED_EGRESS };
        if record.flags & isolated == 0 {
            return vec![true; spans.len()].into();
        }
        let table = if ingress { record.ingress } else { record.egress };
        let ask = || spans.iter().map(|span| asked(world, record, ingress, peer, *span)).collect();
        self.known.entry((table, ingress, peer)).or_insert_with(ask).clone()
    }
}

fn asked(world: &World, record: &EndpointRecord, ingress: bool, peer: std::net::IpAddr, span: Span) -> bool {
    let (family, laid) = as_laid(peer);
    let protocol = if span.protocol == protocol::ICMP && peer.is_ipv6() { protocol::ICMPV6 } else { span.protocol };
    let question = Question {
        peer: &laid,
        client: (0, 0),
        epoch: world.sim.epoch(),
        what: if ingress { OPEN_INGRESS } else { REACH_EGRESS },
        port: span.first,
        protocol,
        family,
    };
    decide::ask(&world.sim, record, &question).is_allowed()
}

/// All ports of all protocols, cut where a row of either world begins or ends.
fn spans(worlds: [&World; 2]) -> Vec<Span> {
    let mut starts: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        starts.entry(protocol).or_default().insert(0);
    }
    let mut cut = |protocol: u8, first: u16, last: u16| {
        let Some(starts) = starts.get_mut(&protocol) else { return };
        starts.insert(first);
        starts.extend(last.checked_add(1));
    };
    for world in worlds {
        let found = world.sim.found();
        for (key, length) in found.tables.ports.keys() {
            let first = u16::from_be(key.port_be);
            let wild = u16::MAX.checked_shr(length.saturating_sub(48)).unwrap_or(0);
            cut(key.protocol, first, first | wild);
        }
        let defaults = found.records.values().flat_map(|record| [record.ingress.default, record.egress.default]);
        for row in found.tables.rules.values().copied().chain(defaults) {
            cut(row.protocol, row.first, row.last);
        }
    }
    let mut spans = Vec::new();
    for (protocol, starts) in starts {
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
        spans.extend(starts.iter().zip(ends).map(|(&first, last)| Span { protocol, first, last }));
    }
    spans.extend([protocol::ICMP, OTHER].map(|protocol| Span { protocol, first: 0, last: u16::MAX }));
    spans
}

/// Of the spans for which it holds, those that follow each other as one; all of them as `everything`.
fn text(spans: &[Span], holds: impl Fn(usize) -> bool) -> Vec<String> {
    if (0..spans.len()).all(&holds) {
        return vec!["everything".to_owned()];
    }
    let mut merged: Vec<Span> = Vec::new();
    for (_, span) in spans.iter().enumerate().filter(|(at, _)| holds(*at)) {
        match merged.last_mut() {
            Some(last) if last.protocol == span.protocol && last.last.checked_add(1) == Some(span.first) => {
                last.last = span.last;
            }
            _ => merged.push(*span),
        }
    }
    let text = |span: Span| match span {
        Span { protocol: OTHER, .. } => "other protocols".to_owned(),
        Span { protocol, first: 0, last: u16::MAX } => protocol_name(protocol),
        Span { protocol, first, last } if first == last => port_text(protocol, first),
        Span { protocol, first, last } => format!("{}-{last}", port_text(protocol, first)),
    };
    merged.into_iter().map(text).collect()
}
