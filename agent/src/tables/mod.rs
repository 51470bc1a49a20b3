//! The kernel's tables as a value: what is wanted, what is there, and the ordered writes from one to the other.
//!
//! Pure: no I/O, no clock. `compile` says what is wanted, `kernel` carries the writes out, tests replay them one by one
//! against [`sim::Sim`], which answers the decision function exactly as the loaded maps would.

pub mod adopted;
mod by_table;
pub mod plan;
pub mod sim;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use palisade_common::layout::Address;

pub use by_table::{ByTable, Delta, Tables};

/// As it lies in the packet.
pub fn address_v4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// As it lies in the packet.
pub fn address_v6(address: Ipv6Addr) -> Address {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
    }
    Address::v6(words)
}
