//! The list of the tables that policy decides. It is here once; what is done with every one of them is done here.

use std::collections::BTreeMap;

use ipnet::{Ipv4Net, Ipv6Net};
use palisade_common::layout::{Address, Backends, EndpointRecord, PortKey, PortValue, RuleKey, RuleValue, ServiceKey};

macro_rules! tables {
    ($($(#[$about:meta])* $field:ident: $key:ty => $value:ident, in $map:literal;)+) => {
        /// Something for each key of each table: of type `E` for an endpoint, `C` for what has a class or refers to a row by its number,
        /// `R` for a row of RULES, `P` for one of PORTS and `B` for one of BACKENDS.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct ByTable<E, C, R, P, B> {
            $($(#[$about])* pub $field: BTreeMap<$key, $value>,)+
        }

        impl Tables {
            /// What turns `self` into `wanted`.
            pub fn delta_to(&self, wanted: &Self) -> Delta {
                Delta { $($field: difference(&self.$field, &wanted.$field),)+ }
            }

            /// The part of `delta` that is not so already.
            pub fn without_known(&self, delta: &Delta) -> Delta {
                Delta { $($field: unknown(&self.$field, &delta.$field),)+ }
            }

            /// From what was there, of the keys that were written since, to what is there now.
            pub fn delta_since(&self, before: &Delta) -> Delta {
                Delta { $($field: change(&self.$field, &before.$field),)+ }
            }

            pub fn apply(&mut self, delta: &Delta) {
                $(apply(&mut self.$field, &delta.$field);)+
            }

            /// Names of the kernel's maps, and how many entries each takes.
            pub fn lens(&self) -> Vec<(&'static str, usize)> {
                vec![$(($map, self.$field.len())),+]
            }
        }
    };
}

tables! {
    /// By host interface index.
    endpoints: u32 => E, in "ENDPOINTS";
    /// By address as it lies in the packet.
    exact_v4: u32 => C, in "CLASS_EXACT_V4";
    exact_v6: Address => C, in "CLASS_EXACT_V6";
    cidr_v4: Ipv4Net => C, in "CLASS_CIDR_V4";
    cidr_v6: Ipv6Net => C, in "CLASS_CIDR_V6";
    rules: RuleKey => R, in "RULES";
    /// By key and prefix length (bits, 48..=64).
    ports: (PortKey, u32) => P, in "PORTS";
    services: ServiceKey => C, in "SERVICES";
    /// By row number.
    backends: u32 => B, in "BACKENDS";
}

/// The contents of every table, without the versions that only the way there needs.
pub type Tables = ByTable<EndpointRecord, u32, RuleValue, PortValue, Backends>;

/// The difference to another [`Tables`]: new values of what changes, `None` for what goes.
///
/// `rules`, `ports` and `backends` rows are never changed in place: a table id, class or port set that is referred to keeps its rows
/// (the compiler gives new content a new number); only rows of classes that no address has yet are added to a live table.
pub type Delta = ByTable<Option<EndpointRecord>, Option<u32>, Option<RuleValue>, Option<PortValue>, Option<Backends>>;

fn difference<K: Ord + Clone, V: PartialEq + Copy>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = from.keys().filter(|key| !to.contains_key(key)).map(|key| (key.clone(), None));
    let changed = to.iter().filter(|(key, value)| from.get(key) != Some(value)).map(|(k, v)| (k.clone(), Some(*v)));
    gone.chain(changed).collect()
}

fn unknown<K: Ord + Clone, V: PartialEq + Copy>(
    now: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, Option<V>>,
) -> BTreeMap<K, Option<V>> {
    wanted.iter().filter(|(key, value)| now.get(key) != value.as_ref()).map(|(k, v)| (k.clone(), *v)).collect()
}

fn change<K: Ord + Clone, V: PartialEq + Copy>(
    now: &BTreeMap<K, V>,
    before: &BTreeMap<K, Option<V>>,
) -> BTreeMap<K, Option<V>> {
    before
        .iter()
        .map(|(key, old)| (key, old, now.get(key).copied()))
        .filter(|(_, old, new)| *old != new)
        .map(|(key, _, new)| (key.clone(), new))
        .collect()
}

fn apply<K: Ord + Clone, V: Copy>(now: &mut BTreeMap<K, V>, delta: &BTreeMap<K, Option<V>>) {
    for (key, value) in delta {
        match value {
            Some(value) => now.insert(key.clone(), *value),
            None => now.remove(key),
        };
    }
}
