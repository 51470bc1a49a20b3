//! Many entries of a map in one call: BPF_MAP_LOOKUP_BATCH, BPF_MAP_UPDATE_BATCH and BPF_MAP_DELETE_BATCH (kernel commits 057996380a42 and
//! aa2e93b8e58e, 5.6), which aya has no call for. A hundred thousand entries one by one are as many system calls or twice as many, a tenth
//! of a second of a processor, and the flow table is read every few seconds on a node with many new connections.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::ensure;
use aya::Pod;
use aya::maps::MapData;

use super::syscall::bpf;

/// linux/bpf.h: enum bpf_cmd.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// Entries in one call. A bucket that holds more makes the call fail with ENOSPC; the kernel has as many buckets as entries.
const BATCH: u32 = 4096;

/// The part of `union bpf_attr` for batches (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// In: room; out: entries.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A hash map or trie with keys and values of one CPU.
pub struct Entries<K, V> {
    fd: OwnedFd,
    of: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Entries<K, V> {
    /// Fails if the map's keys or values are not as large as `K` and `V`.
    pub fn new(map: &MapData) -> anyhow::Result<Self> {
        let info = map.info()?;
        let sizes = [info.key_size() as usize, info.value_size() as usize];
        ensure!(sizes == [size_of::<K>(), size_of::<V>()], "keys and values of {sizes:?} bytes");
        Ok(Self { fd: map.fd().as_fd().try_clone_to_owned()?, of: PhantomData })
    }

    /// Sees every entry that is there throughout; one that comes or goes meanwhile may be seen or not.
    pub fn for_each(&self, mut see: impl FnMut(&K, &V)) -> io::Result<()> {
        let room = BATCH as usize;
        let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
        let (to_keys, to_values) = (keys.as_mut_ptr().cast(), values.as_mut_ptr().cast());
        // SAFETY: there is room for BATCH entries of the sizes that `new` compared.
        let batches = unsafe { Batches::new(self.fd.as_fd(), to_keys, to_values) };
        for count in batches {
            let count = count?;
            // SAFETY: the kernel has written so many entries; any bits are a value (`Pod`).
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            keys.iter().zip(&values).for_each(|(key, value)| see(key, value));
        }
        Ok(())
    }

    /// What one call of the following takes at most.
    pub const AT_ONCE: usize = BATCH as usize;

    /// Puts entries, whether their keys are there or not: the kernel takes no flag that says otherwise.
    pub fn put(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        self.call(BPF_MAP_UPDATE_BATCH, keys, Some(values)).1
    }

    /// As [`Self::put`], in order, until the kernel refuses one. Returns how many it has taken.
    pub fn put_leading(&self, keys: &[K], values: &[V]) -> usize {
        self.call(BPF_MAP_UPDATE_BATCH, keys, Some(values)).0
    }

    /// Removes entries, in order, until one is not there. Returns how many were removed.
    pub fn remove_leading(&self, keys: &[K]) -> usize {
        self.call(BPF_MAP_DELETE_BATCH, keys, None).0
    }

    fn call(&self, command: libc::c_long, keys: &[K], values: Option<&[V]>) -> (usize, io::Result<()>) {
        let given = keys.len().min(values.map_or(usize::MAX, <[V]>::len));
        if given == 0 {
            return (0, Ok(()));
        }
        let mut attributes = Attributes {
            keys: keys.as_ptr().addr() as u64,
            values: values.map_or(0, |values| values.as_ptr().addr() as u64),
            count: u32::try_from(given).unwrap_or(u32::MAX),
            map_fd: self.fd.as_raw_fd() as u32,
            ..Attributes::default()
        };
        // SAFETY: there are `count` keys and, unless the command only takes keys, values of the sizes that `new` compared, which the call
        // only reads.
        match unsafe { bpf(command, &mut attributes) } {
            Ok(_) => (given, Ok(())),
            Err(error) => {
                // A kernel that has not begun (before 6.8, or as the map knows no batches) leaves the number as it was.
                let done = attributes.count as usize;
                (if done < given { done } else { 0 }, Err(error))
            }
        }
    }
}

/// A map whose keys and values are bytes to us.
pub struct RawEntries<'a> {
    pub fd: BorrowedFd<'a>,
    /// As large as the map says.
    pub key_size: usize,
    pub value_size: usize,
}

impl RawEntries<'_> {
    /// As [`Entries::for_each`].
    pub fn for_each(&self, mut see: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let room = BATCH as usize;
        let (mut keys, mut values) = (vec![0_u8; room * self.key_size], vec![0_u8; room * self.value_size]);
        let (to_keys, to_values) = (keys.as_mut_ptr(), values.as_mut_ptr());
        // SAFETY: there is room for BATCH entries of the map's sizes.
        let batches = unsafe { Batches::new(self.fd, to_keys, to_values) };
        for count in batches {
            let count = count?;
            let pairs = keys.chunks_exact(self.key_size).zip(values.chunks_exact(self.value_size));
            pairs.take(count).for_each(|(key, value)| see(key, value));
        }
        Ok(())
    }
}

/// Calls that fill the same room again and again, each with so many entries.
struct Batches<'a> {
    fd: BorrowedFd<'a>,
    keys: *mut u8,
    values: *mut u8,
    /// Where the kernel goes on: for a hash map the number of a bucket, for an array an index.
    from: Option<u32>,
    ended: bool,
}

impl<'a> Batches<'a> {
    /// # Safety
    ///
    /// `keys` and `values` have room for [`BATCH`] of the map's as long as this lives.
    unsafe fn new(fd: BorrowedFd<'a>, keys: *mut u8, values: *mut u8) -> Self {
        Self { fd, keys, values, from: None, ended: false }
    }
}

impl Iterator for Batches<'_> {
    type Item = io::Result<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: self.from.as_ref().map_or(0, |from| std::ptr::from_ref(from).addr() as u64),
            out_batch: (&raw mut next).addr() as u64,
            keys: self.keys.addr() as u64,
            values: self.values.addr() as u64,
            count: BATCH,
            map_fd: self.fd.as_raw_fd() as u32,
            ..Attributes::default()
        };
        // SAFETY: keys and values have room for `count` entries, the numbers are ours, and all outlive the call.
        match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
            Ok(_) => {}
            // The last entries.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.ended = true,
            Err(error) => {
                self.ended = true;
                return Some(Err(error));
            }
        }
        self.from = Some(next);
        Some(Ok(attributes.count.min(BATCH) as usize))
    }
}
