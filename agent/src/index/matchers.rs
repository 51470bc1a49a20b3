//! Which pod matchers match a pod, without asking every matcher.
//!
//! A matcher is found through its namespace and through one label that it requires; only what requires no label of a
//! certain value is asked every time. The compiler owns one and keeps in it the matchers of policies that matter here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::facts::{Labels, Namespaces, Operator, Selector};

/// A distinct peer. Numbers only grow, so that one always means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MatcherId(pub u32);

type Items<T> = Vec<(Selector, T)>;

/// Selectors by a label that they require.
#[derive(Debug)]
struct Anchored<T> {
    /// Key → value → those that require it.
    by_label: HashMap<Arc<str>, HashMap<String, Items<T>>>,
    rest: Items<T>,
}

#[derive(Debug, Default)]
pub struct PodMatchers {
    named: HashMap<Arc<str>, Anchored<MatcherId>>,
    /// Namespace selector → number of its group, by which it is found through the namespace's labels.
    groups: BTreeMap<Selector, u32>,
    by_namespace_labels: Anchored<u32>,
    matching: HashMap<u32, Anchored<MatcherId>>,
    next_group: u32,
}

/// The part of [`PodMatchers`] that concerns one namespace.
pub struct NamespaceMatchers<'a> {
    sets: Vec<&'a Anchored<MatcherId>>,
}

// === impl PodMatchers ===

impl PodMatchers {
    pub fn insert(&mut self, id: MatcherId, namespaces: &Namespaces, pods: &Selector) {
        match namespaces {
            Namespaces::Named(name) => self.named.entry(name.clone()).or_default().insert(pods, id),
            Namespaces::Matching(selector) => {
                let group = *self.groups.entry(selector.clone()).or_insert_with(|| {
                    self.next_group += 1;
                    self.by_namespace_labels.insert(selector, self.next_group);
                    self.next_group
                });
                self.matching.entry(group).or_default().insert(pods, id);
            }
        }
    }

    pub fn remove(&mut self, id: MatcherId, namespaces: &Namespaces, pods: &Selector) {
        match namespaces {
            Namespaces::Named(name) => {
                if let Some(anchored) = self.named.get_mut(name) {
                    anchored.remove(pods, id);
                    if anchored.is_empty() {
                        self.named.remove(name);
                    }
                }
            }
            Namespaces::Matching(selector) => {
                let Some(&group) = self.groups.get(selector) else { return };
                let anchored = self.matching.entry(group).or_default();
                anchored.remove(pods, id);
                if anchored.is_empty() {
                    self.matching.remove(&group);
                    self.groups.remove(selector);
                    self.by_namespace_labels.remove(selector, group);
                }
            }
        }
    }

    /// The matchers that match a pod, sorted. `namespace_labels`: `None` where the Namespace object is not known.
    pub fn of_pod(&self, namespace: &str, namespace_labels: Option<&Labels>, labels: &Labels) -> Vec<MatcherId> {
        self.in_namespace(namespace, namespace_labels).of_pod(labels)
    }

    /// Those that may match pods of a namespace, for many questions about one.
    pub fn in_namespace(&self, namespace: &str, namespace_labels: Option<&Labels>) -> NamespaceMatchers<'_> {
        let mut sets: Vec<&Anchored<MatcherId>> = self.named.get(namespace).into_iter().collect();
        if let Some(namespace_labels) = namespace_labels {
            self.by_namespace_labels.matching(namespace_labels, |group| {
                sets.extend(self.matching.get(&group));
                true
            });
        }
        NamespaceMatchers { sets }
    }
}

// === impl NamespaceMatchers ===

impl NamespaceMatchers<'_> {
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Sorted.
    pub fn of_pod(&self, labels: &Labels) -> Vec<MatcherId> {
        let mut found = BTreeSet::new();
        for anchored in &self.sets {
            anchored.matching(labels, |id| found.insert(id));
        }
        found.into_iter().collect()
    }
}

// === impl Anchored ===

impl<T> Default for Anchored<T> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), rest: Vec::new() }
    }
}

impl<T: Copy + PartialEq> Anchored<T> {
    fn insert(&mut self, selector: &Selector, item: T) {
        match anchor(selector) {
            Some((key, values)) => {
                let by_value = self.by_label.entry(key.clone()).or_default();
                for value in values {
                    by_value.entry(value.clone()).or_default().push((selector.clone(), item));
                }
            }
            None => self.rest.push((selector.clone(), item)),
        }
    }

    fn remove(&mut self, selector: &Selector, item: T) {
        let Some((key, values)) = anchor(selector) else {
            self.rest.retain(|(_, other)| *other != item);
            return;
        };
        let Some(by_value) = self.by_label.get_mut(key) else { return };
        for value in values {
            if let Some(items) = by_value.get_mut(value) {
                items.retain(|(_, other)| *other != item);
                if items.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_label.remove(key);
        }
    }

    fn is_empty(&self) -> bool {
        let Self { by_label, rest } = self;
        by_label.is_empty() && rest.is_empty()
    }

    fn matching(&self, labels: &Labels, mut found: impl FnMut(T) -> bool) {
        let mut ask = |items: &[(Selector, T)]| {
            for (selector, item) in items {
                if selector.matches(labels) {
                    found(*item);
                }
            }
        };
        ask(&self.rest);
        if self.by_label.is_empty() {
            return;
        }
        // A pod may have fifty labels, of which selectors name two.
        if self.by_label.len() < labels.len() {
            for (key, by_value) in &self.by_label {
                if let Some(items) = labels.get(&**key).and_then(|value| by_value.get(value)) {
                    ask(items);
                }
            }
            return;
        }
        for (key, value) in &**labels {
            if let Some(items) = self.by_label.get(&**key).and_then(|by_value| by_value.get(value)) {
                ask(items);
            }
        }
    }
}

/// The requirement through which a selector is found: one of the fewest values. No value at all: found never, rightly.
fn anchor(selector: &Selector) -> Option<(&Arc<str>, &BTreeSet<String>)> {
    let required = selector.requirements.iter().filter_map(|requirement| match &requirement.operator {
        Operator::In(values) => Some((&requirement.key, values)),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    });
    required.min_by_key(|(_, values)| values.len())
}
