//! Flows: who opened them, what was decided, and when that has to be decided again.
//!
//! An entry serves both directions of a tuple. For each end that opened it there are two judgements, one by either end's endpoint:
//! egress of the opener, ingress of the other. A packet of endpoint E passes by a judgement that E made at this epoch: in the packet's own
//! direction (established), or in the opposite one (a reply) unless the packet opens a flow itself.

mod judge;
mod leave;
mod node;
mod related;
mod remember;
mod tcp;

use crate::decide::{
    Answer, EGRESS, FlowEntry, INGRESS, IS_SERVICE, Question, REACH_EGRESS, Ruling, ServiceCount, Tables, ask,
};
use crate::layout::{Address, EndpointRecord, FlowKey, FlowValue, Judgement, flow_flag};
use crate::parse::{Packet, packet_trait, protocol};
use crate::verdict::{Hook, Reason};
pub use judge::{Opened, opened_by};
use judge::{is_reply, judge_known, judge_unknown};
pub(crate) use leave::leave;
pub(crate) use node::{closed, remember_node};
pub(crate) use related::related;
use remember::{insert, stamp};
use tcp::{answers, note};

const SECOND: u64 = 1_000_000_000;
/// An entry's time is written at most this often.
const SEEN_GRANULARITY: u64 = SECOND;
/// How long the last segments of a closed connection may still answer.
const CLOSED_NS: u64 = 10 * SECOND;
/// How long an entry made by the reverse question lives without a packet of the end that is held to have opened it.
const UNCONFIRMED_NS: u64 = 2 * SECOND;
/// How long what a pod without policy had under way may go on once it has one.
const NEWLY_ISOLATED_SECONDS: u32 = 30;

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

/// Flows may go on whose opening is not remembered, of protocols that have no other sign of it: the pod was isolated a moment ago, or
/// something is paused, or was. `now`: nanoseconds, CLOCK_MONOTONIC.
#[inline(always)]
fn is_newly_isolated<T: Tables>(tables: &T, record: &EndpointRecord, now: u64) -> bool {
    let second = (now / SECOND) as u32;
    let lately = |since: u32| since != 0 && second <= since.saturating_add(NEWLY_ISOLATED_SECONDS);
    lately(record.isolated_at) || lately(tables.paused_until())
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
    /// At [`Hook::ToPod`]: the pod of this node that opened the flow, as the packet's mark says: its interface index and generation.
    pub client: (u32, u32),
    /// The flow is judged by its packets' mark, where they end up.
    pub leaving: bool,
}

impl<'a, T: Tables> At<'a, T> {
    #[inline(always)]
    pub(crate) fn new(tables: &'a T, record: &'a EndpointRecord, packet: &'a Packet, epoch: u32, hook: Hook) -> Self {
        let now = tables.now();
        let Ends { low, high, low_port, high_port, sender } = Ends::of(packet);
        let (protocol, family) = (packet.protocol, packet.family);
        // The key in its place: as another function's value it would be copied once more.
        Self {
            key: FlowKey {
                low: *low,
                high: *high,
                low_port,
                high_port,
                protocol,
                family,
                pad: 0,
                #[cfg(feature = "layout-test")]
                pad_added: [0; 2],
            },
            tables,
            record,
            packet,
            sender,
            now,
            epoch,
            hook,
            client: (0, 0),
            leaving: false,
        }
    }

    #[inline(always)]
    pub(crate) fn judgement(&self) -> Judgement {
        Judgement { epoch: self.epoch, generation: self.record.generation }
    }

    /// CLOCK_MONOTONIC.
    #[inline(always)]
    pub(crate) fn second(&self) -> u32 {
        (self.now / SECOND) as u32
    }

    #[inline(always)]
    fn opened_by(&self) -> Opened {
        self.tables.opened_by(self.packet, self.record, self.hook, self.now)
    }

    /// A packet may pass for what is remembered of its flow, or what may have been forgotten of it.
    #[inline(always)]
    pub(crate) fn may_be_known(&self) -> bool {
        self.tables.flow(&self.key).is_some()
            || is_newly_isolated(self.tables, self.record, self.now)
            || self.tables.pressure(self.now)
    }

    /// A packet of a flow whose time is being written. Where the pod has opened it, it awaits answers.
    #[inline(always)]
    fn note_awaited(&self, forward: bool) {
        let packet = self.packet;
        if packet.protocol != protocol::UDP || self.leaving {
            return;
        }
        match (self.hook, forward) {
            (Hook::FromPod, true) => self.tables.note_awaited(&packet.source, packet.source_port, self.second()),
            (Hook::ToPod, false) => {
                self.tables.note_awaited(&packet.destination, packet.destination_port, self.second());
            }
            (Hook::FromPod, false) | (Hook::ToPod, true) => {}
        }
    }

    #[inline(always)]
    fn is_valid(&self, judged: Judgement) -> bool {
        judged.epoch == self.epoch && judged.generation == self.record.generation
    }

    /// The packet's sender is the pod that opened the flow: a masqueraded port that one had may be another's by now.
    #[inline(always)]
    fn is_same_client<F: FlowEntry>(&self, flow: &F) -> bool {
        if matches!(self.hook, Hook::FromPod) && !self.leaving {
            return true;
        }
        // What a process of the node has opened towards the pod, nobody else goes on with.
        flow.client() == self.client && (self.leaving || flow.flags() & flow_flag::NODE == 0)
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
        self.ask_forward_for(self.client)
    }

    #[inline(always)]
    fn ask_forward_for(&self, client: (u32, u32)) -> Answer {
        self.ask(self.forward_role() as u8, client, self.packet.destination_port)
    }

