//! Packets by hand: ICMP echo, any IP protocol (SCTP among them, which this kernel may lack), and frames.
//!
//! Sockets are made inside a namespace and keep belonging to it.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Netns;

pub const SCTP: u8 = 132;

/// Where a packet goes: an address, and for a link-local one the interface too (see [`Netns::scoped`]).
#[derive(Clone, Copy)]
pub struct Destination(SocketAddr);

impl From<IpAddr> for Destination {
    fn from(address: IpAddr) -> Self {
        Self(SocketAddr::new(address, 0))
    }
}

impl From<SocketAddr> for Destination {
    /// Raw sockets take no port.
    fn from(mut address: SocketAddr) -> Self {
        address.set_port(0);
        Self(address)
    }
}

/// A raw IP socket of one protocol in a namespace: it sees every packet of the protocol that is delivered there.
pub struct RawIp {
    fd: OwnedFd,
}

impl RawIp {
    pub fn open(netns: &Netns, ipv6: bool, protocol: u8) -> Result<Self> {
        let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        let fd = netns.run(|| socket(family, libc::SOCK_RAW, i32::from(protocol))).context("raw IP socket")?;
        Ok(Self { fd })
    }

    /// Sends a payload; the kernel writes the IP header (and ICMPv6's checksum).
    pub fn send(&self, to: impl Into<Destination>, payload: &[u8]) -> io::Result<()> {
        let (address, length) = socket_address(to.into().0);
        // SAFETY: both pointers are to live values of the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                payload.as_ptr().cast(),
                payload.len(),
                0,
                (&raw const address).cast(),
                length,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The first packet that `wanted` makes something of. IPv4 packets come with their IP header, IPv6 ones without.
    pub fn receive<T>(&self, deadline: Duration, wanted: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        receive(&self.fd, deadline, wanted)
    }
}

/// Whether an echo request is answered, as `ping` asks.
pub fn ping(from: &Netns, to: impl Into<Destination>, deadline: Duration) -> Result<bool> {
    let Destination(to) = to.into();
    let (protocol, request, reply) = if to.is_ipv6() { (58, 128, 129) } else { (1, 8, 0) };
    let socket = RawIp::open(from, to.is_ipv6(), protocol)?;
    let identifier = next_identifier();
    let mut message = vec![request, 0, 0, 0];
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message.extend_from_slice(b"palisade");
    if !to.is_ipv6() {
        let sum = internet_checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    match socket.send(to, &message) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let answered = socket.receive(deadline, |packet| {
        let message = if to.is_ipv6() { packet } else { ipv4_payload(packet)? };
        (*message.first()? == reply && message.get(4..6)? == identifier.to_be_bytes()).then_some(())
    })?;
    Ok(answered.is_some())
}

/// Whether a packet of the protocol arrives in the other namespace. The payload is what is looked for.
pub fn arrives(
    from: &Netns,
    (netns, to): (&Netns, impl Into<Destination>),
    protocol: u8,
    payload: &[u8],
    deadline: Duration,
) -> Result<bool> {
    let Destination(to) = to.into();
    let receiver = RawIp::open(netns, to.is_ipv6(), protocol)?;
    RawIp::open(from, to.is_ipv6(), protocol)?.send(to, payload)?;
    let seen = receiver.receive(deadline, |packet| {
        let found = if to.is_ipv6() { packet } else { ipv4_payload(packet)? };
        (found == payload).then_some(())
    })?;
    Ok(seen.is_some())
}

/// An SCTP packet that opens an association (RFC 9260, 3.3.2), with its checksum.
pub fn sctp_init(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend_from_slice(&source_port.to_be_bytes());
    packet.extend_from_slice(&destination_port.to_be_bytes());
    // Verification tag 0 in an INIT; the checksum is filled in below.
    packet.extend_from_slice(&[0; 8]);
    packet.extend_from_slice(&[1, 0, 0, 20]);
    let tag = u32::from(next_identifier()) | 0x0001_0000;
    packet.extend_from_slice(&tag.to_be_bytes());
    packet.extend_from_slice(&65536_u32.to_be_bytes());
    packet.extend_from_slice(&[0, 1, 0, 1]);
    packet.extend_from_slice(&tag.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// Frames on an interface of a namespace, both ways, addresses and all.
pub struct Frames {
    fd: OwnedFd,
}

impl Frames {
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let fd = netns.run(|| {
            let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from((libc::ETH_P_ALL as u16).to_be()))?;
            bind_interface(&fd, interface)?;
            Ok::<_, io::Error>(fd)
        });
        Ok(Self { fd: fd.with_context(|| format!("packet socket on {interface}"))? })
    }

    /// Sends a whole frame as it is.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer is to a live slice of this length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The first frame that `wanted` makes something of; frames sent here are seen too.
    pub fn receive<T>(&self, deadline: Duration, wanted: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        receive(&self.fd, deadline, wanted)
    }
}

fn receive<T>(fd: &OwnedFd, deadline: Duration, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
    let end = Instant::now() + deadline;
    let mut buffer = vec![0; 65536];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one live pollfd is given, and said to be one.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        if ready < 0 {
            return Err(io::Error::last_os_error());
        }
        if ready == 0 {
            return Ok(None);
        }
        // SAFETY: the pointer is to a live buffer of this length.
        let length =
            unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        // A device that went down is reported once; what comes after it is read as before.
        let length = usize::try_from(length).unwrap_or(0);
        if let Some(found) = wanted(&buffer[..length]) {
            return Ok(Some(found));
        }
    }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes numbers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind_interface(fd: &OwnedFd, interface: &str) -> io::Result<()> {
    let index = rustix::net::netdevice::name_to_index(fd, interface)?;
    // SAFETY: sockaddr_ll is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a live sockaddr_ll of this length.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socket_address(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: sockaddr_in6 is plain numbers, for which zero is a value.
    let mut storage: libc::sockaddr_in6 = unsafe { mem::zeroed() };
    match address {
        SocketAddr::V6(address) => {
            storage.sin6_family = libc::AF_INET6 as u16;
            storage.sin6_addr.s6_addr = address.ip().octets();
            storage.sin6_scope_id = address.scope_id();
            (storage, mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        SocketAddr::V4(address) => {
            let short = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_in6 is longer than sockaddr_in, and aligned at least as strictly.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(short) };
            (storage, mem::size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

/// What follows the header of an IPv4 packet.
fn ipv4_payload(packet: &[u8]) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    packet.get(header..)
}

fn next_identifier() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// RFC 1071.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| (*low).into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of SCTP (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standards() {
        // The check value of CRC-32C, and the example of RFC 1071.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let init = sctp_init(1, 2);
        assert_eq!((init.len(), init[12]), (32, 1));
    }
}
