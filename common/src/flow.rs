//! Flows: who opened them, what was decided, and when that has to be decided again.
//!
//! An entry serves both directions of a tuple. For each end that opened it there are two judgements, one by either end's endpoint:
//! egress of the opener, ingress of the other. A packet of endpoint E passes by a judgement that E made at this epoch: in the packet's own
//! direction (established), or in the opposite one (a reply) unless the packet opens a flow itself.

use crate::decide::{Answer, EGRESS, FlowEntry, INGRESS, Ruling, Tables, ask};
use crate::layout::{Address, EndpointRecord, FlowKey, FlowValue, Judgement, endpoint_flag, flow_flag};
use crate::parse::{Packet, packet_trait, protocol, tcp_flag};
use crate::verdict::{Hook, Reason};

const SECOND: u64 = 1_000_000_000;
/// An entry's time is written at most this often.
const SEEN_GRANULARITY: u64 = SECOND;
/// How long the last segments of a closed connection may still answer.
const CLOSED_NS: u64 = 10 * SECOND;
/// How long an entry made by the reverse question lives without a packet of the end that is held to have opened it.
const UNCONFIRMED_NS: u64 = 2 * SECOND;

/// How long a silent flow is remembered (nanoseconds), as conntrack's defaults have it.
#[inline(always)]
const fn idle_ns(protocol: u8) -> u64 {
    match protocol {
        protocol::TCP | protocol::SCTP => 5 * 24 * 3600 * SECOND,
        protocol::UDP => 180 * SECOND,
        protocol::ICMP | protocol::ICMPV6 => 30 * SECOND,
        _ => 600 * SECOND,
    }
}

/// One packet at one endpoint: what every question about its flow needs.
///
/// Handed on whole, by reference: a function of a BPF program takes at most five arguments.
pub struct At<'a, T> {
    pub tables: &'a T,
    pub record: &'a EndpointRecord,
    pub packet: &'a Packet,
    pub key: FlowKey,
    /// Which end of the key sent the packet (0: low, 1: high).
    pub sender: usize,
    /// Nanoseconds, CLOCK_MONOTONIC (coarse).
    pub now: u64,
    pub epoch: u32,
    pub hook: Hook,
}

impl<'a, T: Tables> At<'a, T> {
    #[inline(always)]
    pub(crate) fn new(tables: &'a T, record: &'a EndpointRecord, packet: &'a Packet, epoch: u32, hook: Hook) -> Self {
        let (key, sender) = key(packet);
        Self { tables, record, packet, key, sender, now: tables.now(), epoch, hook }
    }

    #[inline(always)]
    pub(crate) fn judgement(&self) -> Judgement {
        Judgement { epoch: self.epoch, generation: self.record.generation }
    }

    #[inline(always)]
    fn is_valid(&self, judged: Judgement) -> bool {
        judged.epoch == self.epoch && judged.generation == self.record.generation
    }

    /// All that was read so far was read at one epoch. What is found out otherwise may be neither the old verdict nor the new one: it
    /// is not even remembered, as with `--existing-flows keep` it would outlast the epoch.
    #[inline(always)]
    pub(crate) fn is_settled(&self) -> bool {
        self.tables.epoch() == self.epoch
    }

    /// The endpoint's role in a flow that the packet's sender opened.
    #[inline(always)]
    fn forward_role(&self) -> usize {
        match self.hook {
            Hook::FromPod => EGRESS,
            Hook::ToPod => INGRESS,
        }
    }

    /// The endpoint's role in a flow that the packet's receiver opened.
    #[inline(always)]
    fn reverse_role(&self) -> usize {
        1 - self.forward_role()
    }

    /// Asks whether the packet's own direction may be opened.
    #[inline(always)]
    fn ask_forward(&self) -> Answer {
        ask_packet(self, self.forward_role(), self.packet.destination_port)
    }

    /// Asks whether the opposite direction may be opened.
    #[inline(always)]
    fn ask_reverse(&self) -> Answer {
        ask_packet(self, self.reverse_role(), self.packet.source_port)
    }
}

