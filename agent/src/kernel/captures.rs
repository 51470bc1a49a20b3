//! Whose refused packets the programs hand over whole (`palisade capture`). The maps are not pinned: the next agent begins without any, and
//! the programs of one that was killed end by the clock.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use palisade_common::layout::{CAPTURE_BYTES_MAX, CaptureWanted};

use super::Kernel;
use super::flows::now;
use super::maps::Plain;

/// How long after the last word of the agent the programs capture no more.
pub const LEASE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Captures {
    wanted: HashMap<MapData, u32, Plain<CaptureWanted>>,
}

impl Captures {
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self { wanted: ebpf.take_map("CAPTURES").context("no map CAPTURES in the object")?.try_into()? })
    }

    fn get(&self, ifindex: u32) -> anyhow::Result<Option<CaptureWanted>> {
        match self.wanted.get(&ifindex, 0) {
            Ok(wanted) => Ok(Some(wanted.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("CAPTURES"),
        }
    }
}

impl Kernel {
    /// From now on the first `snaplen` bytes of each packet that is refused on the account of the interface's pod are handed over, until
    /// [`Self::end_capture`], and no longer than [`LEASE`] after the last [`Self::renew_captures`].
    ///
    /// # Errors
    ///
    /// When the map cannot be written, as there are too many.
    pub fn begin_capture(&mut self, ifindex: u32, snaplen: u32) -> anyhow::Result<()> {
        ensure!((1..=CAPTURE_BYTES_MAX as u32).contains(&snaplen), "{snaplen} bytes of a packet cannot be captured");
        let lost = self.captures.get(ifindex)?.map_or(0, |wanted| wanted.lost);
        let wanted = CaptureWanted { snaplen, pad: 0, lost };
        self.captures.wanted.insert(ifindex, Plain(wanted), 0).context("CAPTURES")
    }

    pub fn end_capture(&mut self, ifindex: u32) -> anyhow::Result<()> {
        match self.captures.wanted.remove(&ifindex) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.context("CAPTURES"),
        }
    }

    /// Packets of the interface's pod that were not handed over since its capture began, for want of budget or room.
    pub fn lost_captures(&self, ifindex: u32) -> anyhow::Result<u64> {
        Ok(self.captures.get(ifindex)?.map_or(0, |wanted| wanted.lost))
    }

    /// The programs look at what is wanted, for [`LEASE`]; `false`: no longer.
    pub fn renew_captures(&self, any: bool) {
        self.maps.config.store_captures_until(if any { now() + LEASE.as_nanos() as u64 } else { 0 });
    }
}
