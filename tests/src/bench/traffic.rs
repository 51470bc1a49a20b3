//! Connections that last, between two pods: streams of bytes one way, and exchanges of one byte each way. Every one is opened anew for each
//! measurement, so that it is judged by what is in force then, and has a thread at both ends.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::load::Work;

/// The server's port, the one before those of [`super::load::PORTS`].
pub const PORT: u16 = super::load::PORTS.start - 1;

/// What one call reads or writes of a stream (bytes).
const BLOCK: usize = 128 * 1024;
/// The first byte of a connection: what it is for.
const STREAM: u8 = b's';
const EXCHANGE: u8 = b'e';

/// How long nothing may come before a connection counts as cut.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens, and serves from threads of its own for ever.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("the port of streams and exchanges")?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that ends in the middle is not the server's trouble: the client tells.
            thread::spawn(move || serve_one(stream));
        }
    });
    Ok(())
}

fn serve_one(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut purpose = [0];
    stream.read_exact(&mut purpose)?;
    match purpose[0] {
        STREAM => {
            let mut block = vec![0; BLOCK];
            while stream.read(&mut block)? > 0 {}
        }
        EXCHANGE => {
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
        }
        other => bail!("a connection for {other}"),
    }
    Ok(())
}

/// Bytes sent, or exchanges, on all connections together.
pub fn run(server: Ipv4Addr, work: Work, warm_up: Duration, measured: Duration) -> Result<u64> {
    let (purpose, parallel) = match work {
        Work::Streams(parallel) => (STREAM, parallel),
        Work::Exchanges(parallel) => (EXCHANGE, parallel),
        Work::Connections(_) => bail!("connections are not made here"),
    };
    let mut streams = Vec::new();
    for _ in 0..parallel {
        let mut stream = TcpStream::connect((server, PORT)).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&[purpose])?;
        streams.push(stream);
    }
    let start = Instant::now() + warm_up;
    let end = start + measured;
    thread::scope(|scope| {
        let threads: Vec<_> =
            streams.into_iter().map(|stream| scope.spawn(move || drive(stream, purpose, start, end))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no client panics")).sum()
    })
}

/// Counts from `start` to `end`, and is busy before.
fn drive(mut stream: TcpStream, purpose: u8, start: Instant, end: Instant) -> Result<u64> {
    let (block, mut byte, mut count) = (vec![0; BLOCK], [0], 0);
    loop {
        let done = if purpose == STREAM {
            stream.write(&block).context("a stream was cut")? as u64
        } else {
            stream.write_all(&byte).context("an exchange was cut")?;
            stream.read_exact(&mut byte).context("an exchange was cut")?;
            1
        };
        let now = Instant::now();
        if now >= end {
            return Ok(count);
        }
        if now >= start {
            count += done;
        }
    }
}
