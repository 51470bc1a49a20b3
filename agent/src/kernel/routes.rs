//! Devices by which this node reaches other machines: those of routes by way of a router or another node.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_core::{NlasIterator, parse_u32};

use super::qdisc::Requests;

// linux/rtnetlink.h
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
/// struct rtmsg; struct rtnexthop.
const HEADER: usize = 12;
const NEXT_HOP: usize = 8;

/// Their interface indices, of both families.
pub(super) fn by_routers() -> io::Result<BTreeSet<u32>> {
    let mut requests = Requests::open()?;
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for route in requests.routes(family as u8)? {
            found.extend(devices_of(&route));
        }
    }
    Ok(found)
}

/// Of one route: none if its destinations are neighbours.
fn devices_of(route: &[u8]) -> Vec<u32> {
    let mut devices = Vec::new();
    let (mut device, mut gateway) = (None, false);
    if route.get(7) != Some(&RTN_UNICAST) {
        return devices;
    }
    for attribute in NlasIterator::new(route.get(HEADER..).unwrap_or_default()).flatten() {
        match attribute.kind() {
            RTA_OIF => device = parse_u32(attribute.value()).ok(),
            RTA_GATEWAY | RTA_VIA => gateway = true,
            RTA_MULTIPATH => {
                let mut hops = attribute.value();
                while let Some((header, _)) = hops.split_first_chunk::<NEXT_HOP>() {
                    let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
                    devices.push(u32::from_ne_bytes([header[4], header[5], header[6], header[7]]));
                    hops = hops.get(length.max(NEXT_HOP).next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    devices.extend(device.filter(|_| gateway));
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        [&((value.len() + 4) as u16).to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
    }

    fn route(kind: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[7] = kind;
        message.extend(attributes.concat());
        message
    }

    #[test]
    fn only_routes_by_way_of_somebody_count() {
        let device = attribute(RTA_OIF, &7_u32.to_ne_bytes());
        let gateway = attribute(RTA_GATEWAY, &[172, 30, 0, 1]);
        assert_eq!(devices_of(&route(RTN_UNICAST, &[gateway.clone(), device.clone()])), [7]);
        assert!(devices_of(&route(RTN_UNICAST, std::slice::from_ref(&device))).is_empty());
        assert!(devices_of(&route(2, &[gateway, device])).is_empty());
        let hop = |device: u8| [8, 0, 0, 0, device, 0, 0, 0];
        let hops = attribute(RTA_MULTIPATH, &[hop(5), hop(6)].concat());
        assert_eq!(devices_of(&route(RTN_UNICAST, &[hops])), [5, 6]);
        assert!(devices_of(&[0; 4]).is_empty());
    }
}
