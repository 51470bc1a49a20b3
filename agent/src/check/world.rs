//! Objects, compiled for a node that has every pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use palisade_common::layout::EndpointRecord;

use crate::compile::{Catalog, Compiler, Limits};
use crate::explain::way::{Seat, record_of};
use crate::facts::{Change, Fault, Kind, ObjectName, PodFacts, Update, Veth, VethChange};
use crate::index::Index;
use crate::tables::sim::Sim;

/// The node that has every pod.
pub const NODE: &str = "every-node";

/// The tables that come of objects, and who is who in them.
#[derive(Debug)]
pub struct World {
    pub index: Index,
    pub sim: Sim,
    pub catalog: Catalog,
    pub faults: Vec<Fault>,
    /// Interfaces by pod; pods that policies do not know (of hostNetwork, or finished) have none.
    pub pods: BTreeMap<ObjectName, u32>,
    addresses: BTreeMap<IpAddr, u32>,
}

impl World {
    pub fn new(updates: impl IntoIterator<Item = Update>) -> Self {
        let mut index = Index::new(NODE);
        for kind in Kind::ALL {
            index.apply(Change::Relist(kind));
        }
        // The later counts, also where a pod of the same name has another UID.
        let mut pods: BTreeMap<ObjectName, PodFacts> = BTreeMap::new();
        for Update { change, .. } in updates {
            match change {
                Change::Pod { name, facts: Some(facts), .. } => drop(pods.insert(name, facts)),
                Change::Pod { name, facts: None, .. } => drop(pods.remove(&name)),
                change => index.apply(change),
            }
        }
        let mut world = Places::default();
        let mut interfaces = BTreeMap::new();
        for (number, (name, facts)) in (2_u32..).zip(pods) {
            let facts = world.placed(number, facts);
            if !facts.host_network && !facts.finished {
                index.apply_veth(VethChange { ifindex: number, veth: Some(veth(number, &facts)) });
                interfaces.insert(name.clone(), number);
            }
            index.apply(Change::Pod { name, uid: facts.uid.clone(), facts: Some(facts) });
        }
        for kind in Kind::ALL {
            index.apply(Change::Relisted(kind));
        }
        let mut compiler = Compiler::new(Limits { endpoints_max: 1 << 20, stamps_max: 1 << 16, ..Limits::default() });
        let faults = compiler.update(&mut index, 0).faults;
        let mut sim = Sim::holding(compiler.tables());
        sim.midstream_budget = 0;
        let catalog = compiler.catalog(&index, &[]);
        let of = |entry: &crate::compile::EndpointEntry| {
            entry.addresses.clone().into_iter().map(move |at| (at, entry.ifindex)).collect::<Vec<_>>()
        };
        let addresses = catalog.endpoints.iter().flat_map(of).collect();
        Self { index, sim, catalog, faults, pods: interfaces, addresses }
    }

    pub fn record(&self, ifindex: u32) -> Option<&EndpointRecord> {
        record_of(&self.sim, ifindex)
    }

    /// Who is at an address.
    pub fn seat(&self, address: IpAddr) -> Seat {
        self.addresses.get(&address).map_or(Seat::Elsewhere, |ifindex| Seat::Pod(*ifindex))
    }

    pub fn entry(&self, ifindex: u32) -> Option<&crate::compile::EndpointEntry> {
        self.catalog.endpoints.iter().find(|entry| entry.ifindex == ifindex)
    }
}

/// Addresses for pods that have none yet, out of what is set aside for tests of networks (RFC 2544) and for documentation (RFC 3849): in an
/// ipBlock only where that has nearly everything.
#[derive(Debug, Default)]
struct Places {
    taken: BTreeSet<IpAddr>,
}

impl Places {
    /// The pod on our node, with addresses that no other has.
    fn placed(&mut self, number: u32, mut facts: PodFacts) -> PodFacts {
        facts.node = Some(NODE.into());
        if facts.host_network || facts.finished {
            return facts;
        }
        // Of two pods with one address nobody could say which is meant; in manifests that comes of copies.
        facts.addresses.retain(|address| self.taken.insert(*address));
        if facts.addresses.is_empty() {
            let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + (number & 0x1_ffff));
            let v6 = Ipv6Addr::from_bits(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).to_bits() + u128::from(number));
            facts.addresses = vec![v4.into(), v6.into()];
        }
        facts
    }
}

fn veth(number: u32, facts: &PodFacts) -> Veth {
    let [a, b, c, d] = number.to_be_bytes();
    Veth {
        ifindex: number,
        name: format!("pod{number}").into(),
        pod_mac: Some([2, 0, a, b, c, d]),
        netns_id: None,
        addresses: facts.addresses.iter().map(|address| (*address, if address.is_ipv4() { 32 } else { 128 })).collect(),
        pod: Some((facts.name.clone(), Some(Arc::clone(&facts.uid)))),
        older: false,
        awaits_result: false,
    }
}
