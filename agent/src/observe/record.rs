//! A refused or admitted flow with names on both ends: what the log, the file, the collector and `palisade drops` tell.

use std::net::IpAddr;

use jiff::Timestamp;
use palisade_common::Hook;
use palisade_common::layout::MET_PROCESS;
use serde::{Deserialize, Serialize};

use super::events::{Report, protocol_name};
use super::history::{Entry, Line};
use crate::compile::{Catalog, EndpointEntry};
use crate::index::Index;

/// Names of what a report has as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `None`: no pod is known at the interface.
    pub namespace: Option<String>,
    /// `namespace/name`, or the interface's name.
    pub pod: String,
    /// `namespace/name` of the pod or pods that have the peer's address.
    pub peer: Option<String>,
    /// `namespace/name` of the policies that isolate the pod in the direction.
    pub policies: Vec<String>,
    pub rule: Option<String>,
}

/// All packets of one kind. Field names are part of the output of `palisade drops -o json`, of the file and of what the collector gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of the last packet; RFC 3339, UTC, to the millisecond.
    pub time: String,
    /// `refused` or `admitted`.
    pub verdict: String,
    /// See docs/events.md.
    pub reason: String,
    /// `egress` or `ingress`, as the pod sees it.
    pub direction: String,
    pub namespace: Option<String>,
    /// `namespace/name`; the interface where no pod is known.
    pub pod: String,
    /// `namespace/name` of the pod or pods that have the other end's address.
    pub peer: Option<String>,
    /// Address of the other end; none: it was refused for something below IP.
    pub peer_address: Option<IpAddr>,
    pub protocol: Option<String>,
    /// Destination port; none: the protocol has no ports.
    pub port: Option<u16>,
    /// Of the last packet, with its port.
    pub source: Option<String>,
    pub destination: Option<String>,
    /// `namespace/name` of the policies that isolate the pod in the direction.
    pub policies: Vec<String>,
    /// The rule that admits: `namespace/policy direction rule N`.
    pub rule: Option<String>,
    /// Where it was met, if not at the pod's own interface.
    pub at: Option<String>,
    /// Of the first packet.
    pub first: String,
    /// As many packets as were reported since.
    pub packets: u64,
    /// Of these, how many were not told of before this line.
    pub more: u64,
    /// Packets of other peers and ports of the same pod, direction and reason that were not told of before this line.
    pub others: u64,
}

/// Where a packet was met that no interface has.
pub const PROCESS: &str = "a process of the node";

/// What turns CLOCK_MONOTONIC into time as people read it.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Nanoseconds between the two; a clock that is set moves it.
    offset: i128,
}

impl WallClock {
    pub fn now() -> Self {
        Self { offset: Timestamp::now().as_nanosecond() - i128::from(crate::pause::now()) }
    }

    /// Nanoseconds since 1970, UTC.
    pub fn unix_nanos(self, monotonic: u64) -> u64 {
        u64::try_from(i128::from(monotonic) + self.offset).unwrap_or_default()
    }

    /// RFC 3339 in UTC, to the millisecond.
    pub fn text(self, monotonic: u64) -> String {
        let at = Timestamp::from_nanosecond(i128::from(monotonic) + self.offset).unwrap_or_default();
        format!("{at:.3}")
    }
}

impl Names {
    pub fn of(report: &Report, index: &Index, catalog: &Catalog) -> Self {
        let entry = catalog.endpoints.iter().find(|entry| entry.ifindex == report.ifindex);
        let policies = entry.map_or_else(Vec::new, |entry| match report.hook {
            Hook::FromPod => entry.egress_policies.clone(),
            Hook::ToPod => entry.ingress_policies.clone(),
        });
        Self {
            namespace: entry.and_then(|entry| entry.namespace.clone()),
            pod: entry.map_or_else(|| format!("interface {}", report.ifindex), pod_name),
            peer: report.peer().and_then(|address| pods_at(address, index)),
            policies,
            rule: catalog.rules.get(&report.rule).map(ToString::to_string),
        }
    }
}

