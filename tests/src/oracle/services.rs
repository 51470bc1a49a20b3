//! Services and host ports: which destinations the node may translate, and what stands behind them (SEMANTICS 13).

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::cluster::{Cluster, addresses, at, is_finished, is_peer, labels, list, text};

/// A destination as a packet has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub address: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

impl Cluster {
    /// Whether `node` may send what is addressed to this elsewhere: a Service's address and port, a node port on whatever address,
    /// or a host port of one of the node's pods.
    pub fn is_front(&self, node: &str, destination: Destination) -> bool {
        let by_service = self.services().any(|service| {
            ports(service).any(|port| {
                let own = is_of(port, "port", destination) && vips(service).contains(&destination.address);
                own || is_of(port, "nodePort", destination)
            })
        });
        by_service || self.pods().any(|pod| text(pod, "spec.nodeName") == node && has_host_port(pod, destination))
    }

    /// Whether this very address and port are a Service's, or a host port's of one of the node's pods.
    pub fn is_service(&self, node: &str, destination: Destination) -> bool {
        let own = |port| is_of(port, "port", destination);
        let mut services = self.services().filter(|service| vips(service).contains(&destination.address));
        services.any(|service| ports(service).any(own))
            || self.pods().any(|pod| {
                let bound = |port| host_ip(port) == Some(destination.address) && is_of(port, "hostPort", destination);
                text(pod, "spec.nodeName") == node && is_peer(pod) && containers(pod).any(bound)
            })
    }

    /// The pods' own addresses and ports that stand behind a Service's address, in its family.
    pub fn behind(&self, destination: Destination) -> BTreeSet<(IpAddr, u16)> {
        let mut all = BTreeSet::new();
        for service in self.services().filter(|service| vips(service).contains(&destination.address)) {
            for port in ports(service).filter(|port| is_of(port, "port", destination)) {
                for pod in self.pods().filter(|pod| is_behind(service, pod)) {
                    let own = addresses(pod).into_iter();
                    let own = own.filter(|own| own.is_ipv4() == destination.address.is_ipv4());
                    all.extend(own.flat_map(|own| targets(port, pod).into_iter().map(move |target| (own, target))));
                }
            }
        }
        all
    }
}

fn protocol_of(port: &Value) -> u8 {
    match text(port, "protocol") {
        "" | "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => 0,
    }
}

/// The entry's number of this name is the destination's port, and its protocol the destination's.
fn is_of(entry: &Value, number: &str, destination: Destination) -> bool {
    protocol_of(entry) == destination.protocol && at(entry, number).as_u64() == Some(u64::from(destination.port))
}

/// An ExternalName and a headless Service are names in the DNS; kube-proxy translates nothing to either.
fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    let translated =
        text(service, "spec.type") != "ExternalName" && text(service, "spec.clusterIP").parse::<IpAddr>().is_ok();
    list(service, "spec.ports").iter().filter(move |_| translated)
}

/// Cluster IPs, external IPs, and those of load balancers that the node itself stands in for.
fn vips(service: &Value) -> Vec<IpAddr> {
    let texts = |path: &str| list(service, path).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let balancers = list(service, "status.loadBalancer.ingress").iter();
    let balancers = balancers.filter(|entry| text(entry, "ipMode") != "Proxy").map(|entry| text(entry, "ip"));
    let all = [text(service, "spec.clusterIP")].into_iter();
    let all = all.chain(texts("spec.clusterIPs")).chain(texts("spec.externalIPs")).chain(balancers);
    all.filter_map(|text| text.parse().ok()).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let sidecars = list(pod, "spec.initContainers").iter().filter(|init| text(init, "restartPolicy") == "Always");
    list(pod, "spec.containers").iter().chain(sidecars).flat_map(|container| list(container, "ports"))
}

fn has_host_port(pod: &Value, destination: Destination) -> bool {
    is_peer(pod)
        && containers(pod).any(|port| {
            is_of(port, "hostPort", destination) && host_ip(port).is_none_or(|host| host == destination.address)
        })
}

/// `None`: any address.
fn host_ip(port: &Value) -> Option<IpAddr> {
    text(port, "hostIP").parse::<IpAddr>().ok().filter(|host| !host.is_unspecified())
}

/// A Service without selector has endpoints of somebody else's making.
fn is_behind(service: &Value, pod: &Value) -> bool {
    let Some(selector) = at(service, "spec.selector").as_object().filter(|selector| !selector.is_empty()) else {
        return false;
    };
    let labels = labels(pod);
    let same = |path: &str| text(service, path) == text(pod, path);
    let selected = selector.iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    same("metadata.namespace") && selected && !is_finished(pod)
}

/// The pod's port behind a Service's: a number, or resolved at the pod; left out, it is the Service's own.
fn targets(port: &Value, pod: &Value) -> Vec<u16> {
    let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    match at(port, "targetPort") {
        Value::String(name) => containers(pod)
            .filter(|own| text(own, "name") == name && protocol_of(own) == protocol_of(port))
            .filter_map(|own| number(at(own, "containerPort")))
            .collect(),
        Value::Null => number(at(port, "port")).into_iter().collect(),
        target => number(target).into_iter().collect(),
    }
}
