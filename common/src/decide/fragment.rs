//! Later fragments follow their first.

use super::{Ruling, Tables};
use crate::flow::At;
use crate::layout::{FragmentKey, FragmentValue, endpoint_flag};
use crate::parse::{V4, protocol};
use crate::verdict::{Hook, Reason};

/// How long a later fragment may follow its first, in nanoseconds (RFC 8200 §4.5: 60 s).
const FRAGMENT_NS: u64 = 60_000_000_000;

#[inline(always)]
fn fragment_key<T: Tables>(at: &At<'_, T>, hook: Option<u8>) -> FragmentKey {
    let packet = at.packet;
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.fragment_id,
        ifindex: at.record.ifindex,
        // The protocol of an IPv6 later fragment is what its fragment header says, which the first's chain may go on from.
        protocol: if packet.family == V4 { packet.protocol } else { 0 },
        family: packet.family,
        hook: match (hook, at.hook) {
            (Some(hook), _) => hook,
            (None, Hook::FromPod) => 0,
            (None, Hook::ToPod) => 1,
        },
        pad: 0,
        pad2: 0,
    }
}

#[inline(never)]
pub(super) fn put_fragment<T: Tables>(at: &At<'_, T>, forward: bool, hook: Option<u8>) -> bool {
    let value = FragmentValue { judged: at.judgement(), seen: at.now, forward: u32::from(forward), pad: 0 };
    at.tables.put_fragment(&fragment_key(at, hook), &value)
}

/// `hook`: where it was judged, if not at the endpoint's own interface ([`crate::layout::FRAGMENT_LEAVING`]).
#[inline(never)]
pub(super) fn later_fragment<T: Tables>(at: &At<'_, T>, hook: Option<u8>) -> Ruling {
    // A fragment that begins inside the upper-layer header could rewrite what was judged (RFC 1858).
    let header = match at.packet.protocol {
        protocol::TCP => 20,
        protocol::SCTP => 16,
        _ => 8,
    };
    if at.record.flags & endpoint_flag::CLOSED != 0 {
        return Ruling::of(Reason::Closed);
    }
    if at.packet.fragment_offset < header {
        return Ruling::of(Reason::Malformed);
    }
    let Some(first) = at.tables.fragment(&fragment_key(at, hook)) else { return Ruling::of(Reason::FragmentAlone) };
    let admitted = first.judged.generation == at.record.generation
        && (first.judged.epoch == at.epoch || at.tables.keeps_existing())
        && at.now.wrapping_sub(first.seen) <= FRAGMENT_NS;
    if admitted { Ruling::of(Reason::Fragment).forward(first.forward != 0) } else { Ruling::of(Reason::FragmentAlone) }
}
