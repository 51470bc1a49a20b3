//! Packets of pods with an egress policy where they end up: at another pod, at a device, at a process of the node (SEMANTICS 13).
//!
//! Whoever opened the flow is asked for the addresses that the packet bears there, behind whatever the node has made of them.

use palisade_common::decide::Place;
use palisade_common::{Hook, Reason};

use super::flow::{Admission, Client, Passage};
use super::meaning::{is_error, opens, passage, tuple_of};
use super::packet::{self, Body, Packet, Upper, is_first, is_later};
use super::policy::{Direction, Question, admits};
use super::related::{first_fragment, same_datagram};
use super::services::Destination;
use super::verdict::Scene;
use super::{NO_EPOCH, Opinion, Oracle};
use crate::case::{Existing, PacketStep};

/// How many backends of a Service can be asked for at a process of the node.
const BACKENDS_MAX: usize = 4;

/// What a packet that a pod sent bears: the pod's mark or none; `None`: the text leaves it open.
#[derive(Clone, Debug)]
pub(super) struct Marked {
    pub(super) marked: Option<bool>,
    /// As the pod sent it.
    passage: Option<Passage>,
}

/// Whether a packet bears its sender's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    None,
    Own,
    /// It may or may not, and was not translated, so that it was judged already as it is.
    NoMatter,
    /// The text leaves it open.
    Open,
}

impl Oracle {
    pub(super) fn take_mark(&mut self, step: &PacketStep, opinion: &Opinion) {
        let marked = Marked { marked: opinion.marked, passage: passage_of(step) };
        self.marks.insert(step.ifindex, marked);
    }

    /// At a device or a process of the node.
    pub(super) fn leave_node(&mut self, step: &PacketStep) -> Opinion {
        match self.mark_of(step) {
            Mark::Own => {}
            Mark::None => return Opinion::of([Reason::NotIsolated]),
            Mark::NoMatter => return Opinion { pass: Some(true), ..Opinion::either() },
            Mark::Open => return self.open_mark(step),
        }
        self.judge_leaving(step).unwrap_or_else(|| Opinion::of([Reason::NotIsolated]))
    }

    pub(super) fn mark_of(&self, step: &PacketStep) -> Mark {
        let Some(mark) = step.by.and_then(|by| self.marks.get(&by)) else { return Mark::None };
        match mark.marked {
            Some(true) => Mark::Own,
            Some(false) => Mark::None,
            None if mark.passage == passage_of(step) && !self.is_deferred(step) => Mark::NoMatter,
            None => Mark::Open,
        }
    }

    /// Whoever sent the packet was only let go on with its flow, if it opened it.
    fn is_deferred(&self, step: &PacketStep) -> bool {
        let Body::Ip(Some(packet)) = packet::frame(&step.frame, step.gso).body else { return false };
        let tuple = passage(&packet).tuple;
        let flow = self.flows.iter().find(|flow| flow.tuple == tuple);
        // Of a later fragment nobody can say whose flow it is part of.
        is_later(&packet) || flow.is_some_and(|flow| !flow.deferred.is_empty())
    }

    /// Where the text leaves open whose the flow is that the packet belongs to.
    pub(super) fn open_mark(&mut self, step: &PacketStep) -> Opinion {
        match passage_of(step) {
            Some(passage) => self.undecided(&passage),
            None => Opinion::either(),
        }
    }

