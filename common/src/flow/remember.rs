//! Putting entries into FLOWS.

use super::tcp::{fin_next, note, reset_flag};
use super::{At, ENDING, TCP_STATE};
use crate::decide::{EGRESS, FlowEntry, INGRESS, Tables};
use crate::layout::{FlowValue, Judgement, flow_flag, revoked};
use crate::parse::{packet_trait, tcp_flag};

/// Puts the entry anew with the judgement of the packet's direction (`forward`) or of the opposite one made now.
#[inline(never)]
pub(super) fn stamp<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, forward: bool, kept: bool) -> bool {
    let mut value = flow.value();
    if kept {
        // Once set it stays: it may stand for any of the entry's judgements.
        value.flags |= flow_flag::KEPT;
    }
    let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
    if forward {
        // Only an opening begins anew: what else is sent on a closed connection's tuple does not make it live again.
        if at.packet.is_tcp() && at.packet.has(packet_trait::OPENING) {
            value.flags &= !TCP_STATE;
            value.fin_next = [0; 2];
        }
        value.flags &= !flow_flag::UNCONFIRMED;
    }
    set_judged(&mut value, opener, role, at.judgement());
    if value.revoked & 3 == revoked(0, opener, role) {
        value.revoked = 0;
    }
    value.flags |= flow_flag::OPENED << opener;
    if forward || value.flags & (ENDING | flow_flag::UNCONFIRMED) == 0 {
        value.seen = at.now;
    }
    let remembered = at.tables.put_flow(&at.key, &value, false);
    if at.packet.is_tcp()
        && let Some(flow) = at.tables.flow(&at.key)
    {
        note(at, &flow, forward);
    }
    remembered
}

/// Constant places, so that the verifier sees constant offsets.
#[inline(always)]
fn set_judged(value: &mut FlowValue, opener: usize, role: usize, judgement: Judgement) {
    match (opener, role) {
        (0, EGRESS) => value.judged[0][EGRESS] = judgement,
        (0, _) => value.judged[0][INGRESS] = judgement,
        (_, EGRESS) => value.judged[1][EGRESS] = judgement,
        (_, _) => value.judged[1][INGRESS] = judgement,
    }
}

/// Puts an entry for a flow that the packet's sender (`forward`) or receiver opened. `new`: none is there.
#[inline(never)]
pub(super) fn insert<T: Tables>(at: &At<'_, T>, forward: bool, flags: u32, new: bool) -> bool {
    let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
    let zero = at.tables.zero();
    let unjudged = Judgement { epoch: zero, generation: zero };
    let mut value = FlowValue {
        judged: [[unjudged; 2]; 2],
        seen: at.now,
        flags: flags | flow_flag::OPENED << opener,
        fin_next: [zero; 2],
        revoked: zero,
        reserved: [zero; 2],
    };
    set_judged(&mut value, opener, role, at.judgement());
    let packet = at.packet;
    if packet.is_tcp() && packet.tcp_flags & tcp_flag::RST != 0 {
        value.flags |= reset_flag(at);
    } else if packet.is_tcp() && packet.tcp_flags & tcp_flag::FIN != 0 {
        value.flags |= flow_flag::FIN << at.sender;
        let next = fin_next(packet);
        value.fin_next = if at.sender == 0 { [next, 0] } else { [0, next] };
    }
    at.tables.put_flow(&at.key, &value, new)
}
