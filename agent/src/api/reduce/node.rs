//! Nodes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::lax::Lax;
use super::shape::{NodeShape, NodeSpec, NodeStatus};
use super::{Faults, cidr, meta};
use crate::facts::{Change, Fault, Kind, NodeFacts, Update};

/// # Errors
/// It has no name.
pub fn reduce(shape: &NodeShape) -> Result<Update, Fault> {
    let metadata = shape.metadata.or_empty();
    let name = meta::name(Kind::Node, &metadata)?;
    let mut faults = Faults::new(Kind::Node, name.to_owned());
    let facts = NodeFacts {
        name: name.into(),
        addresses: addresses(&shape.status.or_empty(), &mut faults),
        pod_cidrs: pod_cidrs(&shape.spec.or_empty(), &mut faults),
    };
    Ok(Update::new(Change::Node(name.into(), Some(facts)), faults.into_vec()))
}

/// # Errors
/// It has no name.
pub fn gone(shape: &NodeShape) -> Result<Change, Fault> {
    let metadata = shape.metadata.or_empty();
    meta::name(Kind::Node, &metadata).map(|name| Change::Node(name.into(), None))
}

fn addresses(status: &NodeStatus, faults: &mut Faults) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, entry) in status.addresses.found().into_iter().flatten().enumerate() {
        let entry = entry.or_empty();
        // Hostname, InternalDNS and ExternalDNS are names.
        let is_address = matches!(entry.kind.found().map(String::as_str), Some("InternalIP" | "ExternalIP"));
        let text = entry.address.found().map_or("", String::as_str);
        match cidr::address(text) {
            Some(address) if !addresses.contains(&address) => addresses.push(address),
            Some(_double) => {}
            None if is_address => {
                faults.add(format!("status.addresses[{index}].address"), "this is no IP address, it is not used");
            }
            None => {}
        }
    }
    addresses
}

fn pod_cidrs(spec: &NodeSpec, faults: &mut Faults) -> Vec<IpNet> {
    let mut cidrs = Vec::new();
    let listed = spec.pod_cidrs.found().into_iter().flatten().enumerate();
    let listed = listed.map(|(index, cidr)| (format!("spec.podCIDRs[{index}]"), cidr));
    for (field, text) in listed.chain([("spec.podCIDR".to_owned(), &spec.pod_cidr)]) {
        match text {
            Lax::Missing => {}
            Lax::Wrong => faults.add(field, "this is no CIDR, it is not used"),
            Lax::Found(text) => match cidr::network(text) {
                Ok(cidr) if !cidrs.contains(&cidr) => cidrs.push(cidr),
                Ok(_double) => {}
                Err(reason) => faults.add(field, format!("{reason}, it is not used")),
            },
        }
    }
    cidrs
}
