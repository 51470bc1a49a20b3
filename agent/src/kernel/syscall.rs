//! bpf(2), for the commands that aya has no call for.

use std::io;

/// Returns what the call does: a descriptor, or 0.
///
/// # Safety
///
/// `attributes` is the command's part of union bpf_attr (linux/bpf.h); what its pointers point to is alive, and as large as the
/// command takes it to be.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are as long as it is said, and the rest the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
