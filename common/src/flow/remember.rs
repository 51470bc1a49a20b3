//! Putting entries into FLOWS.

use super::tcp::{fin_next, note, reset_flag};
use super::{At, ENDING, TCP_STATE};
use crate::decide::{EGRESS, FlowEntry, INGRESS, Ruling, Tables};
use crate::layout::{FlowValue, Judgement, flow_flag, revoked};
use crate::parse::{packet_trait, tcp_flag};
use crate::verdict::Reason;

/// Puts the entry anew with the judgement, made now, of the packet's direction or of the opposite one, as the ruling says.
#[inline(never)]
pub(super) fn stamp<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, ruling: Ruling) -> bool {
    let forward = ruling.is_forward();
    let mut value = flow.value();
    let node = ruling.reason_number() == Reason::Node as u8;
    let same = if node { flow.client().0 == 0 } else { at.is_same_client(flow) };
    if forward && !same {
        begin_anew(at, &mut value);
    }
    let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
    let mut deferred = ruling.deferred_bit();
    if ruling.reason_number() == Reason::Kept as u8 {
        // A flow that is kept is what it was: where it ends up it is kept or refused as well.
        deferred = value.flags >> opener & flow_flag::DEFERRED;
        // Once set it stays: it may stand for any of the entry's judgements.
        value.flags |= flow_flag::KEPT;
    }
    if forward {
        // Only an opening begins anew: what else is sent on a closed connection's tuple does not make it live again.
        if at.packet.is_tcp() && at.packet.has(packet_trait::OPENING) {
            value.flags &= !TCP_STATE;
            value.fin_next = [0; 2];
        }
        value.flags &= !flow_flag::UNCONFIRMED;
    }
    set_judged(&mut value, opener, role, at.judgement());
    // Without branches, each of which would double what the verifier reads.
    let egress = 1 - role as u32;
    value.flags = value.flags & !((flow_flag::DEFERRED * egress) << opener) | deferred << opener;
    value.flags &= !(flow_flag::LEAVING * u32::from(!at.leaving));
    if value.revoked & 3 == revoked(0, opener, role) {
        value.revoked = 0;
    }
    let (answered, node) = (flow_flag::ANSWERED * u32::from(!forward), flow_flag::NODE * u32::from(node));
    value.flags |= (flow_flag::OPENED << opener) | answered | node;
    if forward || value.flags & (ENDING | flow_flag::UNCONFIRMED) == 0 {
        value.seen = at.now;
    }
    at.note_awaited(forward);
    let remembered = at.tables.put_flow(&at.key, &value, false);
    if at.packet.is_tcp()
        && let Some(flow) = at.tables.flow(&at.key)
    {
        note(at, &flow, forward);
    }
    remembered
}

/// What a masqueraded port has had before another pod got it is forgotten.
#[inline(always)]
fn begin_anew<T: Tables>(at: &At<'_, T>, value: &mut FlowValue) {
    let zero = at.tables.zero();
    let unjudged = Judgement { epoch: zero, generation: zero };
    value.judged = [[unjudged; 2]; 2];
    value.flags = zero | flow_flag::LEAVING;
    value.fin_next = [zero; 2];
    value.revoked = zero;
    (value.client, value.client_generation) = at.client;
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

/// Puts an entry for a flow that the packet's sender or receiver opened, as the ruling says. `new`: none is there.
#[inline(never)]
pub(super) fn insert<T: Tables>(at: &At<'_, T>, ruling: Ruling, flags: u32, new: bool) -> bool {
    let forward = ruling.is_forward();
    let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
    let zero = at.tables.zero();
    let unjudged = Judgement { epoch: zero, generation: zero };
    let mut value = FlowValue {
        judged: [[unjudged; 2]; 2],
        seen: at.now,
        flags: flags | flow_flag::OPENED << opener,
        fin_next: [zero; 2],
        revoked: zero,
        client: at.client.0,
        client_generation: at.client.1,
        #[cfg(feature = "layout-test")]
        pad_added: [zero; 2],
    };
    set_judged(&mut value, opener, role, at.judgement());
    value.flags |= ruling.deferred_bit() << opener;
    at.note_awaited(forward);
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
