//! CONFIG in our own memory: the epoch is stored as one aligned word, which a map update by system call does not promise.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::Context as _;
use palisade_common::layout::Config;
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const LENGTH: usize = 4096;

/// The one element of the CONFIG map.
#[derive(Debug)]
pub struct ConfigCell {
    config: NonNull<Config>,
}

// SAFETY: the memory is shared with the kernel anyway; every access goes through atomics.
unsafe impl Send for ConfigCell {}

impl ConfigCell {
    pub fn map(fd: BorrowedFd<'_>) -> anyhow::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of a map that was made mappable.
        let address =
            unsafe { mmap(std::ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0) }
                .context("mapping CONFIG into memory")?;
        Ok(Self { config: NonNull::new(address.cast()).context("mapping CONFIG into memory")? })
    }

    fn word(&self, field: *mut u32) -> &AtomicU32 {
        // SAFETY: `field` is inside the mapping, aligned, and only accessed atomically here; the kernel's programs load words.
        unsafe { AtomicU32::from_ptr(field) }
    }

    fn double_word(&self, field: *mut u64) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(field) }
    }

    pub fn epoch(&self) -> u32 {
        // SAFETY: a place in the mapping.
        self.word(unsafe { &raw mut (*self.config.as_ptr()).epoch }).load(Ordering::SeqCst)
    }

    /// The instant at which a change holds.
    pub fn store_epoch(&self, epoch: u32) {
        // SAFETY: a place in the mapping.
        self.word(unsafe { &raw mut (*self.config.as_ptr()).epoch }).store(epoch, Ordering::SeqCst);
    }

    /// Everything but the epoch and when pauses end, which is nobody's setting.
    pub fn store_settings(&self, settings: &Config) {
        let Config {
            epoch: _,
            keep_existing,
            inserts_safe,
            pressure_until,
            midstream_budget,
            events_budget,
            events_group_budget,
            events_admitted,
            exits_missing,
            captures_until,
            ..
        } = *settings;
        self.store_exits_missing(exits_missing != 0);
        let config = self.config.as_ptr();
        // SAFETY: places in the mapping.
        unsafe {
            self.word(&raw mut (*config).keep_existing).store(keep_existing, Ordering::SeqCst);
            self.word(&raw mut (*config).midstream_budget).store(midstream_budget, Ordering::SeqCst);
            self.word(&raw mut (*config).events_budget).store(events_budget, Ordering::SeqCst);
            self.word(&raw mut (*config).events_group_budget).store(events_group_budget, Ordering::SeqCst);
            self.word(&raw mut (*config).events_admitted).store(events_admitted, Ordering::SeqCst);
        }
        self.store_pressure(inserts_safe, pressure_until);
        self.store_captures_until(captures_until);
    }

    /// See [`Config::exits_missing`].
    pub fn exits_missing(&self) -> bool {
        // SAFETY: a place in the mapping.
        self.word(unsafe { &raw mut (*self.config.as_ptr()).exits_missing }).load(Ordering::SeqCst) != 0
    }

    /// See [`Config::exits_missing`].
    pub fn store_exits_missing(&self, missing: bool) {
        // SAFETY: a place in the mapping.
        let word = self.word(unsafe { &raw mut (*self.config.as_ptr()).exits_missing });
        word.store(u32::from(missing), Ordering::SeqCst);
    }

    /// See [`Config::paused_until`]; an earlier end changes nothing.
    pub fn raise_paused_until(&self, second: u32) {
        // SAFETY: a place in the mapping.
        let word = self.word(unsafe { &raw mut (*self.config.as_ptr()).paused_until });
        word.fetch_max(second, Ordering::SeqCst);
    }

    /// See [`Config::paused_until`].
    pub fn paused_until(&self) -> u32 {
        // SAFETY: a place in the mapping.
        self.word(unsafe { &raw mut (*self.config.as_ptr()).paused_until }).load(Ordering::SeqCst)
    }

    /// Unless a pause has begun since `seen` was read, and never later than that.
    pub fn lower_paused_until(&self, seen: u32, second: u32) {
        // SAFETY: a place in the mapping.
        let word = self.word(unsafe { &raw mut (*self.config.as_ptr()).paused_until });
        if second < seen {
            // Who has raised it meanwhile knows better.
            let _ = word.compare_exchange(seen, second, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// See [`Config::captures_until`].
    pub fn store_captures_until(&self, until: u64) {
        // SAFETY: a place in the mapping.
        let word = self.double_word(unsafe { &raw mut (*self.config.as_ptr()).captures_until });
        word.store(until, Ordering::SeqCst);
    }

    /// [`Config::inserts_safe`] and [`Config::pressure_until`].
    pub fn pressure(&self) -> (u64, u64) {
        let config = self.config.as_ptr();
        // SAFETY: places in the mapping.
        unsafe {
            let inserts_safe = self.double_word(&raw mut (*config).inserts_safe).load(Ordering::SeqCst);
            (inserts_safe, self.double_word(&raw mut (*config).pressure_until).load(Ordering::SeqCst))
        }
    }

    /// See [`Config::inserts_safe`] and [`Config::pressure_until`].
    pub fn store_pressure(&self, inserts_safe: u64, pressure_until: u64) {
        let config = self.config.as_ptr();
        // SAFETY: places in the mapping.
        unsafe {
            self.double_word(&raw mut (*config).inserts_safe).store(inserts_safe, Ordering::SeqCst);
            self.double_word(&raw mut (*config).pressure_until).store(pressure_until, Ordering::SeqCst);
        }
    }
}

impl Drop for ConfigCell {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, and no reference into it outlives self.
        let _ = unsafe { munmap(self.config.as_ptr().cast(), LENGTH) };
    }
}
