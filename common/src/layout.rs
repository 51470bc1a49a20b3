//! The tables both sides share: keys and values as they lie in the kernel's maps.
//!
//! This is a contract. Padding is a named field and always zero (hash maps compare keys bytewise); no `bool`, `Option` or
//! `enum` crosses it; every size is asserted. A change of any layout raises [`LAYOUT_VERSION`], which is part of the path
//! under which maps are pinned.
//!
//! Byte order: addresses are kept as they travel (network order); ports and numbers are in host order unless the name ends
//! in `_be`.

#[macro_use]
mod permuted;
mod captures;
mod flows;
mod services;
mod uplink;

pub use self::captures::*;
pub use self::flows::*;
pub use self::services::*;
pub use self::uplink::*;
use permuted::ADDED;

/// Raised with every change to a struct or constant here; part of the pin path.
///
/// The next agent reads what one of another version has left by the names of fields, as the maps' own BTF has them: a field of the same
/// name and size means the same in every version, and an integer may become wider. So a field whose meaning changes gets another name;
/// what is padding has a name that begins with `pad`. Flows are taken over as long as every field of [`FlowKey`] is in both versions.
#[cfg(not(feature = "layout-test"))]
pub const LAYOUT_VERSION: u32 = 6;
/// Of a build that exists for tests of the change between two versions (see `permuted.rs`).
#[cfg(feature = "layout-test")]
pub const LAYOUT_VERSION: u32 = 1_000_006;

/// An IP address of either family in network byte order, IPv4 in its mapped form (`::ffff:a.b.c.d`).
///
/// The family is kept apart (a v4-mapped IPv6 address on the wire is IPv6, SEMANTICS 6.8), see [`Family`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Four words exactly as they lie in the packet.
    pub words: [u32; 4],
}

impl Address {
    pub const ZERO: Self = Self { words: [0; 4] };

    /// `word` as it lies in the packet.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { words: [0, 0, 0xffff_u32.to_be(), word] }
    }

    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The last word, which is the whole address of an IPv4 one.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }
}

/// IP version of an address or packet, as stored in keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    V4 = 4,
    V6 = 6,
}

/// A number that changes at an epoch: readers at `since` or later take `after`, earlier ones `before`.
///
/// This is how any number of writes become visible at one instant (ARCHITECTURE.md, "One instant").
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Versioned {
    pub since: u32,
    pub before: u32,
    pub after: u32,
}

impl Versioned {
    #[inline(always)]
    pub const fn at(&self, epoch: u32) -> u32 {
        // Wrapping, so that the order survives 2^32 changes.
        if (epoch.wrapping_sub(self.since) as i32) >= 0 { self.after } else { self.before }
    }

    /// The same at every epoch.
    pub const fn constant(value: u32) -> Self {
        Self { since: 0, before: value, after: value }
    }
}

// === Configuration ===

permuted! {
    /// Index 0 of the one-element array CONFIG. The agent maps it into its memory and stores whole words.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Config {
        /// The epoch that is in force.
        pub epoch: u32,
        /// 1: a stale flow is taken over without judging it again (`--existing-flows keep`).
        pub keep_existing: u32,
        /// Flow insertions (see [`FlowStats::inserts`]) above which the flow table may have evicted something.
        pub inserts_safe: u64,
        /// Until this time (ns, CLOCK_MONOTONIC) flows evicted earlier may still be wanted.
        pub pressure_until: u64,
        /// Mid-stream admissions per endpoint and second.
        pub midstream_budget: u32,
        /// Events per CPU and second.
        pub events_budget: u32,
        /// Of these, for one reason at one endpoint in one direction.
        pub events_group_budget: u32,
        /// 1: new flows that are admitted are told of too.
        pub events_admitted: u32,
        /// 1: a device by which packets leave the node lacks its program, so that nobody would judge what becomes of Service traffic.
        pub exits_missing: u32,
        /// When the last pause ends or has ended (seconds, CLOCK_MONOTONIC, rounded up); 0: there was none, and PAUSES is empty.
        pub paused_until: u32,
        /// Until this time (ns, CLOCK_MONOTONIC) CAPTURES is looked at where a packet is refused; 0: nobody captures. The agent puts it off as long
        /// as somebody does, so that it passes soon after an agent that was killed.
        pub captures_until: u64,
    }
}
const _: () = assert!(size_of::<Config>() == 56 + ADDED);

