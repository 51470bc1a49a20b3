//! One packet: DESIGN §5, step by step.

use palisade_common::{Hook, Reason};

use super::asking::Answer;
use super::cluster::addresses;
use super::flow::{Admission, Client, Flow, Passage, UNCONFIRMED_LIFE};
use super::guard::{Own, is_neighbour, violations};
use super::leaving::Mark;
use super::meaning::{answers, is_error, opens, passage, tuple_of};
use super::packet::{self, Body, Packet, Upper, is_first, is_later};
use super::policy::Direction;
use super::related::{first_fragment, same_datagram};
use super::{NO_EPOCH, Opinion, Oracle};
use crate::case::PacketStep;

/// Everything about the endpoint that one packet's judgement needs.
pub(super) struct Scene {
    pub(super) hook: Hook,
    pub(super) ifindex: u32,
    pub(super) time: u64,
    /// Of the pod and its veth: a pod's new veth has none of its old one's flows.
    pub(super) identity: String,
    pub(super) closed: bool,
    pub(super) midstream: bool,
    /// May send from any address.
    pub(super) trusted: bool,
    /// Whose mark the packet bears, where a pod receives.
    pub(super) client: Option<Client>,
}

impl Scene {
    /// The endpoint's part in a flow that the packet's sender opened.
    pub(super) fn direction(&self) -> Direction {
        match self.hook {
            Hook::FromPod => Direction::Egress,
            Hook::ToPod => Direction::Ingress,
        }
    }

    /// ... that the packet's receiver opened.
    pub(super) fn opposite(&self) -> Direction {
        match self.hook {
            Hook::FromPod => Direction::Ingress,
            Hook::ToPod => Direction::Egress,
        }
    }
}

impl Oracle {
    pub(super) fn judge(&mut self, step: &PacketStep) -> Opinion {
        let reading = packet::frame(&step.frame, step.gso);
        let from_node = step.hook == Hook::ToPod && step.ingress_ifindex == 0;
        let Some(endpoint) = self.endpoints.get(&step.ifindex) else {
            return without_endpoint(step.hook, &reading.body, from_node);
        };
        let subject = self.subject(endpoint);
        let closed = subject.is_none();
        let trusted = self.cluster.trusted(&endpoint.namespace);
        let own = Own::new(endpoint, subject.as_ref().map(|subject| addresses(subject.pod)).unwrap_or_default());
        let isolated = subject.as_ref().is_some_and(|subject| subject.egress || subject.ingress);
        let identity = match &subject {
            Some(subject) => subject.uid.clone(),
            None => endpoint.uid.clone().unwrap_or_else(|| format!("{}/{}", endpoint.namespace, endpoint.pod)),
        };
        let scene = Scene {
            hook: step.hook,
            ifindex: step.ifindex,
            time: step.time,
            midstream: endpoint.older || self.unisolated.contains(&(identity.clone(), step.ifindex)),
            identity: format!("{identity} behind {}", step.ifindex),
            closed,
            trusted,
            client: self.client_of(step),
        };
        // Whose namespace a closed endpoint's pod is in need not be known.
        let wrong = if trusted && !closed { Vec::new() } else { violations(step.hook, &reading, &own) };
        if closed && !wrong.is_empty() && !from_node {
            // What is known of a closed endpoint may be too little to tell, and little passes there anyway.
            return Opinion { pass: Some(false), ..Opinion::either() };
        }
        if !wrong.is_empty() {
            // The node's own pass always and a pod receives only what is its own: the text does not say which comes first.
            return if from_node { Opinion::either() } else { refused(wrong, &reading.body, isolated) };
        }
        let always = match &reading.body {
            Body::Arp(_) => true,
            Body::Ip(Some(packet)) => is_neighbour(step.hook, packet, &own),
            Body::Ip(None) | Body::Other | Body::Unreadable => false,
        };
        if always {
            let mut reasons = vec![Reason::Neighbour];
            reasons.extend((!isolated && !closed).then_some(Reason::NotIsolated));
            reasons.extend(from_node.then_some(Reason::Node));
            return Opinion::of(reasons);
        }
        if step.hook == Hook::ToPod && !from_node {
            match self.mark_of(step) {
                Mark::Open => return self.open_mark(step),
                Mark::Own => {
                    if let Some(opinion) = self.judge_leaving(step).filter(|opinion| opinion.pass != Some(true)) {
                        return opinion;
                    }
                }
                Mark::None | Mark::NoMatter => {}
            }
        }
        if !isolated && !closed {
            // Of a packet without addresses nobody can say whose it is; no host would take it.
            let unreadable = matches!(reading.body, Body::Ip(None)) && step.hook == Hook::FromPod;
            let node = from_node.then_some(Reason::Node);
            return if unreadable {
                Opinion::either()
            } else {
                Opinion::of([Reason::NotIsolated].into_iter().chain(node))
            };
        }
        self.judge_isolated(&scene, &reading.body, from_node)
    }

