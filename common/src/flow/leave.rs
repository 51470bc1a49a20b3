//! A flow judged by its packets' mark, where they end up.

use super::remember::{insert, stamp};
use super::tcp::note;
use super::{At, TCP_STATE, is_alive, remembered};
use crate::decide::{EGRESS, FlowEntry, Place, Ruling, ServiceCount, Tables, admits_backends};
use crate::layout::flow_flag;
use crate::parse::packet_trait;
use crate::verdict::Reason;

/// A packet that `at.record`'s pod has opened a flow with, under the addresses that it bears here.
///
/// A judgement that the pod's own interface made of the same addresses holds here too, unless it only let the packet go on as a Service's.
#[inline(always)]
pub(crate) fn leave<T: Tables>(at: &At<'_, T>, place: Place) -> Ruling {
    let packet = at.packet;
    let flow = at.tables.flow(&at.key);
    let new = flow.is_none();
    let flow = flow.filter(|flow| is_alive(flow, packet.protocol, at.now));
    let mut known = false;
    if let Some(flow) = &flow {
        let flags = flow.flags();
        let judged = flow.judged(at.sender, EGRESS);
        let deferred = flags & (flow_flag::DEFERRED << at.sender) != 0;
        let anew = packet.has(packet_trait::OPENING) && flags & (TCP_STATE | flow_flag::KEPT) != 0;
        if at.is_valid(judged) && !deferred && !anew {
            note(at, flow, true);
            return Ruling::of(Reason::Established).forward(true);
        }
        known = judged.generation == at.record.generation && !deferred && !packet.has(packet_trait::OPENING);
        if matches!(place, Place::Process) && admits_backends(at, flow) {
            at.tables.count_service(ServiceCount::Judged);
            return Ruling::of(Reason::Allowed).forward(true);
        }
    }
    let kept = known && at.tables.keeps_existing();
    let ruling = if kept {
        Ruling::of(Reason::Kept)
    } else {
        let answer = at.ask_as_seen(&packet.destination, packet.destination_port);
        if !answer.is_allowed() {
            return Ruling::new(if known { Reason::Revoked } else { Reason::NoRule }, answer.class());
        }
        Ruling::new(if known { Reason::Established } else { Reason::Allowed }, answer.class())
    };
    if !at.is_settled() {
        return Ruling::of(Reason::Unsettled);
    }
    if flow.is_none() || packet.has(packet_trait::OPENING) {
        at.tables.count_service(ServiceCount::Judged);
    }
    let ruling = ruling.remembering(true);
    remembered(remember(at, flow.as_ref(), ruling, new), ruling)
}

#[inline(always)]
fn remember<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: Option<&F>, ruling: Ruling, new: bool) -> bool {
    match flow {
        Some(flow) => stamp(at, flow, ruling),
        None => insert(at, ruling, flow_flag::LEAVING, new),
    }
}
