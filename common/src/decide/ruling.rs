//! What comes of judging a packet.

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
