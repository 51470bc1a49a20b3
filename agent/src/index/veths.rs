//! Which veth is which pod.
//!
//! What the CNI result names counts first; a veth that no result names is the pod of this node that has one of its
//! addresses. Whatever stays in doubt is unknown, and the compiler closes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use super::{Index, PodId, PodKey};
use crate::facts::{ObjectName, PodFacts, Veth};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Pod(PodId),
    Unknown(Unknown),
}

/// Why nobody can say which pod is behind a veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The CNI result names a pod whose object has not arrived, or not as one of this node with these addresses.
    Awaited(ObjectName),
    /// No CNI result names it yet, as one should.
    NotNamed,
    /// No CNI result, and no pod of this node has one of its addresses.
    Nobody,
    /// More than one pod has the name or the addresses.
    Several(Vec<ObjectName>),
    /// The pod has another veth as well, and no CNI result says that this is one of its own.
    Shared(ObjectName),
    /// The CNI result names a pod that is in its node's network.
    HostNetwork(ObjectName),
}

/// What a veth says by itself, before other veths are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// By the CNI result.
    Named(PodId),
    /// By its addresses.
    Joined(PodId, ObjectName),
    Unknown(Unknown),
}

#[derive(Debug)]
struct Entry {
    veth: Veth,
    found: Found,
}

#[derive(Debug, Default)]
struct Behind {
    named: BTreeSet<u32>,
    joined: BTreeSet<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Veths {
    entries: BTreeMap<u32, Entry>,
    by_name: HashMap<ObjectName, BTreeSet<u32>>,
    by_address: HashMap<IpAddr, BTreeSet<u32>>,
    behind: BTreeMap<PodId, Behind>,
}

// === impl Veths ===

impl Veths {
    pub(super) fn get(&self, ifindex: u32) -> Option<&Veth> {
        self.entries.get(&ifindex).map(|entry| &entry.veth)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Veth> {
        self.entries.values().map(|entry| &entry.veth)
    }

    /// Stores the veth; [`Index::identify`] must follow.
    pub(super) fn set(&mut self, ifindex: u32, veth: Option<Veth>) {
        if let Some(before) = self.get(ifindex).cloned() {
            for (address, _) in before.addresses {
                remove(&mut self.by_address, &address, ifindex);
            }
            if let Some((name, _)) = before.pod {
                remove(&mut self.by_name, &name, ifindex);
            }
        }
        let Some(veth) = veth else {
            if let Some(Entry { found: Found::Named(id) | Found::Joined(id, _), .. }) = self.entries.remove(&ifindex)
                && let Some(behind) = self.behind.get_mut(&id)
            {
                behind.named.remove(&ifindex);
                behind.joined.remove(&ifindex);
            }
            return;
        };
        for (address, _) in &veth.addresses {
            self.by_address.entry(*address).or_default().insert(ifindex);
        }
        if let Some((name, _)) = &veth.pod {
            self.by_name.entry(name.clone()).or_default().insert(ifindex);
        }
        let found = self.entries.remove(&ifindex).map_or(Found::Unknown(Unknown::Nobody), |entry| entry.found);
        self.entries.insert(ifindex, Entry { veth, found });
    }

    /// The veths that a change of the pod may concern.
    pub(super) fn touched_by<'a>(
        &self,
        id: PodId,
        name: &ObjectName,
        addresses: impl Iterator<Item = &'a IpAddr>,
    ) -> BTreeSet<u32> {
        let mut touched = self.by_name.get(name).cloned().unwrap_or_default();
        for veths in addresses.filter_map(|address| self.by_address.get(address)) {
            touched.extend(veths);
        }
        touched.extend(self.behind(id));
        touched
    }

    /// Veths with the address of which no CNI result tells.
    fn joined_by(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        let unnamed = |ifindex: &u32| self.get(*ifindex).is_some_and(|veth| veth.pod.is_none());
        self.by_address.get(&address).into_iter().flatten().copied().filter(unnamed)
    }