/// Index 0 of the one-element array FLOW_STATS, raised atomically by the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// New entries put into FLOWS.
    pub inserts: u64,
    /// Flows to Services that a pod was let open ([`crate::Reason::Service`]) and that were answered: somebody has received them.
    pub service_answered: u64,
    /// Flows admitted by their stamp where they ended up (beside those of [`crate::Reason::Hairpin`]). Lastingly fewer than were answered: somebody erases marks.
    pub service_judged: u64,
    /// Packets of the node's own whose mark has bits of the stamp: somebody else uses them.
    pub foreign_marks: u64,
}

/// PAUSES (hash): key of a pause → until when (ns, CLOCK_MONOTONIC) nothing is refused to and from the endpoint.
///
/// `palisade pause` writes them, with or without an agent; the programs end them by the clock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PauseKey {
    /// Interface index of the host side of the veth; 0: every endpoint of the node.
    pub ifindex: u32,
    /// [`EndpointRecord::generation`], so that no other pod inherits it; 0 for every endpoint.
    pub generation: u32,
}

impl PauseKey {
    pub const NODE: Self = Self { ifindex: 0, generation: 0 };
}

/// How many pauses there may be at once.
pub const PAUSES_MAX: u32 = 1024;

// === Endpoints ===

/// ENDPOINTS (hash): host interface index → index into RECORDS, or [`RECORD_NONE`].
pub type EndpointKey = u32;

/// The value of a [`Versioned`] index that means: there is none.
pub const RECORD_NONE: u32 = u32::MAX;

/// How many addresses of one family an endpoint may own.
pub const ADDRESSES_MAX: usize = 4;

permuted! {
    /// RECORDS (array): everything the programs know of one endpoint. Immutable while an ENDPOINTS entry refers to it.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EndpointRecord {
        /// Interface index of the host side of the veth; 0: the record is not in use.
        pub ifindex: u32,
        /// Stays the same for one pod; an address reused by another pod inherits no flow, as the generation differs. Never 0.
        pub generation: u32,
        /// Small number that is stable for the endpoint's life: index into ENDPOINT_STATS.
        pub number: u32,
        /// Bits of [`endpoint_flag`].
        pub flags: u32,
        /// Judges what is sent to the pod / what the pod sends.
        pub ingress: TableRef,
        pub egress: TableRef,
        /// Network namespace id of the veth's other end, relative to the node's namespace; negative: unknown.
        pub netns_id: i32,
        /// The pod's MAC: first four bytes, then last two bytes in the low half (both as they lie in the packet).
        pub mac_hi: u32,
        pub mac_lo: u32,
        pub v4_count: u32,
        pub v6_count: u32,
        /// Fingerprint of the pod's identity (its UID), so that the next agent recognises the record.
        pub identity_hi: u32,
        pub identity_lo: u32,
        /// Second (CLOCK_MONOTONIC) in which a policy began to isolate the pod in a direction in which it was open before; 0: it never was.
        pub isolated_at: u32,
        /// What marks the packets of flows that the pod opens, shifted into the bits of the stamp's mask; 0: none. Index into STAMPS.
        pub stamp: u32,
        pub pad: u32,
        /// The first of the IPv4 addresses once more, as a peer's address: what stands for the pod where it is masqueraded.
        pub as_peer: Address,
        /// IPv4 addresses, network order.
        pub v4: [u32; ADDRESSES_MAX],
        /// The directed broadcast address of each, network order; 0: none.
        pub v4_broadcast: [u32; ADDRESSES_MAX],
        /// IPv6 addresses, link-local ones included.
        pub v6: [Address; ADDRESSES_MAX],
    }
}
const _: () = assert!(size_of::<EndpointRecord>() == 112 + 16 + 16 + 64 + ADDED);

/// A decision table and what it says to classes that have no row in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableRef {
    pub table: u32,
    /// What every peer may use.
    pub default: RuleValue,
}

pub mod endpoint_flag {
    /// A policy selects the pod for this direction.
    pub const ISOLATED_INGRESS: u32 = 1 << 0;
    pub const ISOLATED_EGRESS: u32 = 1 << 1;
    /// Nothing passes except between the pod and its node: the pod is not known yet, or cannot be enforced.
    pub const CLOSED: u32 = 1 << 2;
    /// Router and VPN pods: may send from, and receive for, any address.
    pub const TRUSTED: u32 = 1 << 3;
    /// The pod had connections that no program saw being opened (it is older than its program, or was not isolated once).
    pub const MIDSTREAM: u32 = 1 << 4;
    /// Written before the first complete list of the node's first agent: nothing has been enforced on this node yet.
    pub const EARLY: u32 = 1 << 5;
}

// === Classes ===

/// CLASS_EXACT_V4 (hash): address as it lies in the packet → [`Versioned`] class.
pub type ExactV4Key = u32;

/// CLASS_EXACT_V6 (hash): address → [`Versioned`] class.
pub type ExactV6Key = Address;

