//! Services. What of one cannot be understood is left out: a Service that is not known opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::intern::Interner;
use super::lax::Lax;
use super::shape::{IntOrString, ServicePortShape, ServiceShape, ServiceSpec, ServiceStatus};
use super::{Faults, cidr, meta, port};
use crate::facts::{Change, Fault, Kind, ServiceFacts, ServicePort, TargetPort, Update};

/// # Errors
/// It has no name.
pub fn reduce(shape: &ServiceShape, interner: &mut Interner) -> Result<Update, Fault> {
    let metadata = shape.metadata.or_empty();
    let name = meta::namespaced_name(Kind::Service, &metadata)?;
    let mut faults = Faults::new(Kind::Service, name.to_string());
    let spec = shape.spec.or_empty();
    let addresses = addresses(&spec, &shape.status.or_empty(), &mut faults);
    let ports = ports(&spec, &mut faults);
    // An ExternalName is an alias in DNS, and of a headless Service nothing is translated, whatever else it says.
    let is_alias = spec.kind.found().is_some_and(|kind| kind == "ExternalName");
    let is_headless = spec.cluster_ip.found().is_none_or(|text| text.is_empty() || text == "None");
    let translated = !is_alias && !is_headless;
    let facts = ServiceFacts {
        name: name.clone(),
        addresses: if translated { addresses } else { Vec::new() },
        ports: if translated { ports } else { Vec::new() },
        selector: selector(&spec, &mut faults).map(|labels| interner.labels(labels)),
    };
    Ok(Update::new(Change::Service(name, Some(facts)), faults.into_vec()))
}

/// # Errors
/// It has no name.
pub fn gone(shape: &ServiceShape) -> Result<Change, Fault> {
    meta::namespaced_name(Kind::Service, &shape.metadata.or_empty()).map(|name| Change::Service(name, None))
}

fn addresses(spec: &ServiceSpec, status: &ServiceStatus, faults: &mut Faults) -> Vec<IpAddr> {
    let mut texts: Vec<(String, Lax<String>)> = vec![("spec.clusterIP".to_owned(), spec.cluster_ip.clone())];
    for (field, list) in [("spec.clusterIPs", &spec.cluster_ips), ("spec.externalIPs", &spec.external_ips)] {
        if list.is_wrong() {
            faults.add(field, "these are a list, the Service is not known by them");
        }
        let entries = list.found().into_iter().flatten().enumerate();
        texts.extend(entries.map(|(index, text)| (format!("{field}[{index}]"), text.clone())));
    }
    let balancer = status.load_balancer.or_empty();
    if status.load_balancer.is_wrong() || balancer.ingress.is_wrong() {
        faults.add("status.loadBalancer.ingress", "these are a list, the Service is not known by them");
    }
    for (index, entry) in balancer.ingress.found().into_iter().flatten().enumerate() {
        let entry = entry.or_empty();
        // With Proxy the node sends packets to the load balancer itself.
        if entry.ip_mode.found().is_none_or(|mode| mode != "Proxy") {
            texts.push((format!("status.loadBalancer.ingress[{index}].ip"), entry.ip.clone()));
        }
    }
    let mut addresses = BTreeSet::new();
    for (field, text) in texts {
        let address = match &text {
            Lax::Missing => continue,
            Lax::Found(text) if text.is_empty() || text == "None" => continue,
            Lax::Found(text) => cidr::address(text),
            Lax::Wrong => None,
        };
        match address {
            Some(address) => drop(addresses.insert(address)),
            None => faults.add(field, "this is no IP address, the Service is not known by it"),
        }
    }
    addresses.into_iter().collect()
}

fn ports(spec: &ServiceSpec, faults: &mut Faults) -> Vec<ServicePort> {
    if spec.ports.is_wrong() {
        faults.add("spec.ports", "ports are a list, the Service is not known");
    }
    let mut ports = BTreeSet::new();
    for (index, entry) in spec.ports.found().into_iter().flatten().enumerate() {
        match service_port(&entry.or_empty()) {
            Some(port) => drop(ports.insert(port)),
            None => faults.add(format!("spec.ports[{index}]"), "this is no valid port, the Service is not known by it"),
        }
    }
    ports.into_iter().collect()
}

fn service_port(entry: &ServicePortShape) -> Option<ServicePort> {
    let protocol = match &entry.protocol {
        Lax::Missing => port::protocol(None),
        Lax::Found(text) => port::protocol(Some(text)),
        Lax::Wrong => None,
    };
    let port = number(*entry.port.found()?)?;
    let node_port = match &entry.node_port {
        Lax::Missing | Lax::Found(0) => None,
        Lax::Found(number) => Some(self::number(*number)?),
        Lax::Wrong => return None,
    };
    let target = match &entry.target_port {
        Lax::Missing | Lax::Found(IntOrString::Int(0)) => TargetPort::Number(port),
        Lax::Found(IntOrString::Int(number)) => TargetPort::Number(self::number(*number)?),
        Lax::Found(IntOrString::String(name)) => TargetPort::Named(name.as_str().into()),
        Lax::Wrong => return None,
    };
    Some(ServicePort { protocol: protocol?, port, node_port, target })
}

fn number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

fn selector(spec: &ServiceSpec, faults: &mut Faults) -> Option<BTreeMap<String, String>> {
    if spec.selector.is_wrong() {
        faults.add("spec.selector", "a selector is a map, the Service is taken to select nobody");
    }
    let entries = spec.selector.found()?;
    let value = |(key, value): (&String, &Lax<String>)| Some((key.clone(), value.found()?.clone()));
    let selector: Option<BTreeMap<String, String>> = entries.iter().map(value).collect();
    if selector.is_none() {
        faults.add("spec.selector", "values are strings, the Service is taken to select nobody");
    }
    selector.filter(|selector| !selector.is_empty())
}
