//! What every judge is asked, and what it answers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use palisade_common::decide::Place;
use palisade_common::{Hook, Verdict};
use serde_json::Value;

use crate::frame::Mac;

/// How the agent of a case is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Name of this node.
    pub node: String,
    /// `--existing-flows`.
    pub existing: Existing,
    /// Mid-stream admissions per endpoint and second.
    pub midstream_budget: u32,
    pub services: Services,
}

/// Whether what pods send to Services can be judged where it ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Services {
    Judged,
    /// A device lacks its program.
    NoExits,
    /// No pod has a number to mark its packets with.
    NoMarks,
}

/// What becomes of a flow that was admitted and would not be any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Cut,
    Keep,
}

/// The host's side of a pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ifindex: u32,
    pub namespace: String,
    pub pod: String,
    /// metadata.uid of the pod; where it is missing, the name says which pod it is.
    pub uid: Option<String>,
    /// MAC address of the pod's side.
    pub mac: Mac,
    /// Addresses of the pod's side with their prefix lengths (bits), link-local ones included.
    pub addresses: Vec<(IpAddr, u8)>,
    /// There before the node's first program.
    pub older: bool,
    /// TCP ports on which the pod's processes listen; `None`: it cannot be found out.
    pub listening: Option<BTreeSet<u16>>,
}

/// One change of the world, as it is told to every judge.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectChange {
    /// A Namespace, Pod, NetworkPolicy, Service or Node as the API server hands it out.
    Put(Value),
    /// The same, gone. Only kind and metadata (namespace, name, uid) need be there.
    Delete(Value),
    Endpoint(Endpoint),
    EndpointGone(u32),
    /// All of the node's own addresses.
    Own(BTreeSet<IpAddr>),
}

/// One packet at one hook, or where it leaves the node or reaches a process of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketStep {
    /// Only meaningful at [`Place::Pod`].
    pub hook: Hook,
    pub place: Place,
    /// The pod's interface; elsewhere that of the pod whose packet it is.
    pub ifindex: u32,
    /// The packet bears the mark that this pod's interface gave the last packet that it let through; none: no mark.
    pub by: Option<u32>,
    /// Where the node received the packet; 0: a process of the node sent it.
    pub ingress_ifindex: u32,
    /// Nanoseconds, CLOCK_MONOTONIC.
    pub time: u64,
    /// The frame stands for several.
    pub gso: bool,
    pub frame: Vec<u8>,
    /// The packet as the case has it.
    pub words: String,
}

/// Which pod's mark a packet bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Nobody,
    /// The pod behind this interface.
    Pod(u32),
}

/// One that decides about packets.
pub trait Judge {
    fn apply(&mut self, change: &ObjectChange);

    /// All changes of one instant have been applied: from now on they hold.
    fn settle(&mut self) {}

    /// `None`: this judge cannot be asked about such a packet.
    fn packet(&mut self, packet: &PacketStep) -> Option<Verdict>;

    /// Whose mark the packet bears that a pod sent last. `None`: this judge knows no marks.
    fn mark(&self) -> Option<Mark> {
        None
    }
}
