//! Somebody else's program for tc: counts packets and says OK, so that what comes after it in its list is not asked.
//! Written as instructions, as a second compiled object would be much ado about ten of them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

pub struct Counter {
    map: File,
    program: File,
}

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP: u32 = 1;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const LINK_CREATE: u32 = 28;

const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const XDP_PASS: i32 = 2;

/// As bpf(2) takes it: what is not set is zero.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Counter {
    pub fn load() -> io::Result<Self> {
        Self::load_as(SCHED_CLS, 0)
    }

    /// For XDP: counts and passes on.
    pub fn load_xdp() -> io::Result<Self> {
        Self::load_as(XDP, XDP_PASS)
    }

    fn load_as(kind: u32, returned: i32) -> io::Result<Self> {
        let map = open(MAP_CREATE, &Attributes::of(&[&words(&[ARRAY, 4, 8, 1])]))?;
        let fd = map.as_raw_fd();
        let instruction = |code: u8, registers: u8, offset: i16, value: i32| {
            let [low, high] = offset.to_le_bytes();
            let [a, b, c, d] = value.to_le_bytes();
            [code, registers, low, high, a, b, c, d]
        };
        let instructions = [
            instruction(0x62, 0x0a, -4, 0), // *(u32 *)(r10 - 4) = 0
            instruction(0xbf, 0xa2, 0, 0),  // r2 = r10
            instruction(0x07, 0x02, 0, -4), // r2 += -4
            instruction(0x18, 0x11, 0, fd), // r1 = the map
            instruction(0, 0, 0, 0),
            instruction(0x85, 0, 0, 1),        // call bpf_map_lookup_elem
            instruction(0x15, 0, 2, 0),        // if r0 == 0 skip two
            instruction(0xb7, 0x01, 0, 1),     // r1 = 1
            instruction(0xdb, 0x10, 0, 0),     // *(u64 *)r0 += r1, atomically
            instruction(0xb7, 0, 0, returned), // r0 = TC_ACT_OK or XDP_PASS
            instruction(0x95, 0, 0, 0),        // exit
        ];
        let head = words(&[kind, instructions.len() as u32]);
        let pointers = addresses(&[instructions.as_ptr().addr(), c"GPL".as_ptr().addr()]);
        let program = open(PROG_LOAD, &Attributes::of(&[&head, &pointers]))?;
        Ok(Self { map, program })
    }

    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.to_string_lossy().as_bytes())?;
        let fd = words(&[self.program.as_raw_fd().cast_unsigned()]);
        bpf(OBJ_PIN, &Attributes::of(&[&addresses(&[path.as_ptr().addr()]), &fd])).map(drop)
    }

    /// Behind all that is there, or in front of it. Ends when the link is dropped.
    pub fn attach_tcx(&self, ifindex: u32, egress: bool, first: bool) -> io::Result<File> {
        let place = if egress { 47 } else { 46 };
        let before = if first { 1 << 3 } else { 0 };
        let program = self.program.as_raw_fd().cast_unsigned();
        open(LINK_CREATE, &Attributes::of(&[&words(&[program, ifindex, place, before])]))
    }

    /// In generic mode. Ends when the link is dropped.
    pub fn attach_xdp(&self, ifindex: u32) -> io::Result<File> {
        const PLACE: u32 = 37;
        const GENERIC: u32 = 1 << 1;
        let program = self.program.as_raw_fd().cast_unsigned();
        open(LINK_CREATE, &Attributes::of(&[&words(&[program, ifindex, PLACE, GENERIC])]))
    }

    pub fn count(&self) -> io::Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let map = words(&[self.map.as_raw_fd().cast_unsigned(), 0]);
        let pointers = addresses(&[(&raw const key).addr(), (&raw mut value).expose_provenance()]);
        bpf(MAP_LOOKUP, &Attributes::of(&[&map, &pointers]))?;
        // SAFETY: `value` is alive; it is read as memory that the kernel may have written to behind the compiler's back.
        Ok(unsafe { (&raw const value).read_volatile() })
    }
}

impl Attributes {
    fn of(parts: &[&[u8]]) -> Self {
        let mut bytes = [0; 128];
        let all = parts.concat();
        bytes[..all.len()].copy_from_slice(&all);
        Self(bytes)
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn addresses(pointers: &[usize]) -> Vec<u8> {
    pointers.iter().flat_map(|pointer| (*pointer as u64).to_ne_bytes()).collect()
}

fn open(command: u32, attributes: &Attributes) -> io::Result<File> {
    let fd = bpf(command, attributes)?;
    // SAFETY: these commands return a descriptor that is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(i32::try_from(fd).expect("a descriptor is an int")) })
}

fn bpf(command: u32, attributes: &Attributes) -> io::Result<i64> {
    // SAFETY: the attributes are alive and of this length, and whatever they point to lives in the calling function.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_ptr(), attributes.0.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
