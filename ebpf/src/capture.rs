//! Refused packets of pods that somebody captures: their first bytes, and what an event tells beside.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use palisade_common::layout::{
    CAPTURE_BUDGET, CAPTURE_BYTES_MAX, CAPTURED_HEAD, CAPTURED_LINK, CAPTURED_RAW, CaptureWanted,
};
use palisade_common::parse::Packet;

use crate::maps;
use crate::report::{RING_FLAGS, Told, fill};

/// For [`palisade_capture`]: the interface's index, above it the hook's and the reason's numbers and whether the packet begins with the IP header.
#[inline(always)]
pub fn about(told: &Told, raw: bool) -> u64 {
    let numbers = u64::from(told.hook) | u64::from(told.reason) << 8 | u64::from(raw) << 16;
    u64::from(told.ifindex) | numbers << 32
}

/// Captures the packet if that is wanted of its pod. A global function, so that the verifier reads it once (see `parts.rs`).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_capture(
    skb: *mut __sk_buff,
    packet: *const Packet,
    about: u64,
    class: u32,
    met: u32,
) -> u32 {
    let Some(wanted) = maps::CAPTURES.get_ptr_mut(about as u32) else { return 0 };
    // SAFETY: the verifier makes sure that it is what it says, or null.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return 0 };
    let begins = if about >> 48 & 1 == 0 { CAPTURED_LINK } else { CAPTURED_RAW };
    // SAFETY: a helper without arguments.
    let time = unsafe { bpf_ktime_get_ns() };
    let (Some(budget), Some(captured)) = (maps::CAPTURE_BUDGET.get_ptr_mut(0), maps::CAPTURE.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's own element.
    let budget = unsafe { &mut *budget };
    let second = (time >> 30) as u32;
    if budget[0] != second {
        budget[0] = second;
        budget[1] = 0;
    }
    if budget[1] >= CAPTURE_BUDGET {
        return lost(wanted);
    }
    budget[1] += 1;
    let told = Told {
        time,
        ifindex: about as u32,
        class,
        met,
        rule: 0,
        hook: (about >> 32) as u8,
        reason: (about >> 40) as u8,
    };
    // SAFETY: this CPU's own element, every field of which is written before it is sent; the context is the kernel's own; and the length is that
    // of a part of the element, as the mask proves to the verifier.
    unsafe {
        fill(&raw mut (*captured).event, packet, &told);
        let length = (*skb).len;
        let wished = (*wanted).snaplen;
        let most = if length < wished { length } else { wished };
        let bytes = (most.wrapping_sub(1) & (CAPTURE_BYTES_MAX as u32 - 1)) + 1;
        (*captured).length = length;
        (*captured).captured = bytes;
        (*captured).begins = begins;
        (*captured).pad = 0;
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*captured).bytes).cast(), bytes) != 0 {
            return lost(wanted);
        }
        let record = core::slice::from_raw_parts(captured.cast::<u8>(), CAPTURED_HEAD + bytes as usize);
        if maps::CAPTURED.output_untyped::<[u8]>(record, RING_FLAGS).is_err() {
            return lost(wanted);
        }
    }
    1
}

#[inline(always)]
fn lost(wanted: *mut CaptureWanted) -> u32 {
    // SAFETY: a live element; if it has been taken away, nobody reads it any longer.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*wanted).lost, 1) };
    0
}
