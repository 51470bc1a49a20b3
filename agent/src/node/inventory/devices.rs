//! Devices by which packets leave the node, and the node's own addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Interface, Inventory, LinkKind, is_link_local};
use crate::facts::Device;

/// kube-proxy in its ipvs mode gives this one every Service's address, and takes what goes to them away before any process has it.
const IPVS_DEVICE: &str = "kube-ipvs0";

impl Inventory {
    /// Every device of the node but loopback, what is the pods', ports of other bridges, whose packets the bridge has seen, and those that
    /// give back what they are given: a pod's packets pass there before Services are translated.
    pub fn devices(&self) -> Vec<Device> {
        let bridges = self.bridge_indices();
        let is_bridge = |index: &u32| self.interfaces.get(index).is_some_and(|it| it.link.kind == LinkKind::Bridge);
        let leaves = |interface: &&Interface| {
            let link = &interface.link;
            let is_port = link.kind == LinkKind::Veth && link.master.as_ref().is_some_and(is_bridge);
            let gives_back = link.is_loopback || link.kind == LinkKind::Ifb;
            !gives_back && !interface.claimed && !bridges.contains(&link.index) && !is_port
        };
        let device = |Interface { link, .. }: &Interface| Device {
            ifindex: link.index,
            name: link.name.clone(),
            up: link.is_up,
            has_link_header: link.has_link_header,
            is_veth: link.kind == LinkKind::Veth,
            is_wire: link.kind == LinkKind::Other && link.has_link_header,
            vxlan: if let LinkKind::Vxlan(vxlan) = link.kind { Some(vxlan) } else { None },
        };
        self.interfaces.values().filter(leaves).map(device).collect()
    }

    /// Addresses of the pods' bridges: what the node masquerades on its way to pods has one of them.
    pub fn pod_gateways(&self) -> BTreeSet<IpAddr> {
        let bridges = self.bridge_indices();
        let own = self.own.iter().filter(|(index, address)| bridges.contains(index) && !is_link_local(*address));
        own.map(|(_, address)| *address).collect()
    }

    /// Addresses to which something is delivered on the node itself.
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        // Of a device that is not known yet nobody can say.
        let counts = |index: &u32| self.interfaces.get(index).is_some_and(|it| &*it.link.name != IPVS_DEVICE);
        let own = self.own.iter().filter(|(index, address)| counts(index) && !is_link_local(*address));
        own.map(|(_, address)| *address).collect()
    }
}
