//! One question to an endpoint's tables: the peer's class, its row, the port.

use super::{EGRESS, Tables};
use crate::layout::{
    Address, CLASS_ASK_CIDR, EndpointRecord, PORTS_ALL, PORTS_NONE, RuleKey, RuleValue, TableRef, endpoint_flag,
};
use crate::parse::protocol;

/// What one of an endpoint's tables says about a peer and port: the rule that admits, and the class it was found for. One
/// register wide.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer(u64);

impl Answer {
    const REFUSED: u32 = u32::MAX;
    /// No rule admits.
    pub const NONE: Self = Self::new(0, None);
    /// Allowed without a rule: the endpoint is not isolated in this direction, or need not be asked.
    pub const ALLOWED: Self = Self::new(0, Some(0));

    #[inline(always)]
    const fn new(class: u32, rule: Option<u32>) -> Self {
        let rule = match rule {
            Some(rule) => rule,
            None => Self::REFUSED,
        };
        Self(((class as u64) << 32) | rule as u64)
    }

    /// The register that [`Answer::from_bits`] takes.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.0 as u32 != Self::REFUSED
    }

    #[inline(always)]
    pub const fn class(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The rule that admits; 0 where none is needed.
    #[inline(always)]
    pub const fn rule(self) -> Option<u32> {
        if self.is_allowed() { Some(self.0 as u32) } else { None }
    }
}

/// What is asked of one of an endpoint's tables. Plain data, so that the kernel's verifier needs to look at the answer's code only once,
/// whoever asks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub peer: Address,
    pub table: TableRef,
    pub epoch: u32,
    /// Destination port of the opening, host order.
    pub port: u16,
    pub protocol: u8,
    pub family: u8,
}

/// Asks the policy: may the endpoint, in `role`, have a flow with `peer` to the destination `port` (host order)?
#[inline(always)]
pub fn ask<T: Tables>(
    tables: &T,
    record: &EndpointRecord,
    role: usize,
    epoch: u32,
    (family, protocol): (u8, u8),
    (peer, port): (&Address, u16),
) -> Answer {
    let (isolated, table) = if role == EGRESS {
        (endpoint_flag::ISOLATED_EGRESS, record.egress)
    } else {
        (endpoint_flag::ISOLATED_INGRESS, record.ingress)
    };
    if record.flags & isolated == 0 {
        return Answer::ALLOWED;
    }
    tables.answer(&Question { peer: *peer, table, epoch, port, protocol, family })
}

/// The answer by look-ups; for implementations of [`Tables::answer`].
#[inline(always)]
pub fn answer<T: Tables>(tables: &T, question: &Question) -> Answer {
    let class = class_of(tables, question.family, &question.peer, question.epoch);
    let row = row(tables, &question.table, class);
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
    Answer::new(class, rule)
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
