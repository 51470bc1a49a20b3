//! AWAITED in our own memory, which the programs write: one aligned word each.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use palisade_common::layout::{AWAITED_SINCE, AWAITED_SLOTS};
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes, in whole pages; the kernel rounds a map up to these.
const LENGTH: usize = (AWAITED_SINCE as usize + 1).next_multiple_of(1024) * size_of::<u32>();

/// The whole map.
#[derive(Debug)]
pub(super) struct Awaited {
    words: NonNull<u32>,
}

// SAFETY: the memory is shared with the kernel anyway; every access goes through atomics.
unsafe impl Send for Awaited {}

impl Awaited {
    pub(super) fn map(fd: BorrowedFd<'_>) -> anyhow::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of a map that was made mappable.
        let address =
            unsafe { mmap(std::ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0) }
                .context("mapping AWAITED into memory")?;
        Ok(Self { words: NonNull::new(address.cast()).context("mapping AWAITED into memory")? })
    }

    fn word(&self, index: u32) -> &AtomicU32 {
        debug_assert!(index <= AWAITED_SINCE);
        // SAFETY: within the mapping, aligned, and only accessed atomically here; the kernel's programs load and store words.
        unsafe { AtomicU32::from_ptr(self.words.as_ptr().add(index as usize)) }
    }

    pub(super) fn since(&self) -> u32 {
        self.word(AWAITED_SINCE).load(Ordering::Relaxed)
    }

    /// From this second (CLOCK_MONOTONIC) on everything is written down; 0: nothing is.
    pub(super) fn set_since(&self, second: u32) {
        self.word(AWAITED_SINCE).store(second, Ordering::Relaxed);
    }

    /// Forgets all there is.
    pub(super) fn forget(&self) {
        (0..AWAITED_SLOTS).for_each(|slot| self.word(slot).store(0, Ordering::Relaxed));
    }

    /// Makes all there is older.
    pub(super) fn age(&self, seconds: u32) {
        for slot in 0..AWAITED_SLOTS {
            let word = self.word(slot);
            let then = word.load(Ordering::Relaxed);
            if then != 0 {
                word.store(then.saturating_sub(seconds).max(1), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, and no reference into it outlives self.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), LENGTH) };
    }
}
