//! Finds the pods' veths on this node, and the devices by which packets leave it: rtnetlink, and the results that libcni caches.
//!
//! Runs in the network namespace in which it is started and enters no other: the pods' sides are read by namespace id.
//! [`inventory`] decides what follows; this file only carries events to it. Called by `run`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch as value};

use self::cni::CniResult;
use self::inventory::{Event, Inventory, Link, PodSide};
use self::netlink::{AddressFamily, Body};
use self::results::{Folder, Turn};
use self::socket::{Received, Socket};
use crate::facts::{Device, EventSource, NodeChange};

pub mod cni;
pub mod inventory;
mod netlink;
pub(crate) mod results;
mod socket;

/// How many datagrams are taken together before what follows is told.
const BATCH_MAX: usize = 256;

#[derive(Debug)]
pub struct NodeConfig {
    /// Contains `results/`.
    pub cni_cache_dir: PathBuf,
    /// The pods' bridge, where it shall not be found out.
    pub bridge: Option<String>,
    /// The node's pod CIDRs; empty until they are known.
    pub pod_cidrs: value::Receiver<Vec<IpNet>>,
    /// From the CNI plugin.
    pub tellings: mpsc::Receiver<Telling>,
}

/// What the CNI plugin tells, before libcni has written it down. Attachments go by the name of the file that libcni will write.
#[derive(Clone, Debug)]
pub enum Telling {
    Made {
        key: Arc<str>,
        at: SystemTime,
        result: CniResult,
    },
    Goes(Arc<str>),
    /// All there are of those whose name begins so.
    Stay {
        prefix: String,
        keys: BTreeSet<Arc<str>>,
    },
}

/// Tells of every veth that is, or may be, a pod's, until the receiver goes.
///
/// The first batch is everything that is there, with all that can be known of it, devices and addresses included. From then
/// on a new veth is told at once, and what is found out about it later. A veth may be told of that is gone by then.
pub async fn watch(config: NodeConfig, changes: mpsc::Sender<Vec<NodeChange>>) -> anyhow::Result<()> {
    let mut watch = Watch::open(config)?;
    watch.start().await?;
    let first = watch.changes();
    let mut open = changes.send(first).await.is_ok();
    while open {
        tokio::select! {
            biased;
            () = changes.closed() => break,
            turn = watch.turn() => turn?,
        }
        let batch = watch.changes();
        if !batch.is_empty() {
            open = changes.send(batch).await.is_ok();
        }
    }
    Ok(())
}

/// Indices of what are pods' veths by their bridge or the CNI's results, as far as can be told at once. [`watch`] knows better later.
pub async fn veths(cni_cache_dir: &Path, bridge: Option<&str>) -> anyhow::Result<Vec<u32>> {
    let mut inventory = Inventory::new(bridge.map(Into::into));
    for event in Folder::watch(cni_cache_dir.join("results"))?.read_all()? {
        inventory.apply(event);
    }
    let mut questions = Socket::for_questions().context("cannot open a netlink socket")?;
    inventory.apply(Event::Links(links(&mut questions).await?));
    Ok(inventory.changes().into_iter().map(|change| change.ifindex).collect())
}

struct Watch {
    inventory: Inventory,
    links: Socket,
    /// Events of the pods' namespaces, where the kernel lets us have them.
    namespaces: Option<Socket>,
    questions: Socket,
    results: Folder,
    pod_cidrs: value::Receiver<Vec<IpNet>>,
    /// Its sender is there.
    pod_cidrs_open: bool,
    tellings: mpsc::Receiver<Telling>,
    told_devices: Option<Vec<Device>>,
    told_addresses: Option<BTreeSet<IpAddr>>,
    told_gateways: Option<BTreeSet<IpAddr>>,
    /// Whose events were lost since the last batch.
    lost: BTreeSet<EventSource>,
    /// Said once that the pods' namespaces may not be asked.
    refusal_told: bool,
}

