//! The decision function: one packet at one hook, by the tables. The same code runs in the kernel, in the agent and in tests.
//!
//! [`decide`] reads the epoch, judges ([`judge`]), and judges again if the epoch has moved meanwhile. What is remembered about
//! flows is in [`flow`](crate::flow).

use crate::flow;
use crate::layout::{
    Address, CLASS_ASK_CIDR, EndpointRecord, EndpointStats, FlowKey, FlowValue, FragmentKey, FragmentValue, PORTS_ALL,
    PORTS_NONE, RuleKey, RuleValue, TableRef, Versioned, endpoint_flag,
};
use crate::neighbour;
use crate::parse::{self, Bytes, Packet, V4, V6, packet_trait, protocol};
use crate::verdict::{Hook, REFUSED_FIRST, Reason};

/// How the tables are asked. Look-ups return what is there now; the epoch decides which version of it counts.
pub trait Tables {
    type Flow<'a>: FlowEntry
    where
        Self: 'a;

    fn epoch(&self) -> u32;
    /// ENDPOINTS: interface index → record index.
    fn endpoint(&self, ifindex: u32) -> Option<Versioned>;
    fn record(&self, index: u32) -> Option<&EndpointRecord>;
    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned>;
    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned>;
    fn rule(&self, key: &RuleKey) -> Option<RuleValue>;
    /// PORTS: the rule that admits the port (host order).
    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32>;
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// Puts the whole entry anew; `new`: there was none. `false`: the table could not take it.
    fn put_flow(&self, key: &FlowKey, value: &FlowValue, new: bool) -> bool;
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue>;
    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool;
    /// Nanoseconds, CLOCK_MONOTONIC (coarse).
    fn now(&self) -> u64;
    /// The flow table may have evicted a flow that is still wanted.
    fn pressure(&self, now: u64) -> bool;
    /// `--existing-flows keep`.
    fn keeps_existing(&self) -> bool;
    /// Whether a socket of the pod listens on its own end of the packet; `None` where that cannot be known.
    fn listens(&self, record: &EndpointRecord, family: u8, protocol: u8, local: (Address, u16)) -> Option<bool>;
    /// Takes one mid-stream admission from the endpoint's budget of this second; `false`: none is left.
    fn take_midstream(&self, number: u32, now: u64) -> bool;
    /// As [`Bytes::zero`].
    #[inline(always)]
    fn zero(&self) -> u32 {
        0
    }
}

/// One entry of FLOWS. Judgements are only ever replaced with the whole entry ([`Tables::put_flow`]): an evicted entry's memory may
/// be another flow's by the time it is written to. The rest may be written in place, as it admits nothing by itself.
pub trait FlowEntry {
    fn value(&self) -> FlowValue;
    fn judged(&self, opener: usize, role: usize) -> crate::layout::Judgement;
    fn flags(&self) -> u32;
    fn seen(&self) -> u64;
    fn fin_next(&self, sender: usize) -> u32;
    fn set_seen(&self, seen: u64);
    fn set_flags(&self, flags: u32);
    fn set_fin_next(&self, sender: usize, next: u32);
}

/// Where and how a packet met the program.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    pub hook: Hook,
    /// Host side of the pod's veth.
    pub ifindex: u32,
    /// The node itself sent it (`ingress_ifindex` is 0); only meaningful at [`Hook::ToPod`].
    pub from_node: bool,
}

/// A reason, and the class of the peer that was asked about (0 where none was). One register wide.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ruling(u64);

impl Ruling {
    #[inline(always)]
    pub const fn new(reason: Reason, class: u32) -> Self {
        Self(((class as u64) << 8) | reason as u64)
    }

    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        Self::new(reason, 0)
    }

    /// The flow is to be remembered with a judgement of the packet's direction (`forward`) or of the opposite one.
    #[inline(always)]
    pub(crate) const fn remembering(self, forward: bool) -> Self {
        Self(self.0 | if forward { Self::REMEMBER | Self::FORWARD } else { Self::REMEMBER })
    }

    #[inline(always)]
    pub(crate) const fn remembers(self) -> bool {
        self.0 & Self::REMEMBER != 0
    }

    #[inline(always)]
    pub(crate) const fn is_forward(self) -> bool {
        self.0 & Self::FORWARD != 0
    }

    const REMEMBER: u64 = 1 << 40;
    const FORWARD: u64 = 1 << 41;

    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match Reason::from_number(self.0 as u8) {
            Some(reason) => reason,
            None => Reason::Unsettled,
        }
    }

    /// [`Reason::passes`] without a table.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        (self.0 as u8) < REFUSED_FIRST
    }

    #[inline(always)]
    pub const fn reason_number(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    pub const fn class(self) -> u32 {
        (self.0 >> 8) as u32
    }
}

