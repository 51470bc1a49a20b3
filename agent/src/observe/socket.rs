//! The socket of those who look: recent and live lines about flows, and names of addresses. Root's alone, as the CNI plugin's is.
//!
//! A socket of its own: whoever watches stays, and must not take the place of a pod that waits for its start. One question is one line of
//! JSON; the answer is lines until the connection ends.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::record::Record;
use super::reporter::{LostLines, Recent};
use super::state_dir;
use crate::cni::server::bind;

/// A question is at most this long (bytes): some thousands of addresses.
pub const LINE_MAX: usize = 1 << 20;
/// How many addresses may be asked about at once.
pub const ADDRESSES_MAX: usize = 8192;
/// Whoever connects has this long to say what he wants.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// More wait in the kernel until one of these ends.
const CONNECTIONS_MAX: usize = 32;
/// So many may watch, so that there is always room for those who ask and go.
const WATCHERS_MAX: usize = 24;
/// How long to wait when the process has no descriptors left; no event tells that it has some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
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
    pub lost: LostLines,
}

/// Makes the socket and serves until it is dropped. Where it cannot be made nobody sees what is refused, and all else goes on.
pub async fn run(path: PathBuf, sources: Sources) -> Infallible {
    loop {
        match bind(&path) {
            Ok(listener) => match serve(listener, &sources).await {},
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "`palisade drops` cannot ask this agent");
            }
        }
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

async fn serve(listener: UnixListener, sources: &Sources) -> Infallible {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => connections.push(connection(stream, sources)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection at the socket of those who look");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(()) = connections.next() => {}
        }
    }
}

async fn connection(stream: UnixStream, sources: &Sources) {
    if let Err(error) = converse(stream, sources).await {
        tracing::debug!(error = format!("{error:#}"), "a connection of one who looks has ended");
    }
}

async fn converse(stream: UnixStream, sources: &Sources) -> anyhow::Result<()> {
    let peer = stream.peer_cred().context("who asks")?;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut lines = BufReader::new(read.take(LINE_MAX as u64));
    tokio::time::timeout(REQUEST_WAIT, lines.read_line(&mut line)).await.context("nothing was asked")??;
    if peer.uid() != 0 {
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused: only root may see who talks to whom");
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
            let mut rest = [0; 1];
            tokio::select! {
                watched = watch(&mut write, sources) => watched,
                // Whoever watched has gone.
                _ = lines.read(&mut rest) => Ok(()),
            }
        }
        Ok(Ask::Names { addresses }) => {
            let (answer, names) = oneshot::channel();
            sources.names.send(NamesAsked { addresses, answer }).await.context("the agent is ending")?;
            say(&mut write, &Said::Names(names.await.context("the agent is ending")?)).await
        }
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
