//! Packets of flows: which they are, and at which hooks of this node they are met.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use palisade_common::Hook;
use palisade_common::decide::Place;

use super::expectation::{Expectation, Fate, Stop};
use super::play::{Hop, Play};
use super::world::UPLINK_IFINDEX;

/// A flow that later steps send packets of.
#[derive(Clone, Debug)]
pub(super) struct NamedFlow {
    kind: String,
    /// Addresses with ports as `frame::text` reads them, and without: as who opens the flow sees them.
    ends: [(String, IpAddr); 2],
    /// As whom it is opened with sees them, behind the node's translation.
    seen: [(String, IpAddr); 2],
    /// The pods or others that really are at the two ends.
    places: [IpAddr; 2],
    by_node: [bool; 2],
}

/// What is said behind the kind of a flow: its family, and what the node makes of its packets on their way.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    family: Option<bool>,
    /// Who is reached, with the port: `x/a:80`.
    via: Option<String>,
    /// The address, or address and port, that stands for the source.
    masqueraded: Option<String>,
}

impl Way {
    pub(super) fn read(words: &[&str]) -> Result<Self> {
        let mut way = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "v4" => way.family = Some(false),
                "v6" => way.family = Some(true),
                "via" => way.via = Some((*words.next().context("via BACKEND:PORT")?).to_owned()),
                "masq" => way.masqueraded = Some((*words.next().context("masq ADDRESS")?).to_owned()),
                other => bail!("{other:?} says nothing of a flow's way"),
            }
        }
        Ok(way)
    }

    /// Whether IPv6, of each family to be tried.
    pub(super) fn families(&self) -> Vec<bool> {
        self.family.map_or_else(|| vec![false, true], |six| vec![six])
    }
}

/// `x/a:80`, `192.0.2.1:80`, `[fd00::1]:80`, each with or without the port; a bare IPv6 address.
fn host_and_port(word: &str) -> (&str, Option<&str>) {
    if word.parse::<IpAddr>().is_ok() {
        return (word, None);
    }
    match word.rsplit_once(':') {
        Some((host, port)) => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
        None => (word, None),
    }
}

impl Play {
    /// A whole flow, in every family that both ends have: its opening, and if that passes an answer and more.
    pub(super) fn probe(
        &mut self,
        source: &str,
        destination: &str,
        kind: &str,
        way: &Way,
        expectation: &Expectation,
    ) -> Result<()> {
        let mut played = false;
        for six in way.families() {
            let has = |name: &str| self.world.address_of(name, six).is_some();
            let reaches = way.via.as_deref().is_none_or(|via| has(host_and_port(via).0));
            if !has(source) || !has(destination) || !reaches {
                continue;
            }
            played = true;
            let flow = self.named_flow(source, destination, kind, six, way)?;
            let (first, answer, more): (&[&str], &[&str], &[&str]) = match flow.kind.split(' ').next().unwrap_or("") {
                "tcp" => (&["syn"], &["synack"], &["data"]),
                "sctp" => (&["init"], &["data"], &["data"]),
                "icmp" => (&["echo"], &["reply"], &["echo"]),
                _ => (&["data"], &["data"], &["data"]),
            };
            let fate = self.flow_packet(&flow, 0, first, expectation)?;
            match fate {
                Fate::Passed => self.outcome.flows_admitted += 1,
                Fate::Dropped(_) => self.outcome.flows_refused += 1,
                Fate::Open => continue,
            }
            self.outcome.cases += u64::from(self.all_answered);
            self.compare(fate, expectation, "opening")?;
            if fate == Fate::Passed {
                let fate = self.flow_packet(&flow, 1, answer, expectation)?;
                self.compare(fate, expectation, "answer")?;
                let fate = self.flow_packet(&flow, 0, more, expectation)?;
                self.compare(fate, expectation, "what follows")?;
            }
        }
        ensure!(played, "{source} and {destination} have no family in common");
        Ok(())
    }

