//! ICMP errors: told about a flow that would pass, to who sent the packet that they quote.

use super::{At, is_alive};
use crate::decide::{FlowEntry, Tables, owns};
use crate::layout::{endpoint_flag, flow_flag};
use crate::parse::{Packet, packet_trait};
use crate::verdict::{Hook, Reason};

/// An ICMP error passes if the packet it quotes (`at`) belongs to a flow that the endpoint would still let through, and it goes
/// to that packet's source.
#[inline(never)]
pub(crate) fn related<T: Tables>(at: &At<'_, T>, error: &Packet) -> Reason {
    let quoted = at.packet;
    // A pod tells only of what was sent to it; routers of what they forward. At the other hook the error goes to the pod, which is to
    // have sent what is quoted.
    let trusted = at.record.flags & endpoint_flag::TRUSTED != 0;
    if matches!(at.hook, Hook::ToPod) && !trusted && !owns(at.record, quoted.family, &quoted.destination) {
        return Reason::UnrelatedError;
    }
    if quoted.has(packet_trait::MALFORMED)
        || quoted.source.words != error.destination.words
        || quoted.family != error.family
    {
        return Reason::UnrelatedError;
    }
    if is_admitted(at) { Reason::RelatedError } else { Reason::UnrelatedError }
}

#[inline(always)]
fn is_admitted<T: Tables>(at: &At<'_, T>) -> bool {
    let (sender, opener) = (at.sender, 1 - at.sender);
    let Some(flow) = at.tables.flow(&at.key) else { return false };
    if !is_alive(&flow, at.packet.protocol, at.now) {
        return false;
    }
    let flags = flow.flags();
    let (forward, reverse) = (flow.judged(sender, at.forward_role()), flow.judged(opener, at.reverse_role()));
    // A pod tells nothing of a Service that has not answered it: what is told goes unmarked, and to whom policy may forbid.
    let unanswered = flags & (flow_flag::DEFERRED << opener) != 0 && flags & flow_flag::ANSWERED == 0;
    if unanswered && matches!(at.hook, Hook::ToPod) {
        return false;
    }
    if at.is_valid(forward) || at.is_valid(reverse) {
        return true;
    }
    let generation = at.record.generation;
    if at.tables.keeps_existing() && (forward.generation == generation || reverse.generation == generation) {
        return true;
    }
    // What the node opened needs no policy at the pod's end, whichever of the two sent what is quoted.
    let node = flags & flow_flag::NODE != 0;
    let (to_pod, from_pod) = (matches!(at.hook, Hook::ToPod), matches!(at.hook, Hook::FromPod));
    // The quoted packet bears no mark, but its sender's is remembered.
    let client = if to_pod { flow.client() } else { (0, 0) };
    if flags & (flow_flag::OPENED << sender) != 0 && ((node && to_pod) || at.ask_forward_for(client).is_allowed()) {
        return true;
    }
    flags & (flow_flag::OPENED << opener) != 0 && ((node && from_pod) || at.ask_reverse(Some(&flow)).is_allowed())
}