/// Once in the program, however often it is asked.
#[inline(never)]
fn ask_packet<T: Tables>(at: &At<'_, T>, role: usize, port: u16) -> Answer {
    let packet = at.packet;
    let peer = match at.hook {
        Hook::FromPod => &packet.destination,
        Hook::ToPod => &packet.source,
    };
    ask(at.tables, at.record, role, at.epoch, (packet.family, packet.protocol), (peer, port))
}

/// The key of a packet's flow, and which end sent the packet (0: low, 1: high).
#[inline(always)]
pub fn key(packet: &Packet) -> (FlowKey, usize) {
    let source_is_low = is_before(&packet.source, packet.source_port, &packet.destination, packet.destination_port);
    // References first, so that each address is copied once.
    let (low, high) =
        if source_is_low { (&packet.source, &packet.destination) } else { (&packet.destination, &packet.source) };
    let key = FlowKey {
        low: *low,
        high: *high,
        low_port: if source_is_low { packet.source_port } else { packet.destination_port },
        high_port: if source_is_low { packet.destination_port } else { packet.source_port },
        protocol: packet.protocol,
        family: packet.family,
        pad: 0,
    };
    (key, if source_is_low { 0 } else { 1 })
}

/// Any total order does, as long as all who share the table agree.
#[inline(always)]
fn is_before(a: &Address, a_port: u16, b: &Address, b_port: u16) -> bool {
    if a.words[3] != b.words[3] {
        return a.words[3] < b.words[3];
    }
    if a.words[2] != b.words[2] {
        return a.words[2] < b.words[2];
    }
    if a.words[1] != b.words[1] {
        return a.words[1] < b.words[1];
    }
    if a.words[0] != b.words[0] {
        return a.words[0] < b.words[0];
    }
    a_port <= b_port
}

#[inline(always)]
fn is_alive<F: FlowEntry>(flow: &F, protocol: u8, now: u64) -> bool {
    let silent = now.saturating_sub(flow.seen());
    let limit = if flow.flags() & flow_flag::UNCONFIRMED != 0 { UNCONFIRMED_NS } else { idle_ns(protocol) };
    silent <= limit
}

/// Nobody will miss the entry: silent for longer than it is remembered, or closed for longer than its last segments may take. With a
/// margin, as it may be used between this look and its removal.
pub fn is_over(key: &FlowKey, value: &FlowValue, now: u64) -> bool {
    let silent = now.saturating_sub(value.seen);
    silent > idle_ns(key.protocol) + MARGIN_NS || (is_closed(value.flags) && silent > CLOSED_NS + MARGIN_NS)
}

const MARGIN_NS: u64 = 60 * SECOND;

const BOTH_FIN_ACKED: u32 = flow_flag::FIN_ACKED * 3;
const ENDING: u32 = flow_flag::RESET | flow_flag::RESET_SEEN | BOTH_FIN_ACKED;
const TCP_STATE: u32 = ENDING | (flow_flag::FIN * 3) | flow_flag::UNCONFIRMED;

#[inline(always)]
const fn is_closed(flags: u32) -> bool {
    flags & flow_flag::RESET != 0 || flags & BOTH_FIN_ACKED == BOTH_FIN_ACKED
}

