//! How long programs run, as the kernel counts it while kernel.bpf_stats_enabled is 1 (kernel commit 492ecee892c2, 5.1).

use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::Program;
use aya_obj::generated::bpf_prog_info;

use super::syscall::bpf;

/// linux/bpf.h: enum bpf_cmd.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// What one program has run so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    pub nanoseconds: u64,
    pub runs: u64,
}

/// The part of `union bpf_attr` for the call.
#[repr(C)]
struct Attributes {
    fd: u32,
    length: u32,
    info: u64,
}

pub(super) fn of(program: &Program) -> anyhow::Result<RunTime> {
    let fd = program.info()?.fd()?;
    // SAFETY: plain numbers, for which zero is a value; the kernel takes zero pointers to mean that nothing is wanted there.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let mut attributes = Attributes {
        fd: fd.as_fd().as_raw_fd() as u32,
        length: size_of::<bpf_prog_info>() as u32,
        info: (&raw mut info).addr() as u64,
    };
    // SAFETY: `info` has room for as many bytes as `length` says, and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(RunTime { nanoseconds: info.run_time_ns, runs: info.run_cnt })
}
