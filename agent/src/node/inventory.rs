//! Joins interfaces, what is at their other ends, and CNI results into the veths of pods.
//!
//! Pure: [`Inventory::apply`] takes what was learned, [`Inventory::changes`] says what follows from all of it. The result does
//! not depend on the order in which things were learned, with two exceptions on purpose: a veth that was once found to be a
//! pod's stays one while it exists (a pod that takes its address off must not become nobody's), and `older`.

mod devices;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::Telling;
use super::cni::{BRIDGE_DEFAULT, CniResult, HostInterface, Reading, SandboxInterface};
use crate::facts::{Veth, VethChange, Vxlan};

/// An interface of the node's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: Arc<str>,
    pub kind: LinkKind,
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the other end, in the namespace of the other end.
    pub peer: Option<u32>,
    /// Namespace of the other end; `None`: the node's own.
    pub netns_id: Option<i32>,
    /// IFF_UP.
    pub is_up: bool,
    pub is_loopback: bool,
    /// ARPHRD_ETHER.
    pub has_link_header: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Veth,
    Bridge,
    /// Gives back what is redirected to it (CNI's bandwidth plugin does so) where it was taken from.
    Ifb,
    Vxlan(Vxlan),
    Other,
}

/// The other end of a veth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSide {
    pub mac: Option<[u8; 6]>,
    /// Addresses with their prefix lengths (bits).
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Something that was learned.
#[derive(Clone, Debug)]
pub enum Event {
    Link(Link),
    LinkGone(u32),
    /// All there are. The first one says which are older.
    Links(Vec<Link>),
    /// The answer to a [`Inventory::question`]: the veth as it is, as a move of its other end need not be an event; and its
    /// other end, or `None` where that could not be had (it is moving or going).
    Answer {
        link: Link,
        side: Option<PodSide>,
    },
    /// Something changed at an interface of another namespace.
    PodSideChanged {
        netns_id: i32,
        index: u32,
    },
    /// Changes in other namespaces may have been missed.
    PodSidesMissed,
    Result {
        file: Arc<str>,
        written: SystemTime,
        reading: Reading,
    },
    ResultGone(Arc<str>),
    /// The files there are; all others are gone.
    ResultFiles(BTreeSet<Arc<str>>),
    /// By the CNI plugin, before there is a file.
    Told(Telling),
    PodCidrs(Vec<IpNet>),
    /// All addresses on interfaces of the node, by interface.
    Own(BTreeSet<(u32, IpAddr)>),
}

#[derive(Debug)]
pub struct Inventory {
    /// The only bridge to look at, where the administrator says so.
    bridge: Option<Arc<str>>,
    pod_cidrs: Vec<IpNet>,
    interfaces: BTreeMap<u32, Interface>,
    /// By file name, with the time of writing: of two that fit, the later holds.
    results: BTreeMap<Arc<str>, (SystemTime, CniResult)>,
    /// Those of which there is no file yet.
    told: BTreeSet<Arc<str>>,
    /// Files by the host interfaces they name.
    named: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Veths to ask about.
    questions: BTreeSet<u32>,
    started: bool,
    own: BTreeSet<(u32, IpAddr)>,
    reported: BTreeMap<u32, Veth>,
    /// Reported veths that are gone; their index may be another's already.
    gone: BTreeSet<u32>,
}

#[derive(Debug)]
struct Interface {
    link: Link,
    /// The name that it had when it was first seen, by which its result knows it whatever it is called since.
    born: Arc<str>,
    /// `None`: not asked yet.
    side: Option<PodSide>,
    older: bool,
    /// It was found to be a pod's.
    claimed: bool,
    /// A result has said whose.
    named: bool,
}

