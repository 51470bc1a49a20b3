//! What is asked of the API server and how its answers are read: as a whole or not at all, and never into a log, as pods may carry secrets.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use serde::Deserialize;
use tokio::time::timeout;

use super::contact::{causes, plural};
use super::kinds::Shape;

/// Objects of one page, as client-go asks for them.
const PAGE: u32 = 500;
/// How long the head of an answer may take: the API server itself gives a request up after a minute (--request-timeout).
const ANSWER_TIME: Duration = Duration::from_secs(65);
/// A watch that says nothing for so long is dead: each is sent a bookmark about once a minute (apiserver's defaultBookmarkFrequency).
pub const SILENCE_MAX: Duration = Duration::from_secs(100);
/// So long a streaming list may pause. Where its end needs what a server's storage does not give, it never comes.
pub const STREAM_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long the API server lets a watch last, seconds; a part of it by chance, so that those of a cluster's nodes do not end together.
const WATCH_SECONDS: (u32, u32) = (200, 90);
/// More than any object: etcd takes 1.5 MiB for one.
const LINE_MAX: usize = 16 << 20;
const ANSWER_MAX: usize = 256 << 20;

/// Why something asked for is not known.
#[derive(Debug)]
pub enum Failure {
    /// No answer, or not to its end.
    Unanswered(String),
    /// The answer is no.
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    /// The answer makes no sense.
    Garbage(String),
    /// A watch has said nothing for so long.
    Silent(Duration),
}

pub struct Page<S> {
    pub items: Vec<S>,
    /// For the page that follows.
    pub next: Option<String>,
    /// Empty, unless it is the last.
    pub version: String,
}

/// One line of a watch.
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub enum Line<S> {
    Added(S),
    Modified(S),
    Deleted(S),
    Bookmark(Bookmark),
    Error(Status),
}

#[derive(Deserialize)]
pub struct Bookmark {
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
    annotations: Annotations,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<String>,
}

/// metav1.Status: why not.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Status {
    code: u16,
    message: String,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: u32,
}

#[derive(Deserialize)]
#[serde(bound = "S: Shape")]
struct List<S> {
    kind: String,
    #[serde(default)]
    metadata: Meta,
    /// Go writes a list that is empty as null, too.
    items: Option<Vec<S>>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug)]
pub enum Since<'a> {
    /// With all that is there, as of now: a streaming list (Kubernetes 1.27 and later, where it is switched on).
    Everything,
    Version(&'a str),
}

/// The lines of a watch, as they come.
pub struct Lines<S> {
    body: Body,
    buffer: BytesMut,
    /// So much of the buffer has no line's end.
    looked: usize,
    shape: PhantomData<fn() -> S>,
}

/// One page, of the server's newest state: an older one, as another server of the cluster may have it, would take verdicts back in time.
pub async fn list<S: Shape>(client: &Client, next: Option<String>) -> Result<Page<S>, Failure> {
    let parameters = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
    let request = Request::new(path::<S>()).list(&parameters).map_err(|error| Failure::unanswered(&error))?;
    let body = Limited::new(ask(client, request).await?, ANSWER_MAX).collect().await;
    let bytes = body.map_err(|error| Failure::unanswered(&*error))?.to_bytes();
    let wanted = format!("{}List", S::KIND.name());
    let List { kind, metadata: Meta { resource_version, next, .. }, items } =
        serde_json::from_slice::<List<S>>(&bytes).map_err(|error| garbage(&wanted, &error))?;
    if kind != wanted {
        return Err(Failure::Garbage(format!("an answer of kind {kind:?} and not {wanted}")));
    }
    let next = next.filter(|next| !next.is_empty());
    if resource_version.is_empty() && next.is_none() {
        return Err(Failure::Garbage(format!("a {wanted} without a version")));
    }
    Ok(Page { items: items.unwrap_or_default(), next, version: resource_version })
}

pub async fn watch<S: Shape>(client: &Client, since: Since<'_>, chance: u32) -> Result<Lines<S>, Failure> {
    let (least, more) = WATCH_SECONDS;
    let (send_initial_events, version) = match since {
        Since::Everything => (true, ""),
        Since::Version(version) => (false, version),
    };
    let parameters =
        WatchParams { timeout: Some(least + chance % more), send_initial_events, ..WatchParams::default() };
    let request = Request::new(path::<S>()).watch(&parameters, version).map_err(|error| Failure::unanswered(&error))?;
    let body = ask(client, request).await?;
    Ok(Lines { body, buffer: BytesMut::new(), looked: 0, shape: PhantomData })
}