impl core::fmt::Debug for Ruling {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} (class {})", self.reason().name(), self.class())
    }
}

/// Which of an endpoint's tables is asked.
pub const EGRESS: usize = 0;
pub const INGRESS: usize = 1;

/// How often a packet is judged before it is given up because the tables keep changing.
const ATTEMPTS: u32 = 2;

/// A frame, what was parsed from it, and room for the packet that it may quote (two do not fit on a BPF program's stack).
#[derive(Debug)]
pub struct Frame<'a, B> {
    pub bytes: &'a B,
    pub packet: &'a Packet,
    pub quoted: &'a mut Packet,
}

/// Judges a frame.
#[inline(always)]
pub fn decide<B: Bytes, T: Tables>(frame: &mut Frame<'_, B>, tables: &T, meeting: Meeting) -> Ruling {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let epoch = tables.epoch();
        let ruling = judge(frame, tables, meeting, epoch);
        if tables.epoch() == epoch {
            return ruling;
        }
        attempt += 1;
    }
    Ruling::of(Reason::Unsettled)
}

#[inline(always)]
fn judge<B: Bytes, T: Tables>(frame: &mut Frame<'_, B>, tables: &T, meeting: Meeting, epoch: u32) -> Ruling {
    // Memory of an entry that is replaced is another entry's at once, also while it is being read (see `class_of`): what is not found
    // is looked for again. What is found is the endpoint's own, as the record says so.
    let mut record = record_of(tables, meeting.ifindex, epoch);
    if record.is_none() {
        record = record_of(tables, meeting.ifindex, epoch);
    }
    let Some(record) = record else { return Ruling::of(without_endpoint(frame.packet, meeting)) };
    for_endpoint(frame, tables, meeting, epoch, record)
}

#[inline(always)]
fn record_of<T: Tables>(tables: &T, ifindex: u32, epoch: u32) -> Option<&EndpointRecord> {
    let record = tables.record(tables.endpoint(ifindex)?.at(epoch))?;
    if record.ifindex == ifindex { Some(record) } else { None }
}

/// A veth that has its programs and no entry yet: closed, its node excepted.
#[inline(always)]
fn without_endpoint(packet: &Packet, meeting: Meeting) -> Reason {
    match meeting.hook {
        Hook::ToPod if meeting.from_node => Reason::Node,
        Hook::ToPod | Hook::FromPod if packet.has(packet_trait::ARP) || neighbour::is_neighbour(packet) => {
            Reason::Neighbour
        }
        Hook::ToPod | Hook::FromPod => Reason::Closed,
    }
}

#[inline(always)]
fn for_endpoint<B: Bytes, T: Tables>(
    frame: &mut Frame<'_, B>,
    tables: &T,
    meeting: Meeting,
    epoch: u32,
    record: &EndpointRecord,
) -> Ruling {
    let flags = record.flags;
    let packet = frame.packet;
    if let Some(reason) = admission(frame.bytes, packet, meeting, record) {
        return Ruling::of(reason);
    }
    let isolated = flags & (endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS);
    if flags & endpoint_flag::CLOSED == 0 && isolated == 0 {
        return Ruling::of(Reason::NotIsolated);
    }
    if !packet.has(packet_trait::IP) {
        let malformed = packet.has(packet_trait::MALFORMED);
        return Ruling::of(if malformed { Reason::Malformed } else { Reason::UnknownProtocol });
    }
    let from_node = matches!(meeting.hook, Hook::ToPod) && meeting.from_node;
    if packet.has(packet_trait::MALFORMED) {
        return Ruling::of(if from_node { Reason::Node } else { Reason::Malformed });
    }
    if packet.has(packet_trait::ICMP_ERROR) {
        if from_node {
            return Ruling::of(Reason::Node);
        }
        if flags & endpoint_flag::CLOSED != 0 {
            return Ruling::of(Reason::Closed);
        }
        return Ruling::of(icmp_error(frame, tables, record, epoch, meeting.hook));
    }
    isolated_packet(packet, tables, record, epoch, &meeting)
}

