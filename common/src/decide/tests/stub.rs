//! Tables of which a test says what each look-up finds, in turn; and one flow by itself.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec::Vec;

use crate::decide::policy::{IS_SERVICE, OPEN_INGRESS};
use crate::decide::{Answer, FlowEntry, Question, ServiceCount, Tables, answer};
use crate::layout::{
    Address, Backends, EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue, Judgement, RuleKey, RuleValue,
    ServiceKey, Versioned,
};
use crate::parse::Packet;
use crate::verdict::Hook;

/// What is found by one look-up after the other.
#[derive(Default)]
pub struct Script<A>(RefCell<VecDeque<A>>);

impl<A> Script<A> {
    pub fn new(answers: impl IntoIterator<Item = A>) -> Self {
        Self(RefCell::new(answers.into_iter().collect()))
    }

    pub fn push(&self, answer: A) {
        self.0.borrow_mut().push_back(answer);
    }

    pub fn left(&self) -> usize {
        self.0.borrow().len()
    }

    fn next(&self) -> Option<A> {
        self.0.borrow_mut().pop_front()
    }
}

#[derive(Default)]
pub struct Stub {
    /// The epochs that are read first, one by one; after them [`Stub::epoch`].
    pub epochs: Script<u32>,
    pub epoch: u32,
    /// Where a script ends, nothing is found any longer.
    pub endpoints: Script<Option<Versioned>>,
    pub exact: Script<Option<Versioned>>,
    pub records: Vec<EndpointRecord>,
    /// Interface, epoch and record index.
    pub hints: RefCell<Vec<(u32, u32, u32)>>,
    pub flow: RefCell<Option<(FlowKey, Entry)>>,
    /// Found by any key.
    pub fragment: Cell<Option<FragmentValue>>,
    /// Under which protocols fragments were put.
    pub fragment_protocols: RefCell<Vec<u8>>,
    /// FLOWS takes nothing.
    pub full: bool,
    /// The rule that PORTS names for every port of every set.
    pub port_rule: Option<u32>,
    /// What is put into FRAGMENTS is taken.
    pub takes_fragments: bool,
    pub now: u64,
    pub keeps: bool,
    pub pressure: bool,
    pub paused_until: u32,
    pub listens: Option<bool>,
    pub connected: Option<bool>,
    /// Numbers of the tables in which a rule admits everything.
    pub admitting: Vec<u32>,
    /// A table in which a rule admits one port.
    pub admitting_port: Option<(u32, u16)>,
    pub services: Vec<(ServiceKey, u32)>,
    /// Found by any row.
    pub backends: Option<Backends>,
    /// Interfaces by stamp.
    pub stamps: Vec<u32>,
    pub exits_missing: bool,
    pub counted: RefCell<Vec<ServiceCount>>,
}

impl Tables for Stub {
    type Flow<'a> = Entry;

    fn epoch(&self) -> u32 {
        self.epochs.0.borrow_mut().pop_front().unwrap_or(self.epoch)
    }

    fn endpoint(&self, _ifindex: u32) -> Option<Versioned> {
        self.endpoints.next().flatten()
    }

    fn hint(&self, _ifindex: u32, _epoch: u32) -> Option<u32> {
        None
    }

