//! Netlink sockets under tokio: events with the namespace they are of, and questions with their answers.
//!
//! Sockets belong to the network namespace in which they are opened, and nothing here changes a namespace.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::AsRawFd;

use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::io::unix::AsyncFd;

use super::netlink::{Body, Message, Request, messages};

/// Larger than any datagram of the kernel: dumps come in pieces of at most 32 KiB, a single link's message is smaller.
const DATAGRAM_MAX: usize = 64 << 10;

/// What may wait in the kernel before events are lost (and asked for anew).
const RECEIVE_BUFFER: usize = 8 << 20;

pub struct Socket {
    inner: AsyncFd<netlink_sys::Socket>,
    buffer: Vec<u8>,
    sequence: u32,
}

/// A datagram of the kernel.
#[derive(Debug)]
pub struct Received {
    pub messages: Vec<Message>,
    /// Set on sockets that listen to all namespaces, for those that have an id here.
    pub netns_id: Option<i32>,
}

impl Socket {
    /// For questions about this and other namespaces.
    pub fn for_questions() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        // Without it the kernel ignores IFA_TARGET_NETNSID and the index, and answers for this namespace.
        socket.set_netlink_get_strict_chk(true)?;
        Self::new(socket, &[])
    }

    /// For the links and addresses of this namespace.
    pub fn for_links() -> io::Result<Self> {
        let groups = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR];
        Self::new(netlink_sys::Socket::new(NETLINK_ROUTE)?, &groups)
    }

    /// For the links and addresses of all namespaces that have an id here. Needs CAP_NET_BROADCAST.
    pub fn for_all_namespaces() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.set_listen_all_namespaces(true)?;
        Self::new(socket, &[libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR])
    }

    fn new(mut socket: netlink_sys::Socket, groups: &[libc::c_uint]) -> io::Result<Self> {
        socket.set_non_blocking(true)?;
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            // Without CAP_NET_ADMIN the size is bounded by rmem_max; losses are noticed and made good.
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
        }
        socket.bind_auto()?;
        for &group in groups {
            socket.add_membership(group)?;
        }
        // SAFETY: the socket owns its descriptor, is not shared, and is closed only when the `AsyncFd` around it is dropped.
        let inner = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { inner, buffer: vec![0; DATAGRAM_MAX], sequence: 0 })
    }

    /// The next datagram. ENOBUFS: some were lost. Nothing is lost if the future is dropped.
    pub async fn receive(&mut self) -> io::Result<Received> {
        loop {
            let mut guard = self.inner.readable().await?;
            match guard.try_io(|inner| receive(inner.get_ref(), &mut self.buffer)) {
                Ok(Ok(None)) | Err(_) => {}
                Ok(Ok(Some((length, netns_id)))) => return decode(&self.buffer[..length], netns_id),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// The next datagram, if one is there.
    pub fn try_receive(&mut self) -> Option<io::Result<Received>> {
        loop {
            return match receive(self.inner.get_ref(), &mut self.buffer) {
                Ok(None) => continue,
                Ok(Some((length, netns_id))) => Some(decode(&self.buffer[..length], netns_id)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => Some(Err(error)),
            };
        }
    }

    /// Asks, and collects the answer. A dump during which things changed is asked for again.
    pub async fn ask(&mut self, request: Request) -> io::Result<Vec<Body>> {
        loop {
            if let Some(answer) = self.ask_once(request.clone()).await? {
                return Ok(answer);
            }
        }
    }

    async fn ask_once(&mut self, request: Request) -> io::Result<Option<Vec<Body>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.numbered(self.sequence);
        let kernel = netlink_sys::SocketAddr::new(0, 0);
        loop {
            let mut guard = self.inner.writable().await?;
            match guard.try_io(|inner| inner.get_ref().send_to(&bytes, &kernel, 0)) {
                Ok(sent) => {
                    sent?;
                    break;
                }
                Err(_) => continue,
            }
        }
        let mut answer = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.receive().await?.messages {
                // What is left of an earlier question that was given up.
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.interrupted;
                match message.body {
                    Body::End(0) => return Ok((!interrupted).then_some(answer)),
                    Body::End(error) => return Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                    Body::Overrun => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                    body @ (Body::Link(_)
                    | Body::LinkGone(_)
                    | Body::Address { .. }
                    | Body::AddressGone { .. }
                    | Body::Other) => answer.push(body),
                }
            }
        }
    }
}

fn decode(datagram: &[u8], netns_id: Option<i32>) -> io::Result<Received> {
    let messages = messages(datagram).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    Ok(Received { messages, netns_id })
}

/// One datagram and the namespace it is of; `None`: it was not the kernel's.
fn receive(socket: &netlink_sys::Socket, buffer: &mut [u8]) -> io::Result<Option<(usize, Option<i32>)>> {
    /// Room for one control message with an i32, aligned as its header must be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: both are plain C structs for which all zeroes is a valid value.
    let (mut sender, mut message) = unsafe { (zeroed::<libc::sockaddr_nl>(), zeroed::<libc::msghdr>()) };
    message.msg_name = (&raw mut sender).cast();
    message.msg_namelen = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control.0).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: every pointer in `message` is to a live local or to `buffer`, with its true length.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    if sender.nl_pid != 0 {
        return Ok(None);
    }
    let mut netns_id = None;
    // SAFETY: `message` is as recvmsg left it, and its control buffer is alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header inside the control buffer.
        let libc::cmsghdr { cmsg_level, cmsg_type, cmsg_len, .. } = unsafe { *header };
        // SAFETY: CMSG_LEN only computes.
        let expected = unsafe { libc::CMSG_LEN(size_of::<i32>() as u32) };
        if (cmsg_level, cmsg_type) == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) && cmsg_len >= expected as _ {
            // SAFETY: the message is long enough for an i32 behind its header; it need not be aligned.
            netns_id = Some(unsafe { libc::CMSG_DATA(header).cast::<i32>().read_unaligned() });
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Some((length, netns_id.filter(|&id| id >= 0))))
}