/// A packet of an isolated endpoint, whole headers and no error message.
#[inline(always)]
pub(crate) fn pass<T: Tables>(at: &At<'_, T>) -> Ruling {
    let packet = at.packet;
    let flow = at.tables.flow(&at.key);
    let new = flow.is_none();
    let Some(flow) = flow.filter(|flow| is_alive(flow, packet.protocol, at.now)) else {
        let ruling = judge_unknown(at);
        if !ruling.remembers() {
            return ruling;
        }
        if !at.is_settled() {
            return Ruling::of(Reason::Unsettled);
        }
        let flags = if ruling.is_forward() { 0 } else { flow_flag::UNCONFIRMED };
        return remembered(insert(at, ruling.is_forward(), flags, new), ruling);
    };
    let opening = packet.has(packet_trait::OPENING);
    let flags = flow.flags();
    let anew = opening && flags & (TCP_STATE | flow_flag::KEPT) != 0;
    if at.is_valid(flow.judged(at.sender, at.forward_role())) && !anew {
        note(at, &flow, true);
        return Ruling::of(Reason::Established);
    }
    if !opening && at.is_valid(flow.judged(1 - at.sender, at.reverse_role())) && answers(&flow, packet, at.now) {
        note(at, &flow, false);
        return Ruling::of(Reason::Reply);
    }
    let ruling = judge_known(at, &flow);
    if !ruling.remembers() {
        return ruling;
    }
    if !at.is_settled() {
        return Ruling::of(Reason::Unsettled);
    }
    let kept = ruling.reason_number() == Reason::Kept as u8;
    remembered(stamp(at, &flow, ruling.is_forward(), kept), ruling)
}

/// Whether a packet of the end that did not open the flow may still be an answer.
#[inline(always)]
fn answers<F: FlowEntry>(flow: &F, packet: &Packet, now: u64) -> bool {
    let flags = flow.flags();
    if !packet.is_tcp() || flags & ENDING == 0 {
        return true;
    }
    let recent = now.saturating_sub(flow.seen()) <= CLOSED_NS;
    if is_closed(flags) {
        return recent && packet.payload == 0 && packet.tcp_flags & tcp_flag::SYN == 0;
    }
    flags & flow_flag::RESET_SEEN == 0 || recent
}

/// Keeps time and TCP state of a flow whose packet passes.
#[inline(always)]
fn note<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, forward: bool) {
    let old = flow.flags();
    let mut flags = old;
    if at.packet.is_tcp() {
        const MOVES: u8 = tcp_flag::FIN | tcp_flag::RST;
        let moving = at.packet.tcp_flags & MOVES != 0 || old & (TCP_STATE & !flow_flag::UNCONFIRMED) != 0;
        if moving {
            flags = tcp_state(at, flow, forward);
        }
    }
    if forward {
        flags &= !flow_flag::UNCONFIRMED;
    }
    if flags != old {
        flow.set_flags(flags);
    }
    // An answer does not prolong what is ending or not confirmed.
    let prolongs = forward || flags & (ENDING | flow_flag::UNCONFIRMED) == 0;
    if (prolongs && at.now.saturating_sub(flow.seen()) > SEEN_GRANULARITY) || (flags ^ old) & ENDING != 0 {
        flow.set_seen(at.now);
    }
}

/// RFC 9293, as far as to know that a connection is over: both FINs acknowledged, or a reset that is certain.
#[inline(always)]
fn tcp_state<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, forward: bool) -> u32 {
    let packet = at.packet;
    let mut flags = flow.flags();
    if packet.tcp_flags & tcp_flag::RST != 0 {
        return flags | reset_flag(at);
    }
    if forward {
        flags &= !flow_flag::RESET_SEEN;
    }
    let sender = at.sender;
    let receiver = 1 - sender;
    if packet.tcp_flags & tcp_flag::FIN != 0 {
        let next = fin_next(packet);
        if flow.fin_next(sender) != next {
            flow.set_fin_next(sender, next);
        }
        flags |= flow_flag::FIN << sender;
    }
    if packet.tcp_flags & tcp_flag::ACK != 0
        && flags & (flow_flag::FIN << receiver) != 0
        && packet.tcp_acknowledgement.wrapping_sub(flow.fin_next(receiver)) as i32 >= 0
    {
        flags |= flow_flag::FIN_ACKED << receiver;
    }
    flags
}

/// A pod's own reset is its own word; one from elsewhere may be forged and out of window (RFC 5961).
#[inline(always)]
fn reset_flag<T: Tables>(at: &At<'_, T>) -> u32 {
    let certain = matches!(at.hook, Hook::FromPod) && at.record.flags & endpoint_flag::TRUSTED == 0;
    if certain { flow_flag::RESET } else { flow_flag::RESET_SEEN }
}

