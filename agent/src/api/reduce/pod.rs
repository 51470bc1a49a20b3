//! Pods.
//!
//! A pod of which something decisive cannot be read (labels, node, host network, phase) is treated as if it were not
//! known: its endpoint stays closed, no selector matches it, and nothing else is affected.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::intern::Interner;
use super::lax::{Lax, Record};
use super::shape::{Container, ContainerPort, List, Metadata, PodShape, PodSpec, PodStatus};
use super::{Faults, cidr, meta, port};
use crate::facts::{Change, Fault, HostPort, Kind, NamedPort, ObjectName, PodFacts, Protocol, Update};

const CLOSED: &str = "the pod is closed";

/// # Errors
/// It has no name, or no readable namespace.
pub fn reduce(shape: &PodShape, interner: &mut Interner) -> Result<Update, Fault> {
    let metadata = shape.metadata.or_empty();
    let mut name = meta::namespaced_name(Kind::Pod, &metadata)?;
    name.namespace = interner.name(&name.namespace);
    let uid: Arc<str> = uid(&metadata, &name).into();
    let mut faults = Faults::new(Kind::Pod, name.to_string());

    let readable = readable(shape, &mut faults);
    let labels = meta::labels(&shape.metadata, &mut faults, CLOSED);
    let (spec, status) = (shape.spec.or_empty(), shape.status.or_empty());
    let addresses = addresses(&status, &mut faults);
    let (ports, host_ports) = ports(&spec, &mut faults);
    let host_network = spec.host_network == Lax::Found(true);

    let facts = labels.filter(|_labels| readable).map(|labels| PodFacts {
        name: name.clone(),
        uid: uid.clone(),
        labels: interner.labels(labels),
        addresses,
        ports: interner.ports(ports),
        // Those of a hostNetwork pod are its own: nothing is translated.
        host_ports: interner.host_ports(if host_network { BTreeSet::new() } else { host_ports }),
        node: spec.node_name.found().filter(|node| !node.is_empty()).map(|node| interner.name(node)),
        host_network,
        finished: matches!(status.phase.found().map(String::as_str), Some("Succeeded" | "Failed")),
    });
    Ok(Update::new(Change::Pod { name, uid, facts }, faults.into_vec()))
}

/// # Errors
/// It has no name, or no readable namespace.
pub fn gone(shape: &PodShape) -> Result<Change, Fault> {
    let metadata = shape.metadata.or_empty();
    let name = meta::namespaced_name(Kind::Pod, &metadata)?;
    let uid = uid(&metadata, &name).as_str().into();
    Ok(Change::Pod { name, uid, facts: None })
}

/// A manifest in a folder need not have one; the API server gives one to every object. The mirror of a static pod has one of its own,
/// but on the node the pod goes by the kubelet's.
fn uid(metadata: &Metadata, name: &ObjectName) -> String {
    if let Lax::Found(Record(annotations)) = &metadata.annotations
        && let Lax::Found(mirrored) = &annotations.config_mirror
        && !mirrored.is_empty()
    {
        return mirrored.clone();
    }
    match &metadata.uid {
        Lax::Found(uid) if !uid.is_empty() => uid.clone(),
        Lax::Found(_) | Lax::Missing | Lax::Wrong => format!("folder:{name}"),
    }
}

fn readable(shape: &PodShape, faults: &mut Faults) -> bool {
    let (spec, status) = (shape.spec.or_empty(), shape.status.or_empty());
    let fields = [
        (shape.spec.is_wrong(), "spec", "spec is a map"),
        (spec.node_name.is_wrong(), "spec.nodeName", "the name of a node is a text"),
        (spec.host_network.is_wrong(), "spec.hostNetwork", "hostNetwork is true or false"),
        (shape.status.is_wrong(), "status", "status is a map"),
        (status.phase.is_wrong(), "status.phase", "a phase is a text"),
    ];
    let mut readable = true;
    for (is_wrong, field, reason) in fields {
        if is_wrong {
            readable = false;
            faults.add(field, format!("{reason}, {CLOSED}"));
        }
    }
    readable
}

