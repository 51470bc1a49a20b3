//! The decision function in parts that the verifier reads one by one.
//!
//! These are global functions (kernel commit 51c39bf1d5d0): the verifier reads each once, knowing nothing of who calls, and goes on
//! behind a call from one state. As parts of their callers they were read once for every state that these could be in, which took
//! more than a second. Pointers may be null as far as the verifier knows.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;
use palisade_common::decide::{self, Answer, Meeting, Place, Question, Ruling};
use palisade_common::flow::{self, Opened};
use palisade_common::layout::{Address, EndpointRecord, PauseKey, RECORD_NONE};
use palisade_common::parse::{self, Packet};
use palisade_common::{Hook, Reason, pause};

use crate::lookup::{Maps, Skb};
use crate::maps;

/// What [`palisade_admission_from_pod`] and its like give where nothing is ruled yet.
pub const GOES_ON: u64 = u64::MAX;
/// In a meeting's number, beside the hook's.
const FROM_NODE: u32 = 1 << 8;
/// In a meeting's number, above everything else: the stamp.
const STAMP_SHIFT: u32 = 16;

/// For [`palisade_parse`]: the packet begins with an Ethernet header.
pub const LINK: u32 = 0;
/// It begins with the IP header.
pub const RAW: u32 = 1;

/// Parses the frame into `packet`; its traits.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_parse(skb: *mut __sk_buff, packet: *mut Packet, begins: u32) -> u32 {
    // SAFETY: the verifier makes sure that both are what they say, or null.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    if begins == RAW {
        parse::network(&Skb::new(&TcContext::new(skb)), packet);
    } else {
        parse::frame(&Skb::new(&TcContext::new(skb)), packet);
    }
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
    let meeting = Meeting {
        hook: hook_of(meeting),
        ifindex: record.ifindex,
        from_node: meeting & FROM_NODE != 0,
        stamp: (meeting >> STAMP_SHIFT) as u16,
    };
    decide::isolated(&Maps::new(skb), packet, record, epoch, meeting).to_bits()
}

/// For [`palisade_isolated`] and [`palisade_icmp_error`].
#[inline(always)]
pub fn meeting_number(meeting: Meeting) -> u32 {
    let hook = match meeting.hook {
        Hook::FromPod => 0,
        Hook::ToPod => 1,
    };
    let hook = if meeting.from_node { hook | FROM_NODE } else { hook };
    hook | u32::from(meeting.stamp) << STAMP_SHIFT
}

#[inline(always)]
fn hook_of(meeting: u32) -> Hook {
    if meeting & 1 == 0 { Hook::FromPod } else { Hook::ToPod }
}

/// [`decide::refused_leaving`] as [`Ruling::to_bits`], or [`GOES_ON`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_refused_leaving(
    packet: *const Packet,
    record: *const EndpointRecord,
    stamp: u32,
    epoch: u32,
) -> u64 {
    // SAFETY: as above.
    let (Some(packet), Some(record)) = (unsafe { packet.as_ref() }, unsafe { record.as_ref() }) else {
        return Ruling::of(Reason::Unsettled).to_bits();
    };
    match decide::refused_leaving(&Maps::ALONE, packet, record, (stamp as u16, epoch)) {
        // Only the sender's word is passed over: the pod that is reached has its own.
        Some(ruling) if palisade_is_paused(stamp_owner(stamp)) == 0 => ruling.to_bits(),
        Some(_) | None => GOES_ON,
    }
}

/// [`decide::leaving`], as [`Ruling::to_bits`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_leaving(
    packet: *const Packet,
    client: *const EndpointRecord,
    epoch: u32,
    place: u32,
) -> u64 {
    // SAFETY: as above.
    let (Some(packet), Some(client)) = (unsafe { packet.as_ref() }, unsafe { client.as_ref() }) else {
        return Ruling::of(Reason::Unsettled).to_bits();
    };
    decide::leaving(&Maps::ALONE, packet, client, epoch, Place::from_number(place)).to_bits()
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
    let tables = Maps::new(skb);
    Ruling::of(decide::icmp_error(&tables, &Skb::new(&ctx), packet, quoted, (record, epoch, hook_of(meeting))))
        .to_bits()
}

/// [`flow::opened_by`], as [`Opened`]'s number; `hook`: as in a meeting's. The judgement of a flow asks from dozens of states, of which each
/// would have it read again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_opened_by(
    skb: *mut __sk_buff,
    packet: *const Packet,
    record: *const EndpointRecord,
    hook: u32,
    now: u64,
) -> u32 {
    // SAFETY: as above.
    let (Some(packet), Some(record)) = (unsafe { packet.as_ref() }, unsafe { record.as_ref() }) else {
        return Opened::Forward as u32;
    };
    flow::opened_by(&Maps::new(skb), packet, record, hook_of(hook), now) as u32
}

/// [`parse::transport`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_parse_transport(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    parse::transport(&Skb::new(&TcContext::new(skb)), packet);
    0
}

/// [`parse::extensions`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_parse_extensions(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: as above.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    parse::extensions(&Skb::new(&TcContext::new(skb)), packet);
    0
}

/// The index of an interface's record, or [`RECORD_NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_record_index(ifindex: u32, epoch: u32) -> u32 {
    decide::record_index(&Maps::ALONE, ifindex, epoch).unwrap_or(RECORD_NONE)
}

/// [`decide::answer`], as [`Answer::to_bits`]; `kind`: [`Question::kind`], `client`: its interface index, above that its generation.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_answer(
    peer: *const Address,
    record: *const EndpointRecord,
    kind: u64,
    client: u64,
    epoch: u32,
) -> u64 {
    // SAFETY: as above.
    let (Some(peer), Some(record)) = (unsafe { peer.as_ref() }, unsafe { record.as_ref() }) else {
        return Answer::NONE.to_bits();
    };
    let answer = decide::answer(&Maps::ALONE, &Question::new(peer, kind, client, epoch), record);
    if let Some(rule) = maps::LAST_RULE.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *rule = answer.rule_number() };
    }
    answer.to_bits()
}

/// The interface of the pod that marks its packets so; 0: nobody's.
#[inline(always)]
pub fn stamp_owner(stamp: u32) -> u32 {
    maps::STAMPS.get(stamp).copied().unwrap_or(0)
}

/// Whether an operator has paused enforcement for the interface's pod or for the node: 1 or 0. Asked about what would be refused, and only then.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn palisade_is_paused(ifindex: u32) -> u32 {
    let Some(config) = maps::CONFIG.get(0) else { return 0 };
    if config.paused_until == 0 {
        return 0;
    }
    let index = palisade_record_index(ifindex, config.epoch);
    let generation = maps::RECORDS.get(index).map_or(0, |record| record.generation);
    // SAFETY: values are words that are only ever replaced as a whole.
    let until = |key: PauseKey| unsafe { maps::PAUSES.get(key) }.copied();
    // Nobody's endpoint is every one's.
    let own = if generation == 0 { None } else { until(PauseKey { ifindex, generation }) };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    u32::from(pause::holds([own, until(PauseKey::NODE)], now))
}