/// The sequence number after the segment's FIN.
#[inline(always)]
const fn fin_next(packet: &Packet) -> u32 {
    packet.tcp_sequence.wrapping_add(packet.payload).wrapping_add(1)
}

/// A flow that is known, but not (any longer) admitted as the packet needs it.
#[inline(never)]
fn judge_known<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F) -> Ruling {
    let packet = at.packet;
    let (sender, opener) = (at.sender, 1 - at.sender);
    let flags = flow.flags();
    let generation = at.record.generation;
    let opening = packet.has(packet_trait::OPENING);
    let opened_forward = flags & (flow_flag::OPENED << sender) != 0;
    let opened_reverse = flags & (flow_flag::OPENED << opener) != 0;
    let keeps = at.tables.keeps_existing();
    let mut refused = Ruling::of(Reason::NoRule);
    if opened_reverse && !opening && answers(flow, packet, at.now) {
        let admitted_once = flow.judged(opener, at.reverse_role()).generation == generation;
        let node = flags & flow_flag::NODE != 0 && matches!(at.hook, Hook::FromPod);
        let kept = keeps && admitted_once && !node;
        let answer = if kept || node { Answer::ALLOWED } else { at.ask_reverse() };
        if answer.is_allowed() {
            let reason = if kept { Reason::Kept } else { Reason::Reply };
            return Ruling::of(reason).remembering(false);
        }
        refused = Ruling::new(if admitted_once { Reason::Revoked } else { Reason::NoRule }, answer.class());
    }
    // A connection has one opener; other protocols may be opened from either end at any time.
    let connected = matches!(packet.protocol, protocol::TCP | protocol::SCTP);
    if opening || opened_forward || !connected || !opened_reverse || is_closed(flags) {
        let known = opened_forward && !opening && flow.judged(sender, at.forward_role()).generation == generation;
        let kept = known && keeps;
        let answer = if kept { Answer::ALLOWED } else { at.ask_forward() };
        if answer.is_allowed() {
            let reason = if kept {
                Reason::Kept
            } else if known {
                Reason::Established
            } else {
                Reason::Allowed
            };
            return Ruling::new(reason, answer.class()).remembering(true);
        }
        let revoked = known || matches!(refused.reason(), Reason::Revoked);
        refused = Ruling::new(if revoked { Reason::Revoked } else { Reason::NoRule }, answer.class());
    }
    refused
}

/// Puts the entry anew with the judgement of the packet's direction (`forward`) or of the opposite one made now.
#[inline(never)]
fn stamp<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, forward: bool, kept: bool) -> bool {
    let mut value = flow.value();
    if kept {
        // Once set it stays: it may stand for any of the entry's judgements.
        value.flags |= flow_flag::KEPT;
    }
    let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
    if forward {
        // Only an opening begins anew: what else is sent on a closed connection's tuple does not make it live again.
        if at.packet.is_tcp() && at.packet.has(packet_trait::OPENING) {
            value.flags &= !TCP_STATE;
            value.fin_next = [0; 2];
        }
        value.flags &= !flow_flag::UNCONFIRMED;
    }
    set_judged(&mut value, opener, role, at.judgement());
    value.flags |= flow_flag::OPENED << opener;
    if forward || value.flags & (ENDING | flow_flag::UNCONFIRMED) == 0 {
        value.seen = at.now;
    }
    let remembered = at.tables.put_flow(&at.key, &value, false);
    if at.packet.is_tcp()
        && let Some(flow) = at.tables.flow(&at.key)
    {
        note(at, &flow, forward);
    }
    remembered
}

/// Constant places, so that the verifier sees constant offsets.
#[inline(always)]
fn set_judged(value: &mut FlowValue, opener: usize, role: usize, judgement: Judgement) {
    match (opener, role) {
        (0, EGRESS) => value.judged[0][EGRESS] = judgement,
        (0, _) => value.judged[0][INGRESS] = judgement,
        (_, EGRESS) => value.judged[1][EGRESS] = judgement,
        (_, _) => value.judged[1][INGRESS] = judgement,
    }
}