    pub(super) fn identity(&self, ifindex: u32) -> Option<Identity> {
        let identity = match &self.entries.get(&ifindex)?.found {
            Found::Named(id) => Identity::Pod(*id),
            Found::Joined(id, name) => match self.behind.get(id) {
                Some(behind) if behind.named.is_empty() && behind.joined.len() == 1 => Identity::Pod(*id),
                Some(_) | None => Identity::Unknown(Unknown::Shared(name.clone())),
            },
            Found::Unknown(unknown) => Identity::Unknown(unknown.clone()),
        };
        Some(identity)
    }

    pub(super) fn behind(&self, id: PodId) -> impl Iterator<Item = u32> {
        self.behind.get(&id).into_iter().flat_map(|behind| behind.named.iter().chain(&behind.joined)).copied()
    }

    /// Records what was found; returns the veths of whose pod the same is said.
    fn found(&mut self, ifindex: u32, found: Found) -> BTreeSet<u32> {
        let mut touched = BTreeSet::new();
        if let Some(entry) = self.entries.get_mut(&ifindex) {
            let before = std::mem::replace(&mut entry.found, found.clone());
            if let Found::Named(id) | Found::Joined(id, _) = before {
                let behind = self.behind.entry(id).or_default();
                behind.named.remove(&ifindex);
                behind.joined.remove(&ifindex);
                touched.extend(self.behind(id));
            }
        }
        match &found {
            Found::Named(id) => self.behind.entry(*id).or_default().named.insert(ifindex),
            Found::Joined(id, _) => self.behind.entry(*id).or_default().joined.insert(ifindex),
            Found::Unknown(_) => false,
        };
        if let Found::Named(id) | Found::Joined(id, _) = found {
            touched.extend(self.behind(id));
        }
        self.behind.retain(|_, Behind { named, joined }| !named.is_empty() || !joined.is_empty());
        touched
    }
}

// === impl Index ===

impl Index {
    /// Finds out anew who is behind a veth, and marks every veth for which this changes anything.
    pub(super) fn identify(&mut self, ifindex: u32) {
        self.find_again(ifindex);
        let given = self.given(ifindex);
        self.dirty.pods.extend(self.claims.given_to(ifindex));
        let changed = self.claims.give(ifindex, given);
        self.dirty.pods.extend(self.claims.given_to(ifindex));
        for other in changed.iter().flat_map(|address| self.veths.joined_by(*address)).collect::<BTreeSet<u32>>() {
            self.find_again(other);
        }
        // Whose status has one of these may no longer use it, or may again.
        let stated = changed.iter().flat_map(|address| self.claims.stated(*address));
        self.dirty.veths.extend(stated.flat_map(|&id| self.veths.behind(id)));
        self.dirty.addresses.extend(changed);
    }

    fn find_again(&mut self, ifindex: u32) {
        self.dirty.veths.insert(ifindex);
        let Some(veth) = self.veths.get(ifindex) else {
            // Its pod may have become another veth's alone.
            self.dirty.veths.extend(self.veths.all().map(|veth| veth.ifindex));
            return;
        };
        let found = self.find(veth);
        let touched = self.veths.found(ifindex, found);
        self.dirty.veths.extend(touched);
    }

    /// What the veth's CNI result gives, and to which pod; nothing where that is not known or has none of its own.
    fn given(&self, ifindex: u32) -> Option<(PodId, BTreeSet<IpAddr>)> {
        let entry = self.veths.entries.get(&ifindex)?;
        let Found::Named(id) = entry.found else { return None };
        let pod = self.pod(id).filter(|pod| !pod.finished && !pod.host_network)?;
        (pod.node.as_ref() == Some(&self.node)).then(|| (id, routable(&entry.veth).collect()))
    }

    fn find(&self, veth: &Veth) -> Found {
        match &veth.pod {
            Some((name, Some(uid))) => {
                let key = PodKey { name: name.clone(), uid: uid.clone() };
                match self.keys.get(&key).and_then(|&id| Some((id, self.pod(id)?))) {
                    Some((_, pod)) if pod.host_network => Found::Unknown(Unknown::HostNetwork(name.clone())),
                    Some((id, _)) => Found::Named(id),
                    None => Found::Unknown(Unknown::Awaited(name.clone())),
                }
            }
            Some((name, None)) => self.find_by_name(veth, name),
            None if veth.awaits_result => Found::Unknown(Unknown::NotNamed),
            None => self.find_by_address(veth),
        }
    }

