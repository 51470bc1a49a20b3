//! The kernel's tables as a value: what is wanted, what is there, and the ordered writes from one to the other.
//!
//! Pure: no I/O, no clock. `compile` says what is wanted, `kernel` carries the writes out, tests replay them one by one
//! against [`sim::Sim`], which answers the decision function exactly as the loaded maps would.

pub mod adopted;
pub mod plan;
pub mod sim;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use palisade_common::layout::{Address, EndpointRecord, PortKey, PortValue, RuleKey, RuleValue};

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

/// The contents of every table that policy decides, without the versions that only the way there needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By host interface index.
    pub endpoints: BTreeMap<u32, EndpointRecord>,
    /// Address as it lies in the packet → class.
    pub exact_v4: BTreeMap<u32, u32>,
    pub exact_v6: BTreeMap<Address, u32>,
    pub cidr_v4: BTreeMap<Ipv4Net, u32>,
    pub cidr_v6: BTreeMap<Ipv6Net, u32>,
    pub rules: BTreeMap<RuleKey, RuleValue>,
    /// By key and prefix length (bits, 48..=64).
    pub ports: BTreeMap<(PortKey, u32), PortValue>,
}

/// The difference to another [`Tables`]: new values of what changes, `None` for what goes.
///
/// `rules` and `ports` rows are never changed in place: a table id, class or port set that is referred to keeps its rows
/// (the compiler gives new content a new number); only rows of classes that no address has yet are added to a live table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    pub endpoints: BTreeMap<u32, Option<EndpointRecord>>,
    pub exact_v4: BTreeMap<u32, Option<u32>>,
    pub exact_v6: BTreeMap<Address, Option<u32>>,
    pub cidr_v4: BTreeMap<Ipv4Net, Option<u32>>,
    pub cidr_v6: BTreeMap<Ipv6Net, Option<u32>>,
    pub rules: BTreeMap<RuleKey, Option<RuleValue>>,
    pub ports: BTreeMap<(PortKey, u32), Option<PortValue>>,
}
