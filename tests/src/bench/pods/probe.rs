//! One new pod in its first milliseconds: what it sends, what it is sent, and what arrives of it.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::{Netns, Pod};

/// Nobody may connect here, and nothing may be sent here.
pub const FORBIDDEN: u16 = 9000;
pub const ALLOWED: u16 = 80;

/// How long a new pod is watched and sent to.
const WATCH: Duration = Duration::from_millis(60);
const EVERY: Duration = Duration::from_millis(1);
/// When an allowed connection counts as refused.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom a new pod talks to.
#[derive(Clone)]
pub struct Targets {
    /// Forbidden, both families each.
    pub forbidden: Vec<IpAddr>,
    pub local: IpAddr,
    pub block: IpAddr,
    pub remote: IpAddr,
}

#[derive(Debug, Default)]
pub struct Report {
    pub leaks: usize,
    pub local: Option<Duration>,
    pub block: Option<Duration>,
    pub remote: Option<Duration>,
}

fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Counts what arrives at the forbidden port in a namespace.
pub struct Watcher {
    pub count: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watcher {
    pub fn start(netns: &Netns) -> Result<Self> {
        let (udp, tcp) = netns
            .run(|| -> io::Result<_> { Ok((UdpSocket::bind(any(FORBIDDEN))?, TcpListener::bind(any(FORBIDDEN))?)) })?;
        udp.set_read_timeout(Some(Duration::from_millis(100)))?;
        tcp.set_nonblocking(true)?;
        let (count, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, over) = (count.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if udp.recv(&mut [0; 64]).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                while tcp.accept().is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { count, done, threads: vec![thread] })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends to each new pod, every millisecond, what it may not get.
pub struct Stranger {
    addresses: Sender<IpAddr>,
}

impl Stranger {
    pub fn start(netns: &Netns) -> Self {
        let (addresses, receiver) = channel();
        let netns = netns.clone();
        std::thread::spawn(move || {
            netns.enter().expect("root may");
            let socket = UdpSocket::bind(any(0)).expect("a port");
            send(&socket, &receiver);
        });
        Self { addresses }
    }

    pub fn seek(&self, addresses: &[IpAddr]) {
        for address in addresses {
            let _ = self.addresses.send(*address);
        }
    }
}

fn send(socket: &UdpSocket, addresses: &Receiver<IpAddr>) {
    let mut sought: Vec<(SocketAddr, Instant, Option<OwnedFd>)> = Vec::new();
    loop {
        let next = if sought.is_empty() {
            addresses.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            addresses.recv_timeout(EVERY)
        };
        match next {
            Ok(address) => {
                let target = SocketAddr::new(mapped(address), FORBIDDEN);
                sought.push((target, Instant::now() + WATCH, begin(target).ok()));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        sought.retain(|(_, until, _)| *until > Instant::now());
        for (target, ..) in &sought {
            let _ = socket.send_to(b"x", target);
        }
    }
}

fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// A connection that is being opened; nothing waits for it.
fn begin(target: SocketAddr) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let socket =
        unsafe { libc::socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket(2) has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let SocketAddr::V6(target) = target else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: all zeroes is a valid sockaddr_in6.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    address.sin6_port = target.port().to_be();
    address.sin6_addr.s6_addr = target.ip().octets();
    let length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    // SAFETY: the address is alive and of this length.
    unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Ok(socket)
}

/// Everything that the pod does, on a thread that is in its namespace. `seek`: it has an address by now.
pub fn live(pod: &Pod, targets: &Targets, added: Instant, seek: impl FnOnce()) -> Result<Report> {
    let udp = UdpSocket::bind(any(FORBIDDEN)).context("a port of a new pod")?;
    let tcp = TcpListener::bind(any(FORBIDDEN)).context("a port of a new pod")?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let sender = UdpSocket::bind(any(0))?;
    let mut begun = Vec::new();
    for address in &targets.forbidden {
        let target = SocketAddr::new(mapped(*address), FORBIDDEN);
        // Refused packets are no errors of the sender's.
        let _ = sender.send_to(pod.name.as_bytes(), target);
        begun.push(begin(target)?);
    }
    seek();
    let mut report = Report {
        leaks: 0,
        local: connected(targets.local, added),
        block: connected(targets.block, added),
        remote: connected(targets.remote, added),
    };
    while added.elapsed() < WATCH {
        std::thread::sleep(EVERY);
    }
    while udp.recv(&mut [0; 64]).is_ok() {
        report.leaks += 1;
    }
    while tcp.accept().is_ok() {
        report.leaks += 1;
    }
    Ok(report)
}

/// How long after `added` a connection came about. What is dropped at first is tried anew at once, as TCP itself would in a second.
fn connected(address: IpAddr, added: Instant) -> Option<Duration> {
    let mut wait = Duration::from_millis(5);
    while added.elapsed() < PATIENCE {
        if TcpStream::connect_timeout(&SocketAddr::new(address, ALLOWED), wait).is_ok() {
            return Some(added.elapsed());
        }
        wait = (wait * 2).min(Duration::from_millis(100));
    }
    None
}
