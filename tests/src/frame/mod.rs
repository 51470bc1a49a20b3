//! Raw Ethernet frames as tests need them: correct where nothing else is said, and lying or cut short where it is.
//!
//! [`Frame`] says what a frame holds and [`Frame::bytes`] writes it; [`text`] reads one from a line of text. Only the IPv4
//! header has a checksum, as no judge looks at any other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub mod text;

pub type Mac = [u8; 6];

/// Bytes of an Ethernet header without tags.
const ETHERNET_LENGTH: usize = 14;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub source_mac: Mac,
    pub destination_mac: Mac,
    /// Tags from the outermost on: ethertype (0x8100, 0x88a8) and number.
    pub tags: Vec<(u16, u16)>,
    pub body: Body,
    /// The frame ends after so many bytes, whatever its headers say.
    pub cut: Option<usize>,
    /// Bytes behind the end of the packet, as a short frame on a wire has them.
    pub padding: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Ip(Ip),
    Arp(Arp),
    /// Neither IP nor ARP: an ethertype and so many bytes.
    Other {
        ethertype: u16,
        data: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target_mac: Mac,
    pub target: Ipv4Addr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    /// IPv4: bytes of options, a multiple of four.
    pub options: usize,
    /// IPv6: extension headers in their order; the fragment header goes last unless the list says where.
    pub extensions: Vec<Extension>,
    pub fragment: Option<Fragment>,
    /// The length field, where it lies.
    pub length: Option<u16>,
    /// IPv4: the header length field (words), where it lies.
    pub header_words: Option<u8>,
    /// The version field, where it lies.
    pub version: Option<u8>,
    /// What follows the IP header really ends after so many bytes, and the length field agrees.
    pub payload_max: Option<usize>,
    pub upper: Upper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes; above 0 the upper layer's header is not there.
    pub offset: u16,
    pub more: bool,
    pub id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    HopByHop,
    Routing,
    Fragment,
    Authentication,
    Destination,
    Mobility,
    Hip,
    Shim6,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    Tcp(Tcp),
    Udp { source: u16, destination: u16, data: usize, length: Option<u16> },
    Sctp { source: u16, destination: u16, chunk: u8, data: usize },
    Icmp(Icmp),
    Other { protocol: u8, data: usize },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub data: usize,
    /// The header length field (words), where it lies.
    pub header_words: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// ICMPv6 rather than ICMP, whatever the family of the packet.
    pub six: bool,
    pub kind: u8,
    pub code: u8,
    /// The second word: identifier and sequence of an echo, next-hop MTU of an error.
    pub word: u32,
    pub body: IcmpBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IcmpBody {
    Data(usize),
    /// Neighbour solicitation or advertisement: the target and, where given, the link-layer address option's address.
    Neighbour {
        target: Option<Ipv6Addr>,
        link: Option<Mac>,
    },
    /// The quoted packet, and how many of its bytes are quoted at most.
    Quoted(Box<Ip>, usize),
}

// === impl Frame ===

impl Frame {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(self.destination_mac);
        bytes.extend(self.source_mac);
        for (ethertype, number) in &self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(number.to_be_bytes());
        }
        let (ethertype, body) = match &self.body {
            Body::Ip(ip) if ip.source.is_ipv4() => (0x0800, ip.bytes()),
            Body::Ip(ip) => (0x86dd, ip.bytes()),
            Body::Arp(arp) => (0x0806, arp.bytes()),
            Body::Other { ethertype, data } => (*ethertype, vec![0x5a; *data]),
        };
        bytes.extend(u16::to_be_bytes(ethertype));
        bytes.extend(body);
        bytes.resize(bytes.len() + self.padding, 0);
        if let Some(length) = self.cut {
            bytes.truncate(length);
        }
        bytes.resize(bytes.len().max(ETHERNET_LENGTH), 0);
        bytes
    }
}

impl Arp {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0, 1, 8, 0, 6, 4];
        bytes.extend(self.operation.to_be_bytes());
        bytes.extend(self.sender_mac);
        bytes.extend(self.sender.octets());
        bytes.extend(self.target_mac);
        bytes.extend(self.target.octets());
        bytes
    }
}

