//! Later fragments follow their first.

use super::Tables;
use crate::flow::At;
use crate::layout::{FragmentKey, FragmentValue, endpoint_flag};
use crate::parse::{V4, protocol};
use crate::verdict::{Hook, Reason};

/// How long a later fragment may follow its first, in nanoseconds (RFC 8200 §4.5: 60 s).
const FRAGMENT_NS: u64 = 60_000_000_000;

#[inline(always)]
fn fragment_key<T: Tables>(at: &At<'_, T>) -> FragmentKey {
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
pub(super) fn put_fragment<T: Tables>(at: &At<'_, T>) -> bool {
    at.tables.put_fragment(&fragment_key(at), &FragmentValue { judged: at.judgement(), seen: at.now })
}

#[inline(never)]
pub(super) fn later_fragment<T: Tables>(at: &At<'_, T>) -> Reason {
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
