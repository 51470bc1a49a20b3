//! What the program on the node's uplinks knows beside the tables of policy. None of it is pinned: each agent makes it anew.

use super::Address;

/// UPLINK (array of one): what the program has to know of the node's network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Where tunnels end on this node, by the family of what is outside (IPv4, IPv6).
    pub tunnels: [TunnelEnd; 2],
    /// The source that the node gives what it masquerades on the way to its pods, by family; [`Address::ZERO`]: none.
    pub masquerade: [Address; 2],
    /// 1: the node may give any other source, so that nothing of the family is refused early.
    pub unsure: [u32; 2],
}
const _: () = assert!(size_of::<UplinkConfig>() == 2 * 24 + 2 * 16 + 8);

/// The node's end of a VXLAN.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelEnd {
    /// The node's own, to which the outer packet is addressed.
    pub address: Address,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, host order; 0: there is no tunnel.
    pub port: u16,
    pub pad: u16,
}

impl UplinkConfig {
    /// Index of a family's part.
    #[inline(always)]
    pub const fn part(family: u8) -> usize {
        if family == super::Family::V4 as u8 { 0 } else { 1 }
    }
}

/// POD_ADDRESSES (hash): address of a pod of this node → its interface index. Not in there: an address that several endpoints have.
///
/// Not versioned, as the record says whose the address is: an entry that changes is removed before the change holds, and put after it.
pub type PodAddressKey = Address;

/// AWAITED (array): the second (CLOCK_MONOTONIC) in which a pod last had a flow of UDP under way that it opened from the port whose
/// [`awaited_slot`] this is; 0: never. Several share a slot.
pub const AWAITED_SLOTS: u32 = 1 << 16;
/// One more element: since when it is written down (second, CLOCK_MONOTONIC); 0: it is not.
pub const AWAITED_SINCE: u32 = AWAITED_SLOTS;

/// As long as a silent flow of UDP is remembered, and a bit more as both clocks are coarse (seconds).
pub const AWAITED_SECONDS: u32 = 184;

/// The place of a pod's address and port (host order) in AWAITED.
#[inline(always)]
pub const fn awaited_slot(address: &Address, port: u16) -> u32 {
    let [a, b, c, d] = address.words;
    // Knuth's and Murmur's multipliers: any that mix will do.
    let mixed = (a ^ b.rotate_left(7) ^ c.rotate_left(13) ^ d).wrapping_mul(0x9e37_79b1) ^ port as u32;
    mixed.wrapping_mul(0x85eb_ca6b) >> (32 - AWAITED_SLOTS.trailing_zeros())
}

/// Whether an answer may come to a port, whose slot says `then`, at `second`; `since` is [`AWAITED_SINCE`]'s.
#[inline(always)]
pub const fn is_awaited(then: u32, since: u32, second: u32) -> bool {
    let complete = since != 0 && second.saturating_sub(since) > AWAITED_SECONDS;
    !complete || (then != 0 && second.saturating_sub(then) <= AWAITED_SECONDS)
}
