//! What a program tells about its verdicts: counters, events of what was refused, and a log of oddities.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use palisade_common::decide::{Meeting, Ruling};
use palisade_common::layout::Event;
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

/// An event for a refused packet, within this CPU's budget of the second; what is beyond is counted as lost.
#[inline(always)]
pub fn refused(ctx: &TcContext, packet: &Packet, ruling: Ruling, meeting: Meeting) {
    // SAFETY: a helper without arguments.
    let time = unsafe { bpf_ktime_get_ns() };
    let (Some(config), Some(budget)) = (maps::CONFIG.get(0), maps::EVENT_BUDGET.get_ptr_mut(0)) else { return };
    // SAFETY: this CPU's own element.
    let budget = unsafe { &mut *budget };
    let second = (time >> 30) as u32;
    if budget[0] != second {
        budget[0] = second;
        budget[1] = 0;
    }
    if budget[1] >= config.events_budget {
        budget[2] = budget[2].wrapping_add(1);
        return;
    }
    budget[1] += 1;
    if ruling.reason_number() == Reason::Malformed as u8 || ruling.reason_number() == Reason::Unsettled as u8 {
        debug!(ctx, "interface {}: {} bytes refused, reason {}", meeting.ifindex, ctx.len(), ruling.reason_number());
    }
    let Some(mut record) = maps::EVENTS.reserve(0) else {
        budget[2] = budget[2].wrapping_add(1);
        return;
    };
    record.write(Event {
        time,
        ifindex: meeting.ifindex,
        generation: 0,
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        protocol: packet.protocol,
        family: packet.family,
        hook: match meeting.hook {
            Hook::FromPod => 0,
            Hook::ToPod => 1,
        },
        reason: ruling.reason_number(),
        class: ruling.class(),
        pad: 0,
    });
    record.submit(RING_FLAGS);
}