    /// What holds where a policy isolates the pod for either direction, or the endpoint is closed.
    fn judge_isolated(&mut self, scene: &Scene, body: &Body, from_node: bool) -> Opinion {
        let packet = match body {
            Body::Ip(Some(packet)) => packet,
            Body::Ip(None) | Body::Unreadable | Body::Other | Body::Arp(_) if from_node => return Opinion::either(),
            Body::Ip(None) | Body::Unreadable => return closed_or(scene, [Reason::Malformed]),
            Body::Other | Body::Arp(_) => return closed_or(scene, [Reason::UnknownProtocol]),
        };
        if from_node {
            self.remember_node(scene, packet);
            return Opinion::of([Reason::Node]);
        }
        if packet.malformed {
            let chain = packet.chain_incomplete.then_some(Reason::SpoofedFragment);
            let alone = is_later(packet).then_some(Reason::FragmentAlone);
            return closed_or(scene, [Reason::Malformed].into_iter().chain(chain).chain(alone));
        }
        if scene.closed {
            return self.judge_closed(scene, packet);
        }
        if is_later(packet) {
            return self.later_fragment(scene, packet, false);
        }
        if let Upper::Icmp(icmp) = &packet.upper
            && is_error(packet, icmp)
        {
            return self.related(scene, packet, icmp);
        }
        let opinion = self.judge_flow(scene, packet);
        if is_first(packet) && opinion.pass != Some(false) {
            let mut first = first_fragment(scene, packet, self.epoch, false);
            first.marked = opinion.marked;
            if opinion.pass.is_none() {
                first.epoch = NO_EPOCH;
            }
            self.fragments.retain(|other| !same_datagram(other, &first));
            self.fragments.push(first);
        }
        opinion
    }

    /// Only answers to the node pass.
    fn judge_closed(&self, scene: &Scene, packet: &Packet) -> Opinion {
        let passage = passage(packet);
        let answer = scene.hook == Hook::FromPod
            && !opens(packet)
            && self.flow(scene, &passage).is_some_and(|flow| {
                flow.by_node[passage.receiver()]
                    && flow.node_to.as_ref() == Some(&scene.identity)
                    && answers(flow, packet, passage.sender, scene.time)
            });
        Opinion::of([if answer && !is_later(packet) { Reason::Reply } else { Reason::Closed }])
    }

    pub(super) fn flow(&self, scene: &Scene, passage: &Passage) -> Option<&Flow> {
        let flow = self.flows.iter().find(|flow| flow.tuple == passage.tuple)?;
        let lapsed = flow.unconfirmed.is_some_and(|since| scene.time.saturating_sub(since) > UNCONFIRMED_LIFE);
        (!lapsed).then_some(flow)
    }

    /// The flow to write to; a lapsed one is another's from now on.
    pub(super) fn flow_entry(&mut self, scene: &Scene, passage: &Passage) -> &mut Flow {
        if self.flow(scene, passage).is_none() {
            self.flows.retain(|flow| flow.tuple != passage.tuple);
            self.flows.push(Flow::new(passage.tuple.clone()));
        }
        self.flows.iter_mut().find(|flow| flow.tuple == passage.tuple).expect("it was put there")
    }