impl Watch {
    fn open(config: NodeConfig) -> anyhow::Result<Self> {
        let NodeConfig { cni_cache_dir, bridge, pod_cidrs, tellings } = config;
        let namespaces = match Socket::for_all_namespaces() {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "no events from pods' namespaces (CAP_NET_BROADCAST is needed): addresses that a pod \
                     gets without a CNI result or a change of its interface are noticed late");
                None
            }
        };
        Ok(Self {
            inventory: Inventory::new(bridge.map(Into::into)),
            // Before the first dump, so that what happens meanwhile is not lost.
            links: Socket::for_links().context("cannot listen to link events")?,
            namespaces,
            questions: Socket::for_questions().context("cannot open a netlink socket")?,
            results: Folder::watch(cni_cache_dir.join("results"))?,
            pod_cidrs,
            pod_cidrs_open: true,
            tellings,
            told_devices: None,
            told_addresses: None,
            told_gateways: None,
            lost: BTreeSet::new(),
            refusal_told: false,
        })
    }

    /// What is different from what was told before. Pods' interfaces first, as they are then no longer among the devices.
    fn changes(&mut self) -> Vec<NodeChange> {
        let mut changes: Vec<_> = self.inventory.changes().into_iter().map(NodeChange::Veth).collect();
        changes.extend(std::mem::take(&mut self.lost).into_iter().map(NodeChange::Resynced));
        let (devices, addresses) = (self.inventory.devices(), self.inventory.own_addresses());
        if self.told_devices.as_ref() != Some(&devices) {
            self.told_devices = Some(devices.clone());
            changes.push(NodeChange::Devices(devices));
        }
        if self.told_addresses.as_ref() != Some(&addresses) {
            self.told_addresses = Some(addresses.clone());
            changes.push(NodeChange::Addresses(addresses));
        }
        let gateways = self.inventory.pod_gateways();
        if self.told_gateways.as_ref() != Some(&gateways) {
            self.told_gateways = Some(gateways.clone());
            changes.push(NodeChange::PodGateways(gateways));
        }
        changes
    }

    /// Everything that can be known now.
    async fn start(&mut self) -> anyhow::Result<()> {
        let cidrs = self.pod_cidrs.borrow_and_update().clone();
        self.inventory.apply(Event::PodCidrs(cidrs));
        for event in self.results.read_all()? {
            self.inventory.apply(event);
        }
        self.list_links().await?;
        self.list_addresses().await?;
        while self.inventory.has_question() {
            self.ask().await?;
        }
        Ok(())
    }

    /// Takes in what comes first. What is new on the node goes before what its other end says.
    async fn turn(&mut self) -> anyhow::Result<()> {
        let namespaces = async {
            match &mut self.namespaces {
                Some(socket) => socket.receive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            received = self.links.receive() => self.take_links(received).await,
            Some(telling) = self.tellings.recv() => {
                self.inventory.apply(Event::Told(telling));
                Ok(())
            }
            turn = self.results.turn() => self.take_results(turn?),
            changed = self.pod_cidrs.changed(), if self.pod_cidrs_open => {
                self.pod_cidrs_open = changed.is_ok();
                let cidrs = self.pod_cidrs.borrow_and_update().clone();
                self.inventory.apply(Event::PodCidrs(cidrs));
                Ok(())
            }
            () = std::future::ready(()), if self.inventory.has_question() => self.ask().await,
            received = namespaces => self.take_namespaces(received),
        }
    }

    async fn take_links(&mut self, first: io::Result<Received>) -> anyhow::Result<()> {
        let mut next = Some(first);
        let (mut taken, mut readdressed) = (0, false);
        while let Some(received) = next {
            let lost = match received {
                Ok(Received { messages, netns_id: _ }) => {
                    let mut lost = false;
                    for message in messages {
                        match message.body {
                            Body::Link(link) => self.inventory.apply(Event::Link(link)),
                            Body::LinkGone(index) => self.inventory.apply(Event::LinkGone(index)),
                            Body::Overrun => lost = true,
                            Body::Address { .. } | Body::AddressGone { .. } => readdressed = true,
                            Body::End(_) | Body::Other => {}
                        }
                    }
                    lost
                }
                Err(error) if is_loss(&error) => true,
                Err(error) => return Err(error).context("cannot receive link events"),
            };
            if lost {
                tracing::warn!("link events were lost: listing all links anew");
                self.lost.insert(EventSource::Links);
                self.list_links().await?;
                return self.list_addresses().await;
            }
            taken += 1;
            next = if taken < BATCH_MAX { self.links.try_receive() } else { None };
        }
        if readdressed {
            self.list_addresses().await?;
        }
        Ok(())
    }

    fn take_namespaces(&mut self, first: io::Result<Received>) -> anyhow::Result<()> {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(received) = next {
            match received {
                // Without an id it is this namespace's own event.
                Ok(Received { netns_id: None, .. }) => {}
                Ok(Received { messages, netns_id: Some(netns_id) }) => {
                    for message in messages {
                        match message.body {
                            Body::Link(Link { index, .. })
                            | Body::LinkGone(index)
                            | Body::Address { index, .. }
                            | Body::AddressGone { index } => {
                                self.inventory.apply(Event::PodSideChanged { netns_id, index });
                            }
                            Body::Overrun => self.miss_pod_sides(),
                            Body::End(_) | Body::Other => {}
                        }
                    }
                }
                Err(error) if is_loss(&error) => self.miss_pod_sides(),
                Err(error) => return Err(error).context("cannot receive events of pods' namespaces"),
            }
            taken += 1;
            next = match &mut self.namespaces {
                Some(socket) if taken < BATCH_MAX => socket.try_receive(),
                Some(_) | None => None,
            };
        }
        Ok(())
    }

    fn miss_pod_sides(&mut self) {
        self.lost.insert(EventSource::PodSides);
        self.inventory.apply(Event::PodSidesMissed);
    }

    fn take_results(&mut self, turn: Turn) -> anyhow::Result<()> {
        match turn {
            Turn::File(path) => self.inventory.apply(results::read(&path)),
            Turn::Lost => {
                tracing::warn!("events of CNI results were lost: reading all of them anew");
                self.lost.insert(EventSource::Results);
                self.results.read_all()?.into_iter().for_each(|event| self.inventory.apply(event));
            }
            Turn::Everything => self.results.read_all()?.into_iter().for_each(|event| self.inventory.apply(event)),
        }
        Ok(())
    }

    async fn list_links(&mut self) -> anyhow::Result<()> {
        let links = links(&mut self.questions).await?;
        self.inventory.apply(Event::Links(links));
        Ok(())
    }

    async fn list_addresses(&mut self) -> anyhow::Result<()> {
        let bodies = self.questions.ask(netlink::own_addresses_request()).await;
        let bodies = bodies.context("cannot list the addresses of the node")?;
        let address = |body| match body {
            Body::Address { index, address: Some((address, _)) } => Some((index, address)),
            _ => None,
        };
        self.inventory.apply(Event::Own(bodies.into_iter().filter_map(address).collect()));
        Ok(())
    }

    /// Asks one question. Where there is no answer, what happened to the interface comes as an event and asks again.
    async fn ask(&mut self) -> anyhow::Result<()> {
        let Some(index) = self.inventory.question() else { return Ok(()) };
        let link = match one_link(&mut self.questions, index, None).await {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(%error, index, "a veth cannot be asked for");
                return Ok(());
            }
        };
        let side = match pod_side(&mut self.questions, &link).await {
            Ok(side) => Some(side),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if !std::mem::replace(&mut self.refusal_told, true) {
                    tracing::warn!(%error, "pods' namespaces may not be asked (CAP_NET_ADMIN is needed): only CNI results tell \
                         who is behind a veth");
                }
                Some(PodSide::default())
            }
            Err(error) => {
                tracing::debug!(%error, index, "the other end of a veth cannot be asked for");
                None
            }
        };
        self.inventory.apply(Event::Answer { link, side });
        Ok(())
    }
}

