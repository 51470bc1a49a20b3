//! What a pod may not send and may not receive, whether a policy isolates it or not: addresses that are not its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use palisade_common::{Hook, Reason};

use super::cidr::broadcast;
use super::packet::{Arp, Body, Icmp, Packet, Reading, Upper};
use crate::case::Endpoint;
use crate::frame::Mac;

/// The endpoint's own addresses, whatever is known of them.
#[derive(Clone, Debug)]
pub struct Own {
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    pub broadcasts: Vec<IpAddr>,
}

impl Own {
    pub fn new(endpoint: &Endpoint, of_pod: Vec<IpAddr>) -> Self {
        let mut addresses: Vec<IpAddr> = endpoint.addresses.iter().map(|(address, _)| *address).collect();
        addresses.extend(of_pod);
        addresses.push(link_local(endpoint.mac).into());
        let broadcasts =
            endpoint.addresses.iter().filter_map(|(address, length)| broadcast(*address, *length)).collect();
        Self { mac: endpoint.mac, addresses, broadcasts }
    }

    pub fn has(&self, address: impl Into<IpAddr>) -> bool {
        self.addresses.contains(&address.into())
    }
}

/// RFC 4291 appendix A.
pub fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    let interface = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&interface);
    octets.into()
}

/// Everything that is wrong with the frame; a judge may name any of it.
pub fn violations(hook: Hook, reading: &Reading, own: &Own) -> Vec<Reason> {
    match hook {
        Hook::FromPod => sent(reading, own),
        Hook::ToPod => received(reading, own),
    }
}

fn sent(reading: &Reading, own: &Own) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if reading.source_mac != own.mac {
        reasons.push(Reason::SpoofedMac);
    }
    match &reading.body {
        Body::Arp(Some(arp)) if !arp_is_own(arp, own) => reasons.push(Reason::SpoofedNeighbour),
        // What cannot be read may claim anything.
        Body::Arp(None) => reasons.extend([Reason::SpoofedNeighbour, Reason::Malformed]),
        Body::Ip(Some(packet)) => reasons.extend(packet_sent(packet, own)),
        Body::Arp(Some(_)) | Body::Ip(None) | Body::Other | Body::Unreadable => {}
    }
    reasons
}

fn arp_is_own(arp: &Arp, own: &Own) -> bool {
    let sender = if arp.sender == Ipv4Addr::UNSPECIFIED { own.has(arp.target) } else { own.has(arp.sender) };
    arp.sender_mac == own.mac && sender
}

/// Neighbour discovery proper: no router forwarded it (RFC 4861 §7.1), and it is not fragmented (RFC 6980).
fn is_discovery(packet: &Packet) -> bool {
    packet.hop_limit == 255 && packet.fragment.is_none() && !packet.malformed
}

/// A listener report that no router forwards: RFC 2710 §3, RFC 3810 §5.2.13.
fn is_report(packet: &Packet) -> bool {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else { return false };
    let near = source.is_unspecified() || source.is_unicast_link_local();
    packet.fragment.is_none() && !packet.malformed && packet.hop_limit == 1 && destination.is_multicast() && near
}

/// To a group of the link, to a link-local address, or, but for what is for routers, into the /64 of an own address.
fn stays_on_link(kind: u8, packet: &Packet, own: &Own) -> bool {
    let IpAddr::V6(destination) = packet.destination else { return false };
    let network = |address: &IpAddr| match address {
        IpAddr::V6(address) => address.segments()[..4] == destination.segments()[..4],
        IpAddr::V4(_) => false,
    };
    destination.segments()[0] == 0xff02
        || destination.is_unicast_link_local()
        || (kind != 133 && own.addresses.iter().any(network))
}

/// What passes always, if it is the sender's own (SEMANTICS 14.2).
pub fn is_neighbour(hook: Hook, packet: &Packet, own: &Own) -> bool {
    let Upper::Icmp(icmp) = &packet.upper else { return false };
    if packet.source.is_ipv4() {
        return hook == Hook::ToPod && icmp.kind == 5;
    }
    match icmp.kind {
        131 | 132 | 143 => is_report(packet),
        133 | 135 | 136 => is_discovery(packet) && (hook == Hook::ToPod || stays_on_link(icmp.kind, packet, own)),
        134 | 137 => hook == Hook::ToPod && is_discovery(packet),
        _ => false,
    }
}

fn packet_sent(packet: &Packet, own: &Own) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let unspecified = packet.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if packet.chain_incomplete && packet.source.is_ipv6() {
        reasons.push(Reason::SpoofedFragment);
    }
    let Upper::Icmp(icmp) = &packet.upper else {
        if !own.has(packet.source) {
            reasons.push(Reason::SpoofedAddress);
        }
        return reasons;
    };
    match (packet.source.is_ipv6(), icmp.kind) {
        (true, 134) => reasons.push(Reason::RouterAdvertisement),
        (true, 137) | (false, 5) => reasons.push(Reason::Redirect),
        (true, 133 | 135 | 136) if is_discovery(packet) && !neighbour_is_own(icmp, unspecified, own) => {
            reasons.push(Reason::SpoofedNeighbour)
        }
        _ => {}
    }
    let from_nowhere = packet.source.is_ipv6() && matches!(icmp.kind, 131 | 132 | 133 | 135 | 143);
    let legal = own.has(packet.source) || (unspecified && from_nowhere);
    if !legal {
        reasons.push(Reason::SpoofedAddress);
    }
    reasons
}

/// RFC 4861 §4.3 and §4.4, RFC 4862 §5.4 for the solicitation from nowhere.
fn neighbour_is_own(icmp: &Icmp, unspecified: bool, own: &Own) -> bool {
    if icmp.kind == 133 {
        return options_are_own(&icmp.content, own);
    }
    let Some(target) = icmp.content.get(..16).and_then(|octets| <[u8; 16]>::try_from(octets).ok()) else {
        return false;
    };
    let needs_target = icmp.kind == 136 || unspecified;
    (own.has(Ipv6Addr::from(target)) || !needs_target) && options_are_own(&icmp.content[16..], own)
}

/// Nothing but link-layer addresses, the pod's own, and nonces of six bytes.
fn options_are_own(mut options: &[u8], own: &Own) -> bool {
    while !options.is_empty() {
        let length = usize::from(options.get(1).copied().unwrap_or(0)) * 8;
        if length != 8 || length > options.len() {
            return false;
        }
        match options[0] {
            1 | 2 if options[2..8] == own.mac => {}
            14 => {}
            _ => return false,
        }
        options = &options[length..];
    }
    true
}

fn received(reading: &Reading, own: &Own) -> Vec<Reason> {
    let to_group = reading.destination_mac[0] & 1 == 1;
    let mac_is_own = to_group || reading.destination_mac == own.mac;
    let address_is_own = match &reading.body {
        Body::Ip(Some(packet)) => {
            let to = packet.destination;
            let broadcast = to == IpAddr::V4(Ipv4Addr::BROADCAST) || own.broadcasts.contains(&to);
            to.is_multicast() || broadcast || own.has(to)
        }
        Body::Ip(None) | Body::Arp(_) | Body::Other | Body::Unreadable => true,
    };
    if mac_is_own && address_is_own { Vec::new() } else { vec![Reason::NotForPod] }
}
