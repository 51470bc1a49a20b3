//! Mark and sweep: what a complete list did not name is gone, and nothing is removed before the list's end.

use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;
use std::mem;
use std::sync::Arc;

use super::PodKey;
use crate::facts::{Kind, ObjectName};

/// Names that were there when a list began and were not seen since. Empty where no list is under way: a name that is not
/// in the set is never swept.
#[derive(Debug, Default)]
pub(super) struct Relists {
    namespaces: HashSet<Arc<str>>,
    pods: HashSet<PodKey>,
    policies: HashSet<ObjectName>,
    nodes: HashSet<Arc<str>>,
    services: HashSet<ObjectName>,
    listed: BTreeSet<Kind>,
}

// === impl Relists ===

impl Relists {
    pub(super) fn complete(&self) -> bool {
        Kind::ALL.iter().filter(|kind| kind.is_needed()).all(|kind| self.listed.contains(kind))
    }

    pub(super) fn has_services(&self) -> bool {
        self.listed.contains(&Kind::Service)
    }

    // A list that begins while another is under way starts anew: only what the second one names stays.

    pub(super) fn begin_namespaces(&mut self, known: HashSet<Arc<str>>) {
        self.namespaces = known;
    }

    pub(super) fn begin_pods(&mut self, known: HashSet<PodKey>) {
        self.pods = known;
    }

    pub(super) fn begin_policies(&mut self, known: HashSet<ObjectName>) {
        self.policies = known;
    }

    pub(super) fn begin_nodes(&mut self, known: HashSet<Arc<str>>) {
        self.nodes = known;
    }

    pub(super) fn begin_services(&mut self, known: HashSet<ObjectName>) {
        self.services = known;
    }

    pub(super) fn saw_namespace(&mut self, name: &Arc<str>) {
        self.namespaces.remove(name);
    }

    pub(super) fn saw_pod(&mut self, key: &PodKey) {
        self.pods.remove(key);
    }

    pub(super) fn saw_policy(&mut self, name: &ObjectName) {
        self.policies.remove(name);
    }

    pub(super) fn saw_node(&mut self, name: &Arc<str>) {
        self.nodes.remove(name);
    }

    pub(super) fn saw_service(&mut self, name: &ObjectName) {
        self.services.remove(name);
    }

    pub(super) fn end_namespaces(&mut self) -> Vec<Arc<str>> {
        self.listed.insert(Kind::Namespace);
        sorted(&mut self.namespaces)
    }

    pub(super) fn end_pods(&mut self) -> Vec<PodKey> {
        self.listed.insert(Kind::Pod);
        sorted(&mut self.pods)
    }

    pub(super) fn end_policies(&mut self) -> Vec<ObjectName> {
        self.listed.insert(Kind::Policy);
        sorted(&mut self.policies)
    }

    pub(super) fn end_nodes(&mut self) -> Vec<Arc<str>> {
        self.listed.insert(Kind::Node);
        sorted(&mut self.nodes)
    }

    pub(super) fn end_services(&mut self) -> Vec<ObjectName> {
        self.listed.insert(Kind::Service);
        sorted(&mut self.services)
    }
}

fn sorted<K: Ord + Hash>(unseen: &mut HashSet<K>) -> Vec<K> {
    let mut names: Vec<K> = mem::take(unseen).into_iter().collect();
    names.sort_unstable();
    names
}
