//! A pinned map with the types of its keys and values, as the kernel tells of them.

use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, ensure};
use aya::Pod;
use aya::maps::MapData;

use super::btf::Btf;
use super::conversion::Conversion;
use super::types::{self, Layout};
use crate::kernel::batch::RawEntries;
use crate::kernel::syscall::bpf;

// linux/bpf.h: enum bpf_cmd
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_BTF_GET_FD_BY_ID: libc::c_long = 19;

/// The part of union bpf_attr for BPF_MAP_*_ELEM.
#[repr(C)]
struct ElementRequest {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of union bpf_attr for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoRequest {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// struct bpf_map_info, up to what is needed of it.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_vmlinux_value_type_id: u32,
    netns_dev: u64,
    netns_ino: u64,
    btf_id: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_id: u32,
}

/// struct bpf_btf_info, likewise.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
}

/// Its part for BPF_BTF_GET_FD_BY_ID, with the fields that other commands have between.
#[repr(C)]
#[derive(Default)]
struct IdRequest {
    btf_id: u32,
    next_id: u32,
    open_flags: u32,
    fd_by_id_token_fd: i32,
}

/// # Safety
///
/// What `info` points to is alive, and plain numbers.
unsafe fn info<T>(fd: BorrowedFd<'_>, info: &mut T) -> std::io::Result<()> {
    let address = std::ptr::from_mut(info).addr() as u64;
    let mut request = InfoRequest { bpf_fd: fd.as_raw_fd() as u32, info_len: size_of::<T>() as u32, info: address };
    // SAFETY: the request says how large `info` is; the rest the caller promises.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request) }.map(drop)
}

/// The map and how its entries are laid out.
pub(super) struct Described {
    data: MapData,
    key_size: usize,
    value_size: usize,
    layout: Layout,
}

impl Described {
    /// # Errors
    ///
    /// When it cannot be opened, or nothing tells what is in it.
    pub(super) fn open(pin: &Path) -> anyhow::Result<Self> {
        let data = MapData::from_pin(pin).with_context(|| format!("opening {}", pin.display()))?;
        let mut map = MapInfo::default();
        // SAFETY: plain numbers, without pointers.
        unsafe { info(data.fd().as_fd(), &mut map) }.context("asking for the map's types")?;
        let (key_size, value_size) = (map.key_size as usize, map.value_size as usize);
        let layout = layout(pin, &map).with_context(|| format!("reading the types of {}", pin.display()))?;
        Ok(Self { data, key_size, value_size, layout: layout.fitting(key_size, value_size)? })
    }

    /// From its entries to those of `other`.
    pub(super) fn conversions(&self, other: &Self) -> anyhow::Result<[Conversion; 2]> {
        let (from, to) = (&self.layout, &other.layout);
        Ok([Conversion::of_key(&from.key, &to.key)?, Conversion::of_value(&from.value, &to.value)])
    }

    /// Every entry, in the layout that the conversions lead to.
    ///
    /// # Errors
    ///
    /// When reading fails; when it is not of `K` and `V` that the conversions lead to, what is seen is wrong.
    pub(super) fn for_each<K: Pod + Default, V: Pod + Default>(
        &self,
        [key, value]: &[Conversion; 2],
        mut see: impl FnMut(K, V),
    ) -> anyhow::Result<()> {
        let entries = RawEntries { fd: self.data.fd().as_fd(), key_size: self.key_size, value_size: self.value_size };
        Ok(entries.for_each(|old_key, old_value| see(converted(key, old_key), converted(value, old_value)))?)
    }
}

impl Described {
    /// Gives a field another number in those entries of an array for which the path of another one is not 0. The programs that read them go
    /// on meanwhile: all else is written as it is there.
    pub(super) fn set(&self, path: &str, number: u64, where_set: &str) -> anyhow::Result<()> {
        let field = |path: &str| self.layout.value.get(path).with_context(|| format!("there is no field {path}"));
        let (to, condition) = (*field(path)?, *field(where_set)?);
        let mut entries = Vec::new();
        self.raw().for_each(|key, value| {
            if value[condition.offset..][..condition.size].iter().any(|byte| *byte != 0) {
                entries.push((key.to_vec(), value.to_vec()));
            }
        })?;
        for (key, mut value) in entries {
            put_number(&mut value[to.offset..][..to.size], number);
            let mut request = ElementRequest {
                map_fd: self.data.fd().as_fd().as_raw_fd() as u32,
                pad: 0,
                key: key.as_ptr().addr() as u64,
                value: value.as_ptr().addr() as u64,
                flags: 0,
            };
            // SAFETY: both are as large as the map says, and the call only reads them.
            unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut request) }?;
        }
        Ok(())
    }

    fn raw(&self) -> RawEntries<'_> {
        RawEntries { fd: self.data.fd().as_fd(), key_size: self.key_size, value_size: self.value_size }
    }
}

/// The low bytes of a number, as many as there is room for.
fn put_number(place: &mut [u8], number: u64) {
    let size = place.len().min(size_of::<u64>());
    if cfg!(target_endian = "little") {
        place[..size].copy_from_slice(&number.to_le_bytes()[..size]);
    } else {
        place[..size].copy_from_slice(&number.to_be_bytes()[size_of::<u64>() - size..]);
    }
}

/// Plain bytes for a moment.
fn converted<T: Pod + Default>(conversion: &Conversion, old: &[u8]) -> T {
    let mut new = T::default();
    // SAFETY: a value that is `Pod` is bytes, and any bytes are a value of it.
    let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut new).cast::<u8>(), size_of::<T>()) };
    conversion.convert(old, bytes);
    new
}

/// By the map's own BTF; where the kernel does not give us that, by what the agent said that made the map.
fn layout(pin: &Path, map: &MapInfo) -> anyhow::Result<Layout> {
    ensure!(map.btf_id != 0, "it has no description of its types (BTF)");
    let bytes = match blob(map.btf_id) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return types::read(pin).context("the kernel gives them with CAP_SYS_ADMIN only");
        }
        bytes => bytes?,
    };
    let btf = Btf::parse(&bytes)?;
    Ok(Layout { key: btf.leaves(map.btf_key_type_id)?, value: btf.leaves(map.btf_value_type_id)? })
}

/// The BTF of this id, whole.
fn blob(id: u32) -> std::io::Result<Vec<u8>> {
    // SAFETY: nothing is pointed to.
    let fd = unsafe { bpf(BPF_BTF_GET_FD_BY_ID, &mut IdRequest { btf_id: id, ..IdRequest::default() }) }?;
    // SAFETY: the call has just given us this descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut size = BtfInfo::default();
    // SAFETY: no pointer is given, so nothing but the sizes is written.
    unsafe { info(fd.as_fd(), &mut size) }?;
    let mut bytes = vec![0; size.btf_size as usize];
    let mut whole = BtfInfo { btf: bytes.as_mut_ptr().addr() as u64, btf_size: size.btf_size, id: 0 };
    // SAFETY: the pointer is to as many bytes as it is said.
    unsafe { info(fd.as_fd(), &mut whole) }?;
    Ok(bytes)
}
