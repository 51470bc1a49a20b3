//! Taking a pinned link's program off at once: what aya leaves to the kernel, which does it some time after the last reference.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use super::pinned::{self, Pinned};
use super::syscall::bpf;
use super::{PROGRAMS, UPLINK, UPLINK_LINEAR};

/// bpf(2), linux/bpf.h: enum bpf_cmd.
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of union bpf_attr for BPF_LINK_DETACH.
#[repr(C)]
struct Detach {
    link_fd: u32,
}

/// The program of the link has run for the last time when this returns (tcx_link_detach waits for a grace period). A link whose
/// interface has gone is detached already; what is somebody else's is left as it is.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    let Pinned::Link(link, info) = pinned::look(pin)? else { return Ok(()) };
    if !PROGRAMS.iter().chain(&[UPLINK, UPLINK_LINEAR]).any(|name| info.program.may_be(name)) {
        return Ok(());
    }
    // SAFETY: nothing is pointed to.
    unsafe { bpf(BPF_LINK_DETACH, &mut Detach { link_fd: link.as_raw_fd().cast_unsigned() }) }.map(drop)
}