impl Ip {
    pub fn bytes(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("the families of {} and {} differ", self.source, self.destination)
            }
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let payload = self.payload(self.upper_bytes());
        let length = 20 + self.options + payload.len();
        let fragment =
            self.fragment.map_or(0x4000, |fragment| (u16::from(fragment.more) << 13) | (fragment.offset / 8));
        let mut bytes =
            vec![self.version.unwrap_or(4) << 4 | self.header_words.unwrap_or(((20 + self.options) / 4) as u8), 0];
        bytes.extend(self.length.unwrap_or(length as u16).to_be_bytes());
        bytes.extend((self.fragment.map_or(0, |fragment| fragment.id) as u16).to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.hop_limit, self.upper.protocol(), 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        // No-operation options, closed by an end of the list.
        bytes.resize(20 + self.options, 1);
        if self.options != 0 {
            *bytes.last_mut().expect("there are 20 bytes at least") = 0;
        }
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if self.fragment.is_some() && !extensions.contains(&Extension::Fragment) {
            extensions.push(Extension::Fragment);
        }
        // Behind a fragment header of a later fragment nothing but data follows.
        if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
            let at = extensions.iter().position(|extension| *extension == Extension::Fragment);
            extensions.truncate(at.map_or(0, |at| at + 1));
        }
        let mut content = self.upper_bytes();
        let mut next = self.upper.protocol();
        for extension in extensions.iter().rev() {
            let mut header = extension.bytes(next, self.fragment);
            header.extend(content);
            content = header;
            next = extension.number();
        }
        let payload = self.payload(content);
        let mut bytes = vec![self.version.unwrap_or(6) << 4, 0, 0, 0];
        bytes.extend(self.length.unwrap_or(payload.len() as u16).to_be_bytes());
        bytes.extend([next, self.hop_limit]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(payload);
        bytes
    }

    fn payload(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(length) = self.payload_max {
            bytes.truncate(length);
        }
        bytes
    }

    fn upper_bytes(&self) -> Vec<u8> {
        if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return vec![0; self.upper.data()];
        }
        self.upper.bytes()
    }
}

impl Extension {
    pub const fn number(self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing => 43,
            Self::Fragment => 44,
            Self::Authentication => 51,
            Self::Destination => 60,
            Self::Mobility => 135,
            Self::Hip => 139,
            Self::Shim6 => 140,
        }
    }

    fn bytes(self, next: u8, fragment: Option<Fragment>) -> Vec<u8> {
        match self {
            Self::Fragment => {
                let Fragment { offset, more, id } = fragment.unwrap_or(Fragment { offset: 0, more: false, id: 1 });
                let mut bytes = vec![next, 0];
                bytes.extend((offset & 0xfff8 | u16::from(more)).to_be_bytes());
                bytes.extend(id.to_be_bytes());
                bytes
            }
            // Twelve bytes and an integrity value of twelve; the length counts words, less two.
            Self::Authentication => [[next, 4].as_slice(), &[0; 22]].concat(),
            // Sixteen bytes each, so that a length of one is seen to be followed.
            Self::HopByHop | Self::Destination => [[next, 1, 1, 4].as_slice(), &[0; 4], &[1, 6], &[0; 6]].concat(),
            Self::Routing | Self::Mobility | Self::Hip | Self::Shim6 => [[next, 1].as_slice(), &[0; 14]].concat(),
        }
    }
}

impl Upper {
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp { .. } => 17,
            Self::Sctp { .. } => 132,
            Self::Icmp(icmp) => {
                if icmp.six {
                    58
                } else {
                    1
                }
            }
            Self::Other { protocol, .. } => *protocol,
        }
    }

    fn data(&self) -> usize {
        match self {
            Self::Tcp(tcp) => tcp.data,
            Self::Udp { data, .. } | Self::Sctp { data, .. } | Self::Other { data, .. } => *data,
            Self::Icmp(icmp) => match icmp.body {
                IcmpBody::Data(data) => data,
                IcmpBody::Neighbour { .. } | IcmpBody::Quoted(..) => 0,
            },
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Tcp(tcp) => tcp.bytes(),
            Self::Udp { source, destination, data, length } => {
                let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                bytes.extend(length.unwrap_or(8 + *data as u16).to_be_bytes());
                bytes.resize(8 + data, 0);
                bytes
            }
            Self::Sctp { source, destination, chunk, data } => {
                let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                // Verification tag and checksum.
                bytes.resize(12, 0);
                bytes.extend([*chunk, 0]);
                bytes.extend((4 + *data as u16).to_be_bytes());
                bytes.resize(16 + data, 0);
                bytes
            }
            Self::Icmp(icmp) => icmp.bytes(),
            Self::Other { data, .. } => vec![0; *data],
        }
    }
}

impl Tcp {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.source.to_be_bytes(), self.destination.to_be_bytes()].concat();
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([self.header_words.unwrap_or(5) << 4, self.flags]);
        bytes.resize(20 + self.data, 0);
        bytes
    }
}

impl Icmp {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind, self.code, 0, 0];
        bytes.extend(self.word.to_be_bytes());
        match &self.body {
            IcmpBody::Data(length) => bytes.resize(8 + length, 0),
            IcmpBody::Neighbour { target, link } => {
                if let Some(target) = target {
                    bytes.extend(target.octets());
                }
                if let Some(link) = link {
                    // Source option for solicitations (133, 135) and router advertisements, target option for 136 and 137.
                    let option = if matches!(self.kind, 136 | 137) { 2 } else { 1 };
                    bytes.extend([option, 1]);
                    bytes.extend(link);
                }
            }
            IcmpBody::Quoted(inner, length) => {
                let inner = inner.bytes();
                bytes.extend(&inner[..inner.len().min(*length)]);
            }
        }
        bytes
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