    /// The node opens a flow; an answer to what the pod opened is not one.
    fn remember_node(&mut self, scene: &Scene, packet: &Packet) {
        let reset = matches!(&packet.upper, Upper::Tcp(tcp) if tcp.rst);
        let error = matches!(&packet.upper, Upper::Icmp(icmp) if is_error(packet, icmp));
        if packet.malformed || is_later(packet) || error {
            return;
        }
        let passage = passage(packet);
        let known = self.flow(scene, &passage);
        let answer =
            !opens(packet) && known.is_some_and(|flow| flow.opened[passage.receiver()] && !flow.opened[passage.sender]);
        if reset && known.is_none() {
            return;
        }
        if reset && known.is_some_and(|flow| flow.unconfirmed.is_some() || flow.is_ending()) {
            // Whether it lives a moment longer by that is the judge's business.
            self.undecided.insert(passage.tuple);
            return;
        }
        if !answer && !reset {
            let flow = self.flow_entry(scene, &passage);
            flow.opened[passage.sender] = true;
            flow.by_node[passage.sender] = true;
            flow.node_to = Some(scene.identity.clone());
        }
        let mut packet = packet.clone();
        if let Upper::Tcp(tcp) = &mut packet.upper {
            // With RST as well it begins nothing.
            tcp.syn &= !tcp.rst;
        }
        self.note(scene, &packet, &passage);
    }

    /// Keeps time, and how far TCP is closed, of a packet that passes.
    pub(super) fn note(&mut self, scene: &Scene, packet: &Packet, passage: &Passage) {
        let time = scene.time;
        let certain = scene.hook == Hook::FromPod && !scene.trusted;
        let flow = self.flow_entry(scene, passage);
        flow.seen[passage.sender] = time;
        if flow.opened[passage.sender] {
            flow.unconfirmed = None;
        }
        if let Upper::Tcp(tcp) = &packet.upper {
            flow.follow(tcp, passage.sender, certain, time);
        }
    }

    /// A packet of a flow, with its whole headers.
    fn judge_flow(&mut self, scene: &Scene, packet: &Packet) -> Opinion {
        let passage = passage(packet);
        if self.undecided.contains(&passage.tuple) {
            return Opinion::either();
        }
        if opens(packet) {
            return self.own_direction(scene, packet, &passage, &[Reason::Established]);
        }
        let connected = matches!(packet.protocol, 6 | 132);
        let Some(flow) = self.flow(scene, &passage) else {
            if connected && scene.midstream {
                return self.judge_midstream(scene, packet, &passage);
            }
            return self.own_direction(scene, packet, &passage, &[]);
        };
        if !connected {
            return self.judge_connectionless(scene, packet, &passage);
        }
        let (sender, receiver) = (passage.sender, passage.receiver());
        let (forward, backward) = (flow.opened[sender], flow.opened[receiver]);
        let closed = flow.closed();
        let answering = backward && answers(flow, packet, sender, scene.time);
        let forward_kept = self.kept(scene, flow, sender, scene.direction());
        let reply_kept = self.kept(scene, flow, receiver, scene.opposite());
        let from_node = flow.by_node[receiver] && scene.hook == Hook::FromPod;
        let same = Self::is_same_client(scene, flow, sender);
        if forward && same {
            let answer = self.ask(scene, tuple_of(packet), false);
            if answer.passes() || forward_kept {
                // What is kept is what it was, whatever the answer is now.
                let noted = if forward_kept { &Answer::Refused } else { &answer };
                self.admit(scene, &passage, sender, scene.direction(), noted);
                self.note(scene, packet, &passage);
                let mut reasons = vec![Reason::Established];
                reasons.extend(answer.passes().then_some(answer.reason()));
                reasons.extend((forward_kept || (backward && reply_kept)).then_some(Reason::Kept));
                // Both ends may have opened it, and then it is also a reply.
                reasons.extend(answering.then_some(Reason::Reply));
                return Opinion::of(reasons);
            }
        }
        if answering {
            let answer = if from_node { Answer::Admitted } else { self.ask(scene, tuple_of(packet), true) };
            if answer.passes() || reply_kept {
                if !from_node {
                    let noted = if reply_kept { &Answer::Refused } else { &answer };
                    self.admit(scene, &passage, receiver, scene.opposite(), noted);
                }
                self.note(scene, packet, &passage);
                // Its sender may have opened the flow as well, as another than it shows itself now.
                let more = reply_kept.then_some(Reason::Kept).into_iter().chain(forward.then_some(Reason::Established));
                return Opinion::of([Reason::Reply].into_iter().chain(more));
            }
        }
        if (forward && same) || (!forward && backward && !closed) {
            return self.refusal(scene, packet);
        }
        self.own_direction(scene, packet, &passage, &[])
    }

