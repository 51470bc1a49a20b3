//! The agent's socket for the CNI plugin and for commands that want the whole of what is known.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{LINE_MAX, Refusal, Reply, Request, Told, code};
use crate::explain::names::Reference;
use crate::node::Telling;
use crate::root_socket::{Asked, bind, serve};

/// How long ADD waits for its pod to be enforced. The kubelet tries again, so what takes longer is better told than waited for.
pub const ADD_WAIT: Duration = Duration::from_secs(10);

/// More wait in the kernel until one of these has its answer.
const CONNECTIONS_MAX: usize = 512;

/// Before the socket is tried again; of room on a file system no event tells.
const BIND_PAUSE: Duration = Duration::from_secs(1);
const BIND_PAUSE_MAX: Duration = Duration::from_secs(16);

/// A question that only the agent's loop can answer.
#[derive(Debug)]
pub struct Ask {
    pub question: Question,
    pub answer: oneshot::Sender<Reply>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// To be answered once the pod is enforced.
    Enforced(Told),
    EnforcedNow(Told),
    /// Whether pods can be started at all.
    Available,
    /// What is paused has changed.
    Pauses,
    /// What is known of somebody.
    Find(Reference),
    /// Every object that is known.
    Objects,
}

/// Where questions go.
#[derive(Clone, Debug)]
pub struct Senders {
    pub agent: mpsc::Sender<Ask>,
    pub node: mpsc::Sender<Telling>,
}

/// Makes the socket and serves until it is dropped. Where it cannot be made no pod is started by way of the plugin, and it is tried again.
pub async fn run(path: PathBuf, senders: Senders) -> Infallible {
    let mut pause = BIND_PAUSE;
    loop {
        match bind(&path) {
            Ok(listener) => match serve(listener, CONNECTIONS_MAX, |stream| converse(stream, &senders)).await {},
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                retry_s = pause.as_secs(),
                "palisade-cni cannot ask this agent, so that pods in whose way it is do not start"
            ),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BIND_PAUSE_MAX);
    }
}

async fn converse(stream: UnixStream, senders: &Senders) -> anyhow::Result<()> {
    let asked = Asked::read(stream, LINE_MAX).await?;
    let (uid, pid, is_root) = (asked.uid, asked.pid, asked.is_root());
    let (line, mut write, gone) = asked.split();
    let answer = if is_root {
        tokio::select! {
            answer = answer(&line, senders) => answer,
            // The plugin was ended, so nobody waits for its pod any longer.
            () = gone => return Ok(()),
        }
    } else {
        tracing::warn!(uid, pid, "refused: only root may ask at the agent's socket");
        Err(Refusal { code: code::INVALID_ENVIRONMENT, message: "only root may ask the agent".to_owned() })
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await.context("writing the answer")
}

async fn answer(line: &str, senders: &Senders) -> Reply {
    let request = serde_json::from_str(line).map_err(|error| {
        let message = format!("the plugin and the agent are of different versions: {error}");
        Refusal { code: code::UNDECODABLE, message }
    })?;
    match request {
        Request::Add(attachment) => {
            let (told, result) = attachment.read()?;
            let key = Arc::from(attachment.key);
            tell(senders, Telling::Made { key, at: SystemTime::now(), result }).await?;
            ask(senders, Question::Enforced(told)).await
        }
        Request::Check(attachment) => ask(senders, Question::EnforcedNow(attachment.read()?.0)).await,
        Request::Del { key } => tell(senders, Telling::Goes(key.into())).await,
        Request::Gc { network, keys } => {
            let keys = keys.into_iter().map(Arc::from).collect();
            tell(senders, Telling::Stay { prefix: format!("{network}-"), keys }).await
        }
        Request::Status => ask(senders, Question::Available).await,
        Request::Pauses => ask(senders, Question::Pauses).await,
        Request::Objects => ask(senders, Question::Objects).await,
        Request::Find { what } => ask(senders, Question::Find(what)).await,
    }
}

async fn tell(senders: &Senders, telling: Telling) -> Reply {
    senders.node.send(telling).await.map(|()| Value::Null).map_err(|_| ending())
}

async fn ask(senders: &Senders, question: Question) -> Reply {
    let (sender, answer) = oneshot::channel();
    senders.agent.send(Ask { question, answer: sender }).await.map_err(|_| ending())?;
    answer.await.unwrap_or_else(|_| Err(ending()))
}

fn ending() -> Refusal {
    Refusal { code: code::TRY_AGAIN_LATER, message: "the agent of this node is ending".to_owned() }
}
