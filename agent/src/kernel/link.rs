//! Taking a pinned link's program off at once: what aya leaves to the kernel, which does it some time after the last reference.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::syscall::bpf;

/// bpf(2), linux/bpf.h: enum bpf_cmd.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of union bpf_attr for BPF_OBJ_*.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Its part for BPF_LINK_DETACH.
#[repr(C)]
struct Detach {
    link_fd: u32,
}

/// The program of the link has run for the last time when this returns (tcx_link_detach waits for a grace period). A link whose
/// interface has gone is detached already.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // SAFETY: the path is alive.
    let link = unsafe { bpf(BPF_OBJ_GET, &mut Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 }) }?;
    // SAFETY: BPF_OBJ_GET has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    // SAFETY: nothing is pointed to.
    unsafe { bpf(BPF_LINK_DETACH, &mut Detach { link_fd: link.as_raw_fd().cast_unsigned() }) }.map(drop)
}
