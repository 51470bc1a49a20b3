//! What the programs are told of an endpoint: its addresses, MAC and flags.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use palisade_common::layout::{ADDRESSES_MAX, Address, EndpointRecord, endpoint_flag};

use super::Direction;
use super::endpoints::{Closed, Endpoint};
use super::prefix::{v4_word, v6_words};
use crate::facts::{Fault, Kind, Veth};
use crate::index::{Index, PodId};

/// The addresses that an endpoint may send from.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// With the directed broadcast address of each, where the prefix has one.
    pub(super) v4: BTreeMap<Ipv4Addr, Option<Ipv4Addr>>,
    pub(super) v6: BTreeSet<Ipv6Addr>,
    pub(super) faults: Vec<Fault>,
}

// === impl Own ===

impl Own {
    /// Those of the CNI result and those of the pod's status: either may come first. What is on the interface and in neither the pod
    /// may have put there itself: of that only link-local addresses are its own, and what is said by other live pods alone is a fault.
    pub(super) fn of(index: &Index, veth: &Veth, pod: Option<PodId>) -> Self {
        let mut own = Self::default();
        let status = pod.and_then(|id| index.pod(id));
        // A finished pod's may be another's already (SEMANTICS 9.3).
        for &address in status.into_iter().filter(|pod| !pod.finished).flat_map(|pod| &pod.addresses) {
            if own.may_have(index, pod, address, "its status") {
                match address {
                    IpAddr::V4(address) => drop(own.v4.insert(address, None)),
                    IpAddr::V6(address) => drop(own.v6.insert(address)),
                }
            }
        }
        for &(address, bits) in &veth.addresses {
            let told = veth.pod.is_some() || status.is_none_or(|pod| pod.addresses.contains(&address));
            let local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            if !own.may_have(index, pod, address, "its interface") || !told && !local {
                continue;
            }
            match address {
                IpAddr::V4(address) => drop(own.v4.insert(address, broadcast(address, bits))),
                IpAddr::V6(address) => drop(own.v6.insert(address)),
            }
        }
        own.v6.extend(veth.pod_mac.map(link_local));
        own
    }

    /// Not where it is another live pod's alone; that is a fault.
    fn may_have(&mut self, index: &Index, pod: Option<PodId>, address: IpAddr, whence: &str) -> bool {
        let claims = index.claims(address);
        let names = claims.iter().filter_map(|&id| index.pod(id)).map(|pod| &pod.name);
        let (Some(id), Some(other)) = (pod, names.min()) else { return true };
        if claims.contains(&id) {
            return true;
        }
        let object = index.pod(id).map_or(String::new(), |pod| pod.name.to_string());
        let message = format!("{whence} has {address}, which is pod {other}'s: it may not use it");
        let fault = Fault { kind: Kind::Pod, object, field: "status.podIPs".to_owned(), message };
        if !self.faults.iter().any(|told| told.message == fault.message) {
            self.faults.push(fault);
        }
        false
    }

    fn count(&self) -> usize {
        self.v4.len().max(self.v6.len())
    }

    /// Why the endpoint must be closed, if its addresses are too many for a record.
    pub(super) fn too_many(&self) -> Option<Closed> {
        let count = self.count();
        (count > ADDRESSES_MAX).then_some(Closed::Addresses { count })
    }
}

/// The record, all but the two [`EndpointRecord::ingress`] and [`EndpointRecord::egress`].
pub(super) fn record(veth: &Veth, endpoint: &Endpoint, own: &Own, trusted: bool) -> EndpointRecord {
    let flag = |bit: u32, on: bool| if on { bit } else { 0 };
    let mut record = EndpointRecord {
        ifindex: veth.ifindex,
        generation: endpoint.generation,
        number: endpoint.number.unwrap_or_default(),
        flags: flag(endpoint_flag::ISOLATED_INGRESS, endpoint.is_isolated(Direction::Ingress))
            | flag(endpoint_flag::ISOLATED_EGRESS, endpoint.is_isolated(Direction::Egress))
            | flag(endpoint_flag::CLOSED, endpoint.closed.is_some())
            | flag(endpoint_flag::TRUSTED, trusted)
            | flag(endpoint_flag::MIDSTREAM, veth.older || endpoint.midstream),
        netns_id: veth.netns_id.unwrap_or(-1),
        isolated_at: endpoint.isolated_at,
        ..EndpointRecord::default()
    };
    let [a, b, c, d, e, f] = veth.pod_mac.unwrap_or_default();
    record.mac_hi = u32::from_ne_bytes([a, b, c, d]);
    record.mac_lo = u32::from(u16::from_ne_bytes([e, f]));
    let identity = endpoint.identity().to_be_bytes();
    let [a, b, c, d, e, f, g, h] = identity;
    record.identity_hi = u32::from_be_bytes([a, b, c, d]);
    record.identity_lo = u32::from_be_bytes([e, f, g, h]);
    for ((at, (address, broadcast)), count) in own.v4.iter().take(ADDRESSES_MAX).enumerate().zip(1..) {
        record.v4[at] = v4_word(*address);
        record.v4_broadcast[at] = broadcast.map_or(0, v4_word);
        record.v4_count = count;
    }
    record.as_peer = own.v4.keys().next().map_or(Address::ZERO, |address| Address::v4(v4_word(*address)));
    for ((slot, address), count) in record.v6.iter_mut().zip(&own.v6).zip(1..) {
        *slot = v6_words(*address);
        record.v6_count = count;
    }
    record
}

/// The directed broadcast address of a network that has one (RFC 3021: none at /31).
fn broadcast(address: Ipv4Addr, bits: u8) -> Option<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
    (bits < 31).then(|| Ipv4Addr::from(u32::from(address) | hosts))
}

/// The address that the kernel gives an interface by itself (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}
