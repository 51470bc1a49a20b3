//! What lies at a pin. The file system does not tell a map from a program or a link, and neither does aya: whoever takes the one for
//! the other reads numbers that mean something else.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::syscall::bpf;

/// bpf(2), linux/bpf.h: enum bpf_cmd.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// linux/bpf.h: enum bpf_link_type.
pub(super) const LINK_XDP: u32 = 6;
pub(super) const LINK_TCX: u32 = 11;

/// What was found at a pin.
#[derive(Debug)]
pub(super) enum Pinned {
    Nothing,
    Map(MapShape),
    /// Of this name.
    Program(String),
    Link(OwnedFd, Link),
    /// A folder, say.
    Other(&'static str),
}

/// What has to be the same of two maps for programs to read the one as the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    /// linux/bpf.h: enum bpf_map_type.
    pub(super) kind: u32,
    /// Bytes.
    pub(super) key_size: u32,
    /// Bytes.
    pub(super) value_size: u32,
    /// BPF_F_*.
    pub(super) flags: u32,
    pub(super) entries_max: u32,
}

/// A link, and the program that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) kind: u32,
    /// Of TCX and XDP: the interface, 0 once that has gone; of TCX the hook (enum bpf_attach_type).
    pub(super) ifindex: u32,
    pub(super) hook: u32,
    pub(super) program: Program,
}

/// A program that something runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) id: u32,
    /// Without CAP_SYS_ADMIN the kernel tells us of no program that we have no descriptor of.
    pub(super) name: Option<String>,
}

/// The part of union bpf_attr for BPF_OBJ_*.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Its part for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Its part for BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The first words of struct bpf_map_info, struct bpf_prog_info or struct bpf_link_info; bytes 64..80 of the second are the name.
type Words = [u32; 20];

/// # Errors
///
/// When the kernel does not let us look, as on a bpffs that is mounted read-only.
pub(super) fn look(pin: &Path) -> io::Result<Pinned> {
    match fs::symlink_metadata(pin) {
        Ok(metadata) if metadata.is_dir() => return Ok(Pinned::Other("a folder")),
        Ok(metadata) if metadata.is_symlink() => return Ok(Pinned::Other("a symbolic link")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pinned::Nothing),
        Err(error) => return Err(error),
    }
    let fd = open(pin)?;
    // fs/anon_inodes.c: what the descriptor is of.
    let name = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    match name.to_string_lossy().as_ref() {
        "anon_inode:bpf-map" => {
            let [kind, _id, key_size, value_size, entries_max, flags, ..] = info(&fd)?;
            Ok(Pinned::Map(MapShape { kind, key_size, value_size, flags, entries_max }))
        }
        "anon_inode:bpf-prog" => Ok(Pinned::Program(program_name(&fd)?)),
        "anon_inode:bpf_link" | "anon_inode:bpf-link" => {
            // Of the union, bpf_link_info.tcx and bpf_link_info.xdp begin at byte 16.
            let [kind, _id, program, _pad, ifindex, hook, ..] = info(&fd)?;
            let (ifindex, hook) = match kind {
                LINK_TCX => (ifindex, hook),
                LINK_XDP => (ifindex, 0),
                _ => (0, 0),
            };
            Ok(Pinned::Link(fd, Link { kind, ifindex, hook, program: Program::of_id(program) }))
        }
        _ => Ok(Pinned::Other("something that this agent does not know")),
    }
}

pub(super) fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // SAFETY: the path is alive.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 }) }?;
    // SAFETY: BPF_OBJ_GET has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn info(fd: &OwnedFd) -> io::Result<Words> {
    let mut words: Words = [0; 20];
    let info_len = size_of::<Words>() as u32;
    let mut attributes =
        Info { bpf_fd: fd.as_raw_fd().cast_unsigned(), info_len, info: (&raw mut words).expose_provenance() as u64 };
    // SAFETY: there is room for what is said; the kernel writes no more than that.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    // SAFETY: `words` is alive; it is read as memory that the kernel may have written to behind the compiler's back.
    Ok(unsafe { (&raw const words).read_volatile() })
}

fn program_of_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: nothing is pointed to.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut ById { id, next_id: 0, open_flags: 0 }) }?;
    // SAFETY: BPF_PROG_GET_FD_BY_ID has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn program_name(program: &OwnedFd) -> io::Result<String> {
    let words = info(program)?;
    let bytes: Vec<u8> = words[16..].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

// === impl Pinned ===

impl std::fmt::Display for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Map(shape) => write!(f, "{shape}"),
            Self::Program(name) => write!(f, "a program ({name})"),
            Self::Link(_, Link { kind: LINK_TCX, ifindex, program, .. }) => {
                write!(f, "a link of {program} at interface {ifindex}")
            }
            Self::Link(_, Link { program, .. }) => write!(f, "a link of {program}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

// === impl Program ===

impl Program {
    pub(super) fn of_id(id: u32) -> Self {
        Self { id, name: program_of_id(id).and_then(|program| program_name(&program)).ok() }
    }

    /// As far as can be told: what is at a pin of ours, at the hook where ours should be, is ours if we are not told its name.
    pub(super) fn may_be(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|is| is == name)
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "the program {name:?}"),
            None => write!(f, "the program with id {}", self.id),
        }
    }
}

// === impl MapShape ===

impl std::fmt::Display for MapShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, key_size, value_size, flags, entries_max } = self;
        let kind = match kind {
            1 => "a hash map".to_owned(),
            2 => "an array".to_owned(),
            6 => "an array per CPU".to_owned(),
            9 => "an LRU hash map".to_owned(),
            11 => "a trie of prefixes".to_owned(),
            other => format!("a map of type {other}"),
        };
        write!(f, "{kind} of {entries_max} entries, {key_size} and {value_size} bytes each, flags {flags:#x}")
    }
}
