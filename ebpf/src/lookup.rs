//! The kernel's answers to `common`'s questions: bytes of an skb, look-ups in maps.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;
use palisade_common::Hook;
use palisade_common::decide::{Answer, Meeting, Place, Question, Ruling, ServiceCount, Tables, take_midstream};
use palisade_common::flow::Opened;
use palisade_common::layout::{
    AWAITED_SINCE, Address, Backends, EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue, PORT_PREFIX_MAX,
    PortKey, RECORD_NONE, RuleKey, RuleValue, ServiceKey, Versioned, awaited_slot, service_port_bit,
};
use palisade_common::parse::{Bytes, HEADERS_MAX, Packet, V4, protocol};

use crate::flow_pointer::FlowPointer;
use crate::sockets::{NO_SOCKET, TCP, UDP, socket_state};
use crate::{maps, parts, report};

/// The bytes of an skb.
pub struct Skb<'a> {
    ctx: &'a TcContext,
}

impl<'a> Skb<'a> {
    #[inline(always)]
    pub const fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }
}

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        // Read back from the stack: the compiler would otherwise bound one copy of the offset and add another, sign-extended, to
        // the pointer ("R2 offset is outside of the packet", seen on 6.18).
        // SAFETY: reading a local.
        let offset = unsafe { core::ptr::read_volatile(&raw const offset) };
        if offset >= HEADERS_MAX {
            return None;
        }
        let start = (self.ctx.data() as *const u8).wrapping_add(offset as usize);
        if start.wrapping_add(N * 4) as usize <= self.ctx.data_end() {
            // SAFETY: the comparison proves to the verifier that all N words lie within the packet. They may be unaligned, which
            // BPF loads are allowed to be where the kernel has efficient unaligned access; reading them as words is what keeps
            // the compiler from loading byte by byte.
            return Some(unsafe { *start.cast::<[u32; N]>() });
        }
        self.ctx.load::<[u32; N]>(offset as usize).ok()
    }

    /// Of what is in one piece.
    #[inline(always)]
    fn first_words<const N: usize>(&self) -> Option<[u32; N]> {
        let start = self.ctx.data() as *const u8;
        if start.wrapping_add(N * 4) as usize <= self.ctx.data_end() {
            // SAFETY: as above.
            Some(unsafe { *start.cast::<[u32; N]>() })
        } else {
            None
        }
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: the context is the kernel's own and lives as long as the program runs.
        unsafe { (*self.ctx.skb.skb).gso_segs > 1 }
    }

    #[inline(always)]
    fn zero(&self) -> u32 {
        opaque_zero()
    }

    #[inline(always)]
    fn transport(&self, packet: &mut Packet) {
        parts::palisade_parse_transport(self.ctx.skb.skb, packet);
    }

    #[inline(always)]
    fn extensions(&self, packet: &mut Packet) {
        parts::palisade_parse_extensions(self.ctx.skb.skb, packet);
    }
}

/// See [`Bytes::zero`].
#[inline(always)]
pub fn opaque_zero() -> u32 {
    let zero = 0;
    // SAFETY: reading a local.
    unsafe { core::ptr::read_volatile(&raw const zero) }
}

/// The maps, asked on behalf of one packet.
#[derive(Clone, Copy)]
pub struct Maps {
    /// Null where there is none.
    skb: *mut __sk_buff,
}

impl Maps {
    /// For questions that need no packet.
    pub const ALONE: Self = Self { skb: core::ptr::null_mut() };

    #[inline(always)]
    pub const fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }
}

#[inline(always)]
fn config() -> Option<*const palisade_common::layout::Config> {
    maps::CONFIG.get_ptr(0)
}

impl Tables for Maps {
    type Flow<'b>
        = FlowPointer
    where
        Self: 'b;

    #[inline(always)]
    fn epoch(&self) -> u32 {
        match config() {
            // SAFETY: the pointer is that of a live array element. Volatile, since the agent changes it while we run.
            Some(config) => unsafe { core::ptr::read_volatile(&raw const (*config).epoch) },
            None => 0,
        }
    }

    #[inline(always)]
    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        // SAFETY: the element may be used again while we read; the epoch and the record's own ifindex are checked after.
        unsafe { maps::ENDPOINTS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn hint(&self, ifindex: u32, epoch: u32) -> Option<u32> {
        let hint = maps::HINTS.get_ptr(ifindex & maps::HINT_MASK)?;
        // SAFETY: a live array element; one aligned word, which another CPU may replace as a whole.
        let hint = unsafe { core::ptr::read_volatile(hint) };
        if hint != 0 && (hint >> 32) as u32 == epoch { Some(hint as u32) } else { None }
    }

    #[inline(always)]
    fn put_hint(&self, ifindex: u32, epoch: u32, index: u32) {
        if let Some(hint) = maps::HINTS.get_ptr_mut(ifindex & maps::HINT_MASK)
            && epoch != 0
        {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(hint, u64::from(epoch) << 32 | u64::from(index)) };
        }
    }