    /// Judged as an opening of its own, whatever is known; `others`: reasons that may be given beside the answer's.
    pub(super) fn own_direction(
        &mut self,
        scene: &Scene,
        packet: &Packet,
        passage: &Passage,
        others: &[Reason],
    ) -> Opinion {
        let answer = self.ask(scene, tuple_of(packet), false);
        if !answer.passes() {
            let new = opens(packet) || self.flow(scene, passage).is_none();
            return if new { self.refused_opening(scene, packet, false) } else { self.refusal(scene, packet) };
        }
        self.admit(scene, passage, passage.sender, scene.direction(), &answer);
        self.note(scene, packet, passage);
        Opinion::of([answer.reason()].into_iter().chain(others.iter().copied()))
    }

    /// Takes note of an answer that passes, or of what is kept in spite of it.
    pub(super) fn admit(
        &mut self,
        scene: &Scene,
        passage: &Passage,
        opener: usize,
        direction: Direction,
        answer: &Answer,
    ) {
        let admission = Admission { opener, direction, endpoint: scene.identity.clone() };
        let before = self.flow(scene, passage).is_some_and(|flow| flow.deferred.contains(&admission));
        let deferred = match answer {
            Answer::Deferred => true,
            Answer::Admitted | Answer::Hairpin => false,
            Answer::Refused => before,
        };
        if scene.hook == Hook::ToPod && opener == passage.sender {
            self.flow_entry(scene, passage).open_for(opener, scene.client.clone());
        }
        self.admit_as(scene, passage, opener, direction, deferred);
    }

    pub(super) fn admit_as(
        &mut self,
        scene: &Scene,
        passage: &Passage,
        opener: usize,
        direction: Direction,
        deferred: bool,
    ) {
        let admission = Admission { opener, direction, endpoint: scene.identity.clone() };
        let epoch = self.epoch;
        self.flow_entry(scene, passage).admit(admission, epoch, deferred);
    }

    /// From now on every verdict about this flow may be either.
    pub(super) fn undecided(&mut self, passage: &Passage) -> Opinion {
        self.undecided.insert(passage.tuple.clone());
        Opinion::either()
    }
}

fn without_endpoint(hook: Hook, body: &Body, from_node: bool) -> Opinion {
    // What an endpoint says of itself of which nothing is known cannot be checked.
    let nothing = Own { mac: [0; 6], addresses: Vec::new(), broadcasts: Vec::new() };
    let neighbour = match body {
        Body::Arp(_) | Body::Ip(_) if hook == Hook::FromPod => false,
        Body::Arp(_) => true,
        Body::Ip(Some(packet)) => is_neighbour(hook, packet, &nothing),
        Body::Ip(None) | Body::Other | Body::Unreadable => false,
    };
    match (from_node, neighbour) {
        (true, _) => Opinion::of([Reason::Node, Reason::Neighbour]),
        // Advertisements and redirects are for pods that are known.
        (false, true) => Opinion { reasons: [Reason::Neighbour, Reason::Closed].into(), ..Opinion::either() },
        (false, false) => Opinion::of([Reason::Closed]),
    }
}

fn closed_or(scene: &Scene, reasons: impl IntoIterator<Item = Reason>) -> Opinion {
    Opinion::of(reasons.into_iter().chain(scene.closed.then_some(Reason::Closed)))
}

/// A refusal for what a pod may not send or receive; where a policy isolates it, what else is wrong may be named as well.
fn refused(mut reasons: Vec<Reason>, body: &Body, isolated: bool) -> Opinion {
    let malformed = match body {
        Body::Ip(Some(packet)) => packet.malformed,
        Body::Ip(None) | Body::Unreadable => true,
        Body::Arp(_) | Body::Other => false,
    };
    reasons.extend((malformed && isolated).then_some(Reason::Malformed));
    Opinion::of(reasons)
}
