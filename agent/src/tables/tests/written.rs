//! What tables on the move have in common: a packet asks what changes write, which moves, and what is remembered, which does not.

use palisade_common::Hook;
use palisade_common::decide::{Meeting, Ruling, ServiceCount, Tables, decide};
use palisade_common::layout::{
    Address, Backends, EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue, RuleKey, RuleValue, ServiceKey,
    Versioned,
};
use palisade_common::parse::{self, Packet, V4};

use super::super::plan::Write;
use super::super::sim::{FrameBytes, Sim, SimFlow};

/// The part of [`Tables`] that changes write.
pub(super) trait Written {
    fn epoch(&self) -> u32;
    fn endpoint(&self, ifindex: u32) -> Option<Versioned>;
    fn record(&self, index: u32) -> Option<&EndpointRecord>;
    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned>;
    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned>;
    fn rule(&self, key: &RuleKey) -> Option<RuleValue>;
    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32>;
    /// Where the rest is.
    fn flows(&self) -> &Sim;
}

pub(super) fn judge(tables: &impl Written, bytes: &[u8], meeting: Meeting) -> Ruling {
    let frame = FrameBytes { bytes, gso: false };
    let mut packet = Packet::default();
    parse::frame(&frame, &mut packet);
    decide(&frame, || &packet, &Whole(tables), meeting)
}

/// What a write puts into ENDPOINTS, if anything.
pub(super) fn endpoint(write: &Write) -> Option<(u32, Option<Versioned>)> {
    if let Write::Endpoint(key, value) = write { Some((*key, *value)) } else { None }
}

/// What a write puts into the family's CLASS_EXACT, if anything.
pub(super) fn exact(write: &Write, family: u8) -> Option<(Address, Option<Versioned>)> {
    match write {
        Write::ExactV4(key, value) if family == V4 => Some((Address::v4(*key), *value)),
        Write::ExactV6(key, value) if family != V4 => Some((*key, *value)),
        _ => None,
    }
}

struct Whole<'a, W>(&'a W);

impl<W: Written> Tables for Whole<'_, W> {
    type Flow<'b>
        = SimFlow<'b>
    where
        Self: 'b;

    fn epoch(&self) -> u32 {
        self.0.epoch()
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        self.0.endpoint(ifindex)
    }

    fn hint(&self, ifindex: u32, epoch: u32) -> Option<u32> {
        self.0.flows().hint(ifindex, epoch)
    }

    fn put_hint(&self, ifindex: u32, epoch: u32, index: u32) {
        self.0.flows().put_hint(ifindex, epoch, index);
    }

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        self.0.record(index)
    }

    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        self.0.class_exact(family, address)
    }

    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        self.0.class_cidr(family, address)
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        self.0.rule(key)
    }

    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        self.0.port(ports, protocol, port)
    }

    fn has_service_port(&self, port: u16) -> bool {
        self.0.flows().has_service_port(port)
    }

    fn service(&self, key: &ServiceKey) -> Option<Versioned> {
        self.0.flows().service(key)
    }

    fn backends(&self, row: u32) -> Option<&Backends> {
        self.0.flows().backends(row)
    }

    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        self.0.flows().stamp_owner(stamp)
    }

    fn exits_missing(&self) -> bool {
        self.0.flows().exits_missing
    }

    fn count_service(&self, what: ServiceCount) {
        self.0.flows().count_service(what);
    }

    fn flow(&self, key: &FlowKey) -> Option<SimFlow<'_>> {
        self.0.flows().flow(key)
    }

    fn put_flow(&self, key: &FlowKey, value: &FlowValue, new: bool) -> bool {
        self.0.flows().put_flow(key, value, new)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        self.0.flows().fragment(key)
    }

    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        self.0.flows().put_fragment(key, value)
    }

    fn now(&self) -> u64 {
        self.0.flows().now.get()
    }

    fn pressure(&self, _now: u64) -> bool {
        false
    }

    fn paused_until(&self) -> u32 {
        self.0.flows().paused_until
    }

    fn keeps_existing(&self) -> bool {
        self.0.flows().keeps_existing
    }

    fn listens(&self, _: &EndpointRecord, _: &Packet, _: Hook) -> Option<bool> {
        None
    }

    fn is_connected(&self, _: &EndpointRecord, _: &Packet, _: Hook) -> Option<bool> {
        None
    }

    fn take_midstream(&self, _number: u32, _now: u64) -> bool {
        false
    }
}