fn path<S: Shape>() -> String {
    let group = if S::GROUP.is_empty() { "api".to_owned() } else { format!("apis/{}", S::GROUP) };
    format!("/{group}/v1/{}", plural(S::KIND))
}

/// The body of an answer that says yes.
async fn ask(client: &Client, request: http::Request<Vec<u8>>) -> Result<Body, Failure> {
    /// Of the reason why not.
    const REASON_MAX: usize = 64 << 10;
    let answer = timeout(ANSWER_TIME, client.send(request.map(Body::from))).await;
    let answer = answer.map_err(|_elapsed| Failure::Unanswered(format!("no answer in {} s", ANSWER_TIME.as_secs())))?;
    let (head, body) = answer.map_err(|error| Failure::unanswered(&error))?.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let reason = timeout(ANSWER_TIME, Limited::new(body, REASON_MAX).collect()).await;
    let reason = reason.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    // What is not the API server's own answer, as a proxy's page, is not repeated.
    let Status { message, details, .. } = serde_json::from_slice(&reason).unwrap_or_default();
    Err(refused(head.status.as_u16(), message, details))
}

fn refused(code: u16, message: String, details: Option<Details>) -> Failure {
    let retry_after = details.filter(|details| details.retry_after_seconds != 0);
    let retry_after = retry_after.map(|details| Duration::from_secs(details.retry_after_seconds.into()));
    Failure::Refused { code, message, retry_after }
}

/// serde's own text may repeat what it has read.
fn garbage(wanted: &str, error: &serde_json::Error) -> Failure {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "ends before its end",
        serde_json::error::Category::Data => "lacks what it has to have",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "is no JSON",
    };
    Failure::Garbage(format!("the answer, which should be {wanted}, {what} (at byte {})", error.column()))
}

// === impl Lines ===

impl<S: Shape> Lines<S> {
    /// `None`: the watch has ended, by the server's will or as the connection has. What came of a last line is nothing then.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Line<S>>, Failure> {
        loop {
            if let Some(length) = self.buffer[self.looked..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.looked + length + 1);
                self.looked = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let line = serde_json::from_slice(&line).map_err(|error| garbage("an event of a watch", &error))?;
                return checked(line).map(Some);
            }
            self.looked = self.buffer.len();
            if self.looked > LINE_MAX {
                return Err(Failure::Garbage(format!("an event of a watch is longer than {LINE_MAX} bytes")));
            }
            match timeout(patience, self.body.frame()).await {
                Err(_elapsed) => return Err(Failure::Silent(patience)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    tracing::debug!(kind = S::KIND.name(), error = causes(&error), "a watch was cut");
                    return Ok(None);
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// An object that says that it is another's kind may have any content.
fn checked<S: Shape>(line: Line<S>) -> Result<Line<S>, Failure> {
    let (Line::Added(object) | Line::Modified(object) | Line::Deleted(object)) = &line else { return Ok(line) };
    match object.kind() {
        Some(kind) if kind == S::KIND.name() => Ok(line),
        kind => Err(Failure::Garbage(format!("an event of a watch is of kind {kind:?} and not {}", S::KIND.name()))),
    }
}

impl Bookmark {
    /// All that was there has been told.
    pub fn ends_initial_events(&self) -> bool {
        self.metadata.annotations.initial_events_end.is_some()
    }

    pub fn into_version(self) -> String {
        self.metadata.resource_version
    }
}

impl From<Status> for Failure {
    fn from(Status { code, message, details }: Status) -> Self {
        refused(code, message, details)
    }
}

impl Failure {
    fn unanswered(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Unanswered(causes(error))
    }

    /// The server no longer has the version that was asked for, as after its restart.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// The server does not know what it was asked (400, 422).
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: 400 | 422, .. })
    }

    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code: 403, .. })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(why) | Self::Garbage(why) => f.write_str(why),
            Self::Refused { code, message, .. } if message.is_empty() => write!(f, "HTTP {code}"),
            Self::Refused { code, message, .. } => write!(f, "HTTP {code}: {message}"),
            Self::Silent(time) => write!(f, "nothing was heard for {} s", time.as_secs()),
        }
    }
}
