//! A prober: one new connection every millisecond, and when the answer became another.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::lab::Netns;

const INTERVAL: Duration = Duration::from_millis(1);
/// A connection within the node takes less than a tenth of a millisecond.
const GIVEN_UP: Duration = Duration::from_millis(25);
/// So many in a row with the same answer: it is the new one.
const CERTAIN: usize = 10;

#[derive(Clone, Copy, Debug)]
struct Attempt {
    begun: Instant,
    reached: bool,
}

pub struct Prober {
    /// In the order in which they were begun.
    attempts: Arc<Mutex<Vec<Attempt>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    pub fn start(from: &Netns, to: SocketAddr) -> Self {
        let (attempts, stop) = (Arc::<Mutex<Vec<Attempt>>>::default(), Arc::<AtomicBool>::default());
        let (from, told, stopped) = (from.clone(), attempts.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            from.enter().expect("a namespace that is open can be entered by root");
            probe(to, &told, &stopped).expect("sockets can be made");
        });
        Self { attempts, stop, thread: Some(thread) }
    }

    /// When the first attempt was begun that went this way, after the last one that went the other way; `None`: not certain yet.
    /// Attempts begun before `since` do not count.
    pub fn turned(&self, reached: bool, since: Instant) -> Option<Instant> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = attempts.partition_point(|attempt| attempt.begun < since);
        let later = &attempts[begin..];
        let first = later.iter().rposition(|attempt| attempt.reached != reached).map_or(0, |last| last + 1);
        (later.len() >= first + CERTAIN).then(|| later[first].begun)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn probe(to: SocketAddr, told: &Mutex<Vec<Attempt>>, stop: &AtomicBool) -> Result<()> {
    let mut pending: VecDeque<(Instant, OwnedFd)> = VecDeque::new();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // In order: an attempt is told when those before it are.
        while let Some((begun, socket)) = pending.front() {
            let reached = connected(socket)?;
            if !reached && begun.elapsed() < GIVEN_UP {
                break;
            }
            told.lock().unwrap_or_else(PoisonError::into_inner).push(Attempt { begun: *begun, reached });
            pending.pop_front();
        }
        pending.push_back((Instant::now(), begin(to)?));
        next += INTERVAL;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn begin(to: SocketAddr) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Closing sends a reset, so that no port is held by a connection that is over.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn connected(socket: &OwnedFd) -> Result<bool> {
    let mut asked = [PollFd::new(socket, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let ready = asked[0].revents().contains(PollFlags::OUT);
    Ok(ready && sockopt::socket_error(socket)?.is_ok())
}
