//! Both ends of some thousand connections between two pods, on each of which a few bytes go there and back now and then: what one process
//! may have descriptors for.
//!
//! The ends are a thread each, in their pods' namespaces. A packet that is dropped is sent again by TCP after 200 ms at the earliest, so
//! an answer that takes longer tells of one (or of a busy machine); an answer that never comes tells of a connection that was cut.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, read, write};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect, listen, recv, send,
    socket_with, sockopt,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::held::{Extent, HeldCounts};
use crate::lab::Netns;

/// TCP's first repetition comes after 200 ms.
const LATE: Duration = Duration::from_millis(190);
/// Sockets that are looked at between two looks at everything else.
const READY_MAX: usize = 1024;
/// Connections that are being opened at one time.
const OPENING_MAX: usize = 256;
const TOKEN: [u8; 8] = *b"palisade";

/// What became of the connections.
#[derive(Debug, Default)]
struct Counts {
    exchanges: AtomicU64,
    late: AtomicU64,
    resets: AtomicU64,
    cut: AtomicU64,
}

/// The process of a share: says so when all are open, tells how they stand for each line that it is sent, and ends with its input.
pub fn hold(client: &Netns, server: (&Netns, &[IpAddr]), port: u16, extent: Extent) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raising RLIMIT_NOFILE")?;
    let mut ends = Ends::open(client, server, port, extent)?;
    println!("open");
    for line in io::stdin().lines() {
        line?;
        println!("{}", serde_json::to_string(&ends.counts())?);
    }
    ends.end()
}

struct Ends {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Ends {
    /// From the client to the server's addresses by turns; returns once all are open.
    fn open(client: &Netns, server: (&Netns, &[IpAddr]), port: u16, extent: Extent) -> Result<Self> {
        let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let (listening, listens) = mpsc::channel();
        let (opened, opens) = mpsc::channel();
        let (netns, stopped) = (server.0.clone(), stop.clone());
        let answers = std::thread::spawn(move || {
            netns.enter()?;
            let mut server = Server::listen(port)?;
            listening.send(())?;
            server.answer(&stopped)
        });
        listens.recv().context("the server does not listen")?;
        let targets: Vec<SocketAddr> = server.1.iter().map(|address| SocketAddr::new(*address, port)).collect();
        let (netns, told, stopped) = (client.clone(), counts.clone(), stop.clone());
        let asks = std::thread::spawn(move || {
            netns.enter()?;
            let mut client = Client::open(&targets, extent, &told)?;
            opened.send(())?;
            client.ask(&stopped)
        });
        let held = Self { counts, stop, threads: vec![answers, asks] };
        if opens.recv().is_err() {
            let mut held = held;
            held.end()?;
            anyhow::bail!("the connections were not opened");
        }
        Ok(held)
    }

    fn counts(&self) -> HeldCounts {
        let Counts { exchanges, late, resets, cut } = &*self.counts;
        let [exchanges, late, resets, cut] = [exchanges, late, resets, cut].map(|count| count.load(Ordering::Relaxed));
        HeldCounts { exchanges, late, resets, cut }
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("neither end panics")?;
        }
        Ok(())
    }
}

/// Sockets by number, and which of them are ready.
struct Sockets {
    epoll: OwnedFd,
    sockets: Vec<Option<OwnedFd>>,
}

