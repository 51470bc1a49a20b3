//! One question to an endpoint's tables: the peer's class, its row, the port.

use super::{EGRESS, INGRESS, Ruling, Tables, other_record, owns};
use crate::layout::{
    Address, CLASS_ASK_CIDR, EndpointRecord, PORTS_ALL, PORTS_NONE, RuleKey, RuleValue, SERVICE_NONE, ServiceKey,
    TableRef, endpoint_flag,
};
use crate::parse::{V4, protocol};
use crate::verdict::Reason;

/// What one of an endpoint's tables says about a peer and port: what would come of an opening, for which class, by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Ready to be given, so that nobody who asks needs to tell one answer from another: the verifier would follow each.
    ruling: Ruling,
    /// The rule that admits; 0: none is needed, or none does. Not known across the parts of the kernel's programs.
    rule: u32,
}

impl Answer {
    /// No rule admits.
    pub const NONE: Self = Self::new(Ruling::of(Reason::NoRule), 0);
    /// Allowed without a rule: the endpoint is not isolated in this direction, or need not be asked.
    pub const ALLOWED: Self = Self::new(Ruling::of(Reason::Allowed), 0);
    /// Allowed to go on as a Service's, to be judged where it ends up.
    pub const DEFERRED: Self = Self::new(Ruling::of(Reason::Service).deferred(true), 0);

    #[inline(always)]
    const fn new(ruling: Ruling, rule: u32) -> Self {
        Self { ruling, rule }
    }

    #[inline(always)]
    const fn of(reason: Reason, class: u32) -> Self {
        Self::new(Ruling::new(reason, class), 0)
    }

    /// The register that [`Answer::from_bits`] takes.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.ruling.to_bits()
    }

    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self::new(Ruling::from_bits(bits), 0)
    }

    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.ruling.passes()
    }

    /// The rule that admits, as a number; 0: none is needed, or none does.
    #[inline(always)]
    pub const fn rule_number(self) -> u32 {
        self.rule
    }

    /// What comes of an opening.
    #[inline(always)]
    pub const fn ruling(self) -> Ruling {
        self.ruling
    }

    #[inline(always)]
    pub const fn class(self) -> u32 {
        self.ruling.class()
    }

    pub const fn reason(self) -> Reason {
        self.ruling.reason()
    }

    /// The rule that admits; 0 where none is needed.
    #[inline(always)]
    pub const fn rule(self) -> Option<u32> {
        if self.is_allowed() { Some(self.rule) } else { None }
    }
}

/// What is asked of one of an endpoint's tables. Few words, so that they fit into the registers of a call: the kernel's verifier looks
/// at the answer's code only once, whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    pub peer: &'a Address,
    /// The pod of this node that may be behind the peer's address: its interface index and generation; 0: none.
    pub client: (u32, u32),
    pub epoch: u32,
    /// What is asked: [`OPEN_EGRESS`] and its like.
    pub what: u8,
    /// Destination port of the opening, host order.
    pub port: u16,
    pub protocol: u8,
    pub family: u8,
}

/// May the endpoint send to the peer, which may be a Service's address?
pub const OPEN_EGRESS: u8 = EGRESS as u8;
/// May the endpoint receive from the peer?
pub const OPEN_INGRESS: u8 = INGRESS as u8;
/// May the endpoint send to the peer, which is who is reached?
pub const REACH_EGRESS: u8 = 2;
/// Is the peer a Service's address?
pub const IS_SERVICE: u8 = 3;

impl<'a> Question<'a> {
    /// All but peer, client and epoch in one register.
    #[inline(always)]
    pub const fn kind(&self) -> u64 {
        let (what, family, protocol) = (self.what as u64, self.family as u64, self.protocol as u64);
        what << 32 | family << 24 | protocol << 16 | self.port as u64
    }

    /// From what [`Question::kind`] gives, and the client's two numbers in one.
    #[inline(always)]
    pub const fn new(peer: &'a Address, kind: u64, client: u64, epoch: u32) -> Self {
        let (what, family, protocol) = ((kind >> 32) as u8, (kind >> 24) as u8, (kind >> 16) as u8);
        Self { peer, client: (client as u32, (client >> 32) as u32), epoch, what, port: kind as u16, protocol, family }
    }

    #[inline(always)]
    const fn service_key(&self) -> ServiceKey {
        ServiceKey { address: *self.peer, port: self.port, protocol: self.protocol, family: self.family }
    }
}

/// Asks the policy, unless none isolates the endpoint in the direction.
#[inline(always)]
pub fn ask<T: Tables>(tables: &T, record: &EndpointRecord, question: &Question<'_>) -> Answer {
    let isolated =
        if question.what == OPEN_INGRESS { endpoint_flag::ISOLATED_INGRESS } else { endpoint_flag::ISOLATED_EGRESS };
    if record.flags & isolated == 0 { Answer::ALLOWED } else { tables.answer(question, record) }
}

