//! The few rtnetlink messages that are asked and understood here, and no more of each than is needed, so that attributes
//! of later kernels cannot make a message unreadable.
//!
//! Pure: bytes to values and back. [`super::socket`] carries them.

use std::borrow::Cow;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NetlinkBuffer, NlaBuffer, NlasIterator, parse_i32, parse_u32};

use super::inventory::{Link, LinkKind};
use crate::facts::Vxlan;

const RTM_NEWLINK: u16 = libc::RTM_NEWLINK;
const RTM_DELLINK: u16 = libc::RTM_DELLINK;
const RTM_NEWADDR: u16 = libc::RTM_NEWADDR;
const RTM_DELADDR: u16 = libc::RTM_DELADDR;

/// Sizes of struct ifinfomsg, ifaddrmsg.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

// rtnetlink(7), linux/if_link.h and linux/if_addr.h; libc has only some of them.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_TARGET_NETNSID: u16 = 10;
const IFA_F_DADFAILED: u8 = 0x08;

/// Leave the statistics out: they are most of a link's message.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub sequence: u32,
    /// The kernel says that what a dump tells changed meanwhile.
    pub interrupted: bool,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Link(Link),
    LinkGone(u32),
    /// `None`: the address is there, but does not count (duplicate address detection failed).
    Address {
        index: u32,
        address: Option<(IpAddr, u8)>,
    },
    AddressGone {
        index: u32,
    },
    /// The end of an answer: 0 or the negative error number.
    End(i32),
    /// Events were lost.
    Overrun,
    /// Of other kinds, or of no interest.
    Other,
}

/// Which addresses to list.
#[derive(Clone, Copy, Debug)]
pub enum AddressFamily {
    V4,
    V6,
}

/// All links of the socket's namespace.
pub fn links_request() -> Request {
    Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP as u16, &link_header(0)).filtered()
}

/// One link, in another namespace if `netns_id` says so.
pub fn link_request(index: u32, netns_id: Option<i32>) -> Request {
    let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK as u16, &link_header(index)).filtered();
    match netns_id {
        Some(id) => request.attribute(IFLA_TARGET_NETNSID, &id.to_ne_bytes()),
        None => request,
    }
}

/// The addresses of one link in another namespace. The socket needs NETLINK_GET_STRICT_CHK, or the filter is not heeded.
pub fn addresses_request(family: AddressFamily, index: u32, netns_id: i32) -> Request {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = match family {
        AddressFamily::V4 => libc::AF_INET as u8,
        AddressFamily::V6 => libc::AF_INET6 as u8,
    };
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16, &header)
        .attribute(IFA_TARGET_NETNSID, &netns_id.to_ne_bytes())
}

/// The addresses of all links of the socket's namespace, of both families.
pub fn own_addresses_request() -> Request {
    Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16, &[0; ADDRESS_HEADER])
}

