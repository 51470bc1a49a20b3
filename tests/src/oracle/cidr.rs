//! Address arithmetic of the oracle, bit by bit and on purpose without `ipnet`.

use std::net::IpAddr;

/// A prefix of one family: its bits, most significant first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cidr {
    six: bool,
    bits: Vec<bool>,
}

fn bits_of(address: IpAddr) -> Vec<bool> {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
}

impl Cidr {
    /// `None`: not a CIDR. Host bits are masked and leading zeros of old objects are tolerated (SEMANTICS 6.7).
    pub fn read(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let length: usize = length.parse().ok()?;
        let address: IpAddr = without_leading_zeros(address).parse().ok()?;
        let mut bits = bits_of(address);
        if length > bits.len() {
            return None;
        }
        bits.truncate(length);
        Some(Self { six: address.is_ipv6(), bits })
    }

    /// Per family (SEMANTICS 6.6, 6.8).
    pub fn holds(&self, address: IpAddr) -> bool {
        self.six == address.is_ipv6() && bits_of(address).starts_with(&self.bits)
    }

    /// SEMANTICS 6.4.
    pub fn strictly_inside(&self, other: &Self) -> bool {
        self.six == other.six && self.bits.len() > other.bits.len() && self.bits.starts_with(&other.bits)
    }
}

/// The octets of an IPv4 address in decimal, as before leading zeros meant octal to some.
fn without_leading_zeros(address: &str) -> String {
    if address.contains(':') {
        return address.to_owned();
    }
    let octets: Vec<&str> = address
        .split('.')
        .map(|octet| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0",
            rest => rest,
        })
        .collect();
    octets.join(".")
}

/// The last address of the network that `address` lies in: the directed broadcast address of IPv4.
pub fn broadcast(address: IpAddr, length: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) if length < 31 => {
            let host = u32::MAX >> length;
            Some(IpAddr::V4((u32::from(address) | host).into()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
