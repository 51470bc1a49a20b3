//! What Services and stamps are in the tables.

use super::Address;

/// SERVICES (hash): a destination that the node may translate before a packet reaches whom it is for → [`Versioned`] number:
/// [`SERVICE_NONE`], [`SERVICE_KNOWN`] or a row of BACKENDS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// [`Address::ZERO`]: any of the family (node ports, host ports).
    pub address: Address,
    /// Host order.
    pub port: u16,
    pub protocol: u8,
    /// [`Family`] as a number.
    pub family: u8,
}
const _: () = assert!(size_of::<ServiceKey>() == 20);

/// SERVICE_PORTS (array): a word for each 64 ports, a bit for each (host order) that any key of SERVICES has, or may have: most of what is
/// refused is spared looking for a Service.
pub const SERVICE_PORT_WORDS: usize = 1 << 10;

/// The word of a port and its bit.
#[inline(always)]
pub const fn service_port_bit(port: u16) -> (u32, u64) {
    ((port >> 6) as u32, 1 << (port & 63))
}

/// Not (or no longer) a Service's.
pub const SERVICE_NONE: u32 = 0;
/// A Service's; what becomes of a packet is judged where it ends up.
pub const SERVICE_KNOWN: u32 = 1;
/// Rows of BACKENDS are numbered from here.
pub const BACKENDS_FIRST: u32 = 2;
/// How many backends a row of BACKENDS holds.
pub const BACKENDS_MAX: usize = 4;

/// BACKENDS (hash): who stands for a Service's address that a process of the node serves untranslated, as NodeLocal DNSCache does:
/// a policy has to admit all of them. Of many, the first by address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    pub count: u32,
    /// Host order.
    pub ports: [u16; BACKENDS_MAX],
    pub addresses: [Address; BACKENDS_MAX],
}
const _: () = assert!(size_of::<Backends>() == 12 + 64);

/// STAMPS (array): [`EndpointRecord::stamp`] → interface index of the endpoint that has it, or had it last.
pub type StampKey = u32;
