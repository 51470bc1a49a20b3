//! The two ends of the throughput benchmark, each a process in its pod's namespace. What they send each other over connections that last
//! is in [`super::traffic`]; here is a server that accepts and closes, and clients that connect and close as fast as they can, many at a
//! time.
//!
//! A connection is a three-way handshake, the server's close and then the client's: seven segments. The server closes first, so it is the
//! server that keeps the old connection in TIME_WAIT, and Linux lets a new SYN take such a connection's place; the client's ports are
//! free at once.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::mem::zeroed;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::traffic;

/// Ports of the server, so that a client's ports do not run out: a connection is told apart by all four numbers.
pub const PORTS: std::ops::Range<u16> = 8000..8064;

/// Where an end runs, as the scheduler would otherwise move both to and fro, and what they get through with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Server,
    Client,
}

impl End {
    /// Keeps this thread, and those that it begins, on the end's processor: the server's is the first that we may use, the client's the next.
    fn stay(self) -> Result<()> {
        let allowed = sched_getaffinity(None).context("which processors may be used")?;
        let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)).collect();
        let mut own = CpuSet::new();
        own.set(processors[self as usize % processors.len()]);
        sched_setaffinity(None, &own).context("keeping to a processor")
    }
}

/// Accepts on all of [`PORTS`] and closes, and serves [`traffic`], for ever. Says `ready` first.
pub fn serve() -> Result<()> {
    End::Server.stay()?;
    traffic::serve()?;
    let poll = Poll::new()?;
    let mut listeners = Vec::new();
    for port in PORTS {
        let listener = socket()?;
        set(&listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        let address = socket_address(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
        // SAFETY: the address is as long as it is said to be and outlives the call.
        check(unsafe { libc::bind(listener.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) })?;
        // SAFETY: numbers only.
        check(unsafe { libc::listen(listener.as_raw_fd(), 4096) })?;
        poll.add(listener.as_raw_fd(), libc::EPOLLIN)?;
        listeners.push(listener);
    }
    println!("ready");
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready, Duration::from_secs(60))?;
        for listener in &ready {
            // SAFETY: numbers, and no place for the peer's address.
            let accepted =
                unsafe { libc::accept4(*listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
            if accepted >= 0 {
                // SAFETY: a descriptor that the kernel has just given to us; closing it is the server's FIN.
                drop(unsafe { OwnedFd::from_raw_fd(accepted) });
            }
        }
    }
}

/// What the client's end is asked to do, and how many at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Connects and closes; counted are connections.
    Connections(usize),
    /// Sends as much as goes; counted are bytes.
    Streams(usize),
    /// A byte there and a byte back on connections that stay; counted are exchanges.
    Exchanges(usize),
}

/// For every line with a [`Work`] and two numbers of milliseconds on stdin: does that for so long uncounted, then for so long counted,
/// and prints the count.
pub fn client(server: Ipv4Addr) -> Result<()> {
    End::Client.stay()?;
    println!("ready");
    let mut port = PORTS.cycle_from(std::process::id());
    for line in BufReader::new(io::stdin()).lines() {
        let line = line?;
        let [work, parallel, warm_up, measured] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("not an order: {line}")
        };
        let milliseconds = |text: &str| -> Result<Duration> { Ok(Duration::from_millis(text.parse()?)) };
        let (warm_up, measured) = (milliseconds(warm_up)?, milliseconds(measured)?);
        let count = match Work::new(work, parallel.parse()?)? {
            Work::Connections(parallel) => {
                Client::new(server, parallel)?.run(&mut port, warm_up)?;
                Client::new(server, parallel)?.run(&mut port, measured)?
            }
            work @ (Work::Streams(_) | Work::Exchanges(_)) => traffic::run(server, work, warm_up, measured)?,
        };
        println!("{count}");
        io::stdout().flush()?;
    }
    Ok(())
}

// === impl Work ===

impl Work {
    fn new(name: &str, parallel: usize) -> Result<Self> {
        Ok(match name {
            "connections" => Self::Connections(parallel),
            "streams" => Self::Streams(parallel),
            "exchanges" => Self::Exchanges(parallel),
            _ => bail!("no such work: {name}"),
        })
    }

    /// As [`client`] reads it.
    pub fn order(self) -> String {
        match self {
            Self::Connections(parallel) => format!("connections {parallel}"),
            Self::Streams(parallel) => format!("streams {parallel}"),
            Self::Exchanges(parallel) => format!("exchanges {parallel}"),
        }
    }
}