/// Events were lost, or could not be read: what they said must be asked for.
fn is_loss(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS) || error.kind() == io::ErrorKind::InvalidData
}

fn link_of(body: Body) -> Option<Link> {
    match body {
        Body::Link(link) => Some(link),
        Body::LinkGone(_)
        | Body::Address { .. }
        | Body::AddressGone { .. }
        | Body::End(_)
        | Body::Overrun
        | Body::Other => None,
    }
}

/// All links of the node.
async fn links(socket: &mut Socket) -> anyhow::Result<Vec<Link>> {
    let bodies = socket.ask(netlink::links_request()).await.context("cannot list the links of the node")?;
    Ok(bodies.into_iter().filter_map(link_of).collect())
}

async fn one_link(socket: &mut Socket, index: u32, netns_id: Option<i32>) -> io::Result<Link> {
    let answer = socket.ask(netlink::link_request(index, netns_id)).await?;
    answer.into_iter().find_map(link_of).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// What is at the other end. Where that is in this namespace too, it is no running pod's, and its addresses are the node's.
async fn pod_side(socket: &mut Socket, link: &Link) -> io::Result<PodSide> {
    let peer = link.peer.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let mut side = PodSide { mac: one_link(socket, peer, link.netns_id).await?.mac, addresses: Vec::new() };
    let Some(netns_id) = link.netns_id else { return Ok(side) };
    for family in [AddressFamily::V4, AddressFamily::V6] {
        for body in socket.ask(netlink::addresses_request(family, peer, netns_id)).await? {
            match body {
                Body::Address { index, address } if index == peer => side.addresses.extend(address),
                Body::Address { .. }
                | Body::AddressGone { .. }
                | Body::Link(_)
                | Body::LinkGone(_)
                | Body::End(_)
                | Body::Overrun
                | Body::Other => {}
            }
        }
    }
    Ok(side)
}
