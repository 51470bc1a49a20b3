//! The socket of those who look: recent and live lines about flows, and names of addresses. Root's alone, as the CNI plugin's is.
//!
//! A socket of its own: whoever watches stays, and must not take the place of a pod that waits for its start. One question is one line of
//! JSON; the answer is lines until the connection ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::capture::{self, CaptureAsk, Packet, Reading};
use super::record::Record;
use super::reporter::{LostLines, Recent};
use super::state_dir;
use crate::root_socket::{Asked, bind, serve};

/// A question is at most this long (bytes): some thousands of addresses.
pub const LINE_MAX: usize = 1 << 20;
/// How many addresses may be asked about at once.
pub const ADDRESSES_MAX: usize = 8192;
/// More wait in the kernel until one of these ends.
const CONNECTIONS_MAX: usize = 32 + capture::READERS_MAX;
/// So many may watch, so that there is always room for those who ask and go.
const WATCHERS_MAX: usize = 24;
/// Before the socket is tried again; of room on a file system no event tells.
const BIND_PAUSE: Duration = Duration::from_secs(5);

/// The socket of the agent with this `--pin-dir`.
pub fn path(pin_dir: &Path) -> PathBuf {
    state_dir(pin_dir).join("observe.sock")
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// What was refused or admitted lately.
    Recent,
    /// What will be, until the connection ends.
    Watch,
    /// Which pods have these addresses.
    Names { addresses: Vec<IpAddr> },
    /// What is refused of a pod (`namespace/name`) from now on, with its first `snaplen` bytes, for so many seconds. Whoever asked ends it sooner
    /// by closing his half of the connection, and is told what there still is.
    Capture { pod: String, snaplen: u32, seconds: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// From now on nothing is missed.
    Watching,
    Record(Box<Record>),
    /// So many lines were not told, as whoever watches was too slow.
    Lost(u64),
    Names(BTreeMap<IpAddr, String>),
    Refused(String),
    /// From now on packets are captured; those of the pod's own interface are of this one.
    Capturing {
        interface: String,
    },
    Packet(Box<Packet>),
    /// So many packets were not captured, or not told.
    LostPackets(u64),
    /// The capture has come to its end.
    Over,
}

/// A question that only the agent's loop can answer.
#[derive(Debug)]
pub struct NamesAsked {
    pub addresses: Vec<IpAddr>,
    pub answer: oneshot::Sender<BTreeMap<IpAddr, String>>,
}

/// Where answers come from.
#[derive(Clone, Debug)]
pub struct Sources {
    pub recent: Recent,
    pub watchers: broadcast::Sender<Arc<Record>>,
    pub names: mpsc::Sender<NamesAsked>,
    pub captures: mpsc::Sender<CaptureAsk>,
    pub lost: LostLines,
}

/// Makes the socket and serves until it is dropped. Where it cannot be made nobody sees what is refused, and all else goes on.
pub async fn run(path: PathBuf, sources: Sources) -> Infallible {
    loop {
        match bind(&path) {
            Ok(listener) => match serve(listener, CONNECTIONS_MAX, |stream| converse(stream, &sources)).await {},
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "`palisade drops` cannot ask this agent");
            }
        }
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

async fn converse(stream: UnixStream, sources: &Sources) -> anyhow::Result<()> {
    let asked = Asked::read(stream, LINE_MAX).await?;
    let (uid, pid, is_root) = (asked.uid, asked.pid, asked.is_root());
    let (line, mut write, gone) = asked.split();
    if !is_root {
        tracing::warn!(uid, pid, "refused: only root may see who talks to whom");
        return say(&mut write, &Said::Refused("only root may see who talks to whom".to_owned())).await;
    }
    match serde_json::from_str(&line) {
        Err(error) => {
            let message = format!("the command and the agent are of different versions: {error}");
            say(&mut write, &Said::Refused(message)).await
        }
        Ok(Ask::Recent) => {
            for record in sources.recent.records() {
                say(&mut write, &Said::Record(Box::new(record))).await?;
            }
            Ok(())
        }
        Ok(Ask::Watch) if sources.watchers.receiver_count() >= WATCHERS_MAX => {
            say(&mut write, &Said::Refused(format!("{WATCHERS_MAX} are watching already"))).await
        }
        Ok(Ask::Watch) => {
            tokio::select! {
                watched = watch(&mut write, sources) => watched,
                // Whoever watched has gone.
                () = gone => Ok(()),
            }
        }
        Ok(Ask::Names { addresses }) => {
            let (answer, names) = oneshot::channel();
            sources.names.send(NamesAsked { addresses, answer }).await.context("the agent is ending")?;
            say(&mut write, &Said::Names(names.await.context("the agent is ending")?)).await
        }
        Ok(Ask::Capture { pod, snaplen, seconds }) => {
            let duration = Duration::from_secs(seconds);
            match capture::begin(&sources.captures, pod, snaplen, duration).await? {
                Ok(reading) => captured(&mut write, &sources.captures, reading, gone).await,
                Err(why) => say(&mut write, &Said::Refused(why)).await,
            }
        }
    }
}

async fn captured(
    write: &mut OwnedWriteHalf,
    captures: &mpsc::Sender<CaptureAsk>,
    mut reading: Reading,
    gone: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let told = tell_packets(write, &mut reading, gone).await;
    // Whatever has become of whoever asked, the kernel is told.
    capture::end(captures, &reading).await?;
    told?;
    while let Some(packet) = reading.packets.recv().await {
        say(write, &Said::Packet(Box::new(packet))).await?;
    }
    tell_lost(write, &reading).await?;
    say(write, &Said::Over).await
}

/// Until its time is over, or whoever asked wants no more.
async fn tell_packets(
    write: &mut OwnedWriteHalf,
    reading: &mut Reading,
    gone: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    say(write, &Said::Capturing { interface: reading.interface.clone() }).await?;
    tokio::pin!(gone);
    loop {
        tokio::select! {
            packet = reading.packets.recv() => match packet {
                Some(packet) => say(write, &Said::Packet(Box::new(packet))).await?,
                None => return Ok(()),
            },
            () = &mut gone => return Ok(()),
        }
        tell_lost(write, reading).await?;
    }
}

async fn tell_lost(write: &mut OwnedWriteHalf, reading: &Reading) -> anyhow::Result<()> {
    match reading.lost.swap(0, Ordering::Relaxed) {
        0 => Ok(()),
        lost => say(write, &Said::LostPackets(lost)).await,
    }
}

async fn watch(write: &mut OwnedWriteHalf, sources: &Sources) -> anyhow::Result<()> {
    let mut records = sources.watchers.subscribe();
    say(write, &Said::Watching).await?;
    loop {
        let said = match records.recv().await {
            Ok(record) => Said::Record(Box::new(Record::clone(&record))),
            Err(RecvError::Lagged(lines)) => {
                sources.lost.get_or_create(&[("sink", "watch")]).inc_by(lines);
                Said::Lost(lines)
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        say(write, &said).await?;
    }
}

async fn say(write: &mut OwnedWriteHalf, said: &Said) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(said)?;
    text.push(b'\n');
    write.write_all(&text).await.context("writing an answer")
}
