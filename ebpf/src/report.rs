//! What a program tells about its verdicts: counters, events of what was refused (and of what was admitted, if that is wanted), and a log
//! of oddities.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use palisade_common::decide::Ruling;
use palisade_common::layout::{Config, Event, MET_PROCESS, endpoint_flag};
use palisade_common::parse::Packet;
use palisade_common::{Hook, Reason};

use crate::{capture, maps, parts};

/// The reader is woken by the first record of a batch at most (BPF_RB_NO_WAKEUP is not set): a spinning reader costs more than a
/// wake-up does (KERNEL measurements in docs/benchmarks.md).
pub const RING_FLAGS: u64 = 0;

#[inline(always)]
pub fn count(ruling: Ruling) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(u32::from(ruling.reason_number())) {
        // SAFETY: this CPU's own counter, and programs are not preempted by themselves.
        unsafe { *counter += 1 };
    }
}

/// Where a packet is judged: the interface's index (0: a process of the node), above it the [`Hook`] as a number, and above that whether
/// it is at a pod's own interface, and whether the packet begins with the IP header.
pub type Place = u64;
const HOOK_SHIFT: u32 = 32;
const POD: Place = 1 << 40;
const RAW: Place = 1 << 41;

#[inline(always)]
pub fn pod(hook: Hook, ifindex: u32) -> Place {
    let hook = match hook {
        Hook::FromPod => 0,
        Hook::ToPod => 1,
    };
    Place::from(ifindex) | hook << HOOK_SHIFT | POD
}

/// A device by which packets leave the node, or, as 0, a process of the node. `begins`: [`parts::LINK`] or [`parts::RAW`].
#[inline(always)]
pub fn exit(ifindex: u32, begins: u32) -> Place {
    Place::from(ifindex) | if begins == parts::RAW { RAW } else { 0 }
}

/// What is told of one packet beside its addresses; see [`Event`].
pub struct Told {
    pub time: u64,
    pub ifindex: u32,
    pub class: u32,
    pub met: u32,
    pub rule: u32,
    pub hook: u8,
    pub reason: u8,
}

/// Writes every field. In place: an Event does not fit on the stack beside the rest.
///
/// # Safety
///
/// `event` is valid for writes.
#[inline(always)]
pub unsafe fn fill(event: *mut Event, packet: &Packet, told: &Told) {
    // SAFETY: as the caller says.
    unsafe {
        (*event).time = told.time;
        (*event).ifindex = told.ifindex;
        (*event).class = told.class;
        (*event).source = packet.source;
        (*event).destination = packet.destination;
        (*event).source_port = packet.source_port;
        (*event).destination_port = packet.destination_port;
        (*event).protocol = packet.protocol;
        (*event).family = packet.family;
        (*event).hook = told.hook;
        (*event).reason = told.reason;
        (*event).met = told.met;
        (*event).rule = told.rule;
    }
}

/// The packet opens a flow, and was let through for it. No packet of a flow that is known.
#[inline(always)]
pub fn is_new_flow(ruling: Ruling) -> bool {
    let reason = ruling.reason_number();
    reason == Reason::Allowed as u8 || reason == Reason::Service as u8
}

/// Counts a refused packet, or the first of a new flow, on its pod's account, and tells of it, within this CPU's budget of the second.
#[inline(always)]
pub fn tell(ctx: &TcContext, packet: &Packet, ruling: Ruling, place: Place) {
    palisade_tell(ctx.skb.skb, packet, ruling.to_bits(), place);
}

/// [`tell`], of [`Ruling::to_bits`]; read by itself (see `parts`).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_tell(skb: *mut __sk_buff, packet: *const Packet, ruling: u64, place: Place) -> u32 {
    // SAFETY: the verifier makes sure that it is a packet, or null.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return 0 };
    told(&TcContext::new(skb), packet, Ruling::from_bits(ruling), place);
    0
}

#[inline(always)]
fn told(ctx: &TcContext, packet: &Packet, ruling: Ruling, place: Place) {
    let (mut ifindex, mut hook, mut met) = (place as u32, (place >> HOOK_SHIFT) as u8 & 1, 0);
    let passes = ruling.passes();
    // What is judged for its mark is the sender's, wherever it is met.
    if ruling.stamp() != 0 && !(passes && place & POD != 0) {
        met = if ifindex == 0 { MET_PROCESS } else { ifindex };
        ifindex = maps::STAMPS.get(u32::from(ruling.stamp())).copied().unwrap_or(0);
        hook = 0;
    }
    let mut rule = 0;
    if passes && met != 0 {
        // Counted where the pod sent it, and its rule where it was asked (`count_service`).
        rule = last_rule();
    } else if account(ifindex, hook, passes) != 0 && ruling.reason_number() == Reason::Allowed as u8 {
        rule = last_rule();
        count_hit(rule);
    }
    let Some(config) = maps::CONFIG.get(0) else { return };
    if passes && config.events_admitted == 0 {
        return;
    }
    if ruling.reason_number() == Reason::Malformed as u8 || ruling.reason_number() == Reason::Unsettled as u8 {
        debug!(ctx, "interface {}: {} bytes refused, reason {}", place as u32, ctx.len(), ruling.reason_number());
    }
    let told = Told { time: now(), ifindex, class: ruling.class(), met, rule, hook, reason: ruling.reason_number() };
    if !passes && told.time < config.captures_until {
        capture::palisade_capture(ctx.skb.skb, packet, capture::about(&told, place & RAW != 0), told.class, met);
    }
    send(config, packet, &told);
}

