//! The way of a flow's first packet: each hook of this node that it passes, judged there by the decision function.

use std::net::IpAddr;

use palisade_common::decide::{Meeting, Place, Ruling, Tables, decide, decide_leaving};
use palisade_common::layout::EndpointRecord;
use palisade_common::parse::{self, Packet};
use palisade_common::{Hook, Reason};

use super::frame::Opening;
use super::trace::{Asked, Traced};
use crate::tables::sim::FrameBytes;

/// Who is at one end of a flow, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// A pod of the node, by its interface.
    Pod(u32),
    /// A process of the node.
    Node,
    /// Whoever is reached by leaving the node.
    Elsewhere,
}

/// A flow to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub from: Seat,
    pub source: IpAddr,
    /// What the packet is addressed to: address and port (of no meaning to protocols without ports).
    pub addressed: (IpAddr, u16),
    pub to: Seat,
    /// What is reached, where the node translates the former; else the same.
    pub reached: (IpAddr, u16),
    /// IP protocol; ICMP stands for an echo request of either family.
    pub protocol: u8,
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    FromPod,
    ToPod,
    /// At a device by which it leaves the node.
    Exit,
    /// At a process of the node.
    Process,
}

/// One hook on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub stage: Stage,
    /// The pod's interface, where it is a pod's hook.
    pub ifindex: Option<u32>,
    pub ruling: Ruling,
    pub asked: Vec<Asked>,
    /// Whether the packet comes that far. What it would be told is said anyway.
    pub reached: bool,
}

impl Hop {
    pub fn passes(&self) -> bool {
        self.ruling.passes()
    }
}

/// The record of an interface, as it is in force.
pub fn record_of<T: Tables>(tables: &T, ifindex: u32) -> Option<&EndpointRecord> {
    let index = tables.endpoint(ifindex)?.at(tables.epoch());
    tables.record(index).filter(|record| record.ifindex == ifindex)
}

fn mac_of<T: Tables>(tables: &T, seat: Seat) -> [u8; 6] {
    let Seat::Pod(ifindex) = seat else { return [2, 0, 0, 0, 0, 0xfe] };
    let Some(record) = record_of(tables, ifindex) else { return [2, 0, 0, 0, 0, 0xfd] };
    let ([a, b, c, d], [e, f]) = (record.mac_hi.to_ne_bytes(), (record.mac_lo as u16).to_ne_bytes());
    [a, b, c, d, e, f]
}

/// Each hook of this node on the way, in order. None where neither end is a pod of the node.
pub fn way<T: Tables>(tables: &T, flow: &Flow) -> Vec<Hop> {
    let traced = Traced::new(tables);
    let mut hops = Vec::new();
    let opening = |(destination, port): (IpAddr, u16)| Opening {
        source_mac: mac_of(tables, flow.from),
        destination_mac: mac_of(tables, flow.to),
        source: flow.source,
        destination,
        protocol: flow.protocol,
        port,
    };
    let (mut stamp, mut reached) = (0, true);
    if let Seat::Pod(ifindex) = flow.from {
        let meeting = Meeting { hook: Hook::FromPod, ifindex, from_node: false, stamp: 0 };
        let ruling = judge(&traced, &opening(flow.addressed), meeting);
        (stamp, reached) = (if ruling.passes() { ruling.stamp() } else { 0 }, ruling.passes());
        let asked = traced.take_asked();
        hops.push(Hop { stage: Stage::FromPod, ifindex: Some(ifindex), ruling, asked, reached: true });
    }
    let opening = opening(flow.reached);
    let (stage, ifindex, ruling) = match flow.to {
        Seat::Pod(ifindex) => {
            let from_node = flow.from == Seat::Node;
            let meeting = Meeting { hook: Hook::ToPod, ifindex, from_node, stamp };
            (Stage::ToPod, Some(ifindex), judge(&traced, &opening, meeting))
        }
        // Nobody asks about what bears no mark.
        Seat::Node | Seat::Elsewhere if stamp == 0 => return hops,
        Seat::Node => (Stage::Process, None, judge_leaving(&traced, &opening, stamp, Place::Process)),
        Seat::Elsewhere => (Stage::Exit, None, judge_leaving(&traced, &opening, stamp, Place::Device)),
    };
    hops.push(Hop { stage, ifindex, ruling, asked: traced.take_asked(), reached });
    hops
}

fn judge<T: Tables>(tables: &T, opening: &Opening, meeting: Meeting) -> Ruling {
    with_packet(opening, |frame, packet| decide(frame, || packet, tables, meeting))
}

fn judge_leaving<T: Tables>(tables: &T, opening: &Opening, stamp: u16, place: Place) -> Ruling {
    with_packet(opening, |_, packet| decide_leaving(|| packet, tables, stamp, place))
}

fn with_packet<R>(opening: &Opening, judge: impl FnOnce(&FrameBytes<'_>, &Packet) -> R) -> R {
    let bytes = opening.bytes();
    let frame = FrameBytes { bytes: &bytes, gso: false };
    let mut packet = Packet::default();
    parse::frame(&frame, &mut packet);
    judge(&frame, &packet)
}

/// Allowed as far as this node knows.
pub fn is_allowed(hops: &[Hop]) -> bool {
    hops.iter().all(Hop::passes)
}

/// Whether no hop was judged while the tables changed.
pub fn is_settled(hops: &[Hop]) -> bool {
    hops.iter().all(|hop| hop.ruling.reason() != Reason::Unsettled)
}
