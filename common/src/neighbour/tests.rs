//! What no router forwards is a neighbour's; what one may have forwarded is a packet as any other.

use super::*;
use crate::parse::protocol;

const ECHO_REQUEST: u8 = 128;

fn icmpv6(icmp_type: u8, hop_limit: u32) -> Packet {
    Packet {
        family: V6,
        protocol: protocol::ICMPV6,
        traits: packet_trait::IP | packet_trait::ICMP,
        icmp_type,
        hop_limit,
        ..Packet::default()
    }
}

#[test]
fn a_pod_may_be_told_by_its_neighbours() {
    for (icmp_type, hop_limit, wanted) in [
        (ROUTER_ADVERTISEMENT, 255, true),
        (ROUTER_ADVERTISEMENT, 254, false),
        (REDIRECT_V6, 255, true),
        (REDIRECT_V6, 64, false),
        (NEIGHBOUR_SOLICITATION, 255, true),
        (NEIGHBOUR_ADVERTISEMENT, 254, false),
        (ECHO_REQUEST, 255, false),
    ] {
        assert_eq!(is_for_pod(&icmpv6(icmp_type, hop_limit)), wanted, "{icmp_type}, hop limit {hop_limit}");
    }
    for (icmp_type, wanted) in [(REDIRECT_V4, true), (8, false), (ROUTER_ADVERTISEMENT, false)] {
        let packet = Packet { family: V4, ..icmpv6(icmp_type, 255) };
        assert_eq!(is_for_pod(&packet), wanted, "ICMP {icmp_type}");
    }
}
