//! Addresses and prefixes of both families as one kind of number, so that nothing is written twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use palisade_common::layout::{Address, Family};

/// The family comes first: both lie in one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Bits {
    pub(super) family: Family,
    /// From the left, as an LPM trie compares; IPv4 fills the first 32.
    pub(super) bits: u128,
}

/// Ordered so that all prefixes inside a prefix follow it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    pub(super) first: Bits,
    pub(super) len: u8,
}

/// The key of a CIDR table.
pub(super) enum Net {
    V4(Ipv4Net),
    V6(Ipv6Net),
}

// === impl Bits ===

impl Bits {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { family: Family::V4, bits: u128::from(u32::from(address)) << 96 },
            IpAddr::V6(address) => Self { family: Family::V6, bits: u128::from(address) },
        }
    }

    pub(super) fn address(self) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(self.v4()),
            Family::V6 => IpAddr::V6(self.v6()),
        }
    }

    fn v4(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::try_from(self.bits >> 96).expect("a number of 128 bits has 32 left of its last 96"))
    }

    fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from(self.bits)
    }

    /// The lowest of a family.
    pub(super) fn lowest(family: Family) -> Self {
        Self { family, bits: 0 }
    }

    /// The highest of a family.
    pub(super) fn highest(family: Family) -> Self {
        Self::lowest(family).prefix(0).last()
    }

    /// The prefix that is this address alone.
    pub(super) fn host(self) -> Prefix {
        let len = match self.family {
            Family::V4 => 32,
            Family::V6 => 128,
        };
        Prefix { first: self, len }
    }

    /// The prefix of a length that holds this.
    pub(super) fn prefix(self, len: u8) -> Prefix {
        Prefix { first: Self { bits: self.bits & !host_mask(len), ..self }, len }
    }
}

// === impl Prefix ===

impl Prefix {
    pub(super) fn of(net: IpNet) -> Self {
        Bits::of(net.network()).prefix(net.prefix_len())
    }

    /// It is one address.
    pub(super) fn is_host(self) -> bool {
        self == self.first.host()
    }

    pub(super) fn last(self) -> Bits {
        Bits { bits: self.first.bits | host_mask(self.len), ..self.first }
    }

    /// The longest prefix that can follow in the order and is still inside.
    pub(super) fn end(self) -> Self {
        Self { first: self.last(), len: 128 }
    }

    pub(super) fn net(self) -> Net {
        match self.first.family {
            Family::V4 => Net::V4(Ipv4Net::new_assert(self.first.v4(), self.len)),
            Family::V6 => Net::V6(Ipv6Net::new_assert(self.first.v6(), self.len)),
        }
    }
}

fn host_mask(len: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(len)).unwrap_or(0)
}

/// An IPv4 address as it lies in the packet.
pub(super) fn v4_word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// An IPv6 address as it lies in the packet.
pub(super) fn v6_words(address: Ipv6Addr) -> Address {
    let octets = address.octets();
    let word = |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
    Address::v6([word(0), word(4), word(8), word(12)])
}
