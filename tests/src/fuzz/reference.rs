//! What a frame is by etherparse: it reads every header, and here stands only what follows from one header to the next.
//!
//! Where our parser means to differ from etherparse as a whole ([`etherparse::SlicedPacket`]), a sentence that begins with "Rule:"
//! says so, and [`Reading::departs`] is set: everywhere else the two have to agree about the whole frame too.

use etherparse::{
    Ethernet2Slice, Icmpv4Slice, Icmpv6Slice, IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanSlice, TcpHeaderSlice, UdpHeaderSlice, UdpSlice, ether_type,
    ip_number,
};
use palisade::tables::{address_v4, address_v6};
use palisade_common::parse::{EXTENSION_HEADERS_MAX, Packet, V4, V6, packet_trait as is, tcp_flag};

/// A packet as etherparse's headers have it.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub packet: Packet,
    /// A rule of ours applied that etherparse as a whole does not have.
    pub departs: bool,
}

/// A frame from its Ethernet header on; `gso`: it stands for several.
pub fn frame(frame: &[u8], gso: bool) -> Reading {
    let mut reading = Reading::default();
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else { return reading.malformed() };
    // Rule: 16 bytes are read at once; what ends before them could hold no packet anyway.
    if frame.len() < 16 {
        reading.departs = true;
        return reading.malformed();
    }
    reading.packet.destination_mac = mac(ethernet.destination());
    reading.packet.source_mac = mac(ethernet.source());
    let (mut kind, mut rest) = (ethernet.ether_type(), ethernet.payload_slice());
    let mut tags = 0;
    while matches!(kind, ether_type::VLAN_TAGGED_FRAME | ether_type::PROVIDER_BRIDGING) {
        // Rule: two tags at most.
        if tags == 2 {
            reading.departs = true;
            return reading.malformed();
        }
        let Ok(tag) = SingleVlanSlice::from_slice(rest) else { return reading.malformed() };
        (kind, rest) = (tag.ether_type(), tag.payload_slice());
        tags += 1;
    }
    let start = frame.len() - rest.len();
    reading.packet.network = start as u32;
    match kind {
        ether_type::IPV4 => reading.v4(frame, start, Lengths::Own { gso }),
        ether_type::IPV6 => reading.v6(frame, start, Lengths::Own { gso }),
        ether_type::ARP => {
            // Rule: ARP is looked into where it is judged, whatever its length.
            reading.departs = true;
            reading.packet.traits |= is::ARP;
        }
        // Rule: the old double tag and MACsec are other protocols; no pod sends them.
        ether_type::VLAN_DOUBLE_TAGGED_FRAME | ether_type::MACSEC => reading.departs = true,
        _ => {}
    }
    let packet = &reading.packet;
    if packet.has(is::IP) && packet.traits & (is::MALFORMED | is::FRAGMENT_LATER) == 0 {
        reading.upper(&frame[packet.transport as usize..packet.end as usize], gso);
    }
    reading
}

/// The packet that an ICMP error quotes. Only addresses, protocol and ports matter, and its lengths are the original's.
pub fn quoted(frame: &[u8], error: &Packet) -> Reading {
    let mut reading = Reading::default();
    let frame = &frame[..error.end as usize];
    let start = error.transport as usize + 8;
    match error.family {
        V4 => reading.v4(frame, start, Lengths::Quoted),
        _ => reading.v6(frame, start, Lengths::Quoted),
    }
    let packet = &mut reading.packet;
    // A later fragment quotes no ports, and what lies behind the error's own end is padding, options included.
    if !packet.has(is::IP) || packet.traits & (is::MALFORMED | is::FRAGMENT_LATER) != 0 || packet.transport > error.end
    {
        return reading.malformed();
    }
    let upper = frame[..error.end as usize].get(packet.transport as usize..).unwrap_or_default();
    // RFC 792: eight bytes of the original's data.
    let known = [ip_number::TCP, ip_number::UDP, ip_number::SCTP, ip_number::ICMP, ip_number::IPV6_ICMP];
    if !known.iter().any(|known| known.0 == packet.protocol) {
        return reading;
    }
    let Some(first) = upper.first_chunk::<8>() else { return reading.malformed() };
    match etherparse::IpNumber(packet.protocol) {
        ip_number::ICMP if packet.family == V4 => reading.icmp(first),
        ip_number::IPV6_ICMP if packet.family == V6 => reading.icmp(first),
        ip_number::ICMP | ip_number::IPV6_ICMP => {}
        _ => reading.ports(first),
    }
    reading
}