    /// What the policy of the pod that opened the flow says of it as it is seen here; `None`: it has nothing to say.
    pub(super) fn judge_leaving(&mut self, step: &PacketStep) -> Option<Opinion> {
        let by = step.by?;
        let Some(endpoint) = self.endpoints.get(&by) else { return Some(Opinion::of([Reason::UnknownStamp])) };
        if step.place == Place::Pod && step.ifindex == by {
            return None;
        }
        let Some(subject) = self.subject(endpoint) else { return Some(Opinion::of([Reason::Closed])) };
        if !subject.egress {
            return None;
        }
        let scene = Scene {
            hook: Hook::FromPod,
            ifindex: by,
            time: step.time,
            identity: format!("{} behind {by}", subject.uid),
            closed: false,
            midstream: false,
            trusted: self.cluster.trusted(&endpoint.namespace),
            client: None,
        };
        let reading = packet::frame(&step.frame, step.gso);
        let Body::Ip(Some(packet)) = reading.body else { return Some(Opinion::of([Reason::Malformed])) };
        if packet.malformed {
            let alone = is_later(&packet).then_some(Reason::FragmentAlone);
            return Some(Opinion::of([Reason::Malformed].into_iter().chain(alone)));
        }
        if matches!(&packet.upper, Upper::Icmp(icmp) if is_error(&packet, icmp)) {
            return Some(Opinion::of([Reason::UnrelatedError]));
        }
        if is_later(&packet) {
            return Some(self.later_fragment(&scene, &packet, true));
        }
        let opinion = self.reach(&scene, &packet, step.place);
        if is_first(&packet) && opinion.pass != Some(false) {
            let epoch = if opinion.pass.is_none() { NO_EPOCH } else { self.epoch };
            let mut first = first_fragment(&scene, &packet, epoch, true);
            first.marked = Some(true);
            self.fragments.retain(|other| !same_datagram(other, &first));
            self.fragments.push(first);
        }
        Some(opinion)
    }

    fn reach(&mut self, scene: &Scene, packet: &Packet, place: Place) -> Opinion {
        let passage = passage(packet);
        if self.undecided.contains(&passage.tuple) {
            return Opinion::either();
        }
        let (_, destination, protocol, ports) = tuple_of(packet);
        let port = ports.map(|(_, port)| port);
        let ours = Admission { opener: passage.sender, direction: Direction::Egress, endpoint: scene.identity.clone() };
        let flow = self.flow(scene, &passage);
        let deferred = flow.is_some_and(|flow| flow.deferred.contains(&ours));
        let known = flow.is_some_and(|flow| flow.admissions.contains_key(&ours)) && !deferred;
        let keeps = self.setup.existing == Existing::Keep;
        let kept = keeps && known && !opens(packet);
        if self.may_reach(scene, destination, protocol, port) || kept {
            let client = Client { ifindex: scene.ifindex, identity: scene.identity.clone() };
            let is_own = self.is_own_address(scene.ifindex, packet.source);
            self.flow_entry(scene, &passage).open_for(passage.sender, Some(client).filter(|_| !is_own));
            self.admit_as(scene, &passage, passage.sender, Direction::Egress, false);
            self.note(scene, packet, &passage);
            let reasons = [Reason::Allowed, Reason::Established];
            return Opinion::of(reasons.into_iter().chain(kept.then_some(Reason::Kept)));
        }
        let refused = Opinion::of([Reason::NoRule, Reason::Revoked]);
        let (Place::Process, true, Some(port)) = (place, deferred, port) else { return refused };
        if !self.own.contains(&destination) {
            return refused;
        }
        // A Service's address that is the node's own stands for the Service's pods.
        let behind = self.cluster.behind(Destination { address: destination, protocol, port });
        let admitted = behind.iter().filter(|(address, port)| self.may_reach(scene, *address, protocol, Some(*port)));
        let admitted = admitted.count();
        if admitted == behind.len() && admitted != 0 {
            return Opinion::of([Reason::Allowed]);
        }
        // Of many only some are asked for; and what was let through by them is not remembered.
        if admitted != 0 && (behind.len() > BACKENDS_MAX) || keeps { Opinion::either() } else { refused }
    }

    /// Whether the endpoint's egress policy admits this very destination.
    pub(super) fn may_reach(
        &self,
        scene: &Scene,
        destination: std::net::IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> bool {
        let subject = self.endpoints.get(&scene.ifindex).and_then(|endpoint| self.subject(endpoint));
        subject.is_some_and(|subject| {
            let direction = Direction::Egress;
            admits(&self.cluster, Question { subject: subject.pod, direction, peer: destination, protocol, port })
        })
    }
}

fn passage_of(step: &PacketStep) -> Option<Passage> {
    match packet::frame(&step.frame, step.gso).body {
        Body::Ip(Some(packet)) => Some(passage(&packet)),
        Body::Ip(None) | Body::Arp(_) | Body::Other | Body::Unreadable => None,
    }
}
