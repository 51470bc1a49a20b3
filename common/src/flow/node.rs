//! The node's own traffic, and what a closed endpoint may still do.

use super::remember::{insert, stamp};
use super::tcp::{answers, note};
use super::{At, TCP_STATE, is_alive};
use crate::decide::{FlowEntry, INGRESS, Ruling, Tables};
use crate::layout::flow_flag;
use crate::parse::{packet_trait, tcp_flag};
use crate::verdict::{Hook, Reason};

/// What is remembered of the node's openings.
const OPENED_BY_NODE: Ruling = Ruling::of(Reason::Node).remembering(true);

/// Remembers what the node sends to the pod, so that the pod's answers pass.
#[inline(never)]
pub(crate) fn remember_node<T: Tables>(at: &At<'_, T>) -> Reason {
    let packet = at.packet;
    let sender = at.sender;
    let reset = packet.is_tcp() && packet.tcp_flags & tcp_flag::RST != 0;
    let flow = at.tables.flow(&at.key);
    let new = flow.is_none();
    let taken = match flow {
        Some(flow) if is_alive(&flow, packet.protocol, at.now) => {
            let flags = flow.flags();
            let opened_by_pod = flags & (flow_flag::OPENED << (1 - sender)) != 0;
            let opened_by_node = flags & (flow_flag::OPENED << sender) != 0;
            let opening = packet.has(packet_trait::OPENING);
            let ended = opening && flags & TCP_STATE != 0;
            if at.is_valid(flow.judged(sender, INGRESS)) && flags & flow_flag::NODE != 0 && !ended {
                note(at, &flow, true);
                true
            } else if (opened_by_pod && !opened_by_node && !opening) || reset {
                // An answer to what the pod opened, if it was allowed to.
                flow.set_flags(flags | flow_flag::ANSWERED);
                note(at, &flow, false);
                true
            } else {
                stamp(at, &flow, OPENED_BY_NODE)
            }
        }
        // A reset opens nothing that could be answered.
        _ => reset || insert(at, OPENED_BY_NODE, flow_flag::NODE, new),
    };
    if taken { Reason::Node } else { Reason::Unremembered }
}

/// A packet of or to a closed endpoint, not sent by the node: only answers to the node pass.
#[inline(never)]
pub(crate) fn closed<T: Tables>(at: &At<'_, T>) -> Reason {
    const NOT_ANSWERS: u32 = packet_trait::FRAGMENT_LATER | packet_trait::OPENING | packet_trait::ICMP_ERROR;
    if matches!(at.hook, Hook::ToPod) || at.packet.has(NOT_ANSWERS) {
        return Reason::Closed;
    }
    let Some(flow) = at.tables.flow(&at.key) else { return Reason::Closed };
    let from_node = flow.flags() & flow_flag::NODE != 0
        && flow.judged(1 - at.sender, INGRESS).generation == at.record.generation
        && is_alive(&flow, at.packet.protocol, at.now);
    if from_node && answers(&flow, at.packet, at.now) { Reason::Reply } else { Reason::Closed }
}
