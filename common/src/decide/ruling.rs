//! What comes of judging a packet.

use crate::layout::flow_flag;
use crate::verdict::{REFUSED_FIRST, Reason};

/// A reason, and the class of the peer that was asked about (0 where none was). One register wide.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ruling(u64);

impl Ruling {
    #[inline(always)]
    pub const fn new(reason: Reason, class: u32) -> Self {
        Self(((class as u64) << 8) | reason as u64)
    }

    /// The register that [`Ruling::from_bits`] takes.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub const fn of(reason: Reason) -> Self {
        Self::new(reason, 0)
    }

    /// The packet's sender opened the flow (`forward`), or answers in it.
    #[inline(always)]
    pub(crate) const fn forward(self, forward: bool) -> Self {
        Self(if forward { self.0 | Self::FORWARD } else { self.0 & !Self::FORWARD })
    }

    /// The same for another reason.
    #[inline(always)]
    pub(crate) const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !0xff | reason as u64)
    }

    /// What is remembered is that the opening was let go on as a Service's.
    #[inline(always)]
    pub(crate) const fn deferred(self, deferred: bool) -> Self {
        if deferred { Self(self.0 | Self::DEFERRED) } else { self }
    }

    /// [`flow_flag::DEFERRED`], if that is to be remembered; else 0.
    #[inline(always)]
    pub(crate) const fn deferred_bit(self) -> u32 {
        ((self.0 & Self::DEFERRED) >> Self::DEFERRED.trailing_zeros()) as u32 * flow_flag::DEFERRED
    }

    /// With the number of the pod that opened the flow: what the packet is to be marked with (from a pod), or what it is marked with
    /// and refused for (elsewhere).
    #[inline(always)]
    pub const fn stamped(self, stamp: u16) -> Self {
        Self(self.0 & (u64::MAX >> 16) | (stamp as u64) << 48)
    }

    /// See [`Ruling::stamped`]; 0: none.
    #[inline(always)]
    pub const fn stamp(self) -> u16 {
        (self.0 >> 48) as u16
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
    const DEFERRED: u64 = 1 << 42;

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
