//! Entries of FLOWS, in place.

use core::mem::size_of;

use palisade_common::decide::FlowEntry;
use palisade_common::layout::{FlowValue, Judgement};

/// A pointer into FLOWS.
pub struct FlowPointer(pub *mut FlowValue);

impl FlowEntry for FlowPointer {
    #[inline(always)]
    fn value(&self) -> FlowValue {
        // SAFETY: elements of an LRU map are never unmapped; one that is evicted meanwhile holds another flow's value, see FlowEntry.
        unsafe { *self.0 }
    }

    #[inline(always)]
    fn judged(&self, opener: usize, role: usize) -> Judgement {
        // SAFETY: as above; four constant places rather than a computed one, so that the verifier sees each.
        unsafe {
            match (opener, role) {
                (0, 0) => (*self.0).judged[0][0],
                (0, _) => (*self.0).judged[0][1],
                (_, 0) => (*self.0).judged[1][0],
                (_, _) => (*self.0).judged[1][1],
            }
        }
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).flags }
    }

    #[inline(always)]
    fn seen(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).seen }
    }

    #[inline(always)]
    fn fin_next(&self, sender: usize) -> u32 {
        // SAFETY: as above.
        unsafe { if sender == 0 { (*self.0).fin_next[0] } else { (*self.0).fin_next[1] } }
    }

    #[inline(always)]
    fn client(&self) -> (u32, u32) {
        // SAFETY: as above.
        unsafe { ((*self.0).client, (*self.0).client_generation) }
    }

    #[inline(always)]
    fn revoked(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).revoked }
    }

    #[inline(always)]
    fn set_revoked(&self, revoked: u32) {
        // SAFETY: as above; of another flow it only tells when that was cut, should it ever be.
        unsafe { (*self.0).revoked = revoked }
    }

    #[inline(always)]
    fn set_seen(&self, seen: u64) {
        // SAFETY: as above; admits nothing by itself.
        unsafe { (*self.0).seen = seen }
    }

    #[inline(always)]
    fn set_flags(&self, flags: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).flags = flags }
    }

    #[inline(always)]
    fn set_fin_next(&self, sender: usize, next: u32) {
        // SAFETY: as above.
        unsafe {
            if sender == 0 {
                (*self.0).fin_next[0] = next;
            } else {
                (*self.0).fin_next[1] = next;
            }
        }
    }
}

const _: () = assert!(size_of::<FlowPointer>() == size_of::<usize>());