impl Inventory {
    pub fn new(bridge: Option<Arc<str>>) -> Self {
        Self {
            bridge,
            pod_cidrs: Vec::new(),
            interfaces: BTreeMap::new(),
            results: BTreeMap::new(),
            told: BTreeSet::new(),
            named: BTreeMap::new(),
            questions: BTreeSet::new(),
            started: false,
            own: BTreeSet::new(),
            reported: BTreeMap::new(),
            gone: BTreeSet::new(),
        }
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Link(link) => self.link(link, false),
            Event::LinkGone(index) => self.link_gone(index),
            Event::Links(links) => self.links(links),
            Event::Answer { link, side } => self.answer(link, side),
            Event::PodSideChanged { netns_id, index } => {
                self.ask(|link| link.netns_id == Some(netns_id) && link.peer.is_none_or(|peer| peer == index));
            }
            Event::PodSidesMissed => self.ask(|_| true),
            Event::Result { file, written, reading } => self.result(file, written, reading),
            Event::ResultGone(file) => self.result_gone(&file),
            Event::ResultFiles(files) => {
                let stays = |file: &Arc<str>| files.contains(file) || self.told.contains(file);
                let gone: Vec<_> = self.results.keys().filter(|file| !stays(file)).cloned().collect();
                gone.iter().for_each(|file| self.result_gone(file));
            }
            Event::Told(telling) => self.telling(telling),
            Event::PodCidrs(cidrs) => self.pod_cidrs = cidrs,
            Event::Own(addresses) => self.own = addresses,
        }
    }

    /// The veth to ask about next, if any. It is asked again only when something happens.
    pub fn question(&mut self) -> Option<u32> {
        self.questions.pop_first()
    }

    pub fn has_question(&self) -> bool {
        !self.questions.is_empty()
    }

    /// What is different from what was said before.
    pub fn changes(&mut self) -> Vec<VethChange> {
        let mut changes: Vec<_> =
            std::mem::take(&mut self.gone).into_iter().map(|ifindex| VethChange { ifindex, veth: None }).collect();
        let bridges = self.bridge_indices();
        let is_named =
            |interface: &Interface| self.result_of(interface).is_some_and(|(result, _)| result.pod.is_some());
        let found: Vec<[bool; 2]> =
            self.interfaces.values().map(|it| [it.claimed || self.is_pods(it, &bridges), is_named(it)]).collect();
        let named = found.iter().any(|[_, named]| *named);
        for (interface, [claimed, named]) in self.interfaces.values_mut().zip(found) {
            interface.claimed = claimed;
            interface.named |= named;
        }
        for (&ifindex, interface) in self.interfaces.iter().filter(|(_, interface)| interface.claimed) {
            let veth = self.veth(interface, named);
            if self.reported.get(&ifindex) != Some(&veth) {
                self.reported.insert(ifindex, veth.clone());
                changes.push(VethChange { ifindex, veth: Some(veth) });
            }
        }
        changes
    }
}

// === impl Inventory: learning ===

impl Inventory {
    fn link(&mut self, link: Link, older: bool) {
        if link.kind == LinkKind::Veth {
            self.questions.insert(link.index);
        }
        self.set_link(link, older);
    }

    fn set_link(&mut self, link: Link, older: bool) {
        let index = link.index;
        match self.interfaces.get_mut(&index) {
            Some(interface) => {
                if (interface.link.peer, interface.link.netns_id) != (link.peer, link.netns_id) {
                    interface.side = None;
                }
                interface.link = link;
            }
            None => {
                let born = link.name.clone();
                self.interfaces
                    .insert(index, Interface { link, born, side: None, older, claimed: false, named: false });
            }
        }
    }

    fn link_gone(&mut self, index: u32) {
        self.interfaces.remove(&index);
        self.questions.remove(&index);
        if self.reported.remove(&index).is_some() {
            self.gone.insert(index);
        }
        // The other end of a pair that was made in this namespace has moved; of that the end that stays is told nothing.
        self.ask(|link| link.netns_id.is_none() && link.peer == Some(index));
    }

    fn links(&mut self, links: Vec<Link>) {
        let present: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        let gone: Vec<u32> = self.interfaces.keys().copied().filter(|index| !present.contains(index)).collect();
        gone.into_iter().for_each(|index| self.link_gone(index));
        let names: BTreeSet<Arc<str>> = links.iter().map(|link| link.name.clone()).collect();
        let is_there = |key: &Arc<str>| self.results[key].1.hosts.iter().any(|host| names.contains(&host.name));
        let over: Vec<_> = self.told.iter().filter(|key| !is_there(key)).cloned().collect();
        over.iter().for_each(|key| self.result_gone(key));
        let older = !self.started;
        links.into_iter().for_each(|link| self.link(link, older));
        self.started = true;
    }

    fn answer(&mut self, link: Link, side: Option<PodSide>) {
        let index = link.index;
        // If it has gone since, there is an event of that, and after it comes nothing of this interface.
        if !self.interfaces.contains_key(&index) {
            return;
        }
        self.set_link(link, false);
        if let (Some(interface), Some(mut side)) = (self.interfaces.get_mut(&index), side) {
            side.addresses.sort_unstable();
            side.addresses.dedup();
            interface.side = Some(side);
        }
    }

    fn telling(&mut self, telling: Telling) {
        match telling {
            Telling::Made { key, at, result } => {
                self.result(key.clone(), at, Reading::Result(result));
                self.told.insert(key);
            }
            // A file goes by itself.
            Telling::Goes(key) => {
                if self.told.contains(&key) {
                    self.result_gone(&key);
                }
            }
            Telling::Stay { prefix, keys } => {
                let goes = |key: &&Arc<str>| key.starts_with(&prefix) && !keys.contains(*key);
                let gone: Vec<_> = self.told.iter().filter(goes).cloned().collect();
                gone.iter().for_each(|key| self.result_gone(key));
            }
        }
    }

    fn result(&mut self, file: Arc<str>, written: SystemTime, reading: Reading) {
        match reading {
            Reading::Result(result) => {
                self.result_gone(&file);
                for HostInterface { name, .. } in &result.hosts {
                    self.named.entry(name.clone()).or_default().insert(file.clone());
                }
                self.ask(|link| result.hosts.iter().any(|host| host.name == link.name));
                self.results.insert(file, (written, result));
            }
            Reading::Foreign => self.result_gone(&file),
            // Nothing new is known, so what was known before holds.
            Reading::NotYet(_) => {}
        }
    }

