//! Reading a whole hash map by BPF_MAP_LOOKUP_BATCH (kernel commit 057996380a42, 5.6), which aya has no call for: a hundred thousand
//! entries one by one are as many pairs of system calls, a tenth of a second of a processor, and the flow table is read every few
//! seconds on a node with many new connections.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::ensure;
use aya::Pod;
use aya::maps::MapData;

use super::syscall::bpf;

/// linux/bpf.h: enum bpf_cmd.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Entries in one call. A bucket that holds more makes the call fail with ENOSPC; the kernel has as many buckets as entries.
const BATCH: u32 = 4096;

/// The part of `union bpf_attr` for batches (linux/bpf.h).
#[repr(C)]
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

/// A hash map with keys and values of one CPU.
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
        // Where the kernel goes on: for a hash map the number of a bucket.
        let (mut from, mut next) = (None::<u32>, 0_u32);
        loop {
            let mut attributes = Attributes {
                in_batch: from.as_ref().map_or(0, |from| std::ptr::from_ref(from).addr() as u64),
                out_batch: (&raw mut next).addr() as u64,
                keys: keys.as_mut_ptr().addr() as u64,
                values: values.as_mut_ptr().addr() as u64,
                count: BATCH,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: keys and values have room for `count` entries, the numbers of buckets are ours, and all outlive the call.
            let end = match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
                Ok(_) => false,
                // The last entries.
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error),
            };
            let count = attributes.count.min(BATCH) as usize;
            // SAFETY: the kernel has written so many entries of the sizes that `new` compared, into room for BATCH; any bits are
            // a value (`Pod`).
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            keys.iter().zip(&values).for_each(|(key, value)| see(key, value));
            if end {
                return Ok(());
            }
            from = Some(next);
        }
    }
}
