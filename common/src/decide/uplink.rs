//! What comes in by one of the node's uplinks, before the kernel has built an skb: whether to-pod is certain to refuse it.
//!
//! Nothing is admitted here and nothing remembered. What this does not refuse goes its way and is judged at the pod's interface as ever, so
//! that taking it away changes no verdict.

use super::policy::{IS_SERVICE, OPEN_INGRESS, Question, ask};
use super::{Ruling, Tables, other_record, owns};
use crate::flow;
use crate::layout::{Address, EndpointRecord, TunnelEnd, endpoint_flag};
use crate::parse::{Packet, V4, packet_trait, protocol};
use crate::verdict::Hook;

/// What is asked beside [`Tables`].
pub trait UplinkTables: Tables {
    /// POD_ADDRESSES: the interface of the one endpoint of the node that has the address.
    fn endpoint_of(&self, address: &Address) -> Option<u32>;
    /// The source that the node may give what it lets in to its pods; [`Address::ZERO`]: none. `None`: nobody knows.
    fn masquerade(&self, family: u8) -> Option<Address>;
    /// AWAITED: whether an answer may come to a pod's port of UDP.
    fn awaits(&self, address: &Address, port: u16, second: u32) -> bool;

    // Parts that the kernel's programs call as functions that its verifier reads by themselves.

    #[inline(always)]
    fn may_answer(&self, packet: &Packet, record: &EndpointRecord, epoch: u32) -> bool
    where
        Self: Sized,
    {
        may_answer(self, packet, record, epoch)
    }
}

/// The offset at which the VXLAN header lies, if the packet is one for this end of a tunnel, with headers of usual size.
#[inline(always)]
pub fn tunnelled(packet: &Packet, end: &TunnelEnd) -> Option<u32> {
    let ours = packet.protocol == protocol::UDP && end.port != 0 && packet.destination_port == end.port;
    if !ours || !is_whole(packet) || packet.destination != end.address {
        return None;
    }
    Some(packet.transport + UDP_LENGTH)
}

/// Bytes.
const UDP_LENGTH: u32 = 8;
/// Bytes. The inner frame follows.
pub const VXLAN_LENGTH: u32 = 8;

/// Whether the VXLAN header (RFC 7348, as it lies in the packet) has this network identifier and nothing else.
#[inline(always)]
pub const fn is_network(header: [u32; 2], vni: u32) -> bool {
    u32::from_be(header[0]) == 0x0800_0000 && u32::from_be(header[1]) == vni << 8
}

/// What no extension or fragment leaves open.
#[inline(always)]
const fn is_whole(packet: &Packet) -> bool {
    const OPEN: u32 = packet_trait::MALFORMED
        | packet_trait::FRAGMENT_FIRST
        | packet_trait::FRAGMENT_LATER
        | packet_trait::CHAIN_INCOMPLETE
        | packet_trait::ICMP_ERROR;
    let header = if packet.family == V4 { 20 } else { 40 };
    packet.has(packet_trait::IP) && !packet.has(OPEN) && packet.transport - packet.network == header
}

/// A packet that may be refused early if policy refuses it: that opens a flow by itself, or is UDP, and reaches the pod if it is let in.
#[inline(always)]
pub const fn may_be_refused(packet: &Packet) -> bool {
    const ECHO: u8 = 8;
    const ECHO_V6: u8 = 128;
    if !is_whole(packet) || packet.hop_limit <= 1 {
        return false;
    }
    match packet.protocol {
        protocol::TCP | protocol::SCTP => packet.has(packet_trait::OPENING),
        protocol::UDP => true,
        protocol::ICMP | protocol::ICMPV6 => {
            let echo = if packet.family == V4 { ECHO } else { ECHO_V6 };
            packet.has(packet_trait::ICMP) && packet.icmp_type == echo
        }
        _ => false,
    }
}

/// Why to-pod is certain to refuse the packet, and the interface of the pod; `None`: it goes on.
#[inline(always)]
pub fn refused_early<T: UplinkTables>(tables: &T, packet: &Packet) -> Option<(Ruling, u32)> {
    if !may_be_refused(packet) {
        return None;
    }
    let epoch = tables.epoch();
    let ifindex = tables.endpoint_of(&packet.destination)?;
    let record = other_record(tables, ifindex, epoch)?;
    let ruling = refusal(tables, packet, record, epoch)?;
    // Of a change meanwhile tc tells.
    if tables.epoch() == epoch { Some((ruling, ifindex)) } else { None }
}

#[inline(always)]
fn refusal<T: UplinkTables>(tables: &T, packet: &Packet, record: &EndpointRecord, epoch: u32) -> Option<Ruling> {
    let closed = record.flags & endpoint_flag::CLOSED != 0;
    let isolated = record.flags & endpoint_flag::ISOLATED_INGRESS != 0;
    if closed || !isolated || !owns(record, packet.family, &packet.destination) {
        return None;
    }
    let Packet { family, protocol, destination_port: port, .. } = *packet;
    let question = |what, peer| Question { peer, client: (0, 0), epoch, what, port, protocol, family };
    let answer = ask(tables, record, &question(OPEN_INGRESS, &packet.source));
    if answer.is_allowed() {
        return None;
    }
    if protocol == protocol::UDP && tables.may_answer(packet, record, epoch) {
        return None;
    }
    let own = tables.masquerade(family)?;
    if own != Address::ZERO && ask(tables, record, &question(OPEN_INGRESS, &own)).is_allowed() {
        return None;
    }
    // A Service may have a pod's address as an external one.
    let translated =
        tables.has_service_port(port) && tables.answer(&question(IS_SERVICE, &packet.destination), record).is_allowed();
    if translated { None } else { Some(answer.ruling()) }
}

/// Whether a packet of UDP may belong to a flow that was let open: under its own addresses, or under those of a Service, which its source's
/// are translated back to on the way to the pod. For implementations of [`UplinkTables::may_answer`].
#[inline(always)]
pub fn may_answer<T: UplinkTables>(tables: &T, packet: &Packet, record: &EndpointRecord, epoch: u32) -> bool {
    let at = flow::At::new(tables, record, packet, epoch, Hook::ToPod);
    at.may_be_known() || tables.awaits(&packet.destination, packet.destination_port, at.second())
}