/// Whose account of its length a packet is measured by.
#[derive(Clone, Copy)]
enum Lengths {
    Own { gso: bool },
    Quoted,
}

impl Lengths {
    /// Rule: a length of 0 in a frame that stands for several is the frame's own (BIG TCP).
    fn end(self, frame: &[u8], stated: usize, is_zero: bool) -> usize {
        match self {
            Self::Own { gso: true } if is_zero => frame.len(),
            Self::Own { .. } => stated,
            Self::Quoted => frame.len(),
        }
    }
}

impl Reading {
    fn malformed(mut self) -> Self {
        self.packet.traits |= is::MALFORMED;
        self
    }

    fn refuse(&mut self) {
        self.packet.traits |= is::MALFORMED;
    }

    /// The chain of headers does not end in this fragment.
    fn refuse_cut(&mut self) {
        self.refuse();
        if self.packet.has(is::FRAGMENT_FIRST) {
            self.packet.traits |= is::CHAIN_INCOMPLETE;
        }
    }

    fn v4(&mut self, frame: &[u8], start: usize, lengths: Lengths) {
        let bytes = frame.get(start..).unwrap_or_default();
        let Some(fixed) = bytes.first_chunk::<20>() else { return self.refuse() };
        let packet = &mut self.packet;
        // Rule: addresses are known as soon as they are there, as who sent a packet is asked before what is wrong with it.
        packet.traits |= is::IP;
        packet.family = V4;
        packet.source = palisade_common::layout::Address::v4(address_v4(v4(fixed, 12).into()));
        packet.destination = palisade_common::layout::Address::v4(address_v4(v4(fixed, 16).into()));
        // Rule: of a quoted packet the options need not be there, only what is looked for.
        let patched;
        let header = match lengths {
            Lengths::Own { .. } => Ipv4HeaderSlice::from_slice(bytes),
            Lengths::Quoted if fixed[0] & 0xf >= 5 => {
                patched = [&[fixed[0] & 0xf0 | 5], &fixed[1..]].concat();
                Ipv4HeaderSlice::from_slice(&patched)
            }
            Lengths::Quoted => return self.refuse(),
        };
        let Ok(header) = header else { return self.refuse() };
        let length = usize::from(fixed[0] & 0xf) * 4;
        let total = usize::from(header.total_len());
        let end = lengths.end(frame, start + total, total == 0);
        if matches!(lengths, Lengths::Own { .. }) && (end > frame.len() || start + length > end) {
            return self.refuse();
        }
        packet.protocol = header.protocol().0;
        packet.hop_limit = header.ttl().into();
        packet.transport = (start + length) as u32;
        packet.end = end as u32;
        packet.fragment_id = header.identification().into();
        // Rule: IPv4's authentication header is an upper layer like another.
        self.departs |= header.protocol() == ip_number::AUTH;
        self.fragment(header.fragments_offset().value(), header.more_fragments());
    }

    fn v6(&mut self, frame: &[u8], start: usize, lengths: Lengths) {
        let bytes = frame.get(start..).unwrap_or_default();
        let Some(fixed) = bytes.first_chunk::<40>() else { return self.refuse() };
        let packet = &mut self.packet;
        // Rule: as for IPv4.
        packet.traits |= is::IP;
        packet.family = V6;
        packet.source = address_v6(v6(fixed, 8).into());
        packet.destination = address_v6(v6(fixed, 24).into());
        let Ok(header) = Ipv6HeaderSlice::from_slice(bytes) else { return self.refuse() };
        let payload = usize::from(header.payload_length());
        let end = lengths.end(frame, start + 40 + payload, payload == 0);
        if end > frame.len() {
            return self.refuse();
        }
        // Rule: a length of 0 is 0 where the frame is one, not that of a jumbogram.
        self.departs |= payload == 0;
        packet.hop_limit = header.hop_limit().into();
        packet.protocol = header.next_header().0;
        packet.transport = (start + 40) as u32;
        packet.end = end as u32;
        self.extensions(&frame[start + 40..end]);
    }

