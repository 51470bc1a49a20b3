//! The decision function in parts that the verifier reads one by one.
//!
//! These are global functions (kernel commit 51c39bf1d5d0): the verifier reads each once, knowing nothing of who calls, and goes on
//! behind a call from one state. As parts of their callers they were read once for every state that these could be in, which took
//! more than a second. Pointers may be null as far as the verifier knows.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use palisade_common::decide::{self, Answer, Meeting, Question, Ruling};
use palisade_common::layout::EndpointRecord;
use palisade_common::parse::{self, Packet};
use palisade_common::{Hook, Reason};

use crate::lookup::{Maps, Skb};
use crate::maps;

/// What [`palisade_admission_from_pod`] and its like give where nothing is ruled yet.
pub const GOES_ON: u64 = u64::MAX;
/// In a meeting's number, beside the hook's.
const FROM_NODE: u32 = 1 << 8;

/// Parses the frame into `packet`; its traits.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_parse(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier makes sure that both are what they say, or null.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    parse::frame(&Skb::new(&TcContext::new(skb)), packet);
    packet.traits
}

/// [`decide::admission_from_pod`] as [`Ruling::to_bits`], or [`GOES_ON`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_admission_from_pod(
    skb: *mut __sk_buff,
    packet: *const Packet,
    record: *const EndpointRecord,
) -> u64 {
    // SAFETY: as above.
    let (Some(packet), Some(record)) = (unsafe { packet.as_ref() }, unsafe { record.as_ref() }) else {
        return Ruling::of(Reason::Unsettled).to_bits();
    };
    bits_of(decide::admission_from_pod(&Skb::new(&TcContext::new(skb)), packet, record))
}

/// [`decide::admission_to_pod`] as [`Ruling::to_bits`], or [`GOES_ON`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_admission_to_pod(packet: *const Packet, record: *const EndpointRecord) -> u64 {
    // SAFETY: as above.
    let (Some(packet), Some(record)) = (unsafe { packet.as_ref() }, unsafe { record.as_ref() }) else {
        return Ruling::of(Reason::Unsettled).to_bits();
    };
    bits_of(decide::admission_to_pod(packet, record))
}

#[inline(always)]
fn bits_of(reason: Option<Reason>) -> u64 {
    match reason {
        Some(reason) => Ruling::of(reason).to_bits(),
        None => GOES_ON,
    }
}

/// [`decide::isolated`], as [`Ruling::to_bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_isolated(
    skb: *mut __sk_buff,
    packet: *const Packet,
    record: *const EndpointRecord,
    epoch: u32,
    meeting: u32,
) -> u64 {
    // SAFETY: as above.
    let (Some(packet), Some(record)) = (unsafe { packet.as_ref() }, unsafe { record.as_ref() }) else {
        return Ruling::of(Reason::Unsettled).to_bits();
    };
    let meeting = Meeting { hook: hook_of(meeting), ifindex: record.ifindex, from_node: meeting & FROM_NODE != 0 };
    decide::isolated(&Maps { ctx: Some(&TcContext::new(skb)) }, packet, record, epoch, meeting).to_bits()
}

/// For [`palisade_isolated`] and [`palisade_icmp_error`].
#[inline(always)]
pub fn meeting_number(hook: Hook, from_node: bool) -> u32 {
    let hook = match hook {
        Hook::FromPod => 0,
        Hook::ToPod => 1,
    };
    if from_node { hook | FROM_NODE } else { hook }
}

#[inline(always)]
fn hook_of(meeting: u32) -> Hook {
    if meeting & 1 == 0 { Hook::FromPod } else { Hook::ToPod }
}

/// [`decide::icmp_error`], as [`Ruling::to_bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_icmp_error(
    skb: *mut __sk_buff,
    packet: *const Packet,
    record: *const EndpointRecord,
    epoch: u32,
    meeting: u32,
) -> u64 {
    // SAFETY: as above; the quoted packet's is another element of this CPU's than the packet's.
    let (Some(packet), Some(record), Some(quoted)) =
        (unsafe { packet.as_ref() }, unsafe { record.as_ref() }, maps::PACKETS.get_ptr_mut(maps::QUOTED))
    else {
        return Ruling::of(Reason::Unsettled).to_bits();
    };
    // SAFETY: as above.
    let quoted = unsafe { &mut *quoted };
    let ctx = TcContext::new(skb);
    let tables = Maps { ctx: Some(&ctx) };
    Ruling::of(decide::icmp_error(&tables, &Skb::new(&ctx), packet, quoted, (record, epoch, hook_of(meeting))))
        .to_bits()
}

/// [`decide::answer`], as [`Answer::to_bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_answer(question: *const Question) -> u64 {
    // SAFETY: as above.
    let Some(question) = (unsafe { question.as_ref() }) else { return Answer::NONE.to_bits() };
    decide::answer(&Maps { ctx: None }, question).to_bits()
}