fn addresses(status: &PodStatus, faults: &mut Faults) -> Vec<IpAddr> {
    if status.pod_ips.is_wrong() {
        faults.add("status.podIPs", "podIPs is a list, it is not used");
    }
    let listed = status.pod_ips.found().into_iter().flatten().enumerate().map(|(index, entry)| {
        let ip = if entry.is_wrong() { Lax::Wrong } else { entry.or_empty().ip.clone() };
        (format!("status.podIPs[{index}].ip"), ip)
    });
    let mut addresses = Vec::new();
    for (field, text) in listed.chain([("status.podIP".to_owned(), status.pod_ip.clone())]) {
        let address = match &text {
            Lax::Missing => continue,
            // A pod without an address yet.
            Lax::Found(text) if text.is_empty() => continue,
            Lax::Found(text) => cidr::address(text),
            Lax::Wrong => None,
        };
        match address {
            Some(address) if !addresses.contains(&address) => addresses.push(address),
            Some(_double) => {}
            None => faults.add(field, "this is no IP address, the pod is not known by it"),
        }
    }
    addresses.shrink_to_fit();
    addresses
}

/// Containers and sidecars, which are init containers that go on running (SEMANTICS 7.11).
fn ports(spec: &PodSpec, faults: &mut Faults) -> (BTreeSet<NamedPort>, BTreeSet<HostPort>) {
    let (mut ports, mut host_ports) = (BTreeSet::new(), BTreeSet::new());
    for (list, containers, sidecars_only) in
        [("containers", &spec.containers, false), ("initContainers", &spec.init_containers, true)]
    {
        if containers.is_wrong() {
            faults.add(format!("spec.{list}"), "containers are a list, their named ports are not known");
        }
        for (index, container) in containers.found().into_iter().flatten().enumerate() {
            let container = container.or_empty();
            if !sidecars_only || is_sidecar(&container) {
                let path = format!("spec.{list}[{index}].ports");
                container_ports(&container.ports, &path, &mut ports, faults);
                container_host_ports(&container.ports, &path, &mut host_ports, faults);
            }
        }
    }
    (ports, host_ports)
}

/// What cannot be understood is not known: that opens nothing.
fn container_host_ports(
    entries: &List<Record<ContainerPort>>,
    path: &str,
    ports: &mut BTreeSet<HostPort>,
    faults: &mut Faults,
) {
    for (index, entry) in entries.found().into_iter().flatten().enumerate() {
        let entry = entry.or_empty();
        if matches!(entry.host_port, Lax::Missing | Lax::Found(0)) {
            continue;
        }
        match host_port(&entry) {
            Some(port) => drop(ports.insert(port)),
            None => faults.add(
                format!("{path}[{index}].hostPort"),
                "this is no valid port or address of the node: pods with an egress policy reach it only if that admits the address as it is",
            ),
        }
    }
}

fn host_port(entry: &ContainerPort) -> Option<HostPort> {
    let port = u16::try_from(*entry.host_port.found()?).ok().filter(|number| *number != 0)?;
    let address = match &entry.host_ip {
        Lax::Missing => None,
        Lax::Found(text) if text.is_empty() => None,
        Lax::Found(text) => Some(cidr::address(text)?).filter(|address| !address.is_unspecified()),
        Lax::Wrong => return None,
    };
    Some(HostPort { protocol: protocol_of(entry)?, port, address })
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.found().is_some_and(|policy| policy == "Always")
}

fn container_ports(
    entries: &List<Record<ContainerPort>>,
    path: &str,
    ports: &mut BTreeSet<NamedPort>,
    faults: &mut Faults,
) {
    if entries.is_wrong() {
        faults.add(path, "ports are a list, their names are not known");
    }
    for (index, entry) in entries.found().into_iter().flatten().enumerate() {
        let entry = entry.or_empty();
        if matches!(&entry.name, Lax::Missing) || entry.name.found().is_some_and(String::is_empty) {
            continue;
        }
        match named_port(&entry) {
            Some(port) => drop(ports.insert(port)),
            None => faults.add(format!("{path}[{index}]"), "this is no valid port, its name is not known"),
        }
    }
}

fn named_port(entry: &ContainerPort) -> Option<NamedPort> {
    let number = u16::try_from(*entry.container_port.found()?).ok().filter(|number| *number != 0);
    Some(NamedPort { name: entry.name.found()?.as_str().into(), protocol: protocol_of(entry)?, port: number? })
}

fn protocol_of(entry: &ContainerPort) -> Option<Protocol> {
    match &entry.protocol {
        Lax::Missing => port::protocol(None),
        Lax::Found(text) => port::protocol(Some(text)),
        Lax::Wrong => None,
    }
}