trait Cycle {
    fn cycle_from(self, start: u32) -> impl Iterator<Item = u16>;
}

impl Cycle for std::ops::Range<u16> {
    /// Two clients do not go from port to port in step.
    fn cycle_from(self, start: u32) -> impl Iterator<Item = u16> {
        let skip = start as usize % self.len();
        self.cycle().skip(skip)
    }
}

struct Client {
    server: Ipv4Addr,
    parallel: usize,
    poll: Poll,
    /// By descriptor.
    open: Vec<Option<OwnedFd>>,
}

impl Client {
    fn new(server: Ipv4Addr, parallel: usize) -> Result<Self> {
        Ok(Self { server, parallel, poll: Poll::new()?, open: Vec::new() })
    }

    fn run(&mut self, port: &mut impl Iterator<Item = u16>, time: Duration) -> Result<u64> {
        let start = Instant::now();
        for _ in 0..self.parallel {
            self.start(port)?;
        }
        let (mut made, mut ready, mut left) = (0, Vec::new(), self.parallel);
        while left > 0 {
            let waited = self.poll.wait(&mut ready, Duration::from_secs(5))?;
            ensure!(waited > 0, "no connection came about within 5 s");
            for fd in &ready {
                let socket = self.open[usize::try_from(*fd)?].take().context("a socket that was opened")?;
                finish(&socket)?;
                drop(socket);
                left -= 1;
                // Those that are under way at the end are not counted, as their time is not.
                if start.elapsed() < time {
                    made += 1;
                    self.start(port)?;
                    left += 1;
                }
            }
        }
        Ok(made)
    }

    /// Begins a connection; its end is the server's FIN, which makes the socket readable.
    fn start(&mut self, port: &mut impl Iterator<Item = u16>) -> Result<()> {
        let socket = socket()?;
        let address = socket_address(SocketAddrV4::new(self.server, port.next().context("ports in a circle")?));
        // SAFETY: the address is as long as it is said to be and outlives the call.
        let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) };
        if result < 0 {
            let error = io::Error::last_os_error();
            ensure!(error.raw_os_error() == Some(libc::EINPROGRESS), "connect: {error}");
        }
        self.poll.add(socket.as_raw_fd(), libc::EPOLLIN | libc::EPOLLRDHUP)?;
        let place = usize::try_from(socket.as_raw_fd())?;
        if self.open.len() <= place {
            self.open.resize_with(place + 1, || None);
        }
        self.open[place] = Some(socket);
        Ok(())
    }
}

/// The connection was made, and the server has closed it.
fn finish(socket: &OwnedFd) -> Result<()> {
    let mut byte = 0_u8;
    // SAFETY: one byte of ours.
    let read = unsafe { libc::read(socket.as_raw_fd(), (&raw mut byte).cast(), 1) };
    match read {
        0 => Ok(()),
        1.. => bail!("the server does not send"),
        _ => Err(io::Error::last_os_error()).context("a connection failed"),
    }
}

// === System calls ===

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: numbers only; the descriptor is ours.
    Ok(unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, kind, 0))?) })
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is as long as it is said to be and outlives the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) })?;
    Ok(())
}

fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    // SAFETY: plain data, all zero is valid.
    let mut place: libc::sockaddr_in = unsafe { zeroed() };
    place.sin_family = libc::AF_INET as libc::sa_family_t;
    place.sin_port = address.port().to_be();
    place.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
    place
}

/// An epoll instance; what it knows of a descriptor is its number.
struct Poll(OwnedFd);

impl Poll {
    fn new() -> io::Result<Self> {
        // SAFETY: numbers only; the descriptor is ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) }))
    }

    fn add(&self, fd: RawFd, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: u64::from(fd.cast_unsigned()) };
        // SAFETY: the event outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }

    fn wait(&self, ready: &mut Vec<RawFd>, time: Duration) -> Result<usize> {
        const MOST: usize = 64;
        // SAFETY: plain data, all zero is valid.
        let mut events: [libc::epoll_event; MOST] = unsafe { zeroed() };
        let milliseconds = i32::try_from(time.as_millis())?;
        // SAFETY: as many events of ours as are said.
        let result = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), MOST as i32, milliseconds) };
        let count = match check(result) {
            Ok(count) => usize::try_from(count)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error).context("epoll_wait"),
        };
        ready.clear();
        ready.extend(events[..count].iter().map(|event| i32::try_from(event.u64).expect("it was a descriptor")));
        Ok(count)
    }
}