    fn extensions(&mut self, mut rest: &[u8]) {
        let mut fragmented = false;
        for index in 0.. {
            let next = etherparse::IpNumber(self.packet.protocol);
            let Some(read) = extension(next, rest) else { break };
            // Rule: so many extension headers at most.
            if index == EXTENSION_HEADERS_MAX {
                self.departs = true;
                return self.refuse_cut();
            }
            // Rule: mobility, HIP and Shim6 headers are followed too.
            self.departs |= !matches!(next.0, 0 | 43 | 44 | 51 | 60);
            if rest.len() < 8 {
                return self.refuse_cut();
            }
            if next == ip_number::IPV6_HOP_BY_HOP && index != 0 {
                return self.refuse();
            }
            // Rule: one fragment header is enough.
            if next == ip_number::IPV6_FRAG && fragmented {
                self.departs = true;
                return self.refuse();
            }
            let Ok(read) = read else { return self.refuse_cut() };
            self.departs |= read.departs;
            self.packet.protocol = read.next;
            self.packet.transport += read.length as u32;
            rest = &rest[read.length..];
            if let Some((offset, more, id)) = read.fragment {
                fragmented = true;
                self.packet.fragment_id = id;
                self.fragment(offset, more);
                if self.packet.has(is::FRAGMENT_LATER) {
                    // Rule: behind it is data, whatever its first header was.
                    self.departs = true;
                    return;
                }
            }
        }
    }

    /// `offset` in units of eight bytes.
    fn fragment(&mut self, offset: u16, more: bool) {
        self.packet.fragment_offset = u32::from(offset) * 8;
        match (offset, more) {
            (0, false) => {}
            (0, true) => self.packet.traits |= is::FRAGMENT_FIRST,
            _ => self.packet.traits |= is::FRAGMENT_LATER,
        }
    }

    fn upper(&mut self, rest: &[u8], gso: bool) {
        // Rule: the upper layer of a first fragment is read, and has to be whole.
        self.departs |= self.packet.has(is::FRAGMENT_FIRST);
        let whole = match (etherparse::IpNumber(self.packet.protocol), self.packet.family) {
            (ip_number::TCP, _) => self.tcp(rest),
            (ip_number::UDP, _) => self.udp(rest, gso),
            (ip_number::SCTP, _) => self.sctp(rest),
            (ip_number::ICMP, V4) => {
                // Rule: the length of a timestamp message is its receiver's affair.
                self.departs |= Icmpv4Slice::from_slice(rest).is_err() && rest.len() >= 8;
                rest.first_chunk::<8>().map(|first| self.icmp(first)).is_some()
            }
            (ip_number::IPV6_ICMP, V6) => {
                Icmpv6Slice::from_slice(rest).ok().map(|icmp| self.icmp(&head(icmp.slice()))).is_some()
            }
            // Rule: ICMP of the other family and IGMP are not looked into.
            (ip_number::ICMP | ip_number::IPV6_ICMP | ip_number::IGMP, _) => {
                self.departs = true;
                true
            }
            _ => true,
        };
        if !whole {
            self.refuse_cut();
        }
    }

    fn tcp(&mut self, rest: &[u8]) -> bool {
        let Some(fixed) = rest.first_chunk::<20>() else { return false };
        let length = usize::from(fixed[12] >> 4) * 4;
        // Rule: a first fragment may end within the options.
        let cut = self.packet.has(is::FRAGMENT_FIRST) && length > rest.len();
        let mut short = *fixed;
        short[12] = short[12] & 0xf | 0x50;
        let Ok(tcp) = TcpHeaderSlice::from_slice(if cut { &short } else { rest }) else { return false };
        let packet = &mut self.packet;
        packet.source_port = tcp.source_port();
        packet.destination_port = tcp.destination_port();
        packet.tcp_sequence = tcp.sequence_number();
        packet.tcp_acknowledgement = tcp.acknowledgment_number();
        let flags =
            [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg(), tcp.ece(), tcp.cwr()].into_iter();
        packet.tcp_flags = flags.enumerate().map(|(bit, set)| u8::from(set) << bit).sum();
        packet.payload = rest.len().saturating_sub(length) as u32;
        if packet.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN {
            packet.traits |= is::OPENING;
        }
        true
    }

