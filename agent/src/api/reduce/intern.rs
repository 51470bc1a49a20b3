//! Shares equal values: the pods of a workload carry the same labels and ports, so that 20,000 pods stay small.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use crate::facts::{HostPort, Labels, NamedPort};

#[derive(Debug, Default)]
pub struct Interner {
    labels: Shared<BTreeMap<String, String>>,
    ports: Shared<BTreeSet<NamedPort>>,
    host_ports: Shared<BTreeSet<HostPort>>,
    /// Of nodes and namespaces.
    names: Shared<str>,
}

impl Interner {
    pub fn labels(&mut self, labels: BTreeMap<String, String>) -> Labels {
        self.labels.share(labels)
    }

    pub fn ports(&mut self, ports: BTreeSet<NamedPort>) -> Arc<BTreeSet<NamedPort>> {
        self.ports.share(ports)
    }

    pub fn host_ports(&mut self, ports: BTreeSet<HostPort>) -> Arc<BTreeSet<HostPort>> {
        self.host_ports.share(ports)
    }

    /// The name of a node or namespace.
    pub fn name(&mut self, name: &str) -> Arc<str> {
        match self.names.known.get(name) {
            Some(known) => Arc::clone(known),
            None => self.names.add(name.into()),
        }
    }

    /// How many different values are kept.
    pub fn len(&self) -> usize {
        let Self { labels, ports, host_ports, names } = self;
        labels.known.len() + ports.known.len() + host_ports.known.len() + names.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug)]
struct Shared<T: ?Sized + Hash + Eq> {
    known: HashSet<Arc<T>>,
    /// How many may be known before those that nobody else holds are dropped: at most twice what was then in use, so
    /// that nothing leaks and a value costs constant time on average.
    sweep_at: usize,
}

impl<T: ?Sized + Hash + Eq> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SWEEP_MIN }
    }
}

const SWEEP_MIN: usize = 64;

impl<T: ?Sized + Hash + Eq> Shared<T> {
    fn add(&mut self, value: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = SWEEP_MIN.max(2 * self.known.len());
        }
        self.known.insert(Arc::clone(&value));
        value
    }
}

impl<T: Hash + Eq> Shared<T> {
    fn share(&mut self, value: T) -> Arc<T> {
        match self.known.get(&value) {
            Some(known) => Arc::clone(known),
            None => self.add(Arc::new(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_labels_are_one() {
        let mut interner = Interner::default();
        let labels = || BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        assert!(Arc::ptr_eq(&interner.labels(labels()), &interner.labels(labels())));
        assert!(Arc::ptr_eq(&interner.name("a"), &interner.name("a")));
    }

    #[test]
    fn what_nobody_holds_goes() {
        let mut interner = Interner::default();
        let held = interner.labels(BTreeMap::from([("held".to_owned(), String::new())]));
        for number in 0..10_000 {
            interner.labels(BTreeMap::from([("number".to_owned(), number.to_string())]));
        }
        assert!(interner.len() <= 2 * SWEEP_MIN, "{} values are kept", interner.len());
        let again = interner.labels(BTreeMap::from([("held".to_owned(), String::new())]));
        assert!(Arc::ptr_eq(&held, &again));
    }
}
