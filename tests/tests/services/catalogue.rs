//! The Services of the world, as services.yaml lists them, and the objects that kube-proxy reads.

use std::collections::BTreeMap;
use std::net::IpAddr;

use palisade_tests::lab::objects::{self, Backend};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::world::Place;

/// What every server of the world listens on; a Service's port is another one.
pub const TARGET_PORT: u16 = 8080;
pub const SERVICE_PORT: u16 = 80;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Places that answer.
    pub backends: Vec<String>,
    /// A container port's name, which may mean another number in each pod.
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    pub families: Option<Vec<String>>,
    #[serde(default)]
    pub node_port: Option<u16>,
    /// Where a load balancer listens, which hands packets to nodes as they are unless `ip_mode` says otherwise.
    #[serde(default)]
    pub balancer: Vec<IpAddr>,
    #[serde(default)]
    ip_mode: Option<String>,
    /// The first backend's host port, for which there is no Service.
    #[serde(default)]
    pub host_port: Option<u16>,
    /// Whatever else its spec says.
    #[serde(default)]
    pub spec: Map<String, Value>,
}

pub type Catalogue = BTreeMap<String, Entry>;

pub fn read() -> Catalogue {
    serde_norway::from_str(include_str!("services.yaml")).expect("the catalogue is YAML")
}

impl Entry {
    pub fn headless(&self) -> bool {
        self.spec.get("clusterIP").is_some_and(|address| address == "None")
    }

    pub fn sticky(&self) -> bool {
        self.spec.contains_key("sessionAffinity")
    }

    pub fn external(&self) -> Vec<IpAddr> {
        let listed = self.spec.get("externalIPs").cloned().unwrap_or_else(|| json!([]));
        serde_json::from_value(listed).expect("externalIPs are addresses")
    }

    /// Addresses that are no machine's, and that nodes translate.
    pub fn virtual_addresses(&self) -> Vec<IpAddr> {
        let balancer = if self.ip_mode.is_none() { self.balancer.clone() } else { Vec::new() };
        [self.external(), balancer].concat()
    }

    pub fn serves(&self, family: &str) -> bool {
        self.families.as_ref().is_none_or(|families| families.iter().any(|served| served == family))
    }

    /// The Service without the addresses that the API server gives it; none for a host port.
    pub fn service(&self, name: &str) -> Option<Value> {
        if self.host_port.is_some() {
            return None;
        }
        let ports: Vec<Value> = ["TCP", "UDP"]
            .iter()
            .map(|protocol| {
                let target = self.target.as_ref().map_or(json!(TARGET_PORT), |name| json!(name));
                let name = protocol.to_lowercase();
                let mut port = json!({"name": name, "protocol": protocol, "port": SERVICE_PORT, "targetPort": target});
                if let Some(number) = self.node_port {
                    port["nodePort"] = number.into();
                }
                port
            })
            .collect();
        let mut spec = self.spec.clone();
        spec.insert("ports".into(), ports.into());
        if let Some(families) = &self.families {
            spec.insert("ipFamilyPolicy".into(), "SingleStack".into());
            spec.insert("ipFamilies".into(), json!(families));
        } else {
            spec.insert("ipFamilyPolicy".into(), "RequireDualStack".into());
        }
        let mut service = objects::service("web", name, &spec.into());
        if !self.balancer.is_empty() {
            let mode = self.ip_mode.as_deref().unwrap_or("VIP");
            let ingress: Vec<Value> = self.balancer.iter().map(|ip| json!({"ip": ip, "ipMode": mode})).collect();
            service["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
        Some(service)
    }

    /// As the endpoint slice controller writes them: apart by family, and by the number that the target's name means.
    pub fn slices(&self, service: &Value, places: &BTreeMap<String, Place>) -> Vec<Value> {
        let mut slices: BTreeMap<(bool, u16), Vec<Backend>> = BTreeMap::new();
        for name in &self.backends {
            let place = &places[name];
            let port = self.target.as_ref().map_or(TARGET_PORT, |name| place.ports[name]);
            for address in place.addresses {
                let backend = Backend { address, node: place.node.clone() };
                slices.entry((address.is_ipv4(), port)).or_default().push(backend);
            }
        }
        let slices = slices.into_iter().enumerate();
        let served = slices.filter(|(_, ((v4, _), _))| self.serves(if *v4 { "IPv4" } else { "IPv6" }));
        served
            .map(|(number, ((_, port), backends))| {
                let ports = json!([
                    {"name": "tcp", "protocol": "TCP", "port": port},
                    {"name": "udp", "protocol": "UDP", "port": port},
                ]);
                objects::endpoint_slice(service, number, &backends, &ports)
            })
            .collect()
    }
}
