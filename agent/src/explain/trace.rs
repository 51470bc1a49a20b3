//! Tables that write down what the decision function asked them, and what it made of that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use palisade_common::decide::{self, Answer, IS_SERVICE, OPEN_INGRESS, Question, ServiceCount, Tables};
use palisade_common::layout::{
    Address, Backends, CLASS_ASK_CIDR, CLASS_NONE, EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue,
    PORTS_ALL, PORTS_NONE, RuleKey, RuleValue, ServiceKey, TableRef, Versioned,
};
use palisade_common::parse::Packet;
use palisade_common::{Hook, Reason};

use crate::tables::sim::SimFlow;

/// One question to an endpoint's policy, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whose policy: the interface of its pod.
    pub ifindex: u32,
    pub ingress: bool,
    pub peer: Address,
    pub family: u8,
    pub protocol: u8,
    /// Destination port, host order.
    pub port: u16,
    pub table: u32,
    /// Of the peer. `None`: it was not asked for.
    pub class: Option<u32>,
    /// How the class was found.
    pub found: ClassFrom,
    /// What the class may use, by its own row or else by what the table gives everybody.
    pub row: Option<RuleValue>,
    pub own_row: bool,
    pub allowed: bool,
    pub reason: Reason,
    /// The kernel's number of the rule that admits.
    pub rule: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassFrom {
    /// Neither table knows the address.
    #[default]
    Nowhere,
    /// CLASS_EXACT.
    Exact,
    /// CLASS_CIDR.
    Cidr,
}

/// What was looked up for the question under way.
#[derive(Clone, Copy, Debug, Default)]
struct Lookups {
    exact: Option<u32>,
    cidr: Option<u32>,
    key: Option<RuleKey>,
    row: Option<RuleValue>,
}

/// Other tables, with a flow table of its own that begins empty: what is asked about is a new flow, and nothing of it reaches the
/// tables underneath.
#[derive(Debug)]
pub struct Traced<'t, T> {
    tables: &'t T,
    lookups: Cell<Lookups>,
    asked: RefCell<Vec<Asked>>,
    flows: RefCell<BTreeMap<FlowKey, FlowValue>>,
}

impl<'t, T: Tables> Traced<'t, T> {
    pub fn new(tables: &'t T) -> Self {
        Self { tables, lookups: Cell::default(), asked: RefCell::default(), flows: RefCell::default() }
    }

    /// The questions since the last call.
    pub fn take_asked(&self) -> Vec<Asked> {
        self.asked.take()
    }

    fn note(&self, note: impl FnOnce(&mut Lookups)) {
        let mut lookups = self.lookups.get();
        note(&mut lookups);
        self.lookups.set(lookups);
    }
}

impl<T: Tables> Tables for Traced<'_, T> {
    type Flow<'a>
        = SimFlow<'a>
    where
        Self: 'a;

    fn answer(&self, question: &Question<'_>, record: &EndpointRecord) -> Answer {
        if question.what == IS_SERVICE {
            return decide::answer(self, question, record);
        }
        self.lookups.set(Lookups::default());
        let answer = decide::answer(self, question, record);
        let Lookups { exact, cidr, key, row } = self.lookups.get();
        let ingress = question.what == OPEN_INGRESS;
        let TableRef { table, default } = if ingress { record.ingress } else { record.egress };
        let found = match (exact, cidr) {
            (Some(_), _) => ClassFrom::Exact,
            (None, Some(_)) => ClassFrom::Cidr,
            (None, None) => ClassFrom::Nowhere,
        };
        self.asked.borrow_mut().push(Asked {
            ifindex: record.ifindex,
            ingress,
            peer: *question.peer,
            family: question.family,
            protocol: question.protocol,
            port: question.port,
            table,
            class: key.map(|_| exact.or(cidr).unwrap_or(CLASS_NONE)),
            found,
            row: key.map(|_| row.unwrap_or(default)),
            own_row: row.is_some(),
            allowed: answer.is_allowed(),
            reason: answer.ruling().reason(),
            rule: answer.rule().filter(|rule| *rule != 0),
        });
        answer
    }

    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        let found = self.tables.class_exact(family, address);
        let class = found.map(|found| found.at(self.epoch())).filter(|class| *class != CLASS_ASK_CIDR);
        self.note(|lookups| lookups.exact = class);
        found
    }

    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        let found = self.tables.class_cidr(family, address);
        let class = found.map(|found| found.at(self.epoch()));
        self.note(|lookups| lookups.cidr = class);
        found
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        let row = self.tables.rule(key);
        self.note(|lookups| (lookups.key, lookups.row) = (Some(*key), row));
        row
    }

    fn flow(&self, key: &FlowKey) -> Option<SimFlow<'_>> {
        SimFlow::of(&self.flows, key)
    }

    fn put_flow(&self, key: &FlowKey, value: &FlowValue, _new: bool) -> bool {
        self.flows.borrow_mut().insert(*key, *value);
        true
    }

    fn fragment(&self, _key: &FragmentKey) -> Option<FragmentValue> {
        None
    }

    fn put_fragment(&self, _key: &FragmentKey, _value: &FragmentValue) -> bool {
        true
    }

    fn put_hint(&self, _ifindex: u32, _epoch: u32, _index: u32) {}

    fn count_service(&self, _what: ServiceCount) {}

    fn take_midstream(&self, _number: u32, _now: u64) -> bool {
        true
    }

    // As they are.

    fn epoch(&self) -> u32 {
        self.tables.epoch()
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        self.tables.endpoint(ifindex)
    }

    fn hint(&self, _ifindex: u32, _epoch: u32) -> Option<u32> {
        None
    }

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        self.tables.record(index)
    }

    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        self.tables.port(ports, protocol, port)
    }

    fn has_service_port(&self, port: u16) -> bool {
        self.tables.has_service_port(port)
    }

    fn service(&self, key: &ServiceKey) -> Option<Versioned> {
        self.tables.service(key)
    }

    fn backends(&self, row: u32) -> Option<&Backends> {
        self.tables.backends(row)
    }

    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        self.tables.stamp_owner(stamp)
    }

    fn exits_missing(&self) -> bool {
        self.tables.exits_missing()
    }

    fn now(&self) -> u64 {
        self.tables.now()
    }

    fn pressure(&self, now: u64) -> bool {
        self.tables.pressure(now)
    }

    fn paused_until(&self) -> u32 {
        self.tables.paused_until()
    }

    fn keeps_existing(&self) -> bool {
        self.tables.keeps_existing()
    }

    fn listens(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool> {
        self.tables.listens(record, packet, hook)
    }

    fn is_connected(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool> {
        self.tables.is_connected(record, packet, hook)
    }
}

/// Whether what a class may use holds the port, by the tables as they are; the rule by which.
pub fn admits(tables: &impl Tables, row: &RuleValue, protocol: u8, port: u16) -> Option<u32> {
    match row.ports {
        PORTS_NONE => None,
        PORTS_ALL => Some(row.rule),
        _ if row.rule != 0 => (protocol == row.protocol && (row.first..=row.last).contains(&port)).then_some(row.rule),
        ports => tables.port(ports, protocol, port),
    }
}
