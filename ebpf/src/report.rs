//! What a program tells about its verdicts: counters, events of what was refused, and a log of oddities.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use palisade_common::decide::Ruling;
use palisade_common::layout::MET_PROCESS;
use palisade_common::parse::Packet;
use palisade_common::{Hook, Reason};

use crate::maps;

/// The reader is woken by the first record of a batch at most (BPF_RB_NO_WAKEUP is not set): a spinning reader costs more than a
/// wake-up does (KERNEL measurements in docs/benchmarks.md).
const RING_FLAGS: u64 = 0;

#[inline(always)]
pub fn count(ruling: Ruling) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(u32::from(ruling.reason_number())) {
        // SAFETY: this CPU's own counter, and programs are not preempted by themselves.
        unsafe { *counter += 1 };
    }
}

/// Where a packet is refused: the interface's index (0: a process of the node), and above it the [`Hook`] as a number.
pub type Place = u64;
const HOOK_SHIFT: u32 = 32;

#[inline(always)]
pub fn pod(hook: Hook, ifindex: u32) -> Place {
    let hook = match hook {
        Hook::FromPod => 0,
        Hook::ToPod => 1,
    };
    Place::from(ifindex) | hook << HOOK_SHIFT
}

/// An event for a refused packet, within this CPU's budget of the second; `false`: it is lost.
#[inline(never)]
pub fn refused(ctx: &TcContext, packet: &Packet, ruling: Ruling, place: Place) -> bool {
    // Coarse, as the exact clock costs more than sending the event does where reading the processor's counter is slow.
    // SAFETY: a helper without arguments.
    let time = unsafe { bpf_ktime_get_coarse_ns() };
    let (Some(config), Some(budget)) = (maps::CONFIG.get(0), maps::EVENT_BUDGET.get_ptr_mut(0)) else { return false };
    // SAFETY: this CPU's own element.
    let budget = unsafe { &mut *budget };
    let second = (time >> 30) as u32;
    if budget[0] != second {
        budget[0] = second;
        budget[1] = 0;
    }
    if budget[1] >= config.events_budget {
        return false;
    }
    budget[1] += 1;
    if ruling.reason_number() == Reason::Malformed as u8 || ruling.reason_number() == Reason::Unsettled as u8 {
        debug!(ctx, "interface {}: {} bytes refused, reason {}", place as u32, ctx.len(), ruling.reason_number());
    }
    let Some(mut record) = maps::EVENTS.reserve(0) else { return false };
    // What is refused for its mark is the sender's, wherever it is met.
    let (mut ifindex, mut hook, mut met) = (place as u32, (place >> HOOK_SHIFT) as u8, 0);
    if ruling.stamp() != 0 {
        met = if ifindex == 0 { MET_PROCESS } else { ifindex };
        ifindex = maps::STAMPS.get(u32::from(ruling.stamp())).copied().unwrap_or(0);
        hook = 0;
    }
    let event = record.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted, and every field is written. In place: an Event does not fit on the stack
    // beside the rest.
    unsafe {
        (*event).time = time;
        (*event).ifindex = ifindex;
        (*event).class = ruling.class();
        (*event).source = packet.source;
        (*event).destination = packet.destination;
        (*event).source_port = packet.source_port;
        (*event).destination_port = packet.destination_port;
        (*event).protocol = packet.protocol;
        (*event).family = packet.family;
        (*event).hook = hook;
        (*event).reason = ruling.reason_number();
        (*event).met = met;
        (*event).pad = 0;
    }
    record.submit(RING_FLAGS);
    true
}

/// Counts an event that nobody will see.
#[inline(always)]
pub fn lost() {
    if let Some(budget) = maps::EVENT_BUDGET.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { (*budget)[2] = (*budget)[2].wrapping_add(1) };
    }
}
