//! A refused flow as a line of the log.

use std::net::IpAddr;

use palisade_common::Hook;
use palisade_common::layout::MET_PROCESS;

use super::events::{Refused, protocol_name};
use crate::compile::{Catalog, EndpointEntry};
use crate::index::Index;

/// Tells of one refusal; `more`: as many of the same were not told before.
pub fn tell(refused: &Refused, more: u64, index: &Index, catalog: &Catalog) {
    let entry = catalog.endpoints.iter().find(|entry| entry.ifindex == refused.ifindex);
    let pod = entry.map_or_else(|| format!("interface {}", refused.ifindex), pod_name);
    let policies = entry.map_or(String::new(), |entry| match refused.hook {
        Hook::FromPod => entry.egress_policies.join(","),
        Hook::ToPod => entry.ingress_policies.join(","),
    });
    tracing::info!(
        pod,
        direction = refused.hook.name(),
        peer = refused.peer().map(|address| peer_name(address, index)),
        protocol = refused.protocol.map(protocol_name),
        source = refused.source.map(|address| end(address, refused.source_port)),
        destination = refused.destination.map(|address| end(address, refused.destination_port)),
        at = refused.met.map(place_name),
        reason = refused.reason.name(),
        isolated_by = policies,
        more,
        "refused: {}",
        refused.reason.text()
    );
}

/// A veth of which no pod is known is told by its own name.
fn pod_name(entry: &EndpointEntry) -> String {
    match (&entry.namespace, &entry.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => format!("interface {}", entry.interface),
    }
}

/// Where a packet was met that was not refused at the pod's own interface.
fn place_name(met: u32) -> String {
    if met == MET_PROCESS { "a process of the node".to_owned() } else { format!("interface {met}") }
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
}
