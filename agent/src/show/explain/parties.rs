//! Who is at the two ends, by what the agent knows, or else by its catalog.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use anyhow::{bail, ensure};

use crate::cni::client;
use crate::cni::protocol::Request;
use crate::cni::socket_path;
use crate::compile::{Catalog, EndpointEntry};
use crate::explain::names::{Known, KnownPod, KnownService, Reference};
use crate::explain::port::PortSpec;
use crate::explain::way::Seat;
use crate::facts::{NamedPort, ObjectName};
use crate::pause::name_of;

/// One address of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Party {
    /// `namespace/name` of a pod.
    pub(super) name: Option<String>,
    pub(super) address: IpAddr,
    pub(super) seat: Seat,
    /// Where another node's agent judges it as well: that node.
    pub(super) other_node: Option<String>,
    ports: Vec<NamedPort>,
}

/// What a packet is addressed to, and who is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) protocol: u8,
    pub(super) addressed: (IpAddr, u16),
    /// `namespace/name` of the Service whose address it is.
    pub(super) service: Option<String>,
    /// `None`: it is not known whom the Service stands for.
    pub(super) reached: Option<(Party, u16)>,
}

/// Where people's names are looked up.
pub(super) struct Directory<'c> {
    pin_dir: &'c Path,
    catalog: &'c Catalog,
}

impl<'c> Directory<'c> {
    pub(super) fn new(pin_dir: &'c Path, catalog: &'c Catalog) -> Self {
        Self { pin_dir, catalog }
    }

    /// # Errors
    ///
    /// Nobody is known by that name.
    pub(super) fn sources(&self, who: &Reference) -> anyhow::Result<Vec<Party>> {
        let parties = match who {
            Reference::Node => {
                let of = |address: &str| self.party_at(address.parse().expect("an address"), Seat::Node);
                vec![of("127.0.0.1"), of("::1")]
            }
            Reference::Service(_) => bail!("{who} sends nothing; name the pods behind it, as in deploy/NAME"),
            Reference::Address(_) | Reference::Pod(_) | Reference::Workload(..) => {
                let known = self.find(who)?;
                self.parties(who, &known)?
            }
        };
        ensure!(!parties.is_empty(), "{}", self.unknown(who));
        Ok(parties)
    }

    /// # Errors
    ///
    /// Nobody is known by that name, or nothing by that port.
    pub(super) fn targets(&self, who: &Reference, port: Option<&PortSpec>) -> anyhow::Result<Vec<Target>> {
        if *who == Reference::Node {
            bail!("name one of the node's addresses: policies know processes of a node by the address that is used");
        }
        let known = self.find(who)?;
        let mut targets = Vec::new();
        for service in &known.services {
            targets.extend(self.by_service(service, port)?);
        }
        if known.services.is_empty() {
            for party in self.parties(who, &known)? {
                let ports = match port {
                    Some(port) => port.resolved(&party.ports),
                    None => party.ports.iter().map(|port| (port.protocol.number(), port.port)).collect(),
                };
                let target = |(protocol, port): (u8, u16)| Target {
                    protocol,
                    addressed: (party.address, port),
                    service: None,
                    reached: Some((party.clone(), port)),
                };
                targets.extend(ports.into_iter().map(target));
            }
            if targets.is_empty() && port.is_none() {
                bail!("say which port: {who} names none of its own");
            }
        }
        ensure!(!targets.is_empty(), "{who} has no such port, or no address");
        Ok(targets)
    }

    /// What becomes of each port of a Service that is meant.
    fn by_service(&self, service: &KnownService, port: Option<&PortSpec>) -> anyhow::Result<Vec<Target>> {
        let mut targets = Vec::new();
        for own in &service.ports {
            let meant = port.is_none_or(|port| {
                let named = NamedPort { name: target_name(own), protocol: own.protocol, port: own.port };
                port.resolved(&[named]).contains(&(own.protocol.number(), own.port))
            });
            if !meant {
                continue;
            }
            for &address in &service.addresses {
                let target = |reached| Target {
                    protocol: own.protocol.number(),
                    addressed: (address, own.port),
                    service: Some(service.name.to_string()),
                    reached,
                };
                let Some(backends) = &service.backends else {
                    targets.push(target(None));
                    continue;
                };
                let mut any = false;
                for pod in backends {
                    for party in self.of_pod(pod)?.iter().filter(|party| party.address.is_ipv4() == address.is_ipv4()) {
                        let ports = own.resolved(&pod.ports);
                        any |= !ports.is_empty();
                        targets.extend(ports.into_iter().map(|port| target(Some((party.clone(), port)))));
                    }
                }
                if !any {
                    targets.push(target(None));
                }
            }
        }
        ensure!(!targets.is_empty(), "service {} has no such port, or no address", service.name);
        Ok(targets)
    }

