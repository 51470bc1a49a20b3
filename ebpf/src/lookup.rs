//! The kernel's answers to `common`'s questions: bytes of an skb, look-ups in maps.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::{size_of, size_of_val};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, bpf_sock_tuple};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::programs::TcContext;
use palisade_common::decide::{FlowEntry, Tables, take_midstream};
use palisade_common::layout::{
    Address, EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue, Judgement, PORT_PREFIX_MAX, PortKey,
    RuleKey, RuleValue, Versioned,
};
use palisade_common::parse::{Bytes, V4, protocol};

use crate::maps;

/// Headers are looked for in this much of a frame (bytes): Ethernet, two tags, IPv6 and eight extension headers of usual size.
const OFFSET_MAX: u32 = 2047;

/// The bytes of an skb.
pub struct Skb<'a> {
    pub ctx: &'a TcContext,
    pub gso: bool,
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
        if offset > OFFSET_MAX {
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

    #[inline(always)]
    fn is_gso(&self) -> bool {
        self.gso
    }

    #[inline(always)]
    fn zero(&self) -> u32 {
        opaque_zero()
    }
}

/// See [`Bytes::zero`].
#[inline(always)]
fn opaque_zero() -> u32 {
    let zero = 0;
    // SAFETY: reading a local.
    unsafe { core::ptr::read_volatile(&raw const zero) }
}

/// The maps, asked on behalf of one packet.
pub struct Maps<'a> {
    pub ctx: &'a TcContext,
}

#[inline(always)]
fn config() -> Option<*const palisade_common::layout::Config> {
    maps::CONFIG.get_ptr(0)
}

impl Tables for Maps<'_> {
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
    fn keeps_existing(&self) -> bool {
        match config() {
            // SAFETY: a live array element.
            Some(config) => unsafe { (*config).keep_existing != 0 },
            None => false,
        }
    }

    #[inline(always)]
    fn listens(&self, record: &EndpointRecord, family: u8, protocol: u8, local: (Address, u16)) -> Option<bool> {
        if protocol != protocol::TCP || record.netns_id < 0 {
            return None;
        }
        Some(is_listening(self.ctx.as_ptr().cast(), record.netns_id, family, local))
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
                    *stats = next;
                    true
                }
                None => false,
            }
        }
    }
}

/// Looks for a listening socket in the pod's namespace. An established one would be found first, so the remote end is none.
#[inline(always)]
fn is_listening(ctx: *mut __sk_buff, netns_id: i32, family: u8, (address, port): (Address, u16)) -> bool {
    const BPF_TCP_LISTEN: u32 = 10;
    // SAFETY: plain data, all zero is valid.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // SAFETY: writing a union's fields; the helper is told which of the two it is by the size. Sockets are reference counted: what
    // the look-up returns is released on the only path that has it.
    unsafe {
        let size = if family == V4 {
            tuple.__bindgen_anon_1.ipv4.daddr = address.v4_word();
            tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
            size_of_val(&tuple.__bindgen_anon_1.ipv4)
        } else {
            tuple.__bindgen_anon_1.ipv6.daddr = address.words;
            tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
            size_of_val(&tuple.__bindgen_anon_1.ipv6)
        };
        let socket = bpf_sk_lookup_tcp(ctx.cast(), &raw mut tuple, size as u32, netns_id as u32 as u64, 0);
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state == BPF_TCP_LISTEN
    }
}

/// A pointer into FLOWS.
pub struct FlowPointer(*mut FlowValue);

impl FlowEntry for FlowPointer {
    #[inline(always)]
    fn value(&self) -> FlowValue {
        // SAFETY: elements of an LRU map are never unmapped; one that is evicted meanwhile holds another flow's value, see FlowEntry.
        unsafe { *self.0 }
    }

    #[inline(always)]
    fn judged(&self, opener: usize, role: usize) -> Judgement {
        // SAFETY: as above; four constant places rather than a computed one, so that the verifier sees each.
        unsafe {
            match (opener, role) {
                (0, 0) => (*self.0).judged[0][0],
                (0, _) => (*self.0).judged[0][1],
                (_, 0) => (*self.0).judged[1][0],
                (_, _) => (*self.0).judged[1][1],
            }
        }
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).flags }
    }

    #[inline(always)]
    fn seen(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).seen }
    }

    #[inline(always)]
    fn fin_next(&self, sender: usize) -> u32 {
        // SAFETY: as above.
        unsafe { if sender == 0 { (*self.0).fin_next[0] } else { (*self.0).fin_next[1] } }
    }

    #[inline(always)]
    fn set_seen(&self, seen: u64) {
        // SAFETY: as above; admits nothing by itself.
        unsafe { (*self.0).seen = seen }
    }

    #[inline(always)]
    fn set_flags(&self, flags: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).flags = flags }
    }

    #[inline(always)]
    fn set_fin_next(&self, sender: usize, next: u32) {
        // SAFETY: as above.
        unsafe {
            if sender == 0 {
                (*self.0).fin_next[0] = next;
            } else {
                (*self.0).fin_next[1] = next;
            }
        }
    }
}

const _: () = assert!(size_of::<FlowPointer>() == size_of::<usize>());
