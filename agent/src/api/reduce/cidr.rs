//! Addresses and CIDRs as Kubernetes has ever stored them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address. Old objects may hold leading zeros, which were read as decimal (SEMANTICS 6.7).
pub fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') { text.parse::<Ipv6Addr>().ok().map(IpAddr::V6) } else { v4(text).map(IpAddr::V4) }
}

/// A CIDR with its host bits cleared. A v4-mapped one is IPv6 (SEMANTICS 6.8).
///
/// # Errors
/// What is wrong with it.
pub fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is no CIDR");
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let bits = decimal(bits).ok_or_else(wrong)?;
    let network = match self::address(address).ok_or_else(wrong)? {
        IpAddr::V4(address) => Ipv4Net::new(address, bits).map(IpNet::V4),
        IpAddr::V6(address) => Ipv6Net::new(address, bits).map(IpNet::V6),
    };
    network.map(|network| network.trunc()).map_err(|_too_long| wrong())
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = text.split('.').map(decimal);
    let address = Ipv4Addr::new(octets.next()??, octets.next()??, octets.next()??, octets.next()??);
    octets.next().is_none().then_some(address)
}

/// Digits only: no sign, no spaces; any number of leading zeros.
fn decimal(text: &str) -> Option<u8> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}