/// A function of its own for the stack's sake: what it calls may use what is left of 512 bytes.
#[inline(never)]
fn isolated_packet<T: Tables>(
    packet: &Packet,
    tables: &T,
    record: &EndpointRecord,
    epoch: u32,
    meeting: &Meeting,
) -> Ruling {
    let from_node = matches!(meeting.hook, Hook::ToPod) && meeting.from_node;
    let at = flow::At::new(tables, record, packet, epoch, meeting.hook);
    if packet.has(packet_trait::FRAGMENT_LATER) {
        return Ruling::of(if from_node { Reason::Node } else { later_fragment(&at) });
    }
    if from_node {
        return Ruling::of(flow::remember_node(&at));
    }
    if record.flags & endpoint_flag::CLOSED != 0 {
        return Ruling::of(flow::closed(&at));
    }
    let ruling = flow::pass(&at);
    if packet.has(packet_trait::FRAGMENT_FIRST) && ruling.passes() {
        if !at.is_settled() {
            return Ruling::of(Reason::Unsettled);
        }
        if !put_fragment(&at) {
            return Ruling::new(Reason::Unremembered, ruling.class());
        }
    }
    ruling
}

#[inline(never)]
fn icmp_error<B: Bytes, T: Tables>(
    frame: &mut Frame<'_, B>,
    tables: &T,
    record: &EndpointRecord,
    epoch: u32,
    hook: Hook,
) -> Reason {
    parse::quoted(frame.bytes, frame.packet, frame.quoted);
    // The quoted packet went the other way, through the endpoint's other hook.
    let at = flow::At::new(tables, record, frame.quoted, epoch, hook.opposite());
    flow::related(&at, frame.packet)
}

/// What holds for every pod, isolated or not: who it says it is, and what it may be told (SEMANTICS 14.2, DESIGN §5 step 2).
/// `None`: go on.
#[inline(always)]
fn admission<B: Bytes>(bytes: &B, packet: &Packet, meeting: Meeting, record: &EndpointRecord) -> Option<Reason> {
    let trusted = record.flags & endpoint_flag::TRUSTED != 0;
    // Of a closed endpoint the addresses may not be known yet; it can reach nothing anyway.
    let nameless = record.flags & endpoint_flag::CLOSED != 0 && record.v4_count + record.v6_count == 0;
    let checked = !trusted && !nameless;
    match meeting.hook {
        Hook::FromPod => {
            if checked && packet.source_mac != mac(record) {
                return Some(Reason::SpoofedMac);
            }
            if packet.has(packet_trait::ARP) {
                return Some(neighbour::arp_from_pod(bytes, packet, record, checked));
            }
            if !packet.has(packet_trait::IP) {
                return None;
            }
            if packet.has(packet_trait::ICMP)
                && let Some(reason) = neighbour::from_pod(bytes, packet, record, checked)
            {
                return Some(reason);
            }
            if checked && !owns(record, packet.family, &packet.source) {
                return Some(Reason::SpoofedAddress);
            }
            if checked && packet.family == V6 && packet.has(packet_trait::CHAIN_INCOMPLETE) {
                return Some(Reason::SpoofedFragment);
            }
            None
        }
        Hook::ToPod => {
            if checked && !is_group_mac(packet) && packet.destination_mac != mac(record) {
                return Some(Reason::NotForPod);
            }
            if packet.has(packet_trait::ARP) {
                return Some(Reason::Neighbour);
            }
            if !packet.has(packet_trait::IP) {
                return None;
            }
            if checked && !is_for(record, packet) {
                return Some(Reason::NotForPod);
            }
            if packet.has(packet_trait::ICMP) && neighbour::is_for_pod(packet) { Some(Reason::Neighbour) } else { None }
        }
    }
}

#[inline(always)]
pub(crate) fn mac(record: &EndpointRecord) -> (u32, u32) {
    (u32::from_be(record.mac_hi), u16::from_be(record.mac_lo as u16) as u32)
}

#[inline(always)]
fn is_group_mac(packet: &Packet) -> bool {
    packet.destination_mac.0 & 0x0100_0000 != 0
}

/// The address is one of the endpoint's own. The unspecified address is nobody's.
#[inline(always)]
pub(crate) fn owns(record: &EndpointRecord, family: u8, address: &Address) -> bool {
    if family == V4 {
        let word = address.v4_word();
        return word != 0
            && (word == record.v4[0] || word == record.v4[1] || word == record.v4[2] || word == record.v4[3]);
    }
    let [a, b, c, d] = address.words;
    if a | b | c | d == 0 {
        return false;
    }
    same(address, &record.v6[0])
        || same(address, &record.v6[1])
        || same(address, &record.v6[2])
        || same(address, &record.v6[3])
}

#[inline(always)]
fn same(a: &Address, b: &Address) -> bool {
    // Bit operations, one branch.
    (a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) | (a.words[3] ^ b.words[3]) == 0
}

