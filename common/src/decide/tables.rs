//! How the tables are asked: what the kernel's maps, the agent's and the tests' tables have in common.

use super::policy::{Answer, Question};
use super::{Meeting, Place, Ruling, guard};
use crate::flow::{self, Opened};
use crate::layout::{
    Address, Backends, EndpointRecord, EndpointStats, FlowKey, FlowValue, FragmentKey, FragmentValue, Judgement,
    RuleKey, RuleValue, ServiceKey, Versioned,
};
use crate::parse::{Bytes, Packet};
use crate::verdict::Hook;

/// How the tables are asked. Look-ups return what is there now; the epoch decides which version of it counts.
pub trait Tables {
    type Flow<'a>: FlowEntry
    where
        Self: 'a;

    fn epoch(&self) -> u32;
    /// ENDPOINTS: interface index → record index.
    fn endpoint(&self, ifindex: u32) -> Option<Versioned>;
    /// The record index that an earlier packet found at this epoch.
    fn hint(&self, ifindex: u32, epoch: u32) -> Option<u32>;
    fn put_hint(&self, ifindex: u32, epoch: u32, index: u32);
    fn record(&self, index: u32) -> Option<&EndpointRecord>;
    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned>;
    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned>;
    fn rule(&self, key: &RuleKey) -> Option<RuleValue>;
    /// PORTS: the rule that admits the port (host order).
    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32>;
    /// SERVICE_PORTS: whether a Service may have the port (host order).
    fn has_service_port(&self, port: u16) -> bool;
    fn service(&self, key: &ServiceKey) -> Option<Versioned>;
    fn backends(&self, row: u32) -> Option<&Backends>;
    /// STAMPS: the interface index of the endpoint that marks its packets so.
    fn stamp_owner(&self, stamp: u16) -> Option<u32>;
    /// Nobody would judge what becomes of Service traffic.
    fn exits_missing(&self) -> bool;
    fn count_service(&self, what: ServiceCount);
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// Puts the whole entry anew; `new`: there was none. `false`: the table could not take it.
    fn put_flow(&self, key: &FlowKey, value: &FlowValue, new: bool) -> bool;
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue>;
    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool;
    /// Nanoseconds, CLOCK_MONOTONIC (coarse).
    fn now(&self) -> u64;
    /// The flow table may have evicted a flow that is still wanted.
    fn pressure(&self, now: u64) -> bool;
    /// When the last pause of anything on the node ends or has ended (seconds, CLOCK_MONOTONIC); 0: there was none. What passed by it was
    /// not remembered.
    fn paused_until(&self) -> u32;
    /// `--existing-flows keep`.
    fn keeps_existing(&self) -> bool;
    /// Whether a TCP socket of the pod listens on its own end of the packet, met at `hook`; `None` where that cannot be known.
    fn listens(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool>;
    /// Whether the pod's UDP socket for the packet, met at `hook`, is connected to the other end; `None` where there is none, or it
    /// cannot be known.
    fn is_connected(&self, record: &EndpointRecord, packet: &Packet, hook: Hook) -> Option<bool>;
    /// Takes one mid-stream admission from the endpoint's budget of this second; `false`: none is left.
    fn take_midstream(&self, number: u32, now: u64) -> bool;
    /// A pod has a flow of UDP under way that it opened from this port, so that answers may come to it (AWAITED). Only for who refuses before
    /// a Service's address is translated back.
    #[inline(always)]
    fn note_awaited(&self, _address: &Address, _port: u16, _second: u32) {}
    /// As [`Bytes::zero`].
    #[inline(always)]
    fn zero(&self) -> u32 {
        0
    }

    // Parts of the decision function. The kernel's programs call them as functions that its verifier reads by themselves.

    #[inline(always)]
    fn admission<B: Bytes>(&self, bytes: &B, packet: &Packet, record: &EndpointRecord, hook: Hook) -> Option<Ruling> {
        let reason = match hook {
            Hook::FromPod => guard::admission_from_pod(bytes, packet, record),
            Hook::ToPod => guard::admission_to_pod(packet, record),
        };
        reason.map(Ruling::of)
    }

    #[inline(always)]
    fn isolated(&self, packet: &Packet, record: &EndpointRecord, epoch: u32, meeting: Meeting) -> Ruling
    where
        Self: Sized,
    {
        super::isolated(self, packet, record, epoch, meeting)
    }

    #[inline(always)]
    fn refused_leaving(&self, packet: &Packet, record: &EndpointRecord, stamp: u16, epoch: u32) -> Option<Ruling>
    where
        Self: Sized,
    {
        super::refused_leaving(self, packet, record, (stamp, epoch))
    }

    #[inline(always)]
    fn leaving(&self, packet: &Packet, client: &EndpointRecord, epoch: u32, place: Place) -> Ruling
    where
        Self: Sized,
    {
        super::leaving(self, packet, client, epoch, place)
    }

    #[inline(always)]
    fn icmp_error<B: Bytes>(
        &self,
        bytes: &B,
        packet: &Packet,
        record: &EndpointRecord,
        epoch: u32,
        hook: Hook,
    ) -> Ruling
    where
        Self: Sized,
    {
        Ruling::of(super::icmp_error(self, bytes, packet, &mut Packet::default(), (record, epoch, hook)))
    }

    #[inline(always)]
    fn opened_by(&self, packet: &Packet, record: &EndpointRecord, hook: Hook, now: u64) -> Opened
    where
        Self: Sized,
    {
        flow::opened_by(self, packet, record, hook, now)
    }

    #[inline(always)]
    fn record_index(&self, ifindex: u32, epoch: u32) -> Option<u32>
    where
        Self: Sized,
    {
        super::record_index(self, ifindex, epoch)
    }

    #[inline(always)]
    fn answer(&self, question: &Question<'_>, record: &EndpointRecord) -> Answer
    where
        Self: Sized,
    {
        super::answer(self, question, record)
    }
}

/// What is counted of flows to Services; fields of [`crate::layout::FlowStats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceCount {
    Answered,
    Judged,
}

/// One entry of FLOWS. Judgements are only ever replaced with the whole entry ([`Tables::put_flow`]): an evicted entry's memory may
/// be another flow's by the time it is written to. The rest may be written in place, as it admits nothing by itself.
pub trait FlowEntry {
    fn value(&self) -> FlowValue;
    fn judged(&self, opener: usize, role: usize) -> Judgement;
    fn flags(&self) -> u32;
    fn seen(&self) -> u64;
    fn fin_next(&self, sender: usize) -> u32;
    fn set_seen(&self, seen: u64);
    fn set_flags(&self, flags: u32);
    fn set_fin_next(&self, sender: usize, next: u32);
    /// [`FlowValue::client`] and its generation.
    fn client(&self) -> (u32, u32);
    /// [`FlowValue::revoked`].
    fn revoked(&self) -> u32;
    fn set_revoked(&self, revoked: u32);
}

/// Counts one mid-stream admission; for implementations of [`Tables::take_midstream`].
#[inline(always)]
pub fn take_midstream(stats: EndpointStats, now: u64, budget: u32) -> Option<EndpointStats> {
    let second = (now / 1_000_000_000) as u32;
    if stats.midstream_second != second {
        return if budget == 0 {
            None
        } else {
            Some(EndpointStats { midstream_second: second, midstream_count: 1, ..stats })
        };
    }
    if stats.midstream_count >= budget {
        return None;
    }
    Some(EndpointStats { midstream_count: stats.midstream_count + 1, ..stats })
}
