//! Pods as peers: which matchers match each, how each resolves the named ports in use, and the classes of addresses.
//!
//! An address that several live pods claim matches no selector and resolves no name, so that neither pod's permissions
//! can serve the other: matching less never admits more, as policies only allow (SEMANTICS 1.3).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use palisade_common::layout::Family;

use super::blocks::Blocks;
use super::classes::{Classes, Signature};
use super::policies::PortName;
use super::prefix::{Bits, Prefix};
use crate::facts::{Fault, Kind, NamedPort, Namespaces, PodFacts, Selector};
use crate::index::matchers::{MatcherId, PodMatchers};
use crate::index::{Index, Namespace, PodId};

/// What a pod itself adds to the signature of its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    selectors: Arc<[MatcherId]>,
    ports: Arc<[NamedPort]>,
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    matchers: PodMatchers,
    /// Pods with a part that is not empty.
    parts: HashMap<PodId, Part>,
    by_matcher: HashMap<MatcherId, BTreeSet<PodId>>,
    /// Classes of the pod addresses that have one.
    exact: BTreeMap<Bits, u32>,
    /// The first address of each family that does not fit.
    cuts: BTreeMap<Family, Bits>,
    counts: BTreeMap<Family, usize>,
    conflicts: BTreeMap<IpAddr, Vec<PodId>>,
    dirty: BTreeSet<Bits>,
}

// === impl Peers ===

impl Peers {
    pub(super) fn touch(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        self.dirty.extend(addresses.map(Bits::of));
    }

