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

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use palisade_common::layout::{Address, EndpointRecord};

pub use by_table::{ByTable, Delta, Tables};

/// POD_ADDRESSES: the interface of the one endpoint that has an address. Link-local ones reach no pod from outside.
pub fn pod_addresses<'r>(records: impl Iterator<Item = &'r EndpointRecord>) -> BTreeMap<Address, u32> {
    let mut owners: BTreeMap<Address, Option<u32>> = BTreeMap::new();
    for record in records {
        let v4 = record.v4.iter().filter(|word| **word != 0).map(|word| Address::v4(*word));
        let link_local = |address: &Address| u32::from_be(address.words[0]) >> 22 == 0xfe80 >> 6;
        let v6 = record.v6.iter().filter(|address| **address != Address::ZERO && !link_local(address)).copied();
        for address in v4.chain(v6) {
            owners
                .entry(address)
                .and_modify(|owner| *owner = owner.filter(|it| *it == record.ifindex))
                .or_insert(Some(record.ifindex));
        }
    }
    owners.into_iter().filter_map(|(address, owner)| Some((address, owner?))).collect()
}

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
