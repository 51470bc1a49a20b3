//! The kernel programs: entry points that only call.
//!
//! `from_pod` sits at tc ingress of the host's side of a pod's veth (the pod sends), `to_pod` at its tc egress (the pod receives);
//! `exit_link` and `exit_raw` at tc egress of every other device by which packets leave the node, `deliver` before the node's sockets,
//! `uplink` at XDP of the devices by which packets come in, where that is asked for.
//! A packet that passes goes on to whatever other programs are there: TC_ACT_UNSPEC is also TCX_NEXT.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic add on a map value, see lookup.rs")]

mod capture;
mod exits;
mod flow_pointer;
mod lookup;
mod maps;
mod mark;
mod parts;
mod report;
mod sockets;
mod uplink;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use palisade_common::decide::{Meeting, Ruling, decide};
use palisade_common::{Hook, Reason};

use crate::lookup::{Maps, Skb};

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    judge(&ctx, Hook::FromPod)
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    judge(&ctx, Hook::ToPod)
}

/// Loaded beside the others and never attached: what a packet costs that nothing is asked about.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(always)]
fn judge(ctx: &TcContext, hook: Hook) -> i32 {
    // SAFETY: the context is the kernel's own and lives as long as the program runs.
    let skb = unsafe { &*ctx.skb.skb };
    let stamp = mark::stamp_of(skb.mark);
    let meeting = Meeting { hook, ifindex: skb.ifindex, from_node: skb.ingress_ifindex == 0, stamp };
    let Some(packet) = maps::PACKETS.get_ptr_mut(maps::PACKET) else { return TC_ACT_SHOT };
    let parsed = || {
        parts::palisade_parse(ctx.skb.skb, packet, parts::LINK);
        // SAFETY: this CPU's own element; neither program runs inside the other on one CPU.
        unsafe { &*packet }
    };
    let mut ruling = decide(&Skb::new(ctx), parsed, &Maps::new(ctx.skb.skb), meeting);
    // What is refused for its mark is not the pod's to pause, but its sender's ([`parts::palisade_refused_leaving`]).
    if !ruling.passes() && ruling.stamp() == 0 && parts::palisade_is_paused(ctx_ifindex(ctx)) != 0 {
        ruling = Ruling::of(Reason::Paused);
    }
    report::count(ruling);
    if ruling.passes() {
        if report::is_new_flow(ruling) {
            // SAFETY: as above; what a rule admits was parsed.
            report::tell(ctx, unsafe { &*packet }, ruling, report::pod(hook, ctx_ifindex(ctx)));
        }
        if matches!(hook, Hook::FromPod) {
            mark::put(ctx, ruling.stamp());
        }
        TC_ACT_UNSPEC
    } else {
        let unsettled = ruling.reason_number() == Reason::Unsettled as u8;
        // SAFETY: as above; whatever else is refused was parsed.
        let packet = if unsettled { parsed() } else { unsafe { &*packet } };
        report::tell(ctx, packet, ruling, report::pod(hook, ctx_ifindex(ctx)));
        TC_ACT_SHOT
    }
}

/// Of the interface that the program is on.
#[inline(always)]
fn ctx_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's own and lives as long as the program runs. Read anew rather than kept on the stack.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Never reached: the verifier refuses a program in which it could be.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
