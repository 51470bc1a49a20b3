//! What stands at the interfaces of a node that no agent has judged yet while its programs are verified: programs that leave every packet
//! to whatever comes next.
//!
//! Each TCX program that is put on an interface waits for an RCU grace period under the RTNL lock, however many threads ask; one that
//! takes another's place does not. So this waiting is done while the kernel verifies the programs, and changes nothing for any packet.
//! The links are pinned, and their programs named, as those that will take their place: whoever finds them, in whichever version, goes on
//! from there or takes them away.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use super::attach::PLACES;
use super::pins::PinDir;
use super::syscall::bpf;
use super::tcx;

/// bpf(2), linux/bpf.h: enum bpf_cmd, enum bpf_prog_type.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// struct bpf_insn, in the byte order of the machine.
type Instruction = u64;

/// `r0 = TCX_NEXT` (-1), `exit`.
const PASS_ON: [Instruction; 2] = [instruction(0xb7, u32::MAX), instruction(0x95, 0)];

/// The part of union bpf_attr for BPF_PROG_LOAD, up to the name.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

const fn instruction(code: u8, immediate: u32) -> Instruction {
    let [a, b, c, d] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, 0, 0, 0, a, b, c, d])
}

/// Does what there is to do, and meanwhile puts placeholders on these interfaces; what is not done by then is left.
pub(super) fn beside<T>(pins: &PinDir, interfaces: &[u32], work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = place_all(pins, interfaces, &over) {
                // The programs themselves are put there soon.
                tracing::debug!(error = format!("{error:#}"), "programs that hold the place of others");
            }
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        result
    })
}

fn place_all(pins: &PinDir, interfaces: &[u32], over: &AtomicBool) -> anyhow::Result<()> {
    if interfaces.is_empty() {
        return Ok(());
    }
    for (name, place) in PLACES {
        let program = load(name).with_context(|| format!("loading what holds the place of {name}"))?;
        for &ifindex in interfaces {
            let pin = pins.link(ifindex, name);
            if over.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Where there is anything, it may judge.
            if !pin.exists() {
                tcx::attach((program.as_fd(), name), &pin, ifindex, place)?;
            }
        }
    }
    Ok(())
}

fn load(name: &str) -> io::Result<OwnedFd> {
    const LICENSE: &CStr = c"";
    let mut prog_name = [0; 16];
    prog_name[..name.len()].copy_from_slice(name.as_bytes());
    let mut attributes = Load {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: PASS_ON.len() as u32,
        insns: PASS_ON.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: instructions and licence are constants, of the length that is said.
    let program = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }?;
    // SAFETY: BPF_PROG_LOAD has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}