/// Own unicast, multicast, or a broadcast of the pod's network.
#[inline(always)]
fn is_for(record: &EndpointRecord, packet: &Packet) -> bool {
    if owns(record, packet.family, &packet.destination) {
        return true;
    }
    if packet.family == V6 {
        return u32::from_be(packet.destination.words[0]) >> 24 == 0xff;
    }
    let word = packet.destination.v4_word();
    u32::from_be(word) >> 28 == 0xe
        || word == u32::MAX
        || (word != 0
            && (word == record.v4_broadcast[0]
                || word == record.v4_broadcast[1]
                || word == record.v4_broadcast[2]
                || word == record.v4_broadcast[3]))
}

/// What one of an endpoint's tables says about a peer and port: the rule that admits, and the class it was found for. One
/// register wide.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer(u64);

impl Answer {
    const REFUSED: u32 = u32::MAX;
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
        (endpoint_flag::ISOLATED_EGRESS, &record.egress)
    } else {
        (endpoint_flag::ISOLATED_INGRESS, &record.ingress)
    };
    if record.flags & isolated == 0 {
        return Answer::ALLOWED;
    }
    let class = class_of(tables, family, peer, epoch);
    let row = row(tables, table, class);
    let rule = match row.ports {
        PORTS_NONE => None,
        PORTS_ALL => Some(row.rule),
        ports => match protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => tables.port(ports, protocol, port),
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
#[inline(always)]
fn exact_class<T: Tables>(tables: &T, family: u8, peer: &Address, epoch: u32) -> u32 {
    const LOOKS: u32 = 3;
    let look = || match tables.class_exact(family, peer) {
        Some(class) => class.at(epoch),
        None => CLASS_ASK_CIDR,
    };
    let mut class = look();
    let mut looks = 1;
    while looks < LOOKS {
        let again = look();
        if again == class {
            break;
        }
        class = again;
        looks += 1;
    }
    class
}

#[inline(always)]
fn row<T: Tables>(tables: &T, table: &TableRef, class: u32) -> RuleValue {
    match tables.rule(&RuleKey { table: table.table, class }) {
        Some(row) => row,
        None => RuleValue { ports: table.default_ports, rule: table.default_rule },
    }
}

// === Fragments ===

/// How long a later fragment may follow its first, in nanoseconds (RFC 8200 §4.5: 60 s).
const FRAGMENT_NS: u64 = 60_000_000_000;

#[inline(always)]
fn fragment_key<T: Tables>(at: &flow::At<'_, T>) -> FragmentKey {
    let packet = at.packet;
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.fragment_id,
        ifindex: at.record.ifindex,
        // The protocol of an IPv6 later fragment is what its fragment header says, which the first's chain may go on from.
        protocol: if packet.family == V4 { packet.protocol } else { 0 },
        family: packet.family,
        hook: match at.hook {
            Hook::FromPod => 0,
            Hook::ToPod => 1,
        },
        pad: 0,
        pad2: 0,
    }
}

#[inline(never)]
fn put_fragment<T: Tables>(at: &flow::At<'_, T>) -> bool {
    at.tables.put_fragment(&fragment_key(at), &FragmentValue { judged: at.judgement(), seen: at.now })
}

#[inline(never)]
fn later_fragment<T: Tables>(at: &flow::At<'_, T>) -> Reason {
    // A fragment that begins inside the upper-layer header could rewrite what was judged (RFC 1858).
    let header = match at.packet.protocol {
        protocol::TCP => 20,
        protocol::SCTP => 16,
        _ => 8,
    };
    if at.record.flags & endpoint_flag::CLOSED != 0 {
        return Reason::Closed;
    }
    if at.packet.fragment_offset < header {
        return Reason::Malformed;
    }
    let Some(first) = at.tables.fragment(&fragment_key(at)) else { return Reason::FragmentAlone };
    let admitted = first.judged.generation == at.record.generation
        && (first.judged.epoch == at.epoch || at.tables.keeps_existing())
        && at.now.wrapping_sub(first.seen) <= FRAGMENT_NS;
    if admitted { Reason::Fragment } else { Reason::FragmentAlone }
}

/// Counts one mid-stream admission; for implementations of [`Tables::take_midstream`].
#[inline(always)]
pub fn take_midstream(stats: EndpointStats, now: u64, budget: u32) -> Option<EndpointStats> {
    let second = (now / 1_000_000_000) as u32;
    if stats.midstream_second != second {
        return if budget == 0 { None } else { Some(EndpointStats { midstream_second: second, midstream_count: 1 }) };
    }
    if stats.midstream_count >= budget {
        return None;
    }
    Some(EndpointStats { midstream_second: second, midstream_count: stats.midstream_count + 1 })
}

#[cfg(test)]
mod tests;