/// Puts an entry for a flow that the packet's sender (`forward`) or receiver opened. `new`: none is there.
#[inline(never)]
fn insert<T: Tables>(at: &At<'_, T>, forward: bool, flags: u32, new: bool) -> bool {
    let (opener, role) = if forward { (at.sender, at.forward_role()) } else { (1 - at.sender, at.reverse_role()) };
    let zero = at.tables.zero();
    let unjudged = Judgement { epoch: zero, generation: zero };
    let mut value = FlowValue {
        judged: [[unjudged; 2]; 2],
        seen: at.now,
        flags: flags | flow_flag::OPENED << opener,
        fin_next: [zero; 2],
        reserved: [zero; 3],
    };
    set_judged(&mut value, opener, role, at.judgement());
    let packet = at.packet;
    if packet.is_tcp() && packet.tcp_flags & tcp_flag::RST != 0 {
        value.flags |= reset_flag(at);
    } else if packet.is_tcp() && packet.tcp_flags & tcp_flag::FIN != 0 {
        value.flags |= flow_flag::FIN << at.sender;
        let next = fin_next(packet);
        value.fin_next = if at.sender == 0 { [next, 0] } else { [0, next] };
    }
    at.tables.put_flow(&at.key, &value, new)
}

/// A tuple that nothing is known of.
#[inline(never)]
fn judge_unknown<T: Tables>(at: &At<'_, T>) -> Ruling {
    let connected = matches!(at.packet.protocol, protocol::TCP | protocol::SCTP);
    let mut direction = Opened::Forward;
    if connected && !at.packet.has(packet_trait::OPENING) {
        direction = opened_by(at);
    }
    if !matches!(direction, Opened::Reverse) {
        let answer = at.ask_forward();
        if answer.is_allowed() {
            return Ruling::new(Reason::Allowed, answer.class()).remembering(true);
        }
        if matches!(direction, Opened::Forward) {
            return Ruling::new(Reason::NoRule, answer.class());
        }
    }
    let answer = at.ask_reverse();
    if !answer.is_allowed() {
        return Ruling::new(Reason::NoRule, answer.class());
    }
    if !at.tables.take_midstream(at.record.number, at.now) {
        return Ruling::new(Reason::MidstreamBudget, answer.class());
    }
    Ruling::new(Reason::Midstream, answer.class()).remembering(false)
}

#[inline(always)]
fn remembered(taken: bool, ruling: Ruling) -> Ruling {
    if taken { ruling } else { Ruling::new(Reason::Unremembered, ruling.class()) }
}

/// Which end is held to have opened a connection that is met mid-stream.
#[derive(Clone, Copy)]
enum Opened {
    Forward,
    Reverse,
    Either,
}

/// Only endpoints that had connections nobody saw being opened, or whose flows may have been evicted, are given the benefit of
/// the reverse question; which question it is, the pod's own listening sockets tell.
#[inline(always)]
fn opened_by<T: Tables>(at: &At<'_, T>) -> Opened {
    if at.record.flags & endpoint_flag::MIDSTREAM == 0 && !at.tables.pressure(at.now) {
        return Opened::Forward;
    }
    let packet = at.packet;
    let local = match at.hook {
        Hook::FromPod => (packet.source, packet.source_port),
        Hook::ToPod => (packet.destination, packet.destination_port),
    };
    match (at.tables.listens(at.record, packet.family, packet.protocol, local), at.hook) {
        (None, _) => Opened::Either,
        // A listening pod was connected to: packets to it go the way of the opening.
        (Some(true), Hook::ToPod) | (Some(false), Hook::FromPod) => Opened::Forward,
        (Some(true), Hook::FromPod) | (Some(false), Hook::ToPod) => Opened::Reverse,
    }
}

// === The node's own traffic ===

