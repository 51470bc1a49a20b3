//! Verdicts on flows that no remembered judgement settles.

use super::{At, answers, is_closed, is_newly_isolated};
use crate::decide::{Answer, EGRESS, FlowEntry, INGRESS, Ruling, Tables};
use crate::layout::{EndpointRecord, Judgement, endpoint_flag, flow_flag, revoked};
use crate::parse::{Packet, packet_trait, protocol};
use crate::verdict::{Hook, Reason};

/// How long the answers to a flow that is not allowed any longer open none of their own, in seconds: what conntrack gives a flow of
/// UDP that has seen no answer (nf_conntrack_udp_timeout), and long enough for what is under way and for a peer that tries again.
const CUT_SECONDS: u32 = 30;

/// Ports from here on are what clients are given (Linux' `net.ipv4.ip_local_port_range`; IANA's begin later).
const EPHEMERAL_FIRST: u16 = 32768;

/// A flow that is known, but not (any longer) admitted as the packet needs it.
#[inline(never)]
pub(super) fn judge_known<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F) -> Ruling {
    let packet = at.packet;
    let (sender, opener) = (at.sender, 1 - at.sender);
    let flags = flow.flags();
    let generation = at.record.generation;
    let opening = packet.has(packet_trait::OPENING);
    let opened_forward = flags & (flow_flag::OPENED << sender) != 0;
    let opened_reverse = flags & (flow_flag::OPENED << opener) != 0;
    let admitted = flow.judged(sender, at.forward_role()).generation == generation && at.is_same_client(flow);
    let known = opened_forward && !opening && admitted;
    let keeps = at.tables.keeps_existing();
    let mut refused = Ruling::of(Reason::NoRule);
    if opened_reverse && !opening && answers(flow, packet, at.now) && is_reply(at, flow) {
        let admitted_once = flow.judged(opener, at.reverse_role()).generation == generation;
        let node = flags & flow_flag::NODE != 0 && matches!(at.hook, Hook::FromPod);
        let kept = keeps && admitted_once && !node;
        let answer = if kept || node { Answer::ALLOWED } else { at.ask_reverse(Some(flow)) };
        if answer.is_allowed() {
            let reason = if kept { Reason::Kept } else { Reason::Reply };
            return answer.ruling().because(reason).remembering(false);
        }
        refused = if admitted_once { answer.ruling().because(Reason::Revoked) } else { answer.ruling() };
    }
    let may_open =
        if packet.is_connected() { opened_forward || !opened_reverse } else { known || opens(at, flow, refused) };
    if opening || is_closed(flags) || may_open {
        let kept = known && keeps;
        let answer = if kept { Answer::ALLOWED } else { at.ask_forward() };
        if answer.is_allowed() {
            let ruling = if kept {
                Ruling::of(Reason::Kept)
            } else if known {
                answer.ruling().because(Reason::Established)
            } else {
                answer.ruling()
            };
            return ruling.remembering(true);
        }
        let revoked = known || refused.reason_number() == Reason::Revoked as u8;
        refused = if revoked { answer.ruling().because(Reason::Revoked) } else { answer.ruling() };
    }
    refused
}

/// Whether a packet of the opposite direction of what was opened answers that, and does not go its own way.
///
/// Protocols without connections may be opened from either end at any time, by any packet. What the sender's own endpoint has let out as
/// an opening of its own, as it does not admit the flow that the packet might answer, is no answer at the other pod of this node either.
#[inline(always)]
pub(super) fn is_reply<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F) -> bool {
    if matches!(at.hook, Hook::FromPod) || at.packet.is_connected() {
        return true;
    }
    let own = flow.judged(at.sender, EGRESS);
    let answered = flow.judged(1 - at.sender, INGRESS);
    let now = |judged: Judgement| judged.generation != 0 && judged.epoch == at.epoch;
    !now(own) || now(answered)
}

/// Whether a packet of a protocol without connections may be an opening of its own, where `refused` says what came of taking it
/// for an answer.
///
/// Answers are under way when their flow is cut. They would open it anew from the other end, if that end may open flows, and the refused
/// end's packets would pass as answers to them.
#[inline(never)]
fn opens<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, refused: Ruling) -> bool {
    if refused.reason_number() != Reason::Revoked as u8 {
        return !(at.is_from_service() || matches!(at.opened_by(), Opened::Reverse));
    }
    let (opener, role) = (1 - at.sender, at.reverse_role());
    let (then, now) = (flow.revoked(), revoked(at.second(), opener, role));
    if then == 0 || (then ^ now) & 3 != 0 {
        flow.set_revoked(now);
        return false;
    }
    (now >> 2).wrapping_sub(then >> 2) > CUT_SECONDS
}

