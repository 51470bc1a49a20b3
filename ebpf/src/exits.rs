//! Where marked packets end up, other than at a pod: devices by which they leave the node, and the node's own processes.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use palisade_common::Reason;
use palisade_common::decide::{Place, Ruling, decide_leaving};

use crate::lookup::Maps;
use crate::{maps, mark, parts, report};

/// At tc egress of a device with Ethernet headers.
#[classifier]
pub fn exit_link(ctx: TcContext) -> i32 {
    exit(&ctx, parts::LINK)
}

/// At tc egress of a device without link headers (tun, WireGuard, IP tunnels).
#[classifier]
pub fn exit_raw(ctx: TcContext) -> i32 {
    exit(&ctx, parts::RAW)
}

/// Before a socket of the node takes a packet in. 1: it may, 0: it is dropped.
#[cgroup_skb(ingress)]
pub fn deliver(ctx: SkBuffContext) -> i32 {
    let ctx = TcContext::new(ctx.skb.skb);
    // SAFETY: the context is the kernel's own and lives as long as the program runs.
    let (stamp, ifindex) = unsafe { (mark::stamp_of((*ctx.skb.skb).mark), (*ctx.skb.skb).ifindex) };
    if stamp != 0 && ifindex == LOOPBACK {
        count_foreign();
        return 1;
    }
    if stamp == 0 || judge(&ctx, stamp, parts::RAW, Place::Process) { 1 } else { 0 }
}

/// Index of the loopback device of every network namespace: what comes by it no pod has sent.
const LOOPBACK: u32 = 1;

#[inline(always)]
fn count_foreign() {
    if let Some(stats) = maps::FLOW_STATS.get_ptr_mut(0) {
        // SAFETY: a live array element.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*stats).foreign_marks, 1) };
    }
}

#[inline(always)]
fn exit(ctx: &TcContext, begins: u32) -> i32 {
    // SAFETY: as above.
    let skb = unsafe { &*ctx.skb.skb };
    let stamp = mark::stamp_of(skb.mark);
    if stamp == 0 {
        return TC_ACT_UNSPEC;
    }
    // What a process of the node sends is no pod's, whoever has marked it. Not what a tunnel has wrapped: that has no socket.
    // SAFETY: as above.
    let socket = unsafe { skb.__bindgen_anon_2.sk };
    if skb.ingress_ifindex == 0 && !socket.is_null() {
        count_foreign();
        return TC_ACT_UNSPEC;
    }
    if !judge(ctx, stamp, begins, Place::Device) {
        return TC_ACT_SHOT;
    }
    // Once judged it bears no stamp, or what a tunnel makes of it would be judged again.
    mark::put(ctx, 0);
    TC_ACT_UNSPEC
}

/// Whether the packet may go on.
#[inline(always)]
fn judge(ctx: &TcContext, stamp: u16, begins: u32, place: Place) -> bool {
    let Some(packet) = maps::PACKETS.get_ptr_mut(maps::PACKET) else { return false };
    let parsed = || {
        parts::palisade_parse(ctx.skb.skb, packet, begins);
        // SAFETY: this CPU's own element; no program that uses it runs inside another on one CPU.
        unsafe { &*packet }
    };
    let mut ruling = decide_leaving(parsed, &Maps::ALONE, stamp, place);
    if !ruling.passes() && parts::palisade_is_paused(parts::stamp_owner(u32::from(stamp))) != 0 {
        ruling = Ruling::of(Reason::Paused);
    }
    report::count(ruling);
    // SAFETY: as above.
    let device = || if matches!(place, Place::Device) { unsafe { (*ctx.skb.skb).ifindex } } else { 0 };
    if ruling.passes() {
        if report::is_new_flow(ruling) {
            // SAFETY: as above; what a rule admits was parsed.
            report::tell(ctx, unsafe { &*packet }, ruling, report::exit(device(), begins));
        }
        return true;
    }
    let unparsed = matches!(ruling.reason(), Reason::Unsettled | Reason::UnknownStamp);
    // SAFETY: as above; whatever else is refused was parsed.
    let packet = if unparsed { parsed() } else { unsafe { &*packet } };
    report::tell(ctx, packet, ruling, report::exit(device(), begins));
    false
}