/// The same of a packet to the pod at this interface that is refused where it comes in, by the device `uplink` (interface index).
#[inline(never)]
pub fn tell_early(packet: &Packet, ruling: Ruling, ifindex: u32, uplink: u32) {
    const TO_POD: u8 = Hook::ToPod as u8;
    if let Some(counter) = maps::EARLY.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter, and programs are not preempted by themselves.
        unsafe { *counter += 1 };
    }
    account(ifindex, TO_POD, false);
    if let Some(config) = maps::CONFIG.get(0) {
        let (class, reason) = (ruling.class(), ruling.reason_number());
        send(config, packet, &Told { time: now(), ifindex, class, met: uplink, rule: 0, hook: TO_POD, reason });
    }
}

/// Nanoseconds, CLOCK_MONOTONIC. Coarse, as the exact clock costs more than sending the event does where reading the processor's counter is
/// slow.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Whether somebody captures what is refused of the interface's pod.
#[inline(always)]
pub fn is_captured(ifindex: u32) -> bool {
    maps::CONFIG.get(0).is_some_and(|config| now() < config.captures_until)
        && maps::CAPTURES.get_ptr_mut(ifindex).is_some()
}

/// Sends an event if the budgets allow.
#[inline(always)]
fn send(config: &Config, packet: &Packet, told: &Told) {
    let group = (u32::from(told.hook) << 8 | u32::from(told.reason), told.ifindex);
    if !is_within_budget(config, group, (told.time >> 30) as u32) {
        return lost();
    }
    let Some(mut record) = maps::EVENTS.reserve(0) else { return lost() };
    // SAFETY: the record is ours until it is submitted.
    unsafe { fill(record.as_mut_ptr(), packet, told) };
    record.submit(RING_FLAGS);
}

/// Takes one event from the budgets of this second: one reason at one pod has only a part, so that it hides no other.
#[inline(always)]
fn is_within_budget(config: &Config, (what, ifindex): (u32, u32), second: u32) -> bool {
    // Knuth's and Murmur's multipliers: any that mix will do.
    let mixed = (ifindex.wrapping_mul(0x9e37_79b1) ^ what).wrapping_mul(0x85eb_ca6b);
    let group = maps::EVENT_GROUPS.get_ptr_mut(mixed >> (32 - maps::EVENT_GROUPS_BITS));
    let (Some(group), Some(budget)) = (group, maps::EVENT_BUDGET.get_ptr_mut(0)) else { return false };
    // SAFETY: this CPU's own elements.
    let (group, budget) = unsafe { (&mut *group, &mut *budget) };
    if group[0] != second {
        group[0] = second;
        group[1] = 0;
    }
    if budget[0] != second {
        budget[0] = second;
        budget[1] = 0;
    }
    if group[1] >= config.events_group_budget || budget[1] >= config.events_budget {
        return false;
    }
    group[1] += 1;
    budget[1] += 1;
    true
}

/// Counts on the account of the interface's endpoint. Returns whether a policy isolates it in the direction: 1 or 0.
#[inline(never)]
fn account(ifindex: u32, hook: u8, admitted: bool) -> u32 {
    let Some(config) = maps::CONFIG.get(0) else { return 0 };
    let index = parts::palisade_record_index(ifindex, config.epoch);
    let Some(record) = maps::RECORDS.get(index) else { return 0 };
    let Some(stats) = maps::ENDPOINT_STATS.get_ptr_mut(record.number) else { return 0 };
    // SAFETY: a live array element. What two CPUs count while the number is another endpoint's for the first time may be lost.
    unsafe {
        if (*stats).generation != record.generation {
            (*stats).generation = record.generation;
            (*stats).admitted = [0; 2];
            (*stats).refused = [0; 2];
        }
        let counter = match (admitted, hook) {
            (true, 0) => &raw mut (*stats).admitted[0],
            (true, _) => &raw mut (*stats).admitted[1],
            (false, 0) => &raw mut (*stats).refused[0],
            (false, _) => &raw mut (*stats).refused[1],
        };
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1);
    }
    let isolated = if hook == 0 { endpoint_flag::ISOLATED_EGRESS } else { endpoint_flag::ISOLATED_INGRESS };
    u32::from(record.flags & isolated != 0)
}

/// See [`maps::LAST_RULE`].
#[inline(always)]
pub fn last_rule() -> u32 {
    maps::LAST_RULE.get(0).copied().unwrap_or(0)
}

/// Counts a new flow that the rule (0: none) has admitted.
#[inline(always)]
pub fn count_hit(rule: u32) {
    if rule == 0 {
        return;
    }
    match maps::RULE_HITS.get_ptr_mut(rule) {
        // SAFETY: a live element; if it is another rule's by now, that has one hit too many.
        Some(hits) => _ = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(hits, 1) },
        None => _ = maps::RULE_HITS.insert(rule, 1_u64, u64::from(BPF_ANY)),
    }
}

/// Counts an event that nobody will see.
#[inline(always)]
fn lost() {
    if let Some(budget) = maps::EVENT_BUDGET.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { (*budget)[2] = (*budget)[2].wrapping_add(1) };
    }
}
