//! Packets of flows: which they are, and at which hooks of this node they are met.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use palisade_common::Hook;

use super::expectation::{Expectation, Fate};
use super::play::Play;
use super::world::UPLINK_IFINDEX;

/// A flow that later steps send packets of.
#[derive(Clone, Debug)]
pub(super) struct NamedFlow {
    kind: String,
    /// Addresses with ports as `frame::text` reads them, and without.
    ends: [(String, IpAddr); 2],
    by_node: [bool; 2],
}

impl Play {
    /// A whole flow, in every family that both ends have: its opening, and if that passes an answer and more.
    pub(super) fn probe(
        &mut self,
        source: &str,
        destination: &str,
        kind: &str,
        family: Option<&str>,
        expectation: &Expectation,
    ) -> Result<()> {
        let families: &[bool] = match family {
            None => &[false, true],
            Some("v4") => &[false],
            Some("v6") => &[true],
            Some(other) => bail!("family {other}"),
        };
        let mut played = false;
        for six in families {
            let has = |name: &str| self.world.address_of(name, *six).is_some();
            if !has(source) || !has(destination) {
                continue;
            }
            played = true;
            let flow = self.named_flow(source, destination, kind, *six)?;
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

    pub(super) fn named_flow(&mut self, source: &str, destination: &str, kind: &str, six: bool) -> Result<NamedFlow> {
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
        let source_end = resolve(source_name, with_ports.then_some(source_port))?;
        let destination_end = resolve(destination, destination_port.filter(|_| with_ports))?;
        let kind = match (kind, port) {
            ("icmp", _) => format!("icmp id={number}"),
            ("proto", Some(port)) => format!("proto/{port}"),
            (kind, _) => kind.to_owned(),
        };
        let by_node = [source_name == "node", destination == "node"];
        Ok(NamedFlow { kind, ends: [source_end, destination_end], by_node })
    }

    /// One packet of a flow at every hook of this node that it passes. `from`: which end sends it.
    pub(super) fn flow_packet(
        &mut self,
        flow: &NamedFlow,
        from: usize,
        words: &[&str],
        wanted: &Expectation,
    ) -> Result<Fate> {
        let (kind, options) = flow.kind.split_once(' ').unwrap_or((&flow.kind, ""));
        let mut line = format!("{kind} {} > {} {options}", flow.ends[from].0, flow.ends[1 - from].0);
        let six = flow.ends[0].1.is_ipv6();
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
                ("echo", _) => {
                    if six {
                        "type=128"
                    } else {
                        "type=8"
                    }
                }
                ("reply", _) => {
                    if six {
                        "type=129"
                    } else {
                        "type=0"
                    }
                }
                (other, _) => other,
            };
        }
        let hops = [(Hook::FromPod, flow.ends[from].1), (Hook::ToPod, flow.ends[1 - from].1)];
        let mut met = false;
        for (hook, address) in hops {
            let Some(ifindex) = self.world.endpoint_at(address).map(|endpoint| endpoint.ifindex) else { continue };
            met = true;
            let ingress = match self.world.endpoint_at(flow.ends[from].1) {
                Some(sender) => sender.ifindex,
                None if flow.by_node[from] => 0,
                None => UPLINK_IFINDEX,
            };
            match self.packet(hook, ifindex, ingress, &line, wanted)? {
                Some(true) => {}
                Some(false) => return Ok(Fate::Dropped(hook)),
                None => return Ok(Fate::Open),
            }
        }
        // The pods of a random flow may be gone by now.
        ensure!(met || wanted.pass.is_none(), "no pod of this node at either end");
        Ok(if met { Fate::Passed } else { Fate::Open })
    }
}