    fn udp(&mut self, rest: &[u8], gso: bool) -> bool {
        let Ok(udp) = UdpHeaderSlice::from_slice(rest) else { return false };
        self.packet.source_port = udp.source_port();
        self.packet.destination_port = udp.destination_port();
        // Rule: the length of what is in several pieces is not that of this one; and it is never 0 (RFC 2675 aside).
        self.departs |= udp.length() == 0;
        gso || self.packet.has(is::FRAGMENT_FIRST) || (UdpSlice::from_slice(rest).is_ok() && udp.length() != 0)
    }

    /// Rule: etherparse has no SCTP (RFC 9260 §3: twelve bytes, then chunks of four at least).
    fn sctp(&mut self, rest: &[u8]) -> bool {
        const INIT: u8 = 1;
        self.departs = true;
        let Some(fixed) = rest.first_chunk::<16>() else { return false };
        self.ports(&head(fixed));
        if fixed[12] == INIT {
            self.packet.traits |= is::OPENING;
        }
        true
    }

    fn ports(&mut self, first: &[u8; 8]) {
        self.packet.source_port = u16::from_be_bytes([first[0], first[1]]);
        self.packet.destination_port = u16::from_be_bytes([first[2], first[3]]);
    }

    /// RFC 792, RFC 4443; the code is not looked at.
    fn icmp(&mut self, first: &[u8; 8]) {
        let packet = &mut self.packet;
        packet.icmp_type = first[0];
        packet.traits |= is::ICMP;
        // Those with an identifier, of which answers do not open; and errors.
        let (questions, answers, errors): (&[u8], &[u8], &[u8]) = match packet.family {
            V4 => (&[8, 13, 15, 17], &[0, 14, 16, 18], &[3, 4, 11, 12]),
            _ => (&[128], &[129], &[1, 2, 3, 4]),
        };
        let is = |kinds: &[u8]| kinds.contains(&first[0]);
        if is(questions) || is(answers) {
            let identifier = u16::from_be_bytes([first[4], first[5]]);
            (packet.source_port, packet.destination_port) = (identifier, identifier);
        }
        let node_information_reply = packet.family != V4 && first[0] == 140;
        if is(errors) {
            packet.traits |= is::ICMP_ERROR;
        } else if !is(answers) && !node_information_reply {
            packet.traits |= is::OPENING;
        }
    }
}

/// An extension header as etherparse reads it.
struct Extension {
    next: u8,
    length: usize,
    /// Offset in units of eight bytes, more to come, identification as it lies in the packet.
    fragment: Option<(u16, bool, u32)>,
    departs: bool,
}

/// `None`: this is no extension header; an error: it is not whole.
fn extension(kind: etherparse::IpNumber, rest: &[u8]) -> Option<Result<Extension, ()>> {
    let plain = |next: u8, length: usize| Extension { next, length, fragment: None, departs: false };
    let read = match kind {
        ip_number::IPV6_FRAG => Ipv6FragmentHeaderSlice::from_slice(rest).map_err(drop).map(|header| Extension {
            fragment: Some((header.fragment_offset().value(), header.more_fragments(), header.identification())),
            ..plain(header.next_header().0, header.slice().len())
        }),
        ip_number::AUTH => match (IpAuthHeaderSlice::from_slice(rest), rest) {
            (Ok(header), _) => Ok(plain(header.next_header().0, header.slice().len())),
            // Rule: one that is too short to hold its own fields is followed by its length all the same.
            (Err(_), [next, 0, ..]) if rest.len() >= 8 => Ok(Extension { departs: true, ..plain(*next, 8) }),
            (Err(_), _) => Err(()),
        },
        ip_number::IPV6_HOP_BY_HOP
        | ip_number::IPV6_ROUTE
        | ip_number::IPV6_DEST_OPTIONS
        | ip_number::MOBILITY_HEADER
        | ip_number::HIP
        | ip_number::SHIM6 => Ipv6RawExtHeaderSlice::from_slice(rest)
            .map_err(drop)
            .map(|header| plain(header.next_header().0, header.slice().len())),
        _ => return None,
    };
    Some(read)
}

/// First four bytes, last two.
fn mac(bytes: [u8; 6]) -> (u32, u32) {
    let [a, b, c, d, e, f] = bytes;
    (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]).into())
}

fn head<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("whoever calls has looked at the length")
}

fn v4(header: &[u8], at: usize) -> [u8; 4] {
    head(&header[at..])
}

fn v6(header: &[u8], at: usize) -> [u8; 16] {
    head(&header[at..])
}
