//! Sockets that are root's alone, by their folder, their mode and who is at the other end: made, served, and asked one line each time.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Take};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

/// Whoever connects has this long to say what he wants.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long to wait when the process has no descriptors left; no event tells that it has some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Makes the socket. One that is there is of an agent that has ended, as nobody else has locked the pin folder.
///
/// # Errors
///
/// When it cannot be made, with its path.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || format!("making the agent's socket {}", path.display());
    let folder = path.parent().context("a socket lies in a folder")?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(context)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700)).with_context(context)?;
    // By a rename, so that there is one at any time.
    let new = path.with_extension("new");
    if new.exists() {
        fs::remove_file(&new).with_context(context)?;
    }
    let listener = UnixListener::bind(&new).with_context(context)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600)).with_context(context)?;
    fs::rename(&new, path).with_context(context)?;
    Ok(listener)
}

/// Serves until it is dropped, at most `most` connections at a time: more wait in the kernel until one of these ends.
pub async fn serve<F: Future<Output = anyhow::Result<()>>>(
    listener: UnixListener,
    most: usize,
    converse: impl Fn(UnixStream) -> F,
) -> Infallible {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => connections.push(converse(stream)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection at a socket of the agent");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.next() => if let Err(error) = ended {
                tracing::debug!(error = format!("{error:#}"), "a connection to a socket of the agent failed");
            },
        }
    }
}

/// What somebody who has connected wants.
pub struct Asked {
    pub line: String,
    pub uid: u32,
    pub pid: Option<i32>,
    pub write: OwnedWriteHalf,
    read: BufReader<Take<OwnedReadHalf>>,
}

impl Asked {
    /// `most`: how long the line may be (bytes).
    ///
    /// # Errors
    ///
    /// When nothing is asked in time.
    pub async fn read(stream: UnixStream, most: usize) -> anyhow::Result<Self> {
        let peer = stream.peer_cred().context("who asks")?;
        let (read, write) = stream.into_split();
        let mut line = String::new();
        let mut read = BufReader::new(read.take(most as u64));
        tokio::time::timeout(REQUEST_WAIT, read.read_line(&mut line)).await.context("nothing was asked")??;
        Ok(Self { line, uid: peer.uid(), pid: peer.pid(), write, read })
    }

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The line apart, how to answer, and what is ready once whoever asked has gone, or wants no more.
    pub fn split(mut self) -> (String, OwnedWriteHalf, impl Future<Output = ()>) {
        let gone = async move {
            let mut rest = [0; 1];
            let _ = self.read.read(&mut rest).await;
        };
        (self.line, self.write, gone)
    }
}
