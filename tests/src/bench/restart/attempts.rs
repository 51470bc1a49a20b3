//! New connections at a steady rate, each with a known right answer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::lab::Netns;

/// A SYN that is not answered is repeated after a second. One that has to be is waited for until then.
const ANSWERED: Duration = Duration::from_millis(950);
/// One that must not be is given up sooner, as each holds a socket.
const REFUSED: Duration = Duration::from_millis(300);

/// Who connects to what, and whether policies permit it.
#[derive(Clone)]
pub struct Kind {
    pub from: Netns,
    /// By turns.
    pub to: Vec<SocketAddr>,
    pub permitted: bool,
    /// Per second.
    pub rate: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    pub permitted: u64,
    /// Permitted, and not answered to the first SYN.
    pub wrongly_refused: u64,
    pub forbidden: u64,
    pub wrongly_admitted: u64,
}

/// Runs until it is asked what came of it.
pub struct Attempts {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<AttemptCounts>>>,
}

impl Attempts {
    pub fn start(kinds: &[Kind]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let attempt = |kind: &Kind| {
            let (kind, stop) = (kind.clone(), stop.clone());
            std::thread::spawn(move || {
                kind.from.enter()?;
                attempt(&kind, &stop)
            })
        };
        let threads = kinds.iter().map(attempt).collect();
        Self { stop, threads }
    }

    /// After the last one has had its time.
    pub fn finish(self) -> Result<AttemptCounts> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = AttemptCounts::default();
        for thread in self.threads {
            all.add(thread.join().expect("it does not panic")?);
        }
        Ok(all)
    }
}

impl AttemptCounts {
    pub fn add(&mut self, other: Self) {
        let Self { permitted, wrongly_refused, forbidden, wrongly_admitted } = other;
        self.permitted += permitted;
        self.wrongly_refused += wrongly_refused;
        self.forbidden += forbidden;
        self.wrongly_admitted += wrongly_admitted;
    }
}

fn attempt(kind: &Kind, stop: &AtomicBool) -> Result<AttemptCounts> {
    let mut counts = AttemptCounts::default();
    let mut pending: VecDeque<(Instant, Option<OwnedFd>)> = VecDeque::new();
    let patience = if kind.permitted { ANSWERED } else { REFUSED };
    let (begun, mut made) = (Instant::now(), 0_usize);
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        let due = (begun.elapsed().as_secs_f64() * f64::from(kind.rate)) as usize;
        while made < due && !stopped {
            pending.push_back((Instant::now(), begin(kind.to[made % kind.to.len()])?));
            made += 1;
        }
        while let Some((since, socket)) = pending.front() {
            let reached = socket.as_ref().map_or(Ok(false), answered)?;
            if !reached && since.elapsed() < patience {
                break;
            }
            match (kind.permitted, reached) {
                (true, true) => counts.permitted += 1,
                (true, false) => counts.wrongly_refused += 1,
                (false, false) => counts.forbidden += 1,
                (false, true) => counts.wrongly_admitted += 1,
            }
            pending.pop_front();
        }
        if stopped && pending.is_empty() {
            return Ok(counts);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `None`: there is no way at the moment.
fn begin(to: SocketAddr) -> Result<Option<OwnedFd>> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Closing sends a reset, so that no port is held by a connection that is over.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(Some(socket)),
        Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The server has said who it is, and says nothing more: a last word that crosses the reset would be refused.
fn answered(socket: &OwnedFd) -> Result<bool> {
    let mut asked = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let ready = asked[0].revents().contains(PollFlags::IN);
    Ok(ready && sockopt::socket_error(socket)?.is_ok())
}