    pub(super) fn named_flow(
        &mut self,
        source: &str,
        destination: &str,
        kind: &str,
        six: bool,
        way: &Way,
    ) -> Result<NamedFlow> {
        let (kind, port) = kind.split_once('/').map_or((kind, None), |(kind, port)| (kind, Some(port)));
        let number = self.next_port;
        self.next_port += 1;
        let with_ports = matches!(kind, "tcp" | "udp" | "sctp");
        let resolve = |name: &str, port: Option<String>| -> Result<(String, IpAddr)> {
            let address = self.world.address_of(name, six).with_context(|| format!("no address of {name}"))?;
            let text = match (port, six) {
                (Some(port), true) => format!("[{address}]:{port}"),
                (Some(port), false) => format!("{address}:{port}"),
                (None, _) => address.to_string(),
            };
            Ok((text, address))
        };
        // A source may name its port, as in `x/a:4000`.
        let (source_name, source_port) = match source.rsplit_once(':') {
            Some((name, port)) if source.parse::<IpAddr>().is_err() => (name, port.to_owned()),
            _ => (source, number.to_string()),
        };
        let destination_port = port.map(str::to_owned);
        ensure!(!with_ports || destination_port.is_some(), "{kind} needs a port");
        let source_end = resolve(source_name, with_ports.then_some(source_port.clone()))?;
        let destination_end = resolve(destination, destination_port.clone().filter(|_| with_ports))?;
        let translated = |word: &str, port: Option<String>| {
            let (host, own) = host_and_port(word);
            resolve(host, own.map(str::to_owned).or(port).filter(|_| with_ports))
        };
        let seen_source = way.masqueraded.as_deref().map(|word| translated(word, Some(source_port))).transpose()?;
        let seen_destination = way.via.as_deref().map(|word| translated(word, destination_port)).transpose()?;
        let seen = [seen_source.unwrap_or(source_end.clone()), seen_destination.unwrap_or(destination_end.clone())];
        let places = [source_end.1, seen[1].1];
        let kind = match (kind, port) {
            ("icmp", _) => format!("icmp id={number}"),
            ("proto", Some(port)) => format!("proto/{port}"),
            (kind, _) => kind.to_owned(),
        };
        let by_node = [source_name == "node", self.world.is_own(places[1])];
        Ok(NamedFlow { kind, ends: [source_end, destination_end], seen, places, by_node })
    }

    /// One packet of a flow at every hook of this node that it passes, and where it leaves. `from`: which end sends it.
    pub(super) fn flow_packet(
        &mut self,
        flow: &NamedFlow,
        from: usize,
        words: &[&str],
        wanted: &Expectation,
    ) -> Result<Fate> {
        // Nothing leaves a pod for its own address; two pods may have the same one for a moment.
        if wanted.pass.is_none() && flow.seen[0].1 == flow.seen[1].1 {
            return Ok(Fate::Open);
        }
        // What is sent is translated before it arrives, and what comes back likewise.
        let (sent, arriving) = if from == 0 { (&flow.ends, &flow.seen) } else { (&flow.seen, &flow.ends) };
        let (sent, arriving) = (flow.line(sent, from, words), flow.line(arriving, from, words));
        let interface = |end: usize| self.world.endpoint_at(flow.places[end]).map(|endpoint| endpoint.ifindex);
        let (sender, receiver) = (interface(from), interface(1 - from));
        if let Some(ifindex) = sender {
            let hop = Hop { hook: Hook::FromPod, place: Place::Pod, ifindex, ingress: ifindex, by: None };
            match self.packet(hop, &sent, wanted)? {
                Some(true) => {}
                Some(false) => return Ok(Fate::Dropped(Stop::Hook(Hook::FromPod))),
                None => return Ok(Fate::Open),
            }
        }
        let ingress = match sender {
            Some(sender) => sender,
            None if flow.by_node[from] => 0,
            None => UPLINK_IFINDEX,
        };
        let to_process = flow.by_node[1 - from];
        let last = match (receiver, sender) {
            (Some(ifindex), by) => Hop { hook: Hook::ToPod, place: Place::Pod, ifindex, ingress, by },
            (None, Some(ifindex)) => {
                let place = if to_process { Place::Process } else { Place::Device };
                Hop { hook: Hook::FromPod, place, ifindex, ingress: ifindex, by: Some(ifindex) }
            }
            (None, None) => {
                // The pods of a random flow may be gone by now.
                ensure!(wanted.pass.is_none(), "no pod of this node at either end");
                return Ok(Fate::Open);
            }
        };
        Ok(match self.packet(last, &arriving, wanted)? {
            Some(true) => Fate::Passed,
            Some(false) => Fate::Dropped(Stop::of(last.hook, last.place)),
            None => Fate::Open,
        })
    }
}

impl NamedFlow {
    /// The line of a packet between these ends.
    fn line(&self, ends: &[(String, IpAddr); 2], from: usize, words: &[&str]) -> String {
        let (kind, options) = self.kind.split_once(' ').unwrap_or((&self.kind, ""));
        let mut line = format!("{kind} {} > {} {options}", ends[from].0, ends[1 - from].0);
        let six = ends[0].1.is_ipv6();
        for word in words {
            line += " ";
            line += match (*word, kind) {
                ("syn", _) => "flags=S",
                ("synack", _) => "flags=SA",
                ("ack", _) => "flags=A",
                ("fin", _) => "flags=FA",
                ("rst", _) => "flags=R",
                ("init", _) => "chunk=1",
                ("data", "tcp") => "flags=PA data=10",
                ("data", _) => "data=10",
                ("echo", _) if six => "type=128",
                ("echo", _) => "type=8",
                ("reply", _) if six => "type=129",
                ("reply", _) => "type=0",
                (other, _) => other,
            };
        }
        line
    }
}
