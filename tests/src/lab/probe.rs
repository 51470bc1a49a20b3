//! Questions from one place to another over real sockets: who answers, and connections that stay open.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Netns;

/// Long enough for a busy machine, and for the repetition of a first packet that was lost for another reason.
pub const DEADLINE: Duration = Duration::from_millis(1200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The server of this name answered.
    Reached(String),
    /// Nobody listens there, and the other end's kernel said so.
    Refused,
    /// No answer.
    TimedOut,
    /// The sender's own kernel, or a router, knew no way.
    Unreachable(String),
}

impl Outcome {
    pub fn reached(&self) -> bool {
        matches!(self, Self::Reached(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached(name) => write!(f, "reached {name}"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("no answer"),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
        }
    }
}

/// One question: from a namespace to a server.
#[derive(Clone)]
pub struct Probe {
    pub from: Netns,
    pub transport: Transport,
    pub to: SocketAddr,
}

impl Probe {
    pub fn new(from: &Netns, transport: Transport, address: IpAddr, port: u16) -> Self {
        Self { from: from.clone(), transport, to: SocketAddr::new(address, port) }
    }

    pub fn ask(&self) -> Outcome {
        self.ask_within(DEADLINE)
    }

    pub fn ask_within(&self, deadline: Duration) -> Outcome {
        self.from.run(|| ask(self.transport, self.to, deadline))
    }
}

/// Asks all at once, so that many refusals cost one deadline. The answers are in the order of the questions.
pub fn ask_all(probes: &[Probe]) -> Vec<Outcome> {
    ask_all_within(&probes.iter().map(|probe| (probe.clone(), DEADLINE)).collect::<Vec<_>>())
}

/// The same with a deadline for each.
pub fn ask_all_within(probes: &[(Probe, Duration)]) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let ask = |(probe, deadline): &'_ (Probe, Duration)| probe.ask_within(*deadline);
        let threads: Vec<_> = probes.iter().map(|probe| scope.spawn(move || ask(probe))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a probe does not panic")).collect()
    })
}

/// In the calling thread's namespace.
pub fn ask(transport: Transport, to: SocketAddr, deadline: Duration) -> Outcome {
    let asked = match transport {
        Transport::Tcp => ask_tcp(to, deadline),
        Transport::Udp => ask_udp(to, deadline),
    };
    match asked {
        Ok(name) => Outcome::Reached(name),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            // A read that times out is WouldBlock.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimedOut,
            _ => Outcome::Unreachable(error.to_string()),
        },
    }
}

fn ask_tcp(to: SocketAddr, deadline: Duration) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&to, deadline)?;
    stream.set_read_timeout(Some(deadline))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn ask_udp(to: SocketAddr, deadline: Duration) -> std::io::Result<String> {
    let socket = bind_udp(to)?;
    socket.connect(to)?;
    let end = Instant::now() + deadline;
    // Datagrams are not repeated by the kernel: one that is lost while a neighbour is looked for must not count.
    let pause = (deadline / 4).max(Duration::from_millis(1));
    let mut buffer = [0; 2048];
    loop {
        socket.send(b"who")?;
        socket.set_read_timeout(Some(pause))?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                return Ok(text.lines().next().unwrap_or_default().to_owned());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {}
            // A process that is stopped and goes on is told so, as a socket with a timeout is not called again.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn bind_udp(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))
}

/// Datagrams sent without pause to a server that answers each, on a thread of its own.
pub struct Datagrams {
    socket: UdpSocket,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
    start: Instant,
}

impl Datagrams {
    /// Returns once the first was answered.
    pub fn start(from: &Netns, to: SocketAddr) -> Result<Self> {
        let socket = from.run(|| bind_udp(to))?;
        socket.connect(to)?;
        let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let (sending, stopped) = (socket.try_clone()?, stop.clone());
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Each says when it was sent. A refusal by ICMP is reported here and ends nothing.
                let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                let _ = sending.send(&nanoseconds.to_be_bytes());
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let stream = Self { socket, stop, sender: Some(sender), start };
        stream.answer(DEADLINE)?.context("no datagram was answered")?;
        Ok(stream)
    }

    /// Waits until none has been answered for so long; when the last answered one was sent. An error if that does not
    /// come within `deadline`.
    pub fn last_answered(self, quiet: Duration, deadline: Duration) -> Result<Option<Instant>> {
        let (mut last, end) = (None, Instant::now() + deadline);
        while let Some(sent) = self.answer(quiet)? {
            last = last.max(Some(sent));
            ensure!(Instant::now() < end, "datagrams are still answered after {deadline:?}");
        }
        Ok(last)
    }

    fn answer(&self, deadline: Duration) -> Result<Option<Instant>> {
        self.socket.set_read_timeout(Some(deadline))?;
        let mut buffer = [0; 2048];
        let end = Instant::now() + deadline;
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    // The server's name, a line feed, and what was sent.
                    let sent = buffer[..length].last_chunk().context("an answer is too short")?;
                    return Ok(Some(self.start + Duration::from_nanos(u64::from_be_bytes(*sent))));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(_) if Instant::now() > end => return Ok(None),
                Err(_) => {}
            }
        }
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

/// A connection that stays open, to be tried again and again.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// The server's name, as it said first.
    pub name: String,
    sent: u64,
}

impl Connection {
    pub fn open(from: &Netns, address: IpAddr, port: u16) -> Result<Self> {
        let to = SocketAddr::new(address, port);
        let stream = from.run(|| TcpStream::connect_timeout(&to, DEADLINE)).with_context(|| format!("to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut stream = BufReader::new(stream);
        let mut name = String::new();
        stream.read_line(&mut name)?;
        ensure!(!name.is_empty(), "{to} closed at once");
        Ok(Self { stream, name: name.trim_end().to_owned(), sent: 0 })
    }

    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// Sends something new and waits for its echo. What the kernel repeats for an earlier call may come first.
    pub fn echoes(&mut self, deadline: Duration) -> bool {
        self.exchange(deadline).is_ok()
    }

    fn exchange(&mut self, deadline: Duration) -> std::io::Result<()> {
        self.sent += 1;
        let end = Instant::now() + deadline;
        self.stream.get_mut().write_all(&self.sent.to_be_bytes())?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let mut word = [0; 8];
            self.stream.read_exact(&mut word)?;
            if u64::from_be_bytes(word) == self.sent {
                return Ok(());
            }
        }
    }
}