    /// A name alone may be that of a pod which is gone but whose end has not been told: its addresses must not speak
    /// against it, and a finished pod must be recognised by them.
    fn find_by_name(&self, veth: &Veth, name: &ObjectName) -> Found {
        let ids = self.pods_named(name);
        let here = ids.filter_map(|id| Some((id, self.pod(id)?))).filter(|(_, pod)| self.is_here(pod));
        let named: Vec<(PodId, &PodFacts)> = here.collect();
        let has = |pod: &PodFacts| routable(veth).any(|address| pod.addresses.contains(&address));
        let silent = |pod: &PodFacts| pod.addresses.is_empty() || routable(veth).next().is_none();
        let ids = |wanted: &dyn Fn(&PodFacts) -> bool| -> Vec<PodId> {
            named.iter().filter(|(_, pod)| wanted(pod)).map(|&(id, _)| id).collect()
        };
        let live = ids(&|pod| !pod.finished && (has(pod) || silent(pod)));
        let certain = ids(&|pod| !pod.finished && has(pod));
        let finished = ids(&|pod| pod.finished && has(pod));
        match (&live[..], &certain[..], &finished[..]) {
            (&[id], _, _) | (_, &[id], _) | (&[], _, &[id]) => Found::Named(id),
            (&[], _, &[]) => Found::Unknown(Unknown::Awaited(name.clone())),
            (&[_, ..], _, _) | (&[], _, &[_, ..]) => {
                Found::Unknown(Unknown::Several(vec![name.clone(); live.len().max(finished.len())]))
            }
        }
    }

    fn find_by_address(&self, veth: &Veth) -> Found {
        let claims: BTreeSet<PodId> = routable(veth).flat_map(|address| self.claims(address).iter().copied()).collect();
        let pods = claims.into_iter().filter_map(|id| Some((id, self.pod(id)?)));
        let here: Vec<(PodId, &PodFacts)> = pods.filter(|(_, pod)| self.is_here(pod)).collect();
        match &here[..] {
            [] => Found::Unknown(Unknown::Nobody),
            [(id, pod)] => Found::Joined(*id, pod.name.clone()),
            [_, _, ..] => {
                let mut names: Vec<ObjectName> = here.iter().map(|(_, pod)| pod.name.clone()).collect();
                names.sort_unstable();
                Found::Unknown(Unknown::Several(names))
            }
        }
    }

    fn is_here(&self, pod: &PodFacts) -> bool {
        pod.node.as_ref() == Some(&self.node) && !pod.host_network
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awaited(name) => write!(f, "the CNI result names pod {name}, which the API has not shown yet"),
            Self::NotNamed => f.write_str("no CNI result names its pod yet"),
            Self::Nobody => write!(f, "no CNI result names its pod and no pod of this node has its address"),
            Self::Several(names) => {
                let names: Vec<String> = names.iter().map(ObjectName::to_string).collect();
                write!(f, "several pods may be behind it: {}", names.join(", "))
            }
            Self::Shared(name) => write!(f, "it has the address of pod {name}, which has another interface"),
            Self::HostNetwork(name) => write!(f, "the CNI result names pod {name}, which uses its node's network"),
        }
    }
}

/// The addresses that say something about who it is.
fn routable(veth: &Veth) -> impl Iterator<Item = IpAddr> + '_ {
    veth.addresses.iter().map(|(address, _)| *address).filter(|address| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}

fn remove<K: std::hash::Hash + Eq>(map: &mut HashMap<K, BTreeSet<u32>>, key: &K, ifindex: u32) {
    if let Some(veths) = map.get_mut(key) {
        veths.remove(&ifindex);
        if veths.is_empty() {
            map.remove(key);
        }
    }
}
