//! Where a pod's packet ends up: at another pod of the node, at a device by which it leaves, or at a process of the node.
//!
//! The pod's own interface marks what the pod opens with the pod's number, as the destination may be a Service's address there. Behind
//! kube-proxy's translation, and in spite of masquerading, the mark tells whose egress policy is to be asked about what is seen.

use super::fragment::later_fragment;
use super::policy::service;
use super::{EGRESS, FlowEntry, Ruling, Tables, other_record, owns, record_at, with_fragment};
use crate::flow::{self, At};
use crate::layout::{
    BACKENDS_FIRST, BACKENDS_MAX, EndpointRecord, FRAGMENT_LEAVING, ServiceKey, endpoint_flag, flow_flag,
};
use crate::parse::{Packet, packet_trait};
use crate::verdict::{Hook, Reason};

/// Where a marked packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At another pod of the node.
    Pod,
    /// At a device by which it leaves the node.
    Device,
    /// At a process of the node.
    Process,
}

impl Place {
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Pod,
            1 => Self::Device,
            _ => Self::Process,
        }
    }
}

/// Judges a marked frame for the pod whose mark it has. `parsed` parses it whole.
#[inline(always)]
pub fn decide_leaving<'p, T, P>(parsed: P, tables: &T, stamp: u16, place: Place) -> Ruling
where
    T: Tables,
    P: Fn() -> &'p Packet,
{
    let mut attempt = 0;
    while attempt < super::ATTEMPTS {
        let epoch = tables.epoch();
        // In its place rather than as another's: nothing else is to be done here.
        let client = match tables.stamp_owner(stamp) {
            Some(ifindex) => record_at(tables, ifindex, epoch),
            None => None,
        };
        let ruling = match client {
            None => Ruling::of(Reason::UnknownStamp),
            Some(client) if client.flags & BOUND == 0 => Ruling::of(Reason::NotIsolated),
            Some(client) => tables.leaving(parsed(), client, epoch, place),
        };
        if tables.epoch() == epoch {
            return ruling.stamped(stamp);
        }
        attempt += 1;
    }
    Ruling::of(Reason::Unsettled).stamped(stamp)
}

/// Judged where they end up are packets of pods with an egress policy, and of those that may send nothing.
const BOUND: u32 = endpoint_flag::ISOLATED_EGRESS | endpoint_flag::CLOSED;

/// The pod whose mark it is.
#[inline(always)]
pub(super) fn client_of<T: Tables>(tables: &T, stamp: u16, epoch: u32) -> Option<&EndpointRecord> {
    other_record(tables, tables.stamp_owner(stamp)?, epoch)
}

/// What the sender's policy has against a marked packet at another pod of the node. `None`: nothing, it is the pod's to judge. For
/// implementations of [`Tables::refused_leaving`].
#[inline(always)]
pub fn refused_leaving<T: Tables>(
    tables: &T,
    packet: &Packet,
    record: &EndpointRecord,
    (stamp, epoch): (u16, u32),
) -> Option<Ruling> {
    let Some(client) = client_of(tables, stamp, epoch) else {
        return Some(Ruling::of(Reason::UnknownStamp).stamped(stamp));
    };
    // What comes back to its sender by way of a Service is always let through (SEMANTICS 13.5).
    if client.ifindex == record.ifindex || client.flags & BOUND == 0 {
        return None;
    }
    let ruling = tables.leaving(packet, client, epoch, Place::Pod);
    if ruling.passes() { None } else { Some(ruling.stamped(stamp)) }
}

/// The judgement of `client`'s egress policy on what is seen of a packet that it has opened a flow with; for implementations of
/// [`Tables::leaving`].
#[inline(always)]
pub fn leaving<T: Tables>(tables: &T, packet: &Packet, client: &EndpointRecord, epoch: u32, place: Place) -> Ruling {
    if client.flags & endpoint_flag::CLOSED != 0 {
        return Ruling::of(Reason::Closed);
    }
    if !packet.has(packet_trait::IP) || packet.has(packet_trait::MALFORMED) {
        return Ruling::of(Reason::Malformed);
    }
    // No error message is marked.
    if packet.has(packet_trait::ICMP_ERROR) {
        return Ruling::of(Reason::UnrelatedError);
    }
    let mut at = At::new(tables, client, packet, epoch, Hook::FromPod);
    at.leaving = true;
    if !owns(client, packet.family, &packet.source) {
        // Answers are asked about for it as well, whatever its packets were made to look like.
        at.client = (client.ifindex, client.generation);
    }
    if packet.has(packet_trait::FRAGMENT_LATER) {
        return later_fragment(&at, Some(FRAGMENT_LEAVING));
    }
    let ruling = flow::leave(&at, place);
    if packet.has(packet_trait::FRAGMENT_FIRST) { with_fragment(&at, ruling, Some(FRAGMENT_LEAVING)) } else { ruling }
}

/// A Service's address that was not translated, at a process of the node, stands for the Service's own backends, as NodeLocal DNSCache
/// serves it: the policy has to admit all of them (of many, those that the row has).
#[inline(always)]
pub(crate) fn admits_backends<T: Tables>(at: &At<'_, T>, flow: &impl FlowEntry) -> bool {
    let packet = at.packet;
    let deferred = flow.flags() & (flow_flag::DEFERRED << at.sender) != 0;
    if !deferred || flow.judged(at.sender, EGRESS).generation != at.record.generation {
        return false;
    }
    let key = ServiceKey {
        address: packet.destination,
        port: packet.destination_port,
        protocol: packet.protocol,
        family: packet.family,
    };
    // Read the same twice, as the memory of an entry that is replaced may be another's at once.
    let row = service(at.tables, &key, at.epoch);
    if row < BACKENDS_FIRST || service(at.tables, &key, at.epoch) != row {
        return false;
    }
    let Some(backends) = at.tables.backends(row) else { return false };
    let mut left = backends.count;
    let mut index = 0;
    while index < BACKENDS_MAX {
        if left == 0 {
            break;
        }
        let (address, port) = (&backends.addresses[index], backends.ports[index]);
        if !at.ask_as_seen(address, port).is_allowed() {
            return false;
        }
        left -= 1;
        index += 1;
    }
    // No backend admits nothing.
    left == 0 && index != 0
}
