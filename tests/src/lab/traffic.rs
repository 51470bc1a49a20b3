//! Traffic that goes on while something happens to the agent: connections that stay open, new ones, datagrams, and what is forbidden; and a
//! count of what became of it.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt;

use super::Netns;
use super::probe::Connection;

/// Short, as a retransmitted SYN (after a second) would hide that the first one was dropped.
const AT_ONCE: Duration = Duration::from_millis(600);
/// A connection that has not answered for so long is cut: the kernel has sent again many times by then.
const CUT: Duration = Duration::from_secs(5);
/// How long anybody waits for what is forbidden.
const BRIEF: Duration = Duration::from_millis(20);
/// Between two of one stream, so that many streams leave the processors to those who answer.
const PAUSE: Duration = Duration::from_millis(4);

/// What became of the traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Permitted: echoes over connections that stay open, and connections that ended.
    pub echoes: u64,
    pub cut: Vec<String>,
    /// Permitted: new connections, and those that were not opened at once.
    pub opened: u64,
    pub refused: Vec<String>,
    /// Permitted: datagrams of new flows, and those that were not answered.
    pub answered: u64,
    pub unanswered: Vec<String>,
    /// Forbidden: how often it was tried, and what got through.
    pub tried: u64,
    pub passed: Vec<String>,
}

impl Tally {
    /// Nothing was judged wrongly.
    pub fn is_right(&self) -> bool {
        let Self { cut, refused, unanswered, passed, .. } = self;
        cut.is_empty() && refused.is_empty() && unanswered.is_empty() && passed.is_empty()
    }

    /// Of every kind there was some.
    pub fn is_telling(&self) -> bool {
        let Self { echoes, opened, answered, tried, .. } = *self;
        [echoes, opened, answered, tried].iter().all(|count| *count > 0)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { echoes, cut, opened, refused, answered, unanswered, tried, passed } = other;
        self.echoes += echoes;
        self.opened += opened;
        self.answered += answered;
        self.tried += tried;
        for (all, more) in [
            (&mut self.cut, cut),
            (&mut self.refused, refused),
            (&mut self.unanswered, unanswered),
            (&mut self.passed, passed),
        ] {
            all.extend(more);
        }
    }
}

/// What one stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// As many connections, in use all the time.
    Kept(usize),
    /// New connections one after the other.
    New,
    /// Questions and answers, each of a socket of its own.
    Datagrams,
    /// New connections that a policy forbids.
    ForbiddenNew,
    /// Datagrams that a policy forbids.
    ForbiddenDatagrams,
}

/// Streams on threads of their own. Ends when it is stopped or dropped.
#[derive(Default)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Traffic {
    /// Begins a stream from a namespace to a server of the lab (see [`super::server`]).
    pub fn add(&mut self, from: &Netns, stream: Stream, to: SocketAddr) -> Result<()> {
        let kept = match stream {
            Stream::Kept(count) => {
                let open = || Connection::open(from, to.ip(), to.port()).context("before anything happens");
                (0..count).map(|_| open()).collect::<Result<Vec<_>>>()?
            }
            _ => Vec::new(),
        };
        let (stop, from) = (self.stop.clone(), from.clone());
        self.threads.push(std::thread::spawn(move || {
            from.enter().expect("a namespace that is open can be entered by root");
            match stream {
                Stream::Kept(_) => keep(kept, to, &stop),
                Stream::New => repeat(&stop, |tally| open(to, tally)),
                Stream::Datagrams => repeat(&stop, |tally| ask(to, tally)),
                Stream::ForbiddenNew => repeat(&stop, |tally| try_connection(to, tally)),
                Stream::ForbiddenDatagrams => try_datagrams(to, &stop),
            }
        }));
        Ok(())
    }

    pub fn stop(mut self) -> Tally {
        self.end()
    }

    fn end(&mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for thread in self.threads.drain(..) {
            all += thread.join().expect("a stream does not panic");
        }
        all
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn repeat(stop: &AtomicBool, mut once: impl FnMut(&mut Tally)) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        once(&mut tally);
        std::thread::sleep(PAUSE);
    }
    tally
}

fn keep(mut connections: Vec<Connection>, to: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut turn = 0;
    repeat(stop, |tally| {
        let Some(connection) = connections.get_mut(turn) else { return turn = 0 };
        if connection.echoes(CUT) {
            tally.echoes += 1;
            turn += 1;
        } else {
            tally.cut.push(format!("a connection to {to} that was in use"));
            connections.remove(turn);
        }
    })
}

/// Ends with a reset, so that the ports of many connections are free at once.
fn open(to: SocketAddr, tally: &mut Tally) {
    let name = || -> std::io::Result<usize> {
        let stream = TcpStream::connect_timeout(&to, AT_ONCE)?;
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        stream.set_read_timeout(Some(AT_ONCE))?;
        BufReader::new(stream).read_line(&mut String::new())
    };
    match name() {
        Ok(length) if length > 0 => tally.opened += 1,
        Ok(_) => tally.refused.push(format!("a connection to {to} was closed at once")),
        Err(error) => tally.refused.push(format!("a connection to {to}: {error}")),
    }
}

fn bind(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

fn ask(to: SocketAddr, tally: &mut Tally) {
    let answer = || -> std::io::Result<usize> {
        let socket = bind(to)?;
        socket.set_read_timeout(Some(AT_ONCE))?;
        socket.send(b"who")?;
        socket.recv(&mut [0; 64])
    };
    match answer() {
        Ok(_) => tally.answered += 1,
        Err(error) => tally.unanswered.push(format!("a datagram to {to}: {error}")),
    }
}

/// A refusal by the other end says that it was reached, too.
fn try_connection(to: SocketAddr, tally: &mut Tally) {
    tally.tried += 1;
    match TcpStream::connect_timeout(&to, BRIEF) {
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        Ok(_) => tally.passed.push(format!("a connection to {to}")),
        Err(error) => tally.passed.push(format!("a connection to {to}: {error}")),
    }
}

fn try_datagrams(to: SocketAddr, stop: &AtomicBool) -> Tally {
    let socket = bind(to).and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).expect("a socket of UDP");
    repeat(stop, |tally| {
        tally.tried += 1;
        let _ = socket.send(b"who");
        if socket.recv(&mut [0; 64]).is_ok() {
            tally.passed.push(format!("a datagram to {to}"));
        }
    })
}
