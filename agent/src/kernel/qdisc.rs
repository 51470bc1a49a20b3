//! The clsact qdisc of an interface: what is on it, and taking it away.

use std::io;

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

// linux/pkt_sched.h
const TC_H_CLSACT: u32 = 0xffff_fff1;
pub(super) const TC_H_INGRESS: u32 = 0xffff_fff2;
pub(super) const TC_H_EGRESS: u32 = 0xffff_fff3;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// struct nlmsghdr and struct tcmsg, with no attributes.
const REQUEST: usize = 16 + 20;
/// Larger than any datagram of a dump.
const DATAGRAM_MAX: usize = 64 << 10;

/// Takes the qdisc away if it has no filter, of whomever. What goes with the interface itself is gone. Returns whether it is.
pub(super) fn remove_if_empty(ifindex: u32) -> io::Result<bool> {
    let mut requests = Requests::open()?;
    for parent in [TC_H_INGRESS, TC_H_EGRESS] {
        if !requests.filters(ifindex, parent)?.is_empty() {
            return Ok(false);
        }
    }
    let removed = requests.ask(libc::RTM_DELQDISC, libc::NLM_F_ACK as u16, ifindex, (CLSACT_HANDLE, TC_H_CLSACT));
    match removed.map_err(|error| (error.raw_os_error(), error)) {
        Err((Some(libc::ENODEV | libc::ENOENT | libc::EINVAL), _)) | Ok(_) => Ok(true),
        Err((_, error)) => Err(error),
    }
}

/// Questions to rtnetlink about qdiscs and filters.
pub(super) struct Requests {
    socket: Socket,
}

impl Requests {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// One message, struct tcmsg and attributes, for each filter of a direction.
    pub(super) fn filters(&mut self, ifindex: u32, parent: u32) -> io::Result<Vec<Vec<u8>>> {
        self.ask(libc::RTM_GETTFILTER, libc::NLM_F_DUMP as u16, ifindex, (0, parent))
    }

    /// One message, struct fib_rule_hdr and attributes, for each routing rule of a family.
    pub(super) fn rules(&mut self, family: u8) -> io::Result<Vec<Vec<u8>>> {
        let mut request = [0; 16 + 12];
        request[4..6].copy_from_slice(&libc::RTM_GETRULE.to_ne_bytes());
        request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
        request[16] = family;
        self.exchange(&mut request)
    }

    /// One message, struct rtmsg and attributes, for each route of a family.
    pub(super) fn routes(&mut self, family: u8) -> io::Result<Vec<Vec<u8>>> {
        let mut request = [0; 16 + 12];
        request[4..6].copy_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
        request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
        request[16] = family;
        self.exchange(&mut request)
    }

    /// Asks; the messages of the answer without its end.
    fn ask(&mut self, kind: u16, flags: u16, ifindex: u32, (handle, parent): (u32, u32)) -> io::Result<Vec<Vec<u8>>> {
        let mut request = [0; REQUEST];
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        request[20..24].copy_from_slice(&ifindex.to_ne_bytes());
        request[24..28].copy_from_slice(&handle.to_ne_bytes());
        request[28..32].copy_from_slice(&parent.to_ne_bytes());
        self.exchange(&mut request)
    }

    /// Sends the request, whose length is filled in.
    fn exchange(&mut self, request: &mut [u8]) -> io::Result<Vec<Vec<u8>>> {
        let length = request.len() as u32;
        request[0..4].copy_from_slice(&length.to_ne_bytes());
        self.socket.send_to(request, &SocketAddr::new(0, 0), 0)?;
        let mut messages = Vec::new();
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM_MAX);
            self.socket.recv(&mut datagram, 0)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let invalid = |error: netlink_packet_core::DecodeError| io::Error::other(error.to_string());
                let message = NetlinkBuffer::new_checked(rest).map_err(invalid)?;
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let error = message.payload().first_chunk().map_or(0, |word| i32::from_ne_bytes(*word));
                        return if error == 0 { Ok(messages) } else { Err(io::Error::from_raw_os_error(-error)) };
                    }
                    _ => messages.push(message.payload().to_vec()),
                }
                let length = (message.length() as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}