/// A tuple that nothing is known of.
#[inline(never)]
pub(super) fn judge_unknown<T: Tables>(at: &At<'_, T>) -> Ruling {
    let mut direction = Opened::Forward;
    if !at.packet.has(packet_trait::OPENING) {
        direction = at.opened_by();
        // What it answers may have been evicted.
        if matches!(direction, Opened::Unasked) && at.tables.pressure(at.now) && at.is_from_service() {
            direction = Opened::Reverse;
        }
    }
    if !matches!(direction, Opened::Reverse) {
        let answer = at.ask_forward();
        if answer.is_allowed() {
            return answer.ruling().remembering(true);
        }
        if matches!(direction, Opened::Forward | Opened::Unasked) {
            return answer.ruling();
        }
    }
    let answer = at.ask_reverse::<T::Flow<'_>>(None);
    if !answer.is_allowed() {
        return answer.ruling();
    }
    if !at.tables.take_midstream(at.record.number, at.now) {
        return answer.ruling().because(Reason::MidstreamBudget);
    }
    answer.ruling().because(Reason::Midstream).remembering(false)
}

/// Which end is held to have opened a connection that is met mid-stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opened {
    Forward,
    Reverse,
    Either,
    /// No sign tells answers of this protocol from openings, and the opening would be remembered.
    Unasked,
}

impl Opened {
    /// The number as which the kernel's programs hand it on; unknown ones are [`Opened::Forward`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Reverse,
            2 => Self::Either,
            3 => Self::Unasked,
            _ => Self::Forward,
        }
    }
}

/// Only endpoints that had connections nobody saw being opened, or whose flows may have been evicted or have passed by a pause, are given
/// the benefit of the reverse question; which question it is, the pod's own listening sockets tell.
#[inline(always)]
pub fn opened_by<T: Tables>(tables: &T, packet: &Packet, record: &EndpointRecord, hook: Hook, now: u64) -> Opened {
    if packet.is_connected() && remembers_openings(tables, record, now) {
        return Opened::Forward;
    }
    if !packet.is_connected() && !is_newly_isolated(tables, record, now) {
        return Opened::Unasked;
    }
    let serves = if packet.is_connected() {
        tables.listens(record, packet, hook)
    } else {
        serves_datagrams(tables, packet, record, hook)
    };
    match (serves, hook) {
        (None, _) if !packet.is_connected() => Opened::Forward,
        (None, _) => Opened::Either,
        // A pod that listens was connected to: packets to it go the way of the opening.
        (Some(true), Hook::ToPod) | (Some(false), Hook::FromPod) => Opened::Forward,
        (Some(true), Hook::FromPod) | (Some(false), Hook::ToPod) => Opened::Reverse,
    }
}

/// Every opening of the pod's connections was seen, and is remembered if it was admitted.
#[inline(always)]
fn remembers_openings<T: Tables>(tables: &T, record: &EndpointRecord, now: u64) -> bool {
    record.flags & endpoint_flag::MIDSTREAM == 0 && tables.paused_until() == 0 && !tables.pressure(now)
}

/// Whether the pod's end of a flow of UDP was there first; `None`: nobody can say. Servers seldom connect their sockets, and seldom
/// bind them to ports that clients are given.
#[inline(always)]
fn serves_datagrams<T: Tables>(tables: &T, packet: &Packet, record: &EndpointRecord, hook: Hook) -> Option<bool> {
    if packet.protocol != protocol::UDP {
        return None;
    }
    if tables.is_connected(record, packet, hook)? {
        return Some(false);
    }
    let (local, remote) = match hook {
        Hook::FromPod => (packet.source_port, packet.destination_port),
        Hook::ToPod => (packet.destination_port, packet.source_port),
    };
    match (local < EPHEMERAL_FIRST, remote < EPHEMERAL_FIRST) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        (true, true) | (false, false) => None,
    }
}