    /// Asks whether the opposite direction may be opened; where it was, `flow` is the entry.
    #[inline(always)]
    fn ask_reverse<F: FlowEntry>(&self, flow: Option<&F>) -> Answer {
        // Behind the destination of an answer there may be a pod that was masqueraded when it opened the flow.
        let client = match flow {
            Some(flow) if matches!(self.hook, Hook::FromPod) => flow.client(),
            _ => (0, 0),
        };
        self.ask(self.reverse_role() as u8, client, self.packet.source_port)
    }

    /// About the other end.
    #[inline(always)]
    fn ask(&self, what: u8, client: (u32, u32), port: u16) -> Answer {
        let Packet { family, protocol, .. } = *self.packet;
        let peer = match self.hook {
            Hook::FromPod => &self.packet.destination,
            Hook::ToPod => &self.packet.source,
        };
        ask(self.tables, self.record, &Question { peer, client, epoch: self.epoch, what, port, protocol, family })
    }

    /// Asks the egress policy of the pod that opened the flow whether it may have one with who is reached.
    #[inline(always)]
    pub(crate) fn ask_as_seen(&self, peer: &Address, port: u16) -> Answer {
        let Packet { family, protocol, .. } = *self.packet;
        let (client, epoch, what) = ((0, 0), self.epoch, REACH_EGRESS);
        ask(self.tables, self.record, &Question { peer, client, epoch, what, port, protocol, family })
    }

    /// Sent by a Service's address, which opens nothing: what bears it answers.
    #[inline(always)]
    fn is_from_service(&self) -> bool {
        let Packet { family, protocol, source_port: port, .. } = *self.packet;
        let (peer, client, epoch, what) = (&self.packet.source, (0, 0), self.epoch, IS_SERVICE);
        let question = Question { peer, client, epoch, what, port, protocol, family };
        matches!(self.hook, Hook::ToPod) && self.tables.answer(&question, self.record).is_allowed()
    }
}

/// A packet's two ends in the order of the key.
struct Ends<'p> {
    low: &'p Address,
    high: &'p Address,
    low_port: u16,
    high_port: u16,
    sender: usize,
}

impl<'p> Ends<'p> {
    #[inline(always)]
    fn of(packet: &'p Packet) -> Self {
        let Packet { source, destination, source_port, destination_port, .. } = packet;
        if is_before(source, *source_port, destination, *destination_port) {
            Self { low: source, high: destination, low_port: *source_port, high_port: *destination_port, sender: 0 }
        } else {
            Self { low: destination, high: source, low_port: *destination_port, high_port: *source_port, sender: 1 }
        }
    }
}

/// The key of a packet's flow, and which end sent the packet (0: low, 1: high).
#[inline(always)]
pub fn key(packet: &Packet) -> (FlowKey, usize) {
    let Ends { low, high, low_port, high_port, sender } = Ends::of(packet);
    let (protocol, family) = (packet.protocol, packet.family);
    let (low, high) = (*low, *high);
    (FlowKey { low, high, low_port, high_port, protocol, family, ..FlowKey::default() }, sender)
}

/// Any total order does, as long as all who share the table agree. Without a branch: each would double what the verifier reads, and the
/// compiler would copy both addresses once for each way.
#[inline(always)]
fn is_before(a: &Address, a_port: u16, b: &Address, b_port: u16) -> bool {
    let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let (a_low, b_low) = (wide(a.words[3], a.words[2]), wide(b.words[3], b.words[2]));
    let (a_high, b_high) = (wide(a.words[1], a.words[0]), wide(b.words[1], b.words[0]));
    (a_low < b_low) | (a_low == b_low) & ((a_high < b_high) | (a_high == b_high) & (a_port <= b_port))
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
    // What is only known from where it leaves is judged again at no loss.
    let brief = is_closed(value.flags) || value.flags & flow_flag::LEAVING != 0;
    silent > idle_ns(key.protocol) + MARGIN_NS || (brief && silent > CLOSED_NS + MARGIN_NS)
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
        let flags = if ruling.is_forward() { 0 } else { flow_flag::UNCONFIRMED | flow_flag::ANSWERED };
        return remembered(insert(at, ruling, flags, new), ruling);
    };
    let opening = packet.has(packet_trait::OPENING);
    let flags = flow.flags();
    let anew = opening && flags & (TCP_STATE | flow_flag::KEPT) != 0;
    if at.is_valid(flow.judged(at.sender, at.forward_role())) && !anew && at.is_same_client(&flow) {
        note(at, &flow, true);
        return Ruling::of(Reason::Established).forward(true);
    }
    if !opening
        && at.is_valid(flow.judged(1 - at.sender, at.reverse_role()))
        && answers(&flow, packet, at.now)
        && is_reply(at, &flow)
    {
        note_answer(at, &flow, flags);
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
    remembered(stamp(at, &flow, ruling), ruling)
}

/// The first answer to what was let go on as a Service's: somebody has received it.
#[inline(always)]
fn note_answer<T: Tables, F: FlowEntry>(at: &At<'_, T>, flow: &F, flags: u32) {
    let deferred = flags & (flow_flag::DEFERRED << (1 - at.sender)) != 0;
    if deferred && flags & flow_flag::ANSWERED == 0 {
        flow.set_flags(flags | flow_flag::ANSWERED);
        at.tables.count_service(ServiceCount::Answered);
    }
}

#[inline(always)]
fn remembered(taken: bool, ruling: Ruling) -> Ruling {
    if taken { ruling } else { Ruling::new(Reason::Unremembered, ruling.class()).forward(ruling.is_forward()) }
}

#[cfg(test)]
mod tests;
