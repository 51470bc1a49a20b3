//! A refused flow as a line of the log.

use std::net::IpAddr;

use palisade_common::Hook;

use super::events::{Refused, protocol_name};
use crate::compile::Catalog;
use crate::index::Index;

/// Tells of one refusal; `more`: as many of the same were not told before.
pub fn tell(refused: &Refused, more: u64, index: &Index, catalog: &Catalog) {
    let entry = catalog.endpoints.iter().find(|entry| entry.ifindex == refused.ifindex);
    let pod = match entry.and_then(|entry| Some((entry.namespace.as_ref()?, entry.pod.as_ref()?))) {
        Some((namespace, pod)) => format!("{namespace}/{pod}"),
        None => format!("interface {}", refused.ifindex),
    };
    let policies = entry.map_or(String::new(), |entry| match refused.hook {
        Hook::FromPod => entry.egress_policies.join(","),
        Hook::ToPod => entry.ingress_policies.join(","),
    });
    tracing::info!(
        pod,
        direction = refused.hook.name(),
        peer = peer_name(refused.peer(), index),
        protocol = protocol_name(refused.protocol),
        source = end(refused.source, refused.source_port),
        destination = end(refused.destination, refused.destination_port),
        reason = refused.reason.name(),
        isolated_by = policies,
        more,
        "refused: {}",
        refused.reason.text()
    );
}

fn peer_name(address: IpAddr, index: &Index) -> String {
    let pods = index.claims(address).iter().filter_map(|id| index.pod(*id));
    let names: Vec<String> = pods.map(|pod| pod.name.to_string()).collect();
    if names.is_empty() { address.to_string() } else { names.join(",") }
}

fn end(address: IpAddr, port: u16) -> String {
    match (address, port) {
        (address, 0) => address.to_string(),
        (IpAddr::V4(address), port) => format!("{address}:{port}"),
        (IpAddr::V6(address), port) => format!("[{address}]:{port}"),
    }
}
