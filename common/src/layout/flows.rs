//! What is remembered of flows and of datagrams in pieces.

use super::Address;
use super::permuted::ADDED;

permuted! {
    /// FLOWS (LRU hash): both directions of a flow have one key: the end with the lower (address, port) comes first.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct FlowKey {
        pub low: Address,
        pub high: Address,
        /// Host order. ICMP echo: the identifier in both; protocols without ports: 0.
        pub low_port: u16,
        pub high_port: u16,
        pub protocol: u8,
        /// [`Family`] as a number.
        pub family: u8,
        pub pad: u16,
    }
}
const _: () = assert!(size_of::<FlowKey>() == 40 + ADDED);

/// One judgement that is remembered: valid while both numbers are the endpoint's and the node's own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Judgement {
    /// The epoch it was made at, as read before any table was read.
    pub epoch: u32,
    /// Generation of the endpoint it was made for; 0: refused, or not judged.
    pub generation: u32,
}

permuted! {
    /// FLOWS: who opened the flow, and what was decided about it.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FlowValue {
        /// By opener (0: the low end, 1: the high end) and role (0: egress of the opener, 1: ingress of the other end).
        pub judged: [[Judgement; 2]; 2],
        /// Nanoseconds, CLOCK_MONOTONIC (coarse), of about the last packet.
        pub seen: u64,
        /// Bits of [`flow_flag`].
        pub flags: u32,
        /// TCP: the sequence number after each end's FIN (by sender: low, high).
        pub fin_next: [u32; 2],
        /// Protocols without connections: when a judgement was first found to hold no longer, and which one; see [`revoked`].
        pub revoked: u32,
        /// The pod of this node that opened the flow behind a masqueraded address: its interface index and generation; 0: none.
        pub client: u32,
        pub client_generation: u32,
    }
}
const _: () = assert!(size_of::<FlowValue>() == 64 + ADDED);

/// [`FlowValue::revoked`]: a moment in seconds (CLOCK_MONOTONIC, 30 bits), and which judgement; 0: none.
#[inline(always)]
pub const fn revoked(second: u32, opener: usize, role: usize) -> u32 {
    second << 2 | (opener as u32) << 1 | role as u32
}

pub mod flow_flag {
    /// The low (high: one bit up) end opened the flow at least once.
    pub const OPENED: u32 = 1 << 0;
    /// The opener is a process of the node: always admitted at the other end.
    pub const NODE: u32 = 1 << 2;
    /// TCP: the end sent its FIN.
    pub const FIN: u32 = 1 << 4;
    /// TCP: the end's FIN was acknowledged.
    pub const FIN_ACKED: u32 = 1 << 6;
    /// TCP: reset by an end that is certain.
    pub const RESET: u32 = 1 << 8;
    /// TCP: a reset was seen that may be forged; the flow lives on for a short while.
    pub const RESET_SEEN: u32 = 1 << 9;
    /// Admitted mid-stream by the reverse question and not yet confirmed by a packet of the end that opened it.
    pub const UNCONFIRMED: u32 = 1 << 10;
    /// A judgement was taken over without judging again (`--existing-flows keep`): good for what goes on, not for an opening.
    pub const KEPT: u32 = 1 << 11;
    /// The low (high: one bit up) end's opening was let go on as a Service's, and is judged where it ends up.
    pub const DEFERRED: u32 = 1 << 12;
    /// A deferred flow was answered.
    pub const ANSWERED: u32 = 1 << 14;
    /// Only known from where it leaves the node: answers come by another tuple.
    pub const LEAVING: u32 = 1 << 15;
}

/// FRAGMENTS (LRU hash): where the first fragment of a datagram was admitted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// Identification, as it lies in the packet (IPv4: the low half).
    pub id: u32,
    pub ifindex: u32,
    pub protocol: u8,
    pub family: u8,
    /// [`crate::Hook`] as a number, or [`FRAGMENT_LEAVING`].
    pub hook: u8,
    pub pad: u8,
    pub pad2: u32,
}
const _: () = assert!(size_of::<FragmentKey>() == 48);

/// [`FragmentKey::hook`]: judged by its stamp, where it ended up.
pub const FRAGMENT_LEAVING: u8 = 2;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentValue {
    pub judged: Judgement,
    /// Nanoseconds, CLOCK_MONOTONIC (coarse), of the first fragment.
    pub seen: u64,
    /// 1: the first fragment belonged to a flow that its sender opened.
    pub forward: u32,
    pub pad: u32,
}