impl Record {
    pub fn of(entry: &Entry, clock: WallClock) -> Self {
        let first = clock.text(entry.first);
        Self { first, packets: entry.packets, ..Self::of_packet(&entry.last, &entry.names, clock) }
    }

    /// Of one packet.
    pub fn of_packet(last: &Report, names: &Names, clock: WallClock) -> Self {
        let passes = last.reason.passes();
        let end = |address: Option<IpAddr>, port: u16| address.map(|address| end(address, port));
        Self {
            time: clock.text(last.time),
            verdict: if passes { "admitted" } else { "refused" }.to_owned(),
            reason: last.reason.name().to_owned(),
            direction: last.hook.name().to_owned(),
            namespace: names.namespace.clone(),
            pod: names.pod.clone(),
            peer: names.peer.clone(),
            peer_address: last.peer(),
            protocol: last.protocol.map(protocol_name),
            port: Some(last.destination_port).filter(|port| *port != 0),
            source: end(last.source, last.source_port),
            destination: end(last.destination, last.destination_port),
            policies: names.policies.clone(),
            rule: names.rule.clone(),
            at: last.met.map(|met| place_name(last.hook, met)),
            first: clock.text(last.time),
            packets: 1,
            more: 0,
            others: 0,
        }
    }

    pub fn of_line(line: &Line, clock: WallClock) -> Self {
        Self { more: line.more, others: line.others, ..Self::of(&line.entry, clock) }
    }

    /// One line of the agent's own log. `text`: what the reason means.
    pub fn log(&self, text: &str) {
        let Self { pod, direction, peer, peer_address, protocol, source, destination, at, reason, rule, .. } = self;
        let (verdict, more) = (&self.verdict, self.more);
        let peer = peer.clone().or_else(|| peer_address.map(|address| address.to_string()));
        let others = Some(self.others).filter(|others| *others != 0);
        // Of what is refused there is no rule, and of what is admitted the rule says more than the policies.
        let isolated_by = Some(self.policies.join(",")).filter(|_| verdict == "refused");
        tracing::info!(
            pod,
            direction,
            peer,
            protocol,
            source,
            destination,
            at,
            reason,
            isolated_by,
            rule,
            more,
            others,
            "{verdict}: {text}"
        );
    }
}

/// A veth of which no pod is known is told by its own name.
fn pod_name(entry: &EndpointEntry) -> String {
    match (&entry.namespace, &entry.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => format!("interface {}", entry.interface),
    }
}

/// Where a packet was met that was not judged at the pod's own interface.
fn place_name(hook: Hook, met: u32) -> String {
    match (hook, met) {
        (_, MET_PROCESS) => PROCESS.to_owned(),
        // What leaves is met there for the pod that sent it.
        (Hook::FromPod, met) => format!("interface {met}"),
        (Hook::ToPod, met) => format!("xdp, interface {met}"),
    }
}

/// The pods of the cluster that have an address; `None`: no pod has.
pub fn pods_at(address: IpAddr, index: &Index) -> Option<String> {
    let pods = index.claims(address).iter().filter_map(|id| index.pod(*id));
    let names: Vec<String> = pods.map(|pod| pod.name.to_string()).collect();
    Some(names.join(",")).filter(|names| !names.is_empty())
}

/// An address with its port, if it has one.
pub fn end(address: IpAddr, port: u16) -> String {
    match (address, port) {
        (address, 0) => address.to_string(),
        (IpAddr::V4(address), port) => format!("{address}:{port}"),
        (IpAddr::V6(address), port) => format!("[{address}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_a_pod_is_told_by_its_name() {
        let veth = EndpointEntry { ifindex: 7, interface: "veth7".to_owned(), ..EndpointEntry::default() };
        assert_eq!(pod_name(&veth), "interface veth7");
        let (namespace, pod) = (Some("shop".to_owned()), Some("web".to_owned()));
        assert_eq!(pod_name(&EndpointEntry { namespace, pod, ..veth }), "shop/web");
    }

    #[test]
    fn times_are_to_the_millisecond() {
        let clock = WallClock { offset: 1_000_000_000 * 1_764_000_000 };
        assert_eq!(clock.text(1_234_567_890), "2025-11-24T16:00:01.234Z");
    }
}