    fn put_hint(&self, ifindex: u32, epoch: u32, index: u32) {
        self.hints.borrow_mut().push((ifindex, epoch, index));
    }

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        self.records.get(index as usize)
    }

    fn class_exact(&self, _family: u8, _address: &Address) -> Option<Versioned> {
        self.exact.next().flatten()
    }

    fn class_cidr(&self, _family: u8, _address: &Address) -> Option<Versioned> {
        None
    }

    fn rule(&self, _key: &RuleKey) -> Option<RuleValue> {
        None
    }

    fn port(&self, _ports: u32, _protocol: u8, _port: u16) -> Option<u32> {
        self.port_rule
    }

    fn has_service_port(&self, port: u16) -> bool {
        self.services.iter().any(|(key, _)| key.port == port)
    }

    fn service(&self, key: &ServiceKey) -> Option<Versioned> {
        self.services.iter().find(|(known, _)| known == key).map(|(_, number)| Versioned::constant(*number))
    }

    fn backends(&self, _row: u32) -> Option<&Backends> {
        self.backends.as_ref()
    }

    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        self.stamps.get(usize::from(stamp)).copied().filter(|ifindex| *ifindex != 0)
    }

    fn exits_missing(&self) -> bool {
        self.exits_missing
    }

    fn count_service(&self, what: ServiceCount) {
        self.counted.borrow_mut().push(what);
    }

    fn flow(&self, key: &FlowKey) -> Option<Entry> {
        self.flow.borrow().as_ref().filter(|(own, _)| own == key).map(|(_, entry)| entry.clone())
    }

    fn put_flow(&self, key: &FlowKey, value: &FlowValue, _new: bool) -> bool {
        *self.flow.borrow_mut() = Some((*key, Entry::of(*value)));
        !self.full
    }

    fn fragment(&self, _key: &FragmentKey) -> Option<FragmentValue> {
        self.fragment.get()
    }

    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        self.fragment_protocols.borrow_mut().push(key.protocol);
        self.fragment.set(Some(*value));
        self.takes_fragments
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn pressure(&self, _now: u64) -> bool {
        self.pressure
    }

    fn paused_until(&self) -> u32 {
        self.paused_until
    }

    fn keeps_existing(&self) -> bool {
        self.keeps
    }

    fn listens(&self, _record: &EndpointRecord, _packet: &Packet, _hook: Hook) -> Option<bool> {
        self.listens
    }

    fn is_connected(&self, _record: &EndpointRecord, _packet: &Packet, _hook: Hook) -> Option<bool> {
        self.connected
    }

    fn take_midstream(&self, _number: u32, _now: u64) -> bool {
        true
    }

    fn answer(&self, question: &Question<'_>, record: &EndpointRecord) -> Answer {
        if question.what == IS_SERVICE {
            return answer(self, question, record);
        }
        let table = if question.what == OPEN_INGRESS { record.ingress } else { record.egress };
        let admits_port = self.admitting_port == Some((table.table, question.port));
        if admits_port || self.admitting.contains(&table.table) { Answer::ALLOWED } else { Answer::NONE }
    }
}

/// An entry of FLOWS.
#[derive(Clone, Debug)]
pub struct Entry(Rc<Cell<FlowValue>>);

impl Entry {
    pub fn new(flags: u32, seen: u64) -> Self {
        Self::of(FlowValue { flags, seen, ..FlowValue::default() })
    }

    pub fn of(value: FlowValue) -> Self {
        Self(Rc::new(Cell::new(value)))
    }

    fn change(&self, change: impl FnOnce(&mut FlowValue)) {
        let mut value = self.0.get();
        change(&mut value);
        self.0.set(value);
    }
}

impl FlowEntry for Entry {
    fn value(&self) -> FlowValue {
        self.0.get()
    }

    fn judged(&self, opener: usize, role: usize) -> Judgement {
        self.0.get().judged[opener][role]
    }

    fn flags(&self) -> u32 {
        self.0.get().flags
    }

    fn seen(&self) -> u64 {
        self.0.get().seen
    }

    fn fin_next(&self, sender: usize) -> u32 {
        self.0.get().fin_next[sender]
    }

    fn client(&self) -> (u32, u32) {
        (self.0.get().client, self.0.get().client_generation)
    }

    fn revoked(&self) -> u32 {
        self.0.get().revoked
    }

    fn set_seen(&self, seen: u64) {
        self.change(|value| value.seen = seen);
    }

    fn set_flags(&self, flags: u32) {
        self.change(|value| value.flags = flags);
    }

    fn set_fin_next(&self, sender: usize, next: u32) {
        self.change(|value| value.fin_next[sender] = next);
    }

    fn set_revoked(&self, revoked: u32) {
        self.change(|value| value.revoked = revoked);
    }
}