/// A request but for its sequence number and length.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes }
    }

    fn filtered(self) -> Self {
        self.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
    }

    /// All attributes used here are four bytes long, so that no padding is needed.
    fn attribute(mut self, kind: u16, value: &[u8; 4]) -> Self {
        self.bytes.extend_from_slice(&8u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    pub fn numbered(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a request has two attributes at most");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

fn link_header(index: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// The messages of one datagram.
pub fn messages(mut datagram: &[u8]) -> Result<Vec<Message>, DecodeError> {
    let mut messages = Vec::new();
    while !datagram.is_empty() {
        let buffer = NetlinkBuffer::new_checked(datagram)?;
        let length = buffer.length() as usize;
        messages.push(Message {
            sequence: buffer.sequence_number(),
            interrupted: buffer.flags() & libc::NLM_F_DUMP_INTR as u16 != 0,
            body: body(buffer.message_type(), buffer.payload())?,
        });
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

fn body(kind: u16, payload: &[u8]) -> Result<Body, DecodeError> {
    match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let (header, attributes) = split(payload, LINK_HEADER)?;
            // Bridges tell of their ports by messages of their own family: a port that leaves is not a link that goes.
            if i32::from(header[0]) != libc::AF_UNSPEC {
                return Ok(Body::Other);
            }
            let index = parse_u32(&header[4..8])?;
            if kind == RTM_DELLINK { Ok(Body::LinkGone(index)) } else { Ok(Body::Link(link(header, attributes)?)) }
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let (header, attributes) = split(payload, ADDRESS_HEADER)?;
            let index = parse_u32(&header[4..8])?;
            if kind == RTM_DELADDR {
                return Ok(Body::AddressGone { index });
            }
            let failed = header[2] & IFA_F_DADFAILED != 0;
            let address = address(attributes)?.filter(|_| !failed).map(|address| (address, header[1]));
            Ok(Body::Address { index, address })
        }
        netlink_packet_core::NLMSG_ERROR | netlink_packet_core::NLMSG_DONE => {
            Ok(Body::End(payload.get(..4).map(parse_i32).transpose()?.unwrap_or(0)))
        }
        netlink_packet_core::NLMSG_OVERRUN => Ok(Body::Overrun),
        _ => Ok(Body::Other),
    }
}

fn split(payload: &[u8], header: usize) -> Result<(&[u8], &[u8]), DecodeError> {
    payload.split_at_checked(header).ok_or_else(|| DecodeError::from("a message shorter than its header"))
}

fn link(header: &[u8], attributes: &[u8]) -> Result<Link, DecodeError> {
    let flags = parse_u32(&header[8..12])?;
    let mut link = Link {
        index: parse_u32(&header[4..8])?,
        name: "".into(),
        kind: LinkKind::Other,
        mac: None,
        master: None,
        peer: None,
        netns_id: None,
        is_up: flags & libc::IFF_UP as u32 != 0,
        is_loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        has_link_header: header[2..4] == libc::ARPHRD_ETHER.to_ne_bytes(),
    };
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(value).into(),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            // Both are 0 where there is none.
            IFLA_MASTER => link.master = Some(parse_u32(value)?).filter(|&index| index != 0),
            IFLA_LINK => link.peer = Some(parse_u32(value)?).filter(|&index| index != 0),
            IFLA_LINK_NETNSID => link.netns_id = Some(parse_i32(value)?).filter(|&id| id >= 0),
            IFLA_LINKINFO => link.kind = link_kind(value)?,
            _ => {}
        }
    }
    Ok(link)
}

fn link_kind(info: &[u8]) -> Result<LinkKind, DecodeError> {
    let (mut kind, mut data) = (LinkKind::Other, None);
    let mut is_vxlan = false;
    for attribute in NlasIterator::new(info) {
        let attribute: NlaBuffer<_> = attribute?;
        match attribute.kind() {
            IFLA_INFO_KIND => match &*text(attribute.value()) {
                "veth" => kind = LinkKind::Veth,
                "bridge" => kind = LinkKind::Bridge,
                "ifb" => kind = LinkKind::Ifb,
                "vxlan" => is_vxlan = true,
                _ => {}
            },
            IFLA_INFO_DATA => data = Some(attribute.value().to_vec()),
            _ => {}
        }
    }
    if is_vxlan { Ok(LinkKind::Vxlan(vxlan(&data.unwrap_or_default()))) } else { Ok(kind) }
}

/// What cannot be read is not there: nothing but what comes by this tunnel depends on it.
fn vxlan(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan { local: None, vni: 0, port: 0 };
    for attribute in NlasIterator::new(data).flatten() {
        let attribute: NlaBuffer<_> = attribute;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_VXLAN_ID => vxlan.vni = parse_u32(value).unwrap_or_default(),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = ip(value),
            // As it travels.
            IFLA_VXLAN_PORT => vxlan.port = value.try_into().map_or(0, u16::from_be_bytes),
            _ => {}
        }
    }
    vxlan
}

/// A name may hold any bytes, and a pod names its side as it likes: it must not become unreadable by that.
fn text(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value))
}

/// IFA_LOCAL is the own address where IFA_ADDRESS is that of the other end of a point-to-point link.
fn address(attributes: &[u8]) -> Result<Option<IpAddr>, DecodeError> {
    let (mut local, mut address) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            IFA_LOCAL => local = ip(attribute.value()),
            IFA_ADDRESS => address = ip(attribute.value()),
            _ => {}
        }
    }
    Ok(local.or(address))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests;