impl Sockets {
    fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, sockets: Vec::new() })
    }

    fn add(&mut self, socket: OwnedFd, flags: epoll::EventFlags) -> io::Result<usize> {
        let number = self.sockets.len();
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(number as u64), flags)?;
        self.sockets.push(Some(socket));
        Ok(number)
    }

    /// Numbers of those that are ready, after five milliseconds at most.
    fn ready(&self) -> io::Result<Vec<usize>> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); READY_MAX];
        let timeout = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok((events, _)) => Ok(events.iter().map(|event| event.data.u64() as usize).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The listening socket is the first.
struct Server {
    sockets: Sockets,
}

impl Server {
    fn listen(port: u16) -> Result<Self> {
        let mut sockets = Sockets::new()?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
        sockopt::set_ipv6_v6only(&socket, false)?;
        bind(&socket, &SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
        listen(&socket, 4096)?;
        sockets.add(socket, epoll::EventFlags::IN)?;
        Ok(Self { sockets })
    }

    fn answer(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            for number in self.sockets.ready()? {
                if number == 0 {
                    self.accept()?;
                } else {
                    self.echo(number);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let listener = self.sockets.sockets[0].as_ref().expect("it is kept");
            match accept_with(listener, flags) {
                Ok(socket) => _ = self.sockets.add(socket, epoll::EventFlags::IN)?,
                Err(Errno::AGAIN) => return Ok(()),
                // Gone before it was looked at.
                Err(Errno::CONNABORTED) => {}
                Err(error) => return Err(error).context("accepting"),
            }
        }
    }

    /// What the client's end makes of a connection that ends is counted there.
    fn echo(&mut self, number: usize) {
        let Some(socket) = &self.sockets.sockets[number] else { return };
        let mut buffer = [0; 256];
        match read(socket, &mut buffer) {
            Ok(0) => self.sockets.sockets[number] = None,
            Ok(length) => _ = write(socket, &buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.sockets.sockets[number] = None,
        }
    }
}

struct Client<'a> {
    sockets: Sockets,
    counts: &'a Counts,
    /// When what is not answered yet was sent.
    asked: Vec<Option<Instant>>,
    /// In the order of asking.
    waiting: VecDeque<(usize, Instant)>,
    period: Duration,
}

impl<'a> Client<'a> {
    fn open(targets: &[SocketAddr], extent: Extent, counts: &'a Counts) -> Result<Self> {
        let Extent { connections, period } = extent;
        let mut sockets = Sockets::new()?;
        let mut opening: VecDeque<usize> = VecDeque::new();
        let end = Instant::now() + Duration::from_secs(120);
        while sockets.sockets.len() < connections || !opening.is_empty() {
            ensure!(Instant::now() < end, "{} of {connections} connections are open", sockets.sockets.len());
            while sockets.sockets.len() < connections && opening.len() < OPENING_MAX {
                let to = targets[sockets.sockets.len() % targets.len()];
                let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let socket = socket_with(family, SocketType::STREAM, flags, None)?;
                sockopt::set_tcp_nodelay(&socket, true)?;
                match connect(&socket, &to) {
                    Ok(()) | Err(Errno::INPROGRESS) => {}
                    Err(error) => return Err(error).with_context(|| format!("connecting to {to}")),
                }
                let number = sockets.add(socket, epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT)?;
                opening.push_back(number);
            }
            for number in sockets.ready()? {
                let socket = sockets.sockets[number].as_ref().expect("none is closed yet");
                sockopt::socket_error(socket)?.with_context(|| format!("opening connection {number}"))?;
                let data = epoll::EventData::new_u64(number as u64);
                epoll::modify(&sockets.epoll, socket, data, epoll::EventFlags::IN)?;
                opening.retain(|other| *other != number);
            }
        }
        Ok(Self { sockets, counts, asked: vec![None; connections], waiting: VecDeque::new(), period })
    }

    fn ask(&mut self, stop: &AtomicBool) -> Result<()> {
        let all = self.asked.len();
        let (begun, mut sent) = (Instant::now(), 0_u64);
        while !stop.load(Ordering::Relaxed) {
            let ready = self.sockets.ready()?;
            for number in &ready {
                self.take(*number);
            }
            let due = (begun.elapsed().as_secs_f64() / self.period.as_secs_f64() * all as f64) as u64;
            while sent < due {
                self.send(sent as usize % all);
                sent += 1;
            }
            // On a busy machine answers may lie there that nobody has looked at.
            if ready.len() < READY_MAX {
                self.give_up();
            }
        }
        Ok(())
    }

    /// Not while an answer is awaited.
    fn send(&mut self, number: usize) {
        let Some(socket) = &self.sockets.sockets[number] else { return };
        if self.asked[number].is_some() {
            return;
        }
        match send(socket, &TOKEN, SendFlags::NOSIGNAL) {
            Ok(_) => {
                let now = Instant::now();
                self.asked[number] = Some(now);
                self.waiting.push_back((number, now));
            }
            Err(_) => self.lose(number),
        }
    }

    fn take(&mut self, number: usize) {
        let Some(socket) = &self.sockets.sockets[number] else { return };
        let mut buffer = [0; 64];
        match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => self.lose(number),
            Ok(_) => {
                if let Some(asked) = self.asked[number].take() {
                    self.counts.exchanges.fetch_add(1, Ordering::Relaxed);
                    self.counts.late.fetch_add(u64::from(asked.elapsed() > LATE), Ordering::Relaxed);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.lose(number),
        }
    }

    fn lose(&mut self, number: usize) {
        self.counts.resets.fetch_add(1, Ordering::Relaxed);
        self.sockets.sockets[number] = None;
        self.asked[number] = None;
    }

    fn give_up(&mut self) {
        while let Some((number, asked)) = self.waiting.front().copied() {
            let answered = self.asked[number] != Some(asked);
            if !answered && asked.elapsed() < 2 * self.period {
                return;
            }
            self.waiting.pop_front();
            if !answered {
                self.counts.cut.fetch_add(1, Ordering::Relaxed);
                self.sockets.sockets[number] = None;
                self.asked[number] = None;
            }
        }
    }
}
