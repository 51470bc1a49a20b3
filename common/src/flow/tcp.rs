//! TCP as far as to know that a connection is over (RFC 9293), and what else is kept up to date of a flow whose packets pass.

use super::{At, CLOSED_NS, ENDING, SEEN_GRANULARITY, TCP_STATE, is_closed};
use crate::decide::{FlowEntry, Tables};
use crate::layout::{endpoint_flag, flow_flag};
use crate::parse::{Packet, tcp_flag};
use crate::verdict::Hook;

/// Whether a packet of the end that did not open the flow may still be an answer.
#[inline(always)]
pub(super) fn answers<F: FlowEntry>(flow: &F, packet: &Packet, now: u64) -> bool {
    let flags = flow.flags();
    if !packet.is_tcp() || flags & ENDING == 0 {
        return true;
    }
    let recent = now.saturating_sub(flow.seen()) <= CLOSED_NS;
    if is_closed(flags) {
        return recent && packet.payload == 0 && packet.tcp_flags & tcp_flag::SYN == 0;
    }
    flags & flow_flag::RESET_SEEN == 0 || recent
}

/// Keeps time and TCP state of a flow whose packet passes.
#[inline(always)]
pub(super) fn note<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, forward: bool) {
    let old = flow.flags();
    let mut flags = old;
    if at.packet.is_tcp() {
        const MOVES: u8 = tcp_flag::FIN | tcp_flag::RST;
        let moving = at.packet.tcp_flags & MOVES != 0 || old & (TCP_STATE & !flow_flag::UNCONFIRMED) != 0;
        if moving {
            flags = tcp_state(at, flow, forward);
        }
    }
    if forward {
        flags &= !flow_flag::UNCONFIRMED;
    }
    if flags != old {
        flow.set_flags(flags);
    }
    // An answer does not prolong what is ending or not confirmed.
    let prolongs = forward || flags & (ENDING | flow_flag::UNCONFIRMED) == 0;
    if (prolongs && at.now.saturating_sub(flow.seen()) > SEEN_GRANULARITY) || (flags ^ old) & ENDING != 0 {
        flow.set_seen(at.now);
        at.note_awaited(forward);
    }
}

/// RFC 9293, as far as to know that a connection is over: both FINs acknowledged, or a reset that is certain.
#[inline(always)]
fn tcp_state<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, forward: bool) -> u32 {
    let packet = at.packet;
    let mut flags = flow.flags();
    if packet.tcp_flags & tcp_flag::RST != 0 {
        return flags | reset_flag(at);
    }
    if forward {
        flags &= !flow_flag::RESET_SEEN;
    }
    let sender = at.sender;
    let receiver = 1 - sender;
    if packet.tcp_flags & tcp_flag::FIN != 0 {
        let next = fin_next(packet);
        if flow.fin_next(sender) != next {
            flow.set_fin_next(sender, next);
        }
        flags |= flow_flag::FIN << sender;
    }
    if packet.tcp_flags & tcp_flag::ACK != 0
        && flags & (flow_flag::FIN << receiver) != 0
        && packet.tcp_acknowledgement.wrapping_sub(flow.fin_next(receiver)) as i32 >= 0
    {
        flags |= flow_flag::FIN_ACKED << receiver;
    }
    flags
}

/// A pod's own reset is its own word; one from elsewhere may be forged and out of window (RFC 5961).
#[inline(always)]
pub(super) fn reset_flag<T: Tables>(at: &At<'_, T>) -> u32 {
    let certain = matches!(at.hook, Hook::FromPod) && at.record.flags & endpoint_flag::TRUSTED == 0;
    if certain { flow_flag::RESET } else { flow_flag::RESET_SEEN }
}

/// The sequence number after the segment's FIN.
#[inline(always)]
pub(super) const fn fin_next(packet: &Packet) -> u32 {
    packet.tcp_sequence.wrapping_add(packet.payload).wrapping_add(1)
}