    #[inline(always)]
    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        maps::RECORDS.get(index)
    }

    #[inline(always)]
    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        if family == V4 {
            // SAFETY: a copy is taken at once; see ARCHITECTURE.md, "One instant".
            unsafe { maps::CLASS_EXACT_V4.get(address.v4_word()) }.copied()
        } else {
            // SAFETY: as above.
            unsafe { maps::CLASS_EXACT_V6.get(address) }.copied()
        }
    }

    #[inline(always)]
    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        if family == V4 {
            maps::CLASS_CIDR_V4.get(&Key::new(32, address.v4_word())).copied()
        } else {
            maps::CLASS_CIDR_V6.get(&Key::new(128, *address)).copied()
        }
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        // SAFETY: a copy is taken at once; rows are immutable while anything refers to them.
        unsafe { maps::RULES.get(key) }.copied()
    }

    #[inline(always)]
    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        let key = PortKey { ports_be: ports.to_be(), protocol, pad: 0, port_be: port.to_be() };
        maps::PORTS.get(&Key::new(PORT_PREFIX_MAX, key)).map(|value| value.rule)
    }

    #[inline(always)]
    fn admission<B: Bytes>(&self, _: &B, packet: &Packet, record: &EndpointRecord, hook: Hook) -> Option<Ruling> {
        let skb = self.skb;
        let ruling = match hook {
            Hook::FromPod => parts::palisade_admission_from_pod(skb, packet, record),
            Hook::ToPod => parts::palisade_admission_to_pod(packet, record),
        };
        if ruling == parts::GOES_ON { None } else { Some(Ruling::from_bits(ruling)) }
    }

    #[inline(always)]
    fn isolated(&self, packet: &Packet, record: &EndpointRecord, epoch: u32, meeting: Meeting) -> Ruling {
        let meeting = parts::meeting_number(meeting);
        Ruling::from_bits(parts::palisade_isolated(self.skb, packet, record, epoch, meeting))
    }

    #[inline(always)]
    fn refused_leaving(&self, packet: &Packet, record: &EndpointRecord, stamp: u16, epoch: u32) -> Option<Ruling> {
        let ruling = parts::palisade_refused_leaving(packet, record, u32::from(stamp), epoch);
        if ruling == parts::GOES_ON { None } else { Some(Ruling::from_bits(ruling)) }
    }

    #[inline(always)]
    fn leaving(&self, packet: &Packet, client: &EndpointRecord, epoch: u32, place: Place) -> Ruling {
        let place = match place {
            Place::Pod => 0,
            Place::Device => 1,
            Place::Process => 2,
        };
        Ruling::from_bits(parts::palisade_leaving(packet, client, epoch, place))
    }

    #[inline(always)]
    fn icmp_error<B: Bytes>(&self, _: &B, packet: &Packet, record: &EndpointRecord, epoch: u32, hook: Hook) -> Ruling {
        let meeting = parts::meeting_number(Meeting { hook, ifindex: 0, from_node: false, stamp: 0 });
        Ruling::from_bits(parts::palisade_icmp_error(self.skb, packet, record, epoch, meeting))
    }

    #[inline(always)]
    fn opened_by(&self, packet: &Packet, record: &EndpointRecord, hook: Hook, now: u64) -> Opened {
        let hook = u32::from(matches!(hook, Hook::ToPod));
        Opened::from_number(parts::palisade_opened_by(self.skb, packet, record, hook, now))
    }

    #[inline(always)]
    fn record_index(&self, ifindex: u32, epoch: u32) -> Option<u32> {
        let index = parts::palisade_record_index(ifindex, epoch);
        if index == RECORD_NONE { None } else { Some(index) }
    }

    #[inline(always)]
    fn answer(&self, question: &Question<'_>, record: &EndpointRecord) -> Answer {
        let client = u64::from(question.client.1) << 32 | u64::from(question.client.0);
        let (peer, kind, epoch) = (question.peer, question.kind(), question.epoch);
        Answer::from_bits(parts::palisade_answer(peer, record, kind, client, epoch))
    }

    #[inline(always)]
    fn has_service_port(&self, port: u16) -> bool {
        let (word, bit) = service_port_bit(port);
        match maps::SERVICE_PORTS.get_ptr(word) {
            // SAFETY: a live array element; one aligned word, which the agent replaces as a whole.
            Some(ports) => (unsafe { core::ptr::read_volatile(ports) }) & bit != 0,
            None => true,
        }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Versioned> {
        // SAFETY: a copy is taken at once. Another's, if the element is used again meanwhile, only spares or costs the first of two
        // judgements.
        unsafe { maps::SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn backends(&self, row: u32) -> Option<&Backends> {
        // SAFETY: rows are immutable and go only after the epoch has moved, which is looked at before anything is done about it.
        unsafe { maps::BACKENDS.get(row) }
    }

    #[inline(always)]
    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        maps::STAMPS.get(u32::from(stamp)).copied()
    }

    #[inline(always)]
    fn exits_missing(&self) -> bool {
        match config() {
            // SAFETY: a live array element. Volatile, since the agent changes it while we run.
            Some(config) => unsafe { core::ptr::read_volatile(&raw const (*config).exits_missing) != 0 },
            None => true,
        }
    }

    #[inline(always)]
    fn count_service(&self, what: ServiceCount) {
        if matches!(what, ServiceCount::Judged) {
            report::count_hit(report::last_rule());
        }
        let Some(stats) = maps::FLOW_STATS.get_ptr_mut(0) else { return };
        // SAFETY: a live array element; see `put_flow`.
        unsafe {
            let counter = match what {
                ServiceCount::Answered => &raw mut (*stats).service_answered,
                ServiceCount::Judged => &raw mut (*stats).service_judged,
            };
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1);
        }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowPointer> {
        maps::FLOWS.get_ptr_mut(key).map(FlowPointer)
    }

    #[inline(always)]
    fn put_flow(&self, key: &FlowKey, value: &FlowValue, new: bool) -> bool {
        let taken = maps::FLOWS.insert(key, value, BPF_ANY as u64).is_ok();
        if new && let Some(stats) = maps::FLOW_STATS.get_ptr_mut(0) {
            // The target's core has no AtomicU64::fetch_add (BPF lacks compare-and-swap before v3), but it has this instruction.
            // SAFETY: a live array element; inserts are rare enough that the atomic costs nothing that counts.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*stats).inserts, 1) };
        }
        taken
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        // SAFETY: a copy is taken at once.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        maps::FRAGMENTS.insert(key, value, BPF_ANY as u64).is_ok()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn pressure(&self, now: u64) -> bool {
        let (Some(config), Some(stats)) = (config(), maps::FLOW_STATS.get_ptr(0)) else { return false };
        // SAFETY: live array elements; a torn or old number only delays or prolongs the benefit of the doubt.
        unsafe {
            core::ptr::read_volatile(&raw const (*stats).inserts)
                > core::ptr::read_volatile(&raw const (*config).inserts_safe)
                || now < core::ptr::read_volatile(&raw const (*config).pressure_until)
        }
    }

    #[inline(always)]
    fn paused_until(&self) -> u32 {
        match config() {
            // SAFETY: a live array element.
            Some(config) => unsafe { core::ptr::read_volatile(&raw const (*config).paused_until) },
            None => 0,
        }
    }

    #[inline(always)]
    fn keeps_existing(&self) -> bool {
        match config() {
            // SAFETY: a live array element.
            Some(config) => unsafe { (*config).keep_existing != 0 },
            None => false,
        }
    }

    #[inline(always)]
    fn listens(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool> {
        const LISTEN: u32 = 10; // TCP_LISTEN
        if self.skb.is_null() {
            return None;
        }
        if packet.protocol != protocol::TCP || record.netns_id < 0 {
            return None;
        }
        let to_pod = matches!(hook, Hook::ToPod);
        Some(socket_state::<TCP>(self.skb, packet, record.netns_id, to_pod) == LISTEN)
    }

    #[inline(always)]
    fn is_connected(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool> {
        const CONNECTED: u32 = 1; // TCP_ESTABLISHED, which a connected socket of UDP has as its state too
        if self.skb.is_null() {
            return None;
        }
        if record.netns_id < 0 {
            return None;
        }
        match socket_state::<UDP>(self.skb, packet, record.netns_id, matches!(hook, Hook::ToPod)) {
            NO_SOCKET => None,
            state => Some(state == CONNECTED),
        }
    }

    #[inline(always)]
    fn note_awaited(&self, address: &Address, port: u16, second: u32) {
        let Some(since) = maps::AWAITED.get_ptr(AWAITED_SINCE) else { return };
        // SAFETY: a live array element. Volatile, since the agent changes it while we run.
        if unsafe { core::ptr::read_volatile(since) } == 0 {
            return;
        }
        if let Some(slot) = maps::AWAITED.get_ptr_mut(awaited_slot(address, port)) {
            // SAFETY: likewise; one aligned word.
            unsafe { core::ptr::write_volatile(slot, second) };
        }
    }

    #[inline(always)]
    fn zero(&self) -> u32 {
        opaque_zero()
    }

    #[inline(always)]
    fn take_midstream(&self, number: u32, now: u64) -> bool {
        let (Some(config), Some(stats)) = (config(), maps::ENDPOINT_STATS.get_ptr_mut(number)) else { return false };
        // SAFETY: live array elements. Two CPUs may count one admission between them: the budget is a bound, not an account.
        unsafe {
            match take_midstream(*stats, now, (*config).midstream_budget) {
                Some(next) => {
                    // Not the rest, which others count in.
                    (*stats).midstream_second = next.midstream_second;
                    (*stats).midstream_count = next.midstream_count;
                    true
                }
                None => false,
            }
        }
    }
}
