//! Arbitrary frames that are packets more often than arbitrary bytes are.

use std::net::IpAddr;

use arbitrary::Arbitrary;
use palisade_common::Hook;

use super::scene::{PEERS_V4, PEERS_V6, PORTS, Shot, mac, own};
use crate::frame::{Arp, Body, Extension, Fragment, Frame, Icmp, IcmpBody, Ip, Mac, Tcp, Upper};

const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 0, 1];

/// A frame at a hook.
#[derive(Debug, Arbitrary)]
pub struct Sent {
    to_pod: bool,
    pod: u8,
    from_node: bool,
    gso: bool,
    frame: Content,
}

#[derive(Debug, Arbitrary)]
enum Content {
    /// As it is.
    Raw(Vec<u8>),
    Packet(Made),
    /// One with some bytes written over, and cut short.
    Damaged(Made, Vec<(u8, u8)>, u8),
    Arp {
        operation: u8,
        peer: u8,
        second: bool,
    },
}

/// A packet between the pod and a peer, whichever way it goes.
#[derive(Clone, Debug, Arbitrary)]
struct Made {
    six: bool,
    peer: u8,
    /// The pod's second address.
    second: bool,
    kind: Kind,
    pod_port: u8,
    peer_port: u8,
    tags: u8,
    extensions: Vec<u8>,
    fragment: Option<(u8, bool, u8)>,
    hop_limit: u8,
}

#[derive(Clone, Debug, Arbitrary)]
enum Kind {
    Tcp {
        flags: u8,
        data: u8,
        sequence: u8,
        acknowledgement: u8,
    },
    Udp(u8),
    Sctp(u8),
    Icmp(u8),
    /// An error about a packet of the opposite direction.
    Error(u8, Box<Made>),
    Neighbour {
        kind: u8,
        target: u8,
        link: Option<bool>,
    },
    Other(u8),
}

impl Sent {
    pub fn shot(&self) -> Shot {
        let hook = if self.to_pod { Hook::ToPod } else { Hook::FromPod };
        let frame = match &self.frame {
            Content::Raw(bytes) => bytes.clone(),
            Content::Packet(made) => self.around(Body::Ip(made.ip(self.pod, self.to_pod))),
            Content::Damaged(made, patches, cut) => {
                let mut bytes = self.around(Body::Ip(made.ip(self.pod, self.to_pod)));
                for (at, byte) in patches {
                    let at = usize::from(*at) % bytes.len();
                    bytes[at] = *byte;
                }
                bytes.truncate(bytes.len().saturating_sub(usize::from(cut % 32)));
                bytes
            }
            Content::Arp { operation, peer, second } => {
                let address = |address| match address {
                    IpAddr::V4(address) => address,
                    IpAddr::V6(_) => unreachable!("it was asked for IPv4"),
                };
                self.around(Body::Arp(Arp {
                    operation: u16::from(*operation % 3),
                    sender_mac: mac(self.pod % 2),
                    sender: address(own(self.pod, false, *second)),
                    target_mac: [0; 6],
                    target: PEERS_V4[usize::from(*peer) % 5],
                }))
            }
        };
        Shot::new(hook, self.pod, self.from_node, self.gso, frame)
    }

    fn around(&self, body: Body) -> Vec<u8> {
        let pod = mac(self.pod % 2);
        let (source_mac, destination_mac) = if self.to_pod { (ROUTER_MAC, pod) } else { (pod, ROUTER_MAC) };
        let tags = match &self.frame {
            Content::Packet(made) | Content::Damaged(made, ..) => made.tags,
            Content::Raw(_) | Content::Arp { .. } => 0,
        };
        let tags = (0..tags % 16 / 4).map(|tag| (if tag == 0 { 0x88a8 } else { 0x8100 }, 5)).collect();
        Frame { source_mac, destination_mac, tags, body, cut: None, padding: 0 }.bytes()
    }
}

impl Made {
    fn ip(&self, pod: u8, to_pod: bool) -> Ip {
        const EXTENSIONS: [Extension; 8] = [
            Extension::HopByHop,
            Extension::Routing,
            Extension::Fragment,
            Extension::Authentication,
            Extension::Destination,
            Extension::Mobility,
            Extension::Hip,
            Extension::Shim6,
        ];
        let at = usize::from(self.peer) % 5;
        let peer: IpAddr = if self.six { PEERS_V6[at].into() } else { PEERS_V4[at].into() };
        let own = own(pod % 2, self.six, self.second);
        let (source, destination) = if to_pod { (peer, own) } else { (own, peer) };
        let extensions = self.extensions.iter().take(9).map(|kind| EXTENSIONS[usize::from(*kind) % 8]);
        Ip {
            source,
            destination,
            hop_limit: if self.hop_limit.is_multiple_of(4) { 255 } else { self.hop_limit },
            options: usize::from(self.tags / 16 % 4) * 4,
            extensions: if self.six { extensions.collect() } else { Vec::new() },
            fragment: self.fragment.map(|(offset, more, id)| Fragment {
                offset: u16::from(offset % 4) * 8,
                more,
                id: u32::from(id % 2),
            }),
            length: None,
            header_words: None,
            version: None,
            payload_max: None,
            upper: self.upper(pod, to_pod),
        }
    }

    fn upper(&self, pod: u8, to_pod: bool) -> Upper {
        let port = |byte: u8| PORTS[usize::from(byte) % 8];
        let (own, peer) = (port(self.pod_port), port(self.peer_port));
        let (source, destination) = if to_pod { (peer, own) } else { (own, peer) };
        let icmp = |kind, word, body| Upper::Icmp(Icmp { six: self.six, kind, code: 0, word, body });
        match &self.kind {
            Kind::Tcp { flags, data, sequence, acknowledgement } => Upper::Tcp(Tcp {
                source,
                destination,
                sequence: u32::from(*sequence),
                acknowledgement: u32::from(*acknowledgement),
                flags: *flags,
                data: usize::from(data % 4),
                header_words: None,
            }),
            Kind::Udp(data) => Upper::Udp { source, destination, data: usize::from(data % 64), length: None },
            Kind::Sctp(chunk) => Upper::Sctp { source, destination, chunk: chunk % 4, data: 0 },
            Kind::Icmp(kind) => icmp(*kind, u32::from(self.pod_port % 2) << 16, IcmpBody::Data(4)),
            Kind::Error(kind, quoted) => {
                // What is quoted quotes nothing itself.
                let mut quoted = quoted.as_ref().clone();
                quoted.six = self.six;
                if let Kind::Error(kind, _) = quoted.kind {
                    quoted.kind = Kind::Icmp(kind);
                }
                let inner = quoted.ip(pod, !to_pod);
                let kinds: [u8; 4] = if self.six { [1, 2, 3, 4] } else { [3, 4, 11, 12] };
                icmp(kinds[usize::from(*kind) % 4], 0, IcmpBody::Quoted(Box::new(inner), 28 + usize::from(*kind)))
            }
            Kind::Neighbour { kind, target, link } => {
                let target = match target % 8 {
                    at @ 0..=4 => Some(PEERS_V6[usize::from(at)]),
                    _ => None,
                };
                let link = link.map(|own| if own { mac(pod % 2) } else { ROUTER_MAC });
                icmp(131 + kind % 13, 0, IcmpBody::Neighbour { target, link })
            }
            Kind::Other(protocol) => Upper::Other { protocol: *protocol, data: 8 },
        }
    }
}
