//! The decision function: one packet at one hook, by the tables. The same code runs in the kernel, in the agent and in tests.
//!
//! [`decide`] reads the epoch, judges ([`judge`]), and judges again if the epoch has moved meanwhile. What is remembered about
//! flows is in [`flow`](crate::flow).

mod fragment;
mod guard;
mod leaving;
mod policy;
mod ruling;
mod tables;
mod uplink;

use crate::flow;
use crate::layout::{EndpointRecord, endpoint_flag};
use crate::neighbour;
use crate::parse::{self, Bytes, Packet, packet_trait};
use crate::verdict::{Hook, Reason};
use fragment::{later_fragment, put_fragment};
pub use guard::{admission_from_pod, admission_to_pod};
pub(crate) use guard::{mac, owns};
pub(crate) use leaving::admits_backends;
use leaving::client_of;
pub use leaving::{Place, decide_leaving, leaving, refused_leaving};
pub use policy::{Answer, IS_SERVICE, OPEN_EGRESS, OPEN_INGRESS, Question, REACH_EGRESS, answer, ask};
pub use ruling::Ruling;
pub use tables::{FlowEntry, ServiceCount, Tables, take_midstream};
pub use uplink::{UplinkTables, VXLAN_LENGTH, is_network, may_answer, may_be_refused, refused_early, tunnelled};

/// Where and how a packet met the program.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    pub hook: Hook,
    /// Host side of the pod's veth.
    pub ifindex: u32,
    /// The node itself sent it (`ingress_ifindex` is 0); only meaningful at [`Hook::ToPod`].
    pub from_node: bool,
    /// Which of the node's pods opened the packet's flow, by [`EndpointRecord::stamp`]; 0: nobody says. Only meaningful at
    /// [`Hook::ToPod`], for what others than the node sent.
    pub stamp: u16,
}

impl Meeting {
    #[inline(always)]
    fn client_stamp(&self) -> u16 {
        if matches!(self.hook, Hook::ToPod) && !self.from_node { self.stamp } else { 0 }
    }
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
    let Some(record) = record_at(tables, meeting.ifindex, epoch) else {
        return Ruling::of(without_endpoint(parsed(), meeting));
    };
    let restricted = endpoint_flag::CLOSED | endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS;
    let open = record.flags & restricted == 0;
    let plain = guard::is_plain(bytes, record, meeting.hook);
    let stamp = meeting.client_stamp();
    if plain && open && stamp == 0 {
        return Ruling::of(Reason::NotIsolated);
    }
    let packet = parsed();
    if !plain && let Some(ruling) = tables.admission(bytes, packet, record, meeting.hook) {
        return ruling;
    }
    if stamp != 0
        && let Some(ruling) = tables.refused_leaving(packet, record, stamp, epoch)
    {
        return ruling;
    }
    if open {
        return Ruling::of(Reason::NotIsolated);
    }
    for_restricted(bytes, packet, tables, meeting, (epoch, record))
}

/// Another endpoint's record than that of the interface where a packet is met.
#[inline(always)]
pub(crate) fn other_record<T: Tables>(tables: &T, ifindex: u32, epoch: u32) -> Option<&EndpointRecord> {
    let index = tables.record_index(ifindex, epoch)?;
    own_record(tables, ifindex, index)
}

/// The index of an interface's record; for implementations of [`Tables::record_index`].
#[inline(always)]
pub fn record_index<T: Tables>(tables: &T, ifindex: u32, epoch: u32) -> Option<u32> {
    if let Some(index) = tables.hint(ifindex, epoch)
        && own_record(tables, ifindex, index).is_some()
    {
        return Some(index);
    }
    let index = tables.endpoint(ifindex)?.at(epoch);
    own_record(tables, ifindex, index)?;
    if tables.endpoint(ifindex)?.at(epoch) == index {
        tables.put_hint(ifindex, epoch, index);
    }
    Some(index)
}

/// An endpoint's record, by its interface.
#[inline(always)]
fn record_at<T: Tables>(tables: &T, ifindex: u32, epoch: u32) -> Option<&EndpointRecord> {
    let record = match tables.hint(ifindex, epoch) {
        Some(index) => own_record(tables, ifindex, index),
        None => None,
    };
    // Memory of an entry that is replaced is another entry's at once, also while it is being read (see `class_of`): what is not found
    // is looked for again. What is found is the endpoint's own, as the record says so.
    record.or_else(|| record_of(tables, ifindex, epoch)).or_else(|| record_of(tables, ifindex, epoch))
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
    let ruling = judge_isolated(tables, packet, record, epoch, meeting);
    // What the pod opens goes on with its mark, wherever it is said to go; what it answers does not.
    let marked = matches!(meeting.hook, Hook::FromPod) && ruling.passes() && ruling.is_forward();
    if marked { ruling.stamped(record.stamp as u16) } else { ruling }
}

#[inline(always)]
fn judge_isolated<T: Tables>(
    tables: &T,
    packet: &Packet,
    record: &EndpointRecord,
    epoch: u32,
    meeting: Meeting,
) -> Ruling {
    let from_node = matches!(meeting.hook, Hook::ToPod) && meeting.from_node;
    let mut at = flow::At::new(tables, record, packet, epoch, meeting.hook);
    if packet.has(packet_trait::FRAGMENT_LATER) {
        return if from_node { Ruling::of(Reason::Node) } else { later_fragment(&at, None) };
    }
    if from_node {
        return Ruling::of(flow::remember_node(&at));
    }
    if record.flags & endpoint_flag::CLOSED != 0 {
        return Ruling::of(flow::closed(&at));
    }
    // Not a pod behind its own address: of the two pods of a flow either may have opened it, and the flow remembers one client.
    if meeting.client_stamp() != 0
        && let Some(client) = client_of(tables, meeting.stamp, epoch)
        && (client.ifindex == record.ifindex || !owns(client, packet.family, &packet.source))
    {
        at.client = (client.ifindex, client.generation);
    }
    let ruling = flow::pass(&at);
    if packet.has(packet_trait::FRAGMENT_FIRST) { with_fragment(&at, ruling, None) } else { ruling }
}

/// Lets later fragments follow a first one that was let through.
#[inline(always)]
fn with_fragment<T: Tables>(at: &flow::At<'_, T>, ruling: Ruling, hook: Option<u8>) -> Ruling {
    if !ruling.passes() {
        return ruling;
    }
    if !at.is_settled() {
        return Ruling::of(Reason::Unsettled);
    }
    if put_fragment(at, ruling.is_forward(), hook) {
        ruling
    } else {
        Ruling::new(Reason::Unremembered, ruling.class()).forward(ruling.is_forward())
    }
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
