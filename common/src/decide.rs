//! The decision function: one packet at one hook, by the tables. The same code runs in the kernel, in the agent and in tests.
//!
//! [`decide`] reads the epoch, judges ([`judge`]), and judges again if the epoch has moved meanwhile. What is remembered about
//! flows is in [`flow`](crate::flow).

mod fragment;
mod guard;
mod policy;
mod ruling;
mod tables;

use crate::flow;
use crate::layout::{EndpointRecord, endpoint_flag};
use crate::neighbour;
use crate::parse::{self, Bytes, Packet, packet_trait};
use crate::verdict::{Hook, Reason};
use fragment::{later_fragment, put_fragment};
pub use guard::{admission_from_pod, admission_to_pod};
pub(crate) use guard::{mac, owns};
pub use policy::{Answer, Question, answer, ask};
pub use ruling::Ruling;
pub use tables::{FlowEntry, Tables, take_midstream};

/// Where and how a packet met the program.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    pub hook: Hook,
    /// Host side of the pod's veth.
    pub ifindex: u32,
    /// The node itself sent it (`ingress_ifindex` is 0); only meaningful at [`Hook::ToPod`].
    pub from_node: bool,
}

/// Which of an endpoint's tables is asked.
pub const EGRESS: usize = 0;
pub const INGRESS: usize = 1;

/// How often a packet is judged before it is given up because the tables keep changing.
const ATTEMPTS: u32 = 2;

/// Judges a frame. `parsed` parses it whole ([`parse::frame`]), which not every frame needs.
#[inline(always)]
pub fn decide<'p, B, T, P>(bytes: &B, parsed: P, tables: &T, meeting: Meeting) -> Ruling
where
    B: Bytes,
    T: Tables,
    P: Fn() -> &'p Packet,
{
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let epoch = tables.epoch();
        let ruling = judge(bytes, &parsed, tables, meeting, epoch);
        if tables.epoch() == epoch {
            return ruling;
        }
        attempt += 1;
    }
    Ruling::of(Reason::Unsettled)
}

#[inline(always)]
fn judge<'p, B, T, P>(bytes: &B, parsed: &P, tables: &T, meeting: Meeting, epoch: u32) -> Ruling
where
    B: Bytes,
    T: Tables,
    P: Fn() -> &'p Packet,
{
    let record = match tables.hint(meeting.ifindex, epoch) {
        Some(index) => own_record(tables, meeting.ifindex, index),
        None => None,
    };
    // Memory of an entry that is replaced is another entry's at once, also while it is being read (see `class_of`): what is not found
    // is looked for again. What is found is the endpoint's own, as the record says so.
    let record = record
        .or_else(|| record_of(tables, meeting.ifindex, epoch))
        .or_else(|| record_of(tables, meeting.ifindex, epoch));
    let Some(record) = record else { return Ruling::of(without_endpoint(parsed(), meeting)) };
    let restricted = endpoint_flag::CLOSED | endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS;
    let open = record.flags & restricted == 0;
    let plain = guard::is_plain(bytes, record, meeting.hook);
    if plain && open {
        return Ruling::of(Reason::NotIsolated);
    }
    let packet = parsed();
    if !plain && let Some(ruling) = tables.admission(bytes, packet, record, meeting.hook) {
        return ruling;
    }
    if open {
        return Ruling::of(Reason::NotIsolated);
    }
    for_restricted(bytes, packet, tables, meeting, (epoch, record))
}

/// A function of its own, as it is seldom needed.
#[inline(never)]
fn record_of<T: Tables>(tables: &T, ifindex: u32, epoch: u32) -> Option<&EndpointRecord> {
    let index = tables.endpoint(ifindex)?.at(epoch);
    let record = own_record(tables, ifindex, index)?;
    // For others to believe, it has to be read the same twice (see `class_of`).
    if tables.endpoint(ifindex)?.at(epoch) == index {
        tables.put_hint(ifindex, epoch, index);
    }
    Some(record)
}

