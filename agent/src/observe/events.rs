//! What the kernel programs report, packet by packet, from the ring buffer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::{MapData, RingBuf};
use palisade_common::layout::Event;
use palisade_common::parse::{V4, V6};
use palisade_common::{Hook, Reason};
use tokio::io::unix::AsyncFd;

use crate::tables::sim::bytes_of;

/// A refused packet, or the first of an admitted flow, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Nanoseconds, CLOCK_MONOTONIC (coarse).
    pub time: u64,
    pub ifindex: u32,
    pub hook: Hook,
    pub reason: Reason,
    /// `None`, as `destination` and `protocol`: it was refused for something below IP.
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: Option<u8>,
    /// Interface index of where it was met, if not at the pod's own interface; [`palisade_common::layout::MET_PROCESS`]: at a process of the node.
    pub met: Option<u32>,
    /// The rule that admits; 0: none does, or none is needed.
    pub rule: u32,
}

impl Report {
    /// `None`: not an event of this layout.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Event>() {
            return None;
        }
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        let address = |at: usize, family: u8| {
            let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("sixteen bytes");
            match family {
                V4 => Some(IpAddr::V4(Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]))),
                V6 => Some(IpAddr::V6(Ipv6Addr::from(octets))),
                _ => None,
            }
        };
        let (protocol, family, hook, reason) = (bytes[52], bytes[53], bytes[54], bytes[55]);
        Some(Self {
            time: u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes")),
            ifindex: word(8),
            hook: Hook::from_number(hook)?,
            reason: Reason::from_number(reason)?,
            source: address(16, family),
            destination: address(32, family),
            source_port: half(48),
            destination_port: half(50),
            protocol: matches!(family, V4 | V6).then_some(protocol),
            met: Some(word(56)).filter(|met| *met != 0),
            rule: word(60),
        })
    }

    /// The end that is not the pod.
    pub fn peer(&self) -> Option<IpAddr> {
        match self.hook {
            Hook::FromPod => self.destination,
            Hook::ToPod => self.source,
        }
    }
}

/// Name of an IP protocol as people write it.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("ip-{other}"),
    }
}

/// The text of an address as it lies in a table.
pub fn address_text(family: u8, address: &palisade_common::layout::Address) -> String {
    if family == V4 {
        Ipv4Addr::from(u32::from_be(address.v4_word())).to_string()
    } else {
        Ipv6Addr::from(bytes_of(address)).to_string()
    }
}

/// A ring buffer as a stream.
pub struct Ring {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Ring {
    pub fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        // SAFETY: a RingBuf owns one descriptor, the map's, from its making to its end, and always returns it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, tokio::io::Interest::READABLE) };
        Ok(Self { ring: ring.map_err(std::io::Error::from)? })
    }

    /// Waits for records and takes at most `most` of them; what cannot be decoded is passed over.
    pub async fn next<T>(&mut self, most: usize, decode: fn(&[u8]) -> Option<T>) -> std::io::Result<Vec<T>> {
        let mut guard = self.ring.readable_mut().await?;
        let ring = guard.get_inner_mut();
        let mut taken = Vec::new();
        let mut emptied = false;
        while taken.len() < most {
            let Some(item) = ring.next() else {
                emptied = true;
                break;
            };
            taken.extend(decode(&item));
        }
        if emptied {
            guard.clear_ready();
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_ip_has_no_addresses_and_no_protocol() {
        let mut bytes = [0; size_of::<Event>()];
        bytes[55] = Reason::SpoofedMac as u8;
        let arp = Report::decode(&bytes).expect("an event");
        assert_eq!((arp.source, arp.destination, arp.protocol), (None, None, None));
        bytes[52..54].copy_from_slice(&[6, V6]);
        let ip = Report::decode(&bytes).expect("an event");
        assert_eq!((ip.source, ip.protocol), (Some(Ipv6Addr::UNSPECIFIED.into()), Some(6)));
    }
}
