//! Links of TCX, made by interface index: aya takes a name and looks its index up, and in between another device may have got the name.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use aya::programs::tc::TcAttachType;

use super::pinned::{self, LINK_TCX, Link, Pinned};
use super::syscall::bpf;

/// bpf(2), linux/bpf.h: enum bpf_cmd.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// enum bpf_attach_type.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// With no other program named: in front of all.
const BPF_F_BEFORE: u32 = 1 << 3;

/// The part of union bpf_attr for BPF_LINK_CREATE with TCX.
#[repr(C)]
struct Create {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Its part for BPF_LINK_UPDATE.
#[repr(C)]
struct Update {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Its part for BPF_PROG_QUERY.
#[repr(C)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Its part for BPF_OBJ_PIN.
#[repr(C)]
struct Pin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Puts the program (of this name) on the interface, in front of all that are there, or replaces what an earlier agent put there.
pub(super) fn attach(
    program: (BorrowedFd<'_>, &str),
    pin: &Path,
    ifindex: u32,
    place: TcAttachType,
) -> anyhow::Result<()> {
    let hook = hook(place);
    let (program, name) = program;
    let found = pinned::look(pin).with_context(|| format!("opening {}", pin.display()))?;
    match &found {
        Pinned::Nothing => {}
        Pinned::Link(link, info) if is_ours(info, name, hook) => {
            let updated = (info.ifindex == ifindex).then(|| update(link, program));
            match updated {
                Some(Ok(())) => return Ok(()),
                // The interface has gone, and its index has come again (ENOLINK: the link is severed), or the interface has changed its
                // index on its way to another namespace.
                Some(Err(error)) => tracing::debug!(%error, ifindex, "link of an earlier interface"),
                None => tracing::debug!(ifindex, was = info.ifindex, "link of an earlier interface"),
            }
            fs::remove_file(pin).with_context(|| format!("removing {}", pin.display()))?;
        }
        Pinned::Map(_) | Pinned::Program(_) | Pinned::Link(..) | Pinned::Other(_) => set_aside(pin, &found)?,
    }
    let link = create(program, ifindex, hook)?;
    pin_link(&link, pin).with_context(|| format!("pinning {}", pin.display()))
}

/// Ids of the programs of an interface, in the order in which they are asked. aya asks for their names as well, which takes CAP_SYS_ADMIN.
pub(super) fn programs(ifindex: u32, place: TcAttachType) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attributes = Query {
            target_ifindex: ifindex,
            attach_type: hook(place),
            query_flags: 0,
            attach_flags: 0,
            prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
            count: ids.len() as u32,
            pad: 0,
            prog_attach_flags: 0,
            link_ids: 0,
            link_attach_flags: 0,
            revision: 0,
        };
        // SAFETY: there is room for as many ids as is said.
        let asked = unsafe { bpf(BPF_PROG_QUERY, &mut attributes) };
        let count = attributes.count as usize;
        match asked {
            Ok(_) => {
                ids.truncate(count);
                return Ok(ids);
            }
            // There are more, and it was said how many.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ids.resize(count.max(ids.len() * 2), 0),
            // None was ever attached.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the link that is pinned here runs its program at this place now.
pub(super) fn is_in_use(pin: &Path, ifindex: u32, (name, place): (&str, TcAttachType)) -> bool {
    let Ok(Pinned::Link(_, link)) = pinned::look(pin) else { return false };
    let runs = || programs(ifindex, place).is_ok_and(|ids| ids.contains(&link.program.id));
    is_ours(&link, name, hook(place)) && link.ifindex == ifindex && runs()
}

const fn hook(place: TcAttachType) -> u32 {
    match place {
        TcAttachType::Egress => BPF_TCX_EGRESS,
        TcAttachType::Ingress | TcAttachType::Custom(_) => BPF_TCX_INGRESS,
    }
}

/// A link that an agent has made for this place, whatever has become of its interface.
fn is_ours(link: &Link, name: &str, hook: u32) -> bool {
    link.kind == LINK_TCX && link.hook == hook && link.program.may_be(name)
}

/// What is somebody else's is kept, but not where ours has to be.
fn set_aside(pin: &Path, found: &Pinned) -> anyhow::Result<()> {
    let mut name = pin.file_name().unwrap_or_default().to_owned();
    name.push("-foreign");
    let aside = pin.with_file_name(name);
    tracing::warn!("{} is {found}, not a link of this agent's: moved to {}", pin.display(), aside.display());
    fs::rename(pin, &aside).with_context(|| format!("moving {} to {}", pin.display(), aside.display()))
}

fn create(program: BorrowedFd<'_>, ifindex: u32, hook: u32) -> anyhow::Result<OwnedFd> {
    let mut attributes = Create {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: hook,
        flags: BPF_F_BEFORE,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: nothing is pointed to.
    let link = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }.context("BPF_LINK_CREATE")?;
    // SAFETY: BPF_LINK_CREATE has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

pub(super) fn update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let [link_fd, new_prog_fd] = [link.as_raw_fd(), program.as_raw_fd()].map(i32::cast_unsigned);
    // SAFETY: nothing is pointed to.
    unsafe { bpf(BPF_LINK_UPDATE, &mut Update { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }) }.map(drop)
}

pub(super) fn pin_link(link: &OwnedFd, pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let bpf_fd = link.as_raw_fd().cast_unsigned();
    // SAFETY: the path is alive.
    unsafe { bpf(BPF_OBJ_PIN, &mut Pin { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 }) }.map(drop)
}