/// Remembers what the node sends to the pod, so that the pod's answers pass.
#[inline(never)]
pub(crate) fn remember_node<T: Tables>(at: &At<'_, T>) -> Reason {
    let packet = at.packet;
    let sender = at.sender;
    let reset = packet.is_tcp() && packet.tcp_flags & tcp_flag::RST != 0;
    let flow = at.tables.flow(&at.key);
    let new = flow.is_none();
    let taken = match flow {
        Some(flow) if is_alive(&flow, packet.protocol, at.now) => {
            let flags = flow.flags();
            let opened_by_pod = flags & (flow_flag::OPENED << (1 - sender)) != 0;
            let opened_by_node = flags & (flow_flag::OPENED << sender) != 0;
            let opening = packet.has(packet_trait::OPENING);
            let ended = opening && flags & TCP_STATE != 0;
            if at.is_valid(flow.judged(sender, INGRESS)) && flags & flow_flag::NODE != 0 && !ended {
                note(at, &flow, true);
                true
            } else if (opened_by_pod && !opened_by_node && !opening) || reset {
                // An answer to what the pod opened, if it was allowed to.
                note(at, &flow, false);
                true
            } else {
                flow.set_flags(flags | flow_flag::NODE);
                stamp(at, &flow, true, false)
            }
        }
        // A reset opens nothing that could be answered.
        _ => reset || insert(at, true, flow_flag::NODE, new),
    };
    if taken { Reason::Node } else { Reason::Unremembered }
}

/// A packet of or to a closed endpoint, not sent by the node: only answers to the node pass.
#[inline(never)]
pub(crate) fn closed<T: Tables>(at: &At<'_, T>) -> Reason {
    const NOT_ANSWERS: u32 = packet_trait::FRAGMENT_LATER | packet_trait::OPENING | packet_trait::ICMP_ERROR;
    if matches!(at.hook, Hook::ToPod) || at.packet.has(NOT_ANSWERS) {
        return Reason::Closed;
    }
    let Some(flow) = at.tables.flow(&at.key) else { return Reason::Closed };
    let from_node = flow.flags() & flow_flag::NODE != 0
        && flow.judged(1 - at.sender, INGRESS).generation == at.record.generation
        && is_alive(&flow, at.packet.protocol, at.now);
    if from_node && answers(&flow, at.packet, at.now) { Reason::Reply } else { Reason::Closed }
}

// === ICMP errors ===

/// An ICMP error passes if the packet it quotes (`at`) belongs to a flow that the endpoint would still let through, and it goes
/// to that packet's source.
#[inline(never)]
pub(crate) fn related<T: Tables>(at: &At<'_, T>, error: &Packet) -> Reason {
    let quoted = at.packet;
    if quoted.has(packet_trait::MALFORMED)
        || quoted.source.words != error.destination.words
        || quoted.family != error.family
    {
        return Reason::UnrelatedError;
    }
    if is_admitted(at) { Reason::RelatedError } else { Reason::UnrelatedError }
}

#[inline(always)]
fn is_admitted<T: Tables>(at: &At<'_, T>) -> bool {
    let (sender, opener) = (at.sender, 1 - at.sender);
    let Some(flow) = at.tables.flow(&at.key) else { return false };
    if !is_alive(&flow, at.packet.protocol, at.now) {
        return false;
    }
    let (forward, reverse) = (flow.judged(sender, at.forward_role()), flow.judged(opener, at.reverse_role()));
    if at.is_valid(forward) || at.is_valid(reverse) {
        return true;
    }
    let flags = flow.flags();
    let generation = at.record.generation;
    if at.tables.keeps_existing() && (forward.generation == generation || reverse.generation == generation) {
        return true;
    }
    if flags & (flow_flag::OPENED << sender) != 0 && at.ask_forward().is_allowed() {
        return true;
    }
    let node = flags & flow_flag::NODE != 0 && matches!(at.hook, Hook::FromPod);
    flags & (flow_flag::OPENED << opener) != 0 && (node || at.ask_reverse().is_allowed())
}

#[cfg(test)]
mod tests;