/// CLASS_CIDR_V4 (LPM trie): the data of the key, network order.
pub type CidrV4Data = u32;

/// CLASS_CIDR_V6 (LPM trie): the data of the key, network order.
pub type CidrV6Data = Address;

/// Class of an address that no peer of this node's policies matches.
pub const CLASS_NONE: u32 = 0;

/// In CLASS_EXACT: this address has no entry of its own (now), ask CLASS_CIDR.
pub const CLASS_ASK_CIDR: u32 = u32::MAX;

// === Rules and ports ===

/// RULES (hash): what a class may use under a table, where it differs from the table's default.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    pub table: u32,
    pub class: u32,
}

/// What a class may use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleValue {
    /// [`PORTS_NONE`], [`PORTS_ALL`] or a port set.
    pub ports: u32,
    /// The rule that gave it, where `ports` is [`PORTS_ALL`] or a set of one range; else 0.
    pub rule: u32,
    /// The one range (ports in host order, both included) of a set that has only one, so that PORTS need not be asked; else 0.
    pub first: u16,
    pub last: u16,
    pub protocol: u8,
    pub pad: [u8; 3],
}
const _: () = assert!(size_of::<RuleValue>() == 16);

impl RuleValue {
    /// Nothing, or a set of several ranges.
    pub const fn set(ports: u32) -> Self {
        Self { ports, rule: 0, first: 0, last: 0, protocol: 0, pad: [0; 3] }
    }

    /// Everything, by `rule`.
    pub const fn all(rule: u32) -> Self {
        Self { ports: PORTS_ALL, rule, first: 0, last: 0, protocol: 0, pad: [0; 3] }
    }
}

/// Nothing is allowed.
pub const PORTS_NONE: u32 = 0;
/// Every protocol and port is allowed.
pub const PORTS_ALL: u32 = 1;
/// Port sets are numbered from here.
pub const PORTS_FIRST: u32 = 2;

/// PORTS (LPM trie): the data of the key. The port comes last so that a prefix covers a range of ports; protocol and set
/// are always matched whole, so prefix lengths run from [`PORT_PREFIX_MIN`] to [`PORT_PREFIX_MAX`] bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Port set, big endian as an LPM trie compares bytes from the left.
    pub ports_be: u32,
    pub protocol: u8,
    pub pad: u8,
    /// Destination port, network order.
    pub port_be: u16,
}
const _: () = assert!(size_of::<PortKey>() == 8);

/// Prefix length (bits) of a port set and protocol with every port.
pub const PORT_PREFIX_MIN: u32 = 48;
/// Prefix length (bits) of one port.
pub const PORT_PREFIX_MAX: u32 = 64;

/// PORTS: the rule that admits the port. An absent port is refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortValue {
    pub rule: u32,
}

/// Size of COUNTERS (per-CPU array of packets by [`crate::Reason`]).
pub const REASONS: usize = 64;

/// ENDPOINT_STATS (array), by endpoint number. What was counted by others of the same number is only nearly exact.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// The second (CLOCK_MONOTONIC) that `midstream_count` counts in.
    pub midstream_second: u32,
    pub midstream_count: u32,
    /// [`EndpointRecord::generation`] of the endpoint that the numbers below are of.
    pub generation: u32,
    pub pad: u32,
    /// New flows that were let through, by [`crate::Hook`] as a number.
    pub admitted: [u64; 2],
    /// Packets that were refused, likewise; wherever they were met.
    pub refused: [u64; 2],
}
const _: () = assert!(size_of::<EndpointStats>() == 48);

/// How many rules RULE_HITS (LRU hash: rule → new flows that it admitted) has at most: those that admitted something last.
pub const RULE_HITS_MAX: usize = 8192;

/// EVENTS (ring buffer): a refused packet, or the first of an admitted flow ([`Config::events_admitted`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds, CLOCK_MONOTONIC (coarse).
    pub time: u64,
    pub ifindex: u32,
    /// Class of the peer, where it was asked for.
    pub class: u32,
    pub source: Address,
    pub destination: Address,
    /// Host order; 0 where the packet has none.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    pub family: u8,
    /// [`crate::Hook`] as a number.
    pub hook: u8,
    /// [`crate::Reason`] as a number.
    pub reason: u8,
    /// Where the packet was met, if not at the endpoint's own interface: interface index ([`MET_PROCESS`]: at a process of the node).
    pub met: u32,
    /// The rule that admits; 0: none does, or none is needed.
    pub rule: u32,
}
const _: () = assert!(size_of::<Event>() == 64);

/// See [`Event::met`].
pub const MET_PROCESS: u32 = u32::MAX;

#[cfg(test)]
mod tests;