/// The record, if it is the interface's.
#[inline(always)]
fn own_record<T: Tables>(tables: &T, ifindex: u32, index: u32) -> Option<&EndpointRecord> {
    let record = tables.record(index)?;
    if record.ifindex == ifindex { Some(record) } else { None }
}

/// A veth that has its programs and no entry yet: closed, its node excepted. It may be told who its neighbours are, but nothing that it
/// says of itself can be checked.
#[inline(always)]
fn without_endpoint(packet: &Packet, meeting: Meeting) -> Reason {
    match meeting.hook {
        Hook::ToPod if meeting.from_node => Reason::Node,
        Hook::ToPod if packet.has(packet_trait::ARP) || neighbour::is_neighbour(packet) => Reason::Neighbour,
        Hook::ToPod | Hook::FromPod => Reason::Closed,
    }
}

/// A packet of a closed endpoint or one that a policy isolates, which may be what it says.
#[inline(always)]
fn for_restricted<B: Bytes, T: Tables>(
    bytes: &B,
    packet: &Packet,
    tables: &T,
    meeting: Meeting,
    (epoch, record): (u32, &EndpointRecord),
) -> Ruling {
    if !packet.has(packet_trait::IP) {
        let malformed = packet.has(packet_trait::MALFORMED);
        return Ruling::of(if malformed { Reason::Malformed } else { Reason::UnknownProtocol });
    }
    let from_node = matches!(meeting.hook, Hook::ToPod) && meeting.from_node;
    if packet.has(packet_trait::MALFORMED) {
        return Ruling::of(if from_node { Reason::Node } else { Reason::Malformed });
    }
    if packet.has(packet_trait::ICMP_ERROR) {
        if from_node {
            return Ruling::of(Reason::Node);
        }
        if record.flags & endpoint_flag::CLOSED != 0 {
            return Ruling::of(Reason::Closed);
        }
        return tables.icmp_error(bytes, packet, record, epoch, meeting.hook);
    }
    tables.isolated(packet, record, epoch, meeting)
}

/// A packet of a closed endpoint or one that a policy isolates, with whole headers and no error message; for implementations of
/// [`Tables::isolated`].
#[inline(always)]
pub fn isolated<T: Tables>(
    tables: &T,
    packet: &Packet,
    record: &EndpointRecord,
    epoch: u32,
    meeting: Meeting,
) -> Ruling {
    let from_node = matches!(meeting.hook, Hook::ToPod) && meeting.from_node;
    let at = flow::At::new(tables, record, packet, epoch, meeting.hook);
    if packet.has(packet_trait::FRAGMENT_LATER) {
        return Ruling::of(if from_node { Reason::Node } else { later_fragment(&at) });
    }
    if from_node {
        return Ruling::of(flow::remember_node(&at));
    }
    if record.flags & endpoint_flag::CLOSED != 0 {
        return Ruling::of(flow::closed(&at));
    }
    let ruling = flow::pass(&at);
    if packet.has(packet_trait::FRAGMENT_FIRST) && ruling.passes() {
        if !at.is_settled() {
            return Ruling::of(Reason::Unsettled);
        }
        if !put_fragment(&at) {
            return Ruling::new(Reason::Unremembered, ruling.class());
        }
    }
    ruling
}

/// An ICMP error of or to an isolated endpoint, with room for the packet that it quotes; for implementations of
/// [`Tables::icmp_error`].
#[inline(always)]
pub fn icmp_error<B: Bytes, T: Tables>(
    tables: &T,
    bytes: &B,
    packet: &Packet,
    quoted: &mut Packet,
    (record, epoch, hook): (&EndpointRecord, u32, Hook),
) -> Reason {
    parse::quoted(bytes, packet, quoted);
    // The quoted packet went the other way, through the endpoint's other hook.
    let at = flow::At::new(tables, record, quoted, epoch, hook.opposite());
    flow::related(&at, packet)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::stub;
