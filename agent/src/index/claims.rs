//! Which pods an address belongs to: by the status of pods, and by the CNI results of this node.
//!
//! A CNI result is there before the API server knows the address, and it is the truth of this node: where one has given an address to a
//! pod that is known, what the status of others says of that address is old.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::PodId;

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By status.podIPs, of live pods.
    stated: HashMap<IpAddr, Claimants>,
    given: HashMap<IpAddr, Given>,
    /// What each veth's CNI result gave, and to whom.
    of_veth: HashMap<u32, (PodId, BTreeSet<IpAddr>)>,
}

/// One as a rule, which needs no memory of its own.
#[derive(Debug)]
enum Claimants {
    One(PodId),
    Several(Vec<PodId>),
}

/// To the pods behind these veths; one pod may have several.
#[derive(Debug, Default)]
struct Given {
    veths: Vec<(u32, PodId)>,
    pods: Vec<PodId>,
}

// === impl Claims ===

impl Claims {
    pub(super) fn of(&self, address: IpAddr) -> &[PodId] {
        self.given.get(&address).map_or_else(|| self.stated(address), |given| &given.pods)
    }

    /// By status alone.
    pub(super) fn stated(&self, address: IpAddr) -> &[PodId] {
        self.stated.get(&address).map_or(&[], Claimants::as_slice)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.stated.keys().chain(self.given.keys()).copied()
    }

    /// What was given to the pod by way of a veth.
    pub(super) fn given_by(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> {
        self.of_veth.get(&ifindex).into_iter().flat_map(|(_, addresses)| addresses.iter().copied())
    }

    pub(super) fn given_to(&self, ifindex: u32) -> Option<PodId> {
        self.of_veth.get(&ifindex).map(|(id, _)| *id)
    }

    pub(super) fn state(&mut self, id: PodId, old: &BTreeSet<IpAddr>, new: &BTreeSet<IpAddr>) {
        for address in old.difference(new) {
            if let Some(others) = self.stated.remove(address).and_then(|claimants| claimants.without(id)) {
                self.stated.insert(*address, others);
            }
        }
        for address in new.difference(old) {
            let others = self.stated.remove(address);
            self.stated.insert(*address, others.map_or(Claimants::One(id), |others| others.with(id)));
        }
    }

    /// Takes note of what a veth's CNI result gives now; returns the addresses that are somebody else's than before.
    pub(super) fn give(&mut self, ifindex: u32, now: Option<(PodId, BTreeSet<IpAddr>)>) -> BTreeSet<IpAddr> {
        let before = match now.clone() {
            Some(now) => self.of_veth.insert(ifindex, now),
            None => self.of_veth.remove(&ifindex),
        };
        if before == now {
            return BTreeSet::new();
        }
        let (mut touched, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for (_, addresses) in before.iter().chain(&now) {
            touched.extend(addresses.iter().copied());
        }
        for address in touched {
            let old = self.of(address).to_vec();
            let given = self.given.entry(address).or_default();
            given.veths.retain(|(veth, _)| *veth != ifindex);
            given.veths.extend(now.iter().filter(|(_, own)| own.contains(&address)).map(|(id, _)| (ifindex, *id)));
            given.pods = given.veths.iter().map(|(_, id)| *id).collect();
            given.pods.sort_unstable();
            given.pods.dedup();
            if given.veths.is_empty() {
                self.given.remove(&address);
            }
            if self.of(address) != old {
                changed.insert(address);
            }
        }
        changed
    }
}

// === impl Claimants ===

impl Claimants {
    fn as_slice(&self) -> &[PodId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }

    fn with(self, id: PodId) -> Self {
        Self::Several([self.as_slice(), &[id]].concat())
    }

    fn without(self, id: PodId) -> Option<Self> {
        let rest: Vec<PodId> = self.as_slice().iter().copied().filter(|other| *other != id).collect();
        match rest[..] {
            [] => None,
            [one] => Some(Self::One(one)),
            _ => Some(Self::Several(rest)),
        }
    }
}
