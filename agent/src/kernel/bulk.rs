//! Many writes to one map at once: a change that gives thousands of addresses another class would else be as many system calls before
//! its epoch.

use anyhow::{Context as _, bail};
use aya::Pod;
use aya::maps::Map;
use aya::maps::lpm_trie::Key;
use palisade_common::layout::{Address, Backends, PortKey, PortValue, RuleKey, RuleValue, ServiceKey, Versioned};

use super::batch::Entries;
use super::maps::{Plain, key_v4, key_v6};
use crate::tables::plan::Write;

/// Fewer are written one by one.
const WORTHWHILE: usize = 8;

type Hash<K, V> = Entries<Plain<K>, Plain<V>>;
type Trie<K, V> = Entries<Key<Plain<K>>, Plain<V>>;

/// The maps of which a change may write many entries.
pub(super) struct Bulk {
    pub(super) exact_v4: Hash<u32, Versioned>,
    pub(super) exact_v6: Hash<Address, Versioned>,
    pub(super) cidr_v4: Trie<u32, Versioned>,
    pub(super) cidr_v6: Trie<Address, Versioned>,
    pub(super) rules: Hash<RuleKey, RuleValue>,
    pub(super) ports: Trie<PortKey, PortValue>,
    pub(super) services: Hash<ServiceKey, Versioned>,
    pub(super) backends: Hash<u32, Backends>,
}

/// The map's entries for calls with many of them.
pub(super) fn entries<K: Pod, V: Pod>(map: &Map) -> anyhow::Result<Entries<K, V>> {
    match map {
        Map::HashMap(data) | Map::LpmTrie(data) => Entries::new(data),
        other => bail!("neither a hash map nor a trie: {other:?}"),
    }
    .context("a map of policy")
}

/// How many writes at the front are of one sort for one map, so that they can be carried out at once: 1 where they are too few for that.
pub(super) fn run(writes: &[Write]) -> usize {
    let Some(first) = writes.first().and_then(sort) else { return writes.len().min(1) };
    let length = writes.iter().take_while(|write| sort(write) == Some(first)).count();
    if length < WORTHWHILE { 1 } else { length }
}

/// Which map, and whether an entry is removed; `None`: never at once.
fn sort(write: &Write) -> Option<(u8, bool)> {
    Some(match write {
        Write::ExactV4(_, value) => (0, value.is_none()),
        Write::ExactV6(_, value) => (1, value.is_none()),
        Write::CidrV4(_, value) => (2, value.is_none()),
        Write::CidrV6(_, value) => (3, value.is_none()),
        Write::Rule(_, value) => (4, value.is_none()),
        Write::Port(_, _, value) => (5, value.is_none()),
        Write::Service(_, value) => (6, value.is_none()),
        Write::Backends(_, value) => (7, value.is_none()),
        Write::Record(..) | Write::ServicePort(..) | Write::Stamp(..) | Write::Endpoint(..) | Write::Epoch(_) => {
            return None;
        }
    })
}

// === impl Bulk ===

impl Bulk {
    /// Carries a [`run`] out, in its order. Returns how many were: fewer where the kernel has refused the next one, or takes only one
    /// at a time for this map.
    pub(super) fn write(&self, writes: &[Write]) -> usize {
        match writes.first() {
            Some(Write::ExactV4(..)) => carry_out(&self.exact_v4, writes, |write| match *write {
                Write::ExactV4(address, value) => Some((Plain(address), value.map(Plain))),
                _ => None,
            }),
            Some(Write::ExactV6(..)) => carry_out(&self.exact_v6, writes, |write| match *write {
                Write::ExactV6(address, value) => Some((Plain(address), value.map(Plain))),
                _ => None,
            }),
            Some(Write::CidrV4(..)) => carry_out(&self.cidr_v4, writes, |write| match *write {
                Write::CidrV4(prefix, value) => Some((key_v4(prefix), value.map(Plain))),
                _ => None,
            }),
            Some(Write::CidrV6(..)) => carry_out(&self.cidr_v6, writes, |write| match *write {
                Write::CidrV6(prefix, value) => Some((key_v6(prefix), value.map(Plain))),
                _ => None,
            }),
            Some(Write::Rule(..)) => carry_out(&self.rules, writes, |write| match *write {
                Write::Rule(key, value) => Some((Plain(key), value.map(Plain))),
                _ => None,
            }),
            Some(Write::Port(..)) => carry_out(&self.ports, writes, |write| match *write {
                Write::Port(key, length, value) => Some((Key::new(length, Plain(key)), value.map(Plain))),
                _ => None,
            }),
            Some(Write::Service(..)) => carry_out(&self.services, writes, |write| match *write {
                Write::Service(key, value) => Some((Plain(key), value.map(Plain))),
                _ => None,
            }),
            Some(Write::Backends(..)) => carry_out(&self.backends, writes, |write| match *write {
                Write::Backends(row, value) => Some((Plain(row), value.map(Plain))),
                _ => None,
            }),
            _ => 0,
        }
    }
}

/// All of the writes put something, or all of them remove something.
fn carry_out<K: Pod, V: Pod>(
    entries: &Entries<K, V>,
    writes: &[Write],
    entry: impl Fn(&Write) -> Option<(K, Option<V>)>,
) -> usize {
    let mut done = 0;
    for chunk in writes.chunks(Entries::<K, V>::AT_ONCE) {
        let (keys, values): (Vec<K>, Vec<Option<V>>) = chunk.iter().filter_map(&entry).unzip();
        let values: Vec<V> = values.into_iter().flatten().collect();
        let now = if values.is_empty() { entries.remove_leading(&keys) } else { entries.put_leading(&keys, &values) };
        done += now;
        if now < chunk.len() {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_of_one_sort() {
        let put = |address| Write::ExactV4(address, Some(Versioned::constant(1)));
        let many: Vec<Write> = (0..20).map(put).collect();
        assert_eq!(run(&[]), 0);
        assert_eq!(run(&many), 20);
        assert_eq!(run(&many[..WORTHWHILE - 1]), 1, "too few");
        let then = |write| [many.clone(), vec![write], many.clone()].concat();
        assert_eq!(run(&then(Write::Epoch(2))), 20);
        assert_eq!(run(&then(Write::ExactV4(1, None))), 20);
        assert_eq!(run(&then(Write::ExactV6(Address::v6([0; 4]), None))), 20);
        assert_eq!(run(&[vec![Write::Epoch(2)], many].concat()), 1, "the epoch is written alone");
    }
}
