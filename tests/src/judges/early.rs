//! Whether the program on the uplinks would have refused a packet that a pod is sent: if it would, the pod's interface has to refuse it too.

use std::sync::atomic::{AtomicU64, Ordering};

use palisade::tables::sim::FrameBytes;
use palisade_common::decide::Place;
use palisade_common::parse::{self, Packet, V4, protocol};
use palisade_common::{Hook, Reason, Verdict};

use crate::case::PacketStep;

/// It may have come from outside as it is: nobody's mark, not the node's own, and one packet.
pub fn may_come_from_outside(packet: &PacketStep) -> bool {
    let to_pod = packet.place == Place::Pod && packet.hook == Hook::ToPod;
    to_pod && packet.ingress_ifindex != 0 && packet.by.is_none() && !packet.gso
}

/// Packets that were refused early, of all cases of this process: by the decision function over compiled tables, and by the loaded program.
pub static COMPILED: AtomicU64 = AtomicU64::new(0);
pub static LOADED: AtomicU64 = AtomicU64::new(0);

/// `refused`: the interface as whose pod's it was refused early.
pub fn check(packet: &PacketStep, refused: Option<u32>, verdict: Verdict, count: &AtomicU64) {
    // A case may send to an interface what no router would.
    let same = refused == Some(packet.ifindex);
    assert!(!same || !verdict.pass, "refused early and passed as {}: {packet:?}", verdict.reason.name());
    count.fetch_add(u64::from(same), Ordering::Relaxed);
}

/// An answer as it may look before its source is translated back to the address of a Service: from elsewhere, and from another port.
pub fn untranslated(packet: &PacketStep, verdict: Verdict) -> Option<Vec<u8>> {
    let mut parsed = Packet::default();
    parse::frame(&FrameBytes { bytes: &packet.frame, gso: false }, &mut parsed);
    if verdict.reason != Reason::Reply || parsed.protocol != protocol::UDP {
        return None;
    }
    let (network, transport) = (parsed.network as usize, parsed.transport as usize);
    let mut frame = packet.frame.clone();
    let last = if parsed.family == V4 { network + 15 } else { network + 23 };
    frame[last] ^= 0x55;
    frame[transport + 1] ^= 0x0f;
    Some(frame)
}
