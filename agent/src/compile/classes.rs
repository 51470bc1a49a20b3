//! Peer classes: addresses that the same matchers match, and that resolve the named ports in use in the same way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use palisade_common::layout::{CLASS_ASK_CIDR, CLASS_NONE};

use super::numbers::next;
use crate::facts::NamedPort;
use crate::index::matchers::MatcherId;

/// What is said of an address. The lists of all signatures have one order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Signature {
    /// Selectors that match the address's pod.
    pub(super) selectors: Arc<[MatcherId]>,
    /// The pod's own numbers of the named ports that egress rules ask for.
    pub(super) ports: Arc<[NamedPort]>,
    /// ipBlocks that cover the address and do not except it.
    pub(super) blocks: Arc<[MatcherId]>,
}

#[derive(Debug)]
struct Class {
    signature: Signature,
    /// Addresses and prefixes.
    users: usize,
}

#[derive(Debug, Default)]
pub(super) struct Classes {
    ids: HashMap<Signature, u32>,
    classes: HashMap<u32, Class>,
    by_matcher: HashMap<MatcherId, BTreeSet<u32>>,
    with_ports: BTreeSet<u32>,
    born: BTreeSet<u32>,
    /// Nobody may use them any longer.
    released: BTreeSet<u32>,
}

// === impl Signature ===

impl Signature {
    pub(super) fn is_empty(&self) -> bool {
        let Self { selectors, ports, blocks } = self;
        selectors.is_empty() && ports.is_empty() && blocks.is_empty()
    }

    pub(super) fn matchers(&self) -> impl Iterator<Item = MatcherId> {
        self.selectors.iter().chain(&*self.blocks).copied()
    }
}

// === impl Classes ===

impl Classes {
    pub(super) fn acquire(&mut self, signature: Signature, highest: &mut u32) -> u32 {
        if signature.is_empty() {
            return CLASS_NONE;
        }
        if let Some(&id) = self.ids.get(&signature) {
            self.classes.get_mut(&id).expect("every id has its class").users += 1;
            return id;
        }
        let id = next(highest);
        assert!(id != CLASS_ASK_CIDR, "numbers last for 2^32 changes");
        for matcher in signature.matchers() {
            self.by_matcher.entry(matcher).or_default().insert(id);
        }
        if !signature.ports.is_empty() {
            self.with_ports.insert(id);
        }
        self.ids.insert(signature.clone(), id);
        self.classes.insert(id, Class { signature, users: 1 });
        self.born.insert(id);
        id
    }

    pub(super) fn release(&mut self, id: u32) {
        if let Some(class) = self.classes.get_mut(&id) {
            class.users -= 1;
            self.released.insert(id);
        }
    }

    /// Forgets the classes that no address has, and names them.
    pub(super) fn sweep(&mut self) -> Vec<u32> {
        let mut dead = Vec::new();
        while let Some(id) = self.released.pop_first() {
            if self.classes.get(&id).is_none_or(|class| class.users > 0) {
                continue;
            }
            let Class { signature, .. } = self.classes.remove(&id).expect("it was there just now");
            for matcher in signature.matchers() {
                if let Some(ids) = self.by_matcher.get_mut(&matcher) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.by_matcher.remove(&matcher);
                    }
                }
            }
            self.with_ports.remove(&id);
            self.ids.remove(&signature);
            self.born.remove(&id);
            dead.push(id);
        }
        dead
    }

    /// The classes that appeared since the last call.
    pub(super) fn take_born(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.born)
    }

    /// What a class means; [`CLASS_NONE`] and the dead mean nothing.
    pub(super) fn signature(&self, id: u32) -> Option<&Signature> {
        self.classes.get(&id).map(|class| &class.signature)
    }

    pub(super) fn ids(&self) -> BTreeSet<u32> {
        self.classes.keys().copied().collect()
    }

    pub(super) fn with_matcher(&self, matcher: MatcherId) -> impl Iterator<Item = u32> {
        self.by_matcher.get(&matcher).into_iter().flatten().copied()
    }

    pub(super) fn with_ports(&self) -> impl Iterator<Item = u32> {
        self.with_ports.iter().copied()
    }
}