    /// Matchers that were not there before: asks every pod of their namespaces, once for all of them.
    pub(super) fn appear<'a>(
        &mut self,
        index: &Index,
        matchers: impl Iterator<Item = (MatcherId, &'a Namespaces, &'a Selector)>,
    ) {
        let mut new = PodMatchers::default();
        let mut named = Some(BTreeSet::new());
        for (id, namespaces, selector) in matchers {
            self.matchers.insert(id, namespaces, selector);
            new.insert(id, namespaces, selector);
            match (namespaces, &mut named) {
                (Namespaces::Named(name), Some(named)) => drop(named.insert(name)),
                (_, named) => *named = None,
            }
        }
        let scope: Box<dyn Iterator<Item = (&Arc<str>, &Namespace)>> = match &named {
            Some(names) => Box::new(names.iter().filter_map(|name| Some((*name, index.namespace(name)?)))),
            None => Box::new(index.namespaces()),
        };
        for (name, namespace) in scope {
            let matchers = new.in_namespace(name, namespace.facts.as_ref().map(|facts| &facts.labels));
            if matchers.is_empty() {
                continue;
            }
            for &pod_id in &namespace.pods {
                let Some(pod) = peer(index, pod_id) else { continue };
                let found = matchers.of_pod(&pod.labels);
                if !found.is_empty() {
                    self.gain(index, pod_id, found);
                }
            }
        }
    }

    fn gain(&mut self, index: &Index, pod: PodId, matchers: Vec<MatcherId>) {
        let part = self.parts.entry(pod).or_default();
        for &id in &matchers {
            self.by_matcher.entry(id).or_default().insert(pod);
        }
        // They are there already if the pod changed together with the policy.
        let mut selectors: Vec<MatcherId> = part.selectors.iter().copied().chain(matchers).collect();
        selectors.sort_unstable();
        selectors.dedup();
        part.selectors = selectors.into();
        self.dirty.extend(index.addresses(pod).map(Bits::of));
    }

    pub(super) fn vanish(&mut self, index: &Index, id: MatcherId, namespaces: &Namespaces, selector: &Selector) {
        self.matchers.remove(id, namespaces, selector);
        for pod_id in self.by_matcher.remove(&id).unwrap_or_default() {
            if let Some(part) = self.parts.get_mut(&pod_id) {
                part.selectors = part.selectors.iter().copied().filter(|&other| other != id).collect();
                if *part == Part::default() {
                    self.parts.remove(&pod_id);
                }
            }
            self.dirty.extend(index.addresses(pod_id).map(Bits::of));
        }
    }

    /// A pod that may have changed: asks every matcher of its namespace.
    pub(super) fn evaluate(&mut self, index: &Index, names: &BTreeMap<PortName, usize>, id: PodId) {
        let part = peer(index, id).map_or_else(Part::default, |pod| {
            let namespace = index.namespace(&pod.name.namespace).and_then(|namespace| namespace.facts.as_ref());
            let labels = namespace.map(|facts| &facts.labels);
            Part {
                selectors: self.matchers.of_pod(&pod.name.namespace, labels, &pod.labels).into(),
                ports: resolved(pod, |name| names.contains_key(name)),
            }
        });
        let before = self.parts.get(&id).cloned().unwrap_or_default();
        if before == part {
            return;
        }
        for gone in before.selectors.iter().filter(|id| part.selectors.binary_search(id).is_err()) {
            if let Some(pods) = self.by_matcher.get_mut(gone) {
                pods.remove(&id);
            }
        }
        for &new in part.selectors.iter().filter(|id| before.selectors.binary_search(id).is_err()) {
            self.by_matcher.entry(new).or_default().insert(id);
        }
        if part == Part::default() {
            self.parts.remove(&id);
        } else {
            self.parts.insert(id, part);
        }
        self.dirty.extend(index.addresses(id).map(Bits::of));
    }

    /// Finds the classes of all addresses that changed, and says which did.
    pub(super) fn settle(
        &mut self,
        index: &Index,
        blocks: &Blocks,
        moved: &[Prefix],
        exact_max: usize,
        (classes, highest): (&mut Classes, &mut u32),
    ) -> BTreeSet<Bits> {
        for prefix in moved {
            self.dirty.extend(self.exact.range(prefix.first..=prefix.last()).map(|(address, _)| *address));
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for &address in &dirty {
            let class = self.claim(index, address).map(|(pod, Part { selectors, ports })| {
                let class = classes.acquire(Signature { selectors, ports, blocks: blocks.covering(address) }, highest);
                // One list for all pods of a class.
                if let (Some(part), Some(signature)) = (self.parts.get_mut(&pod), classes.signature(class)) {
                    let Signature { selectors, ports, blocks: _ } = signature;
                    *part = Part { selectors: selectors.clone(), ports: ports.clone() };
                }
                class
            });
            let before = match class {
                Some(class) => self.exact.insert(address, class),
                None => self.exact.remove(&address),
            };
            let count = self.counts.entry(address.family).or_default();
            *count = *count + usize::from(class.is_some()) - usize::from(before.is_some());
            before.into_iter().for_each(|class| classes.release(class));
        }
        self.cut(exact_max, &mut dirty);
        dirty
    }

    /// The class of a pod's address, if it has one and there is room for it.
    pub(super) fn placed(&self, address: Bits) -> Option<u32> {
        let fits = self.cuts.get(&address.family).is_none_or(|cut| address < *cut);
        self.exact.get(&address).filter(|_| fits).copied()
    }

    /// How many addresses of pods have a class and room.
    pub(super) fn placed_count(&self, family: Family, exact_max: usize) -> usize {
        self.counts.get(&family).map_or(0, |&count| count.min(exact_max))
    }

    /// The one pod that claims the address, and its part if that is not empty.
    fn claim(&mut self, index: &Index, address: Bits) -> Option<(PodId, Part)> {
        let claims = index.claims(address.address());
        if claims.len() > 1 {
            self.conflicts.insert(address.address(), claims.to_vec());
            return None;
        }
        self.conflicts.remove(&address.address());
        let pod = *claims.first()?;
        Some((pod, self.parts.get(&pod)?.clone()))
    }

    /// Leaves out the last addresses of a family of which there are too many; they keep what their ipBlocks admit.
    fn cut(&mut self, exact_max: usize, dirty: &mut BTreeSet<Bits>) {
        for (family, count) in &self.counts {
            let all = Bits::lowest(*family)..=Bits::highest(*family);
            let over = *count > exact_max;
            let cut = over.then(|| self.exact.range(all.clone()).nth(exact_max)).flatten().map(|(first, _)| *first);
            if cut != self.cuts.get(family).copied() {
                dirty.extend(self.exact.range(all).map(|(address, _)| *address));
            }
            match cut {
                Some(cut) => self.cuts.insert(*family, cut),
                None => self.cuts.remove(family),
            };
        }
    }

    pub(super) fn faults(&self, index: &Index, exact_max: usize) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (address, claims) in &self.conflicts {
            let mut names: Vec<String> = claims
                .iter()
                .filter_map(|&id| Some((index.pod(id)?, index.uid(id)?)))
                .map(|(pod, uid)| format!("{} (uid {uid})", pod.name))
                .collect();
            names.sort_unstable();
            let object = names.first().and_then(|name| name.split(' ').next()).unwrap_or_default().to_owned();
            let names = names.join(" and ");
            let message = format!("{address} is claimed by {names}: no selector and no named port matches it");
            faults.push(Fault { kind: Kind::Pod, object, field: "status.podIPs".to_owned(), message });
        }
        for (family, cut) in &self.cuts {
            let over = self.counts.get(family).map_or(0, |count| count - exact_max);
            let first = index.claims(cut.address()).first().and_then(|&id| index.pod(id));
            let message = format!(
                "{over} pod addresses from {} on do not fit the limit of {exact_max}: no selector and no named port \
                 matches them",
                cut.address()
            );
            let object = first.map_or(String::new(), |pod| pod.name.to_string());
            faults.push(Fault { kind: Kind::Pod, object, field: "status.podIPs".to_owned(), message });
        }
        faults
    }
}

/// The pod, if selectors can match it (SEMANTICS 9.1, 9.3, 10).
fn peer(index: &Index, id: PodId) -> Option<&PodFacts> {
    let pod = index.pod(id).filter(|pod| !pod.host_network && !pod.finished)?;
    index.addresses(id).next().is_some().then_some(pod)
}

/// The pod's own numbers of the names that somebody asks for (SEMANTICS 7.6 to 7.10).
pub(super) fn resolved(pod: &PodFacts, asked: impl Fn(&PortName) -> bool) -> Arc<[NamedPort]> {
    let asked = |port: &&NamedPort| asked(&(port.name.clone(), port.protocol));
    pod.ports.iter().filter(asked).cloned().collect()
}