    fn result_gone(&mut self, file: &Arc<str>) {
        self.told.remove(file);
        let Some((_, result)) = self.results.remove(file) else { return };
        for HostInterface { name, .. } in &result.hosts {
            if let Some(files) = self.named.get_mut(name) {
                files.remove(file);
                if files.is_empty() {
                    self.named.remove(name);
                }
            }
        }
    }

    fn ask(&mut self, about: impl Fn(&Link) -> bool) {
        let links = self.interfaces.values().map(|interface| &interface.link);
        let found = links.filter(|link| link.kind == LinkKind::Veth && about(link)).map(|link| link.index);
        self.questions.extend(found);
    }
}

// === impl Inventory: what follows ===

impl Inventory {
    /// Indices of the bridges whose ports are pods'.
    fn bridge_indices(&self) -> BTreeSet<u32> {
        let is_bridge = |link: &Link| match &self.bridge {
            Some(name) => link.name == *name,
            None => {
                let names = |result: &CniResult| {
                    result.bridge.as_ref() == Some(&link.name) || result.hosts.iter().any(|host| host.name == link.name)
                };
                &*link.name == BRIDGE_DEFAULT
                    || self.results.values().any(|(_, result)| result.pod.is_some() && names(result))
            }
        };
        let links = self.interfaces.values().map(|interface| &interface.link);
        links.filter(|link| link.kind == LinkKind::Bridge && is_bridge(link)).map(|link| link.index).collect()
    }

    fn is_pods(&self, interface: &Interface, bridges: &BTreeSet<u32>) -> bool {
        let Interface { link, side, .. } = interface;
        let has_pod_address = || {
            side.iter()
                .flat_map(|side| &side.addresses)
                .any(|(address, _)| self.pod_cidrs.iter().any(|cidr| cidr.contains(address)))
        };
        link.kind == LinkKind::Veth
            && (link.master.is_some_and(|master| bridges.contains(&master))
                || self.result_of(interface).is_some()
                || has_pod_address())
    }

    /// `named`: CNI results name pods' interfaces on this node.
    fn veth(&self, interface: &Interface, named: bool) -> Veth {
        let Interface { link, side, older, .. } = interface;
        let result = self.result_of(interface);
        let sandbox = result.and_then(|(_, sandbox)| sandbox);
        let seen = side.as_ref().map(|side| side.addresses.as_slice()).unwrap_or_default();
        // What the CNI gave counts, not what a privileged pod has given itself since; only link-local addresses are in no result.
        let mut addresses: Vec<_> = match sandbox {
            Some(SandboxInterface { addresses: given, .. }) if !given.is_empty() => {
                let local = seen.iter().filter(|(address, _)| is_link_local(*address));
                given.iter().chain(local).copied().collect()
            }
            Some(_) | None => seen.to_vec(),
        };
        addresses.sort_unstable();
        addresses.dedup();
        Veth {
            ifindex: link.index,
            name: link.name.clone(),
            pod_mac: sandbox.and_then(|sandbox| sandbox.mac).or_else(|| side.as_ref().and_then(|side| side.mac)),
            netns_id: link.netns_id,
            addresses,
            pod: result.and_then(|(result, _)| result.pod.clone()),
            older: *older,
            awaits_result: named && !*older && !interface.named && result.is_none(),
        }
    }

    /// The latest result that is of this veth, and which of its interfaces is the other end.
    fn result_of(&self, interface: &Interface) -> Option<(&CniResult, Option<&SandboxInterface>)> {
        // Names are reused, so nothing is believed before the other end was looked at.
        let Interface { link, born, side: Some(side), .. } = interface else { return None };
        let by_name = |name: &Arc<str>| {
            let files = self.named.get(name)?.iter().filter_map(|file| {
                let (written, result) = self.results.get(file)?;
                Some((written, file, result, sandbox_of(result, name, link.mac, side)?))
            });
            let (_, _, result, sandbox) = files.max_by_key(|&(written, file, ..)| (written, file))?;
            Some((result, sandbox))
        };
        by_name(&link.name).or_else(|| by_name(born))
    }
}

/// Which interface of the result is the other end of the veth that it calls so; `None`: the result is another's, who had the name before.
fn sandbox_of<'a>(
    result: &'a CniResult,
    name: &str,
    own_mac: Option<[u8; 6]>,
    side: &PodSide,
) -> Option<Option<&'a SandboxInterface>> {
    let only = match result.sandboxes.as_slice() {
        [only] => Some(only),
        [] | [_, _, ..] => None,
    };
    let tells = result.sandboxes.iter().any(|sandbox| sandbox.mac.is_some());
    let host = result.hosts.iter().find(|host| &*host.name == name)?;
    let known = host.mac.is_some() && own_mac.is_some();
    let same = side.mac.and_then(|mac| result.sandboxes.iter().find(|sandbox| sandbox.mac == Some(mac)));
    match same {
        Some(sandbox) => Some(Some(sandbox)),
        // A privileged pod may have given itself another MAC address; the one of the node's end it cannot change.
        None if known && host.mac == own_mac => Some(only),
        None if known || (tells && side.mac.is_some()) => None,
        None => Some(only),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