/// The answer by look-ups; for implementations of [`Tables::answer`].
#[inline(always)]
pub fn answer<T: Tables>(tables: &T, question: &Question<'_>, record: &EndpointRecord) -> Answer {
    if question.what == IS_SERVICE {
        // Not a node port's or host port's, which are nobody's address.
        let is_service = tables.has_service_port(question.port)
            && service(tables, &question.service_key(), question.epoch) != SERVICE_NONE;
        return if is_service { Answer::ALLOWED } else { Answer::NONE };
    }
    let mut peer = question.peer;
    if let Some(client) = client_of(tables, question) {
        // From the pod to itself, by way of a Service (SEMANTICS 13.5).
        if client.ifindex == record.ifindex {
            return Answer::of(Reason::Hairpin, 0);
        }
        if client.flags & endpoint_flag::TRUSTED == 0 && !owns(client, question.family, peer) {
            peer = if question.family == V4 { &client.as_peer } else { &client.v6[0] };
        }
    }
    let class = class_of(tables, question.family, peer, question.epoch);
    let table = if question.what == OPEN_INGRESS { &record.ingress } else { &record.egress };
    let row = row(tables, table, class);
    let rule = match row.ports {
        PORTS_NONE => None,
        PORTS_ALL => Some(row.rule),
        _ if row.rule != 0 => {
            let admits = question.protocol == row.protocol && row.first <= question.port && question.port <= row.last;
            if admits { Some(row.rule) } else { None }
        }
        ports => match question.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => tables.port(ports, question.protocol, question.port),
            _ => None,
        },
    };
    let answer = match rule {
        Some(rule) => Answer::new(Ruling::new(Reason::Allowed, class), rule),
        None => Answer::of(Reason::NoRule, class),
    };
    if question.what == OPEN_EGRESS { with_services(tables, question, record, answer) } else { answer }
}

/// The pod behind the peer's address.
#[inline(always)]
fn client_of<'t, T: Tables>(tables: &'t T, question: &Question<'_>) -> Option<&'t EndpointRecord> {
    let (ifindex, generation) = question.client;
    if ifindex == 0 {
        return None;
    }
    let client = other_record(tables, ifindex, question.epoch)?;
    if client.generation == generation { Some(client) } else { None }
}

/// The answer as the pod's own end has to give it, where the destination may not be the one that is reached.
#[inline(always)]
fn with_services<T: Tables>(tables: &T, question: &Question<'_>, record: &EndpointRecord, answer: Answer) -> Answer {
    let possible = record.stamp != 0 && !tables.exits_missing();
    // What is admitted as it is addressed goes on, and is judged once more where it ends up.
    if possible && answer.is_allowed() {
        return answer;
    }
    if !tables.has_service_port(question.port) || !is_service(tables, question.peer, question.kind(), question.epoch) {
        return answer;
    }
    if possible {
        Answer::DEFERRED
    } else if record.stamp != 0 {
        Answer::of(Reason::NoExit, answer.class())
    } else {
        Answer::of(Reason::NoStamp, answer.class())
    }
}

/// Whether the node may translate the destination. A function of its own, for the stack's sake.
#[inline(never)]
fn is_service<T: Tables>(tables: &T, peer: &Address, kind: u64, epoch: u32) -> bool {
    let mut key = Question::new(peer, kind, 0, epoch).service_key();
    if !matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return false;
    }
    if service(tables, &key, epoch) != SERVICE_NONE {
        return true;
    }
    key.address = Address::ZERO;
    service(tables, &key, epoch) != SERVICE_NONE
}

#[inline(always)]
pub(crate) fn service<T: Tables>(tables: &T, key: &ServiceKey, epoch: u32) -> u32 {
    match tables.service(key) {
        Some(number) => number.at(epoch),
        None => SERVICE_NONE,
    }
}

#[inline(always)]
fn class_of<T: Tables>(tables: &T, family: u8, peer: &Address, epoch: u32) -> u32 {
    let class = exact_class(tables, family, peer, epoch);
    if class != CLASS_ASK_CIDR {
        return class;
    }
    match tables.class_cidr(family, peer) {
        Some(class) => class.at(epoch),
        None => 0,
    }
}

/// The kernel gives the memory of a hash entry that is replaced to the next entry at once, without waiting for readers: between the
/// look-up and the load it may have become another address's, and the epoch need not move for that. So two look-ups have to agree.
/// That there is no entry is sure at once: the kernel's search starts again where an entry under it went to another chain
/// (`lookup_nulls_elem_raw`).
#[inline(always)]
fn exact_class<T: Tables>(tables: &T, family: u8, peer: &Address, epoch: u32) -> u32 {
    const LOOKS: u32 = 3;
    let mut class = CLASS_ASK_CIDR;
    let mut looks = 0;
    while looks < LOOKS {
        let Some(found) = tables.class_exact(family, peer) else { return CLASS_ASK_CIDR };
        let found = found.at(epoch);
        if looks != 0 && found == class {
            break;
        }
        class = found;
        looks += 1;
    }
    class
}

#[inline(always)]
fn row<T: Tables>(tables: &T, table: &TableRef, class: u32) -> RuleValue {
    match tables.rule(&RuleKey { table: table.table, class }) {
        Some(row) => row,
        None => table.default,
    }
}
