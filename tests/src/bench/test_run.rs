//! The system call bpf(2) as far as measuring needs it: test runs that tell the mean time, and the loading of a few
//! instructions that no object holds.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;

const MAP_TYPE_PROG_ARRAY: u32 = 3;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// What came of running a program so many times.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// What the last run returned.
    pub returned: i32,
    /// Mean of all runs, in nanoseconds (the kernel tells whole ones).
    pub nanoseconds: u32,
}

/// `union bpf_attr` (include/uapi/linux/bpf.h) for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRunAttributes {
    program: u32,
    returned: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// The same for BPF_PROG_LOAD, as far as a program without BTF goes.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    instructions_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries_max: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// # Safety
///
/// `A` must be laid out as the kernel expects it for the command, and every address in it be valid for what the command does.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are ours and as long as we say; the caller vouches for what is in them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `struct __sk_buff` with what the programs read of it.
fn skb_context(ifindex: u32, ingress_ifindex: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// Runs a program on one frame that came to, or leaves by, an interface of this thread's network namespace.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Run> {
    const ANOTHER: u32 = 1;
    let context = skb_context(ifindex, ANOTHER);
    let mut attributes = TestRunAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        data_in_size: u32::try_from(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat,
        context_in_size: u32::try_from(context.len())?,
        context_in: context.as_ptr() as u64,
        ..TestRunAttributes::default()
    };
    loop {
        // SAFETY: laid out as the kernel has it; frame and context outlive the call and are only read.
        match unsafe { bpf(PROG_TEST_RUN, &mut attributes) } {
            Ok(_) => break,
            // A signal ends the repetition.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("BPF_PROG_TEST_RUN"),
        }
    }
    Ok(Run { returned: attributes.returned.cast_signed(), nanoseconds: attributes.duration })
}

/// Has the kernel make so many frames that have no skb, and do with each what the program says.
pub fn live_frames(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<()> {
    let mut attributes = TestRunAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        data_in_size: u32::try_from(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat,
        flags: TEST_XDP_LIVE_FRAMES,
        ..TestRunAttributes::default()
    };
    // SAFETY: laid out as the kernel has it; the frame outlives the call and is only read.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes) }.context("BPF_PROG_TEST_RUN with live frames")?;
    Ok(())
}

/// Loads a tc classifier of these instructions.
pub fn load(instructions: &[u64]) -> Result<OwnedFd> {
    load_as(PROG_TYPE_SCHED_CLS, instructions)
}

/// Loads a program for XDP of these instructions.
pub fn load_xdp(instructions: &[u64]) -> Result<OwnedFd> {
    load_as(PROG_TYPE_XDP, instructions)
}

fn load_as(kind: u32, instructions: &[u64]) -> Result<OwnedFd> {
    let mut log = vec![0_u8; 65_536];
    let mut attributes = LoadAttributes {
        kind,
        instructions_count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len())?,
        log: log.as_mut_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: as above; the log is ours to be written to.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }.with_context(|| {
        let log = std::ffi::CStr::from_bytes_until_nul(&log).unwrap_or_default();
        format!("BPF_PROG_LOAD: {}", log.to_string_lossy())
    })?;
    owned(fd)
}

/// An array with one program for a tail call.
pub fn program_array() -> Result<OwnedFd> {
    let mut attributes =
        MapAttributes { kind: MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, entries_max: 1, flags: 0 };
    // SAFETY: as above.
    owned(unsafe { bpf(MAP_CREATE, &mut attributes) }.context("BPF_MAP_CREATE")?)
}

/// Puts the program into the array.
pub fn put_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let (key, value) = (0_u32, program.as_raw_fd().cast_unsigned());
    let mut attributes = ElementAttributes {
        map: array.as_raw_fd().cast_unsigned(),
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        ..ElementAttributes::default()
    };
    // SAFETY: as above; key and value are four bytes each, as the array was made.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes) }.context("BPF_MAP_UPDATE_ELEM")?;
    Ok(())
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    // SAFETY: a descriptor that the kernel has just given to us and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}
