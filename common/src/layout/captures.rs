//! What is exchanged about packets that somebody captures (`palisade capture`).

use super::Event;

/// CAPTURES (hash): interface index of the host side of a pod's veth → what is wanted of its refused packets. Holds until
/// [`Config::captures_until`](super::Config::captures_until).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureWanted {
    /// As many bytes of each packet, from 1 to [`CAPTURE_BYTES_MAX`].
    pub snaplen: u32,
    pub pad: u32,
    /// Packets that were not captured, for want of budget or room; raised atomically by the programs.
    pub lost: u64,
}
const _: () = assert!(size_of::<CaptureWanted>() == 16);

/// How many pods may be captured at once.
pub const CAPTURES_MAX: usize = 16;

/// CAPTURED (ring buffer): a refused packet. A record ends with the last of `bytes` that were captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Its time is exact.
    pub event: Event,
    /// Of the whole packet, with the header that it begins with.
    pub length: u32,
    /// How many of `bytes` were captured.
    pub captured: u32,
    /// [`CAPTURED_LINK`] or [`CAPTURED_RAW`].
    pub begins: u32,
    pub pad: u32,
    pub bytes: [u8; CAPTURE_BYTES_MAX],
}
const _: () = assert!(size_of::<Captured>() == CAPTURED_HEAD + CAPTURE_BYTES_MAX);

/// What comes before the packet's own bytes.
pub const CAPTURED_HEAD: usize = size_of::<Event>() + 16;

/// Most bytes of a packet that can be captured; a power of two.
pub const CAPTURE_BYTES_MAX: usize = 2048;

/// The packet begins with an Ethernet header.
pub const CAPTURED_LINK: u32 = 0;
/// It begins with the IP header.
pub const CAPTURED_RAW: u32 = 1;

/// Packets per CPU and second (2^30 ns) that are captured, all pods together.
pub const CAPTURE_BUDGET: u32 = 1000;