    fn parties(&self, who: &Reference, known: &Known) -> anyhow::Result<Vec<Party>> {
        if let Reference::Address(address) = who {
            let named = known.pods.first().map(|pod| self.of_pod(pod)).transpose()?.unwrap_or_default();
            let its = named.into_iter().find(|party| party.address == *address);
            return Ok(vec![its.unwrap_or_else(|| self.party_at(*address, self.seat_of(*address)))]);
        }
        let mut parties = Vec::new();
        for pod in &known.pods {
            parties.extend(self.of_pod(pod)?);
        }
        ensure!(!parties.is_empty(), "{}", self.unknown(who));
        Ok(parties)
    }

    fn of_pod(&self, pod: &KnownPod) -> anyhow::Result<Vec<Party>> {
        let name = pod.name.to_string();
        let here = pod.node.as_deref() == Some(&*self.catalog.agent.node);
        let entry = self.catalog.endpoints.iter().find(|entry| name_of(entry).as_deref() == Some(&*name));
        let seat = match entry {
            _ if pod.host_network && here => Seat::Node,
            Some(entry) if !pod.host_network => Seat::Pod(entry.ifindex),
            None if here && !pod.host_network => {
                bail!("pod {name} is of this node, and no interface is known to be its own yet (`palisade endpoints`)")
            }
            Some(_) | None => Seat::Elsewhere,
        };
        let other_node = pod.node.clone().filter(|_| seat == Seat::Elsewhere && !pod.host_network);
        let addresses = pod.addresses.iter().chain(entry.iter().flat_map(|entry| &entry.addresses));
        let mut parties: Vec<Party> = Vec::new();
        for &address in addresses.filter(|address| !is_link_local(**address)) {
            if parties.iter().all(|party| party.address != address) {
                let (name, ports) = (Some(name.clone()), pod.ports.clone());
                parties.push(Party { name, address, seat, other_node: other_node.clone(), ports });
            }
        }
        Ok(parties)
    }

    fn party_at(&self, address: IpAddr, seat: Seat) -> Party {
        let entry = self.catalog.endpoints.iter().find(|entry| seat == Seat::Pod(entry.ifindex));
        let ports = entry.map_or(Vec::new(), |entry| entry.ports.clone());
        Party { name: entry.and_then(name_of), address, seat, other_node: None, ports }
    }

    fn seat_of(&self, address: IpAddr) -> Seat {
        match self.catalog.endpoints.iter().find(|entry| entry.addresses.contains(&address)) {
            Some(entry) => Seat::Pod(entry.ifindex),
            None if is_own(address) => Seat::Node,
            None => Seat::Elsewhere,
        }
    }

    /// From the agent, or without one from what it wrote last.
    fn find(&self, who: &Reference) -> anyhow::Result<Known> {
        match client::fetch(&socket_path(self.pin_dir), &Request::Find { what: who.clone() }) {
            Ok(Ok(known)) => Ok(serde_json::from_value(known)?),
            Ok(Err(refusal)) => bail!("the agent refuses to say who {who} is: {}", refusal.message),
            Err(error) => match who {
                Reference::Service(_) | Reference::Workload(..) => {
                    bail!(
                        "no agent answers ({error}), and without one only addresses and pods of this node are known, not {who}"
                    )
                }
                Reference::Address(_) | Reference::Pod(_) | Reference::Node => Ok(self.written(who)),
            },
        }
    }

    fn written(&self, who: &Reference) -> Known {
        let is_it = |entry: &&EndpointEntry| match who {
            Reference::Pod(name) => name_of(entry) == Some(name.to_string()),
            Reference::Address(address) => entry.addresses.contains(address),
            Reference::Node | Reference::Service(_) | Reference::Workload(..) => false,
        };
        let pods = self.catalog.endpoints.iter().filter(is_it).filter_map(|entry| {
            Some(KnownPod {
                name: ObjectName::new(entry.namespace.as_ref()?, entry.pod.as_ref()?),
                node: Some(self.catalog.agent.node.clone()),
                host_network: false,
                addresses: entry.addresses.clone(),
                ports: entry.ports.clone(),
            })
        });
        Known { pods: pods.collect(), services: Vec::new() }
    }

    fn unknown(&self, who: &Reference) -> String {
        format!(
            "nobody is known as {who}, or it has no address yet (a pod is written NAMESPACE/NAME, or its namespace is given by -n)"
        )
    }
}

/// The name by which people may know a Service's port: that of the pods' port behind it.
fn target_name(port: &crate::facts::ServicePort) -> std::sync::Arc<str> {
    match &port.target {
        crate::facts::TargetPort::Named(name) => name.clone(),
        crate::facts::TargetPort::Number(_) => "".into(),
    }
}

/// Flows between pods do not use it.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// It is one of the node's own: only to these can a socket be bound.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}
