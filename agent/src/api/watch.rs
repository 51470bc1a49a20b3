//! One kind of object, listed and then watched for ever.
//!
//! A list is asked for as a stream, and in pages where the server has no streams. What is told of a list that breaks off stays told, and
//! nothing is taken to be gone before a list has come to its end. After anything that makes no sense everything is listed anew: a change
//! that was overlooked would be missed for ever.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use futures::{Stream, stream};
use kube::Client;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::contact::{Contact, plural};
use super::kinds::Shape;
use super::reduce::intern::Interner;
use super::wire::{self, Failure, Line, Lines, SILENCE_MAX, STREAM_SILENCE_MAX, Since};
use crate::facts::{Change, Fault, Update};

/// Before the server is asked again.
pub(super) const WAIT: Wait =
    Wait { min: Duration::from_millis(500), max: Duration::from_secs(10), stream: STREAM_SILENCE_MAX };
/// So long without a failure, and the next one is the first.
pub(super) const WAIT_RESET: Duration = Duration::from_secs(120);
/// The longest that a server may put us off.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// A failure that goes on is told again after this.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// A watch that ends sooner, without a word, has failed.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// How far it is.
#[derive(Default)]
enum State<S> {
    /// Everything is to be listed.
    #[default]
    Start,
    /// As a stream, if the server has it.
    Ask,
    Page {
        next: Option<String>,
    },
    /// All pages have come.
    Listed {
        version: String,
    },
    /// A stream tells what there is.
    Initial(Lines<S>),
    Resume {
        version: String,
    },
    Following {
        version: String,
        lines: Lines<S>,
        begun: Instant,
        heard: bool,
    },
}

struct Watch<S: Shape> {
    client: Client,
    contact: Contact,
    state: State<S>,
    /// What is left of a page.
    items: std::vec::IntoIter<S>,
    /// The server begins streams and does not end them.
    no_streams: bool,
    interner: Interner,
    waits: Waits,
    /// There has been a complete list.
    listed: bool,
    /// A failure was told, and no success since.
    failing: bool,
    /// It was one of a watch that had begun: a list, what another watch tells, or one that stands for so long takes it back.
    doubted: Option<Duration>,
    /// When the failure that goes on was last told.
    warned: Option<Instant>,
    /// It was told that the account may not.
    forbidden: bool,
}

pub(super) fn stream_of<S: Shape>(
    client: &Client,
    contact: &Contact,
    wait: Wait,
) -> impl Stream<Item = Update> + Send + use<S> {
    let watch = Watch::<S> {
        client: client.clone(),
        contact: contact.clone(),
        state: State::Start,
        items: Vec::new().into_iter(),
        no_streams: false,
        interner: Interner::default(),
        waits: Waits { wait, last: None, gone: false },
        listed: false,
        failing: false,
        doubted: None,
        warned: None,
        forbidden: false,
    };
    stream::unfold(watch, |mut watch| async move {
        let update = watch.next().await;
        Some((update, watch))
    })
}

fn bare(change: Change) -> Option<Update> {
    Some(Update::new(change, Vec::new()))
}

/// What a list has was written at some time before.
fn no_news(update: Update) -> Update {
    Update { written: None, ..update }
}

impl<S: Shape> Watch<S> {
    async fn next(&mut self) -> Update {
        loop {
            match self.step().await {
                Ok(Some(update)) => return update,
                Ok(None) => {}
                Err(failure) => self.failed(&failure).await,
            }
        }
    }

    /// Goes on by one step. What fails begins with a list, unless the state says otherwise.
    async fn step(&mut self) -> Result<Option<Update>, Failure> {
        if let Some(object) = self.items.next() {
            return Ok(told(object.reduce(&mut self.interner).map(no_news)));
        }
        match std::mem::take(&mut self.state) {
            State::Start => {
                self.state = if self.no_streams { State::Page { next: None } } else { State::Ask };
                Ok(bare(Change::Relist(S::KIND)))
            }
            State::Ask => {
                self.state = match wire::watch(&self.client, Since::Everything, chance()).await {
                    Ok(lines) => State::Initial(lines),
                    Err(failure) if failure.is_unknown() => {
                        debug!(kind = S::KIND.name(), %failure, "the API server has no streaming lists: pages it is");
                        State::Page { next: None }
                    }
                    Err(failure) => return Err(failure),
                };
                Ok(None)
            }
            State::Page { next } => {
                let page = wire::list::<S>(&self.client, next).await?;
                self.items = page.items.into_iter();
                self.state = match page.next {
                    None => State::Listed { version: page.version },
                    next => State::Page { next },
                };
                Ok(None)
            }
            State::Listed { version } => {
                self.state = State::Resume { version };
                self.listed = true;
                self.doubted = None;
                Ok(bare(Change::Relisted(S::KIND)))
            }
            State::Initial(lines) => self.initial(lines).await,
            State::Resume { version } => {
                self.state = State::Resume { version: version.clone() };
                let lines = wire::watch(&self.client, Since::Version(&version), chance()).await?;
                if self.doubted.is_none() {
                    self.succeeded();
                }
                self.state = State::Following { version, lines, begun: Instant::now(), heard: false };
                Ok(None)
            }
            State::Following { version, lines, begun, heard } => {
                let followed = self.follow(version, lines, begun, heard).await;
                if let Err(failure) = &followed {
                    // After a silence the next bookmark has to come.
                    let stands = if matches!(failure, Failure::Silent(_)) { SILENCE_MAX } else { WATCH_MIN };
                    self.doubted = Some(stands);
                }
                followed
            }
        }
    }

    async fn initial(&mut self, mut lines: Lines<S>) -> Result<Option<Update>, Failure> {
        match lines.next(self.waits.wait.stream).await {
            Ok(Some(Line::Added(object) | Line::Modified(object))) => {
                self.state = State::Initial(lines);
                Ok(told(object.reduce(&mut self.interner).map(no_news)))
            }
            Ok(Some(Line::Bookmark(bookmark))) if bookmark.ends_initial_events() => {
                let version = bookmark.into_version();
                self.state = State::Following { version, lines, begun: Instant::now(), heard: true };
                self.listed = true;
                self.succeeded();
                Ok(bare(Change::Relisted(S::KIND)))
            }
            Ok(Some(Line::Bookmark(_))) => {
                self.state = State::Initial(lines);
                Ok(None)
            }
            Ok(Some(Line::Deleted(_))) => Err(Failure::Garbage("a streaming list has told of an end".to_owned())),
            Ok(Some(Line::Error(status))) => Err(status.into()),
            Ok(None) => Err(Failure::Unanswered("a streaming list broke off".to_owned())),
            Err(Failure::Silent(time)) => {
                info!(kind = S::KIND.name(), seconds = time.as_secs(), "a streaming list does not end: pages it is");
                self.no_streams = true;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn follow(
        &mut self,
        version: String,
        mut lines: Lines<S>,
        begun: Instant,
        heard: bool,
    ) -> Result<Option<Update>, Failure> {
        let line = match lines.next(self.doubted.unwrap_or(SILENCE_MAX)).await {
            // Where nothing changes, nothing is told for a minute.
            Err(Failure::Silent(stood)) if stood < SILENCE_MAX => {
                self.succeeded();
                self.state = State::Following { version, lines, begun, heard };
                return Ok(None);
            }
            Ok(Some(Line::Error(status))) => {
                let failure = Failure::from(status);
                if !failure.is_gone() {
                    self.state = State::Resume { version };
                }
                return Err(failure);
            }
            Ok(Some(line)) => line,
            Ok(None) => {
                self.state = State::Resume { version };
                if !heard && begun.elapsed() < WATCH_MIN {
                    return Err(Failure::Unanswered("a watch ended at once".to_owned()));
                }
                return Ok(None);
            }
            Err(failure) => {
                if matches!(failure, Failure::Silent(_)) {
                    self.state = State::Resume { version };
                }
                return Err(failure);
            }
        };
        let (update, version) = match line {
            Line::Added(object) | Line::Modified(object) => {
                let newer = newer(&object, &version)?;
                (told(object.reduce(&mut self.interner)), newer)
            }
            Line::Deleted(object) => {
                let newer = newer(&object, &version)?;
                (told(object.gone().map(|change| Update::new(change, Vec::new()))), newer)
            }
            Line::Bookmark(bookmark) => (None, bookmark.into_version()),
            Line::Error(_) => unreachable!("told of above"),
        };
        // A list that succeeds and a watch that fails may take turns: only an event of the watch shows that all is well.
        self.waits.last = None;
        self.succeeded();
        self.state = State::Following { version, lines, begun, heard: true };
        Ok(update)
    }

    fn succeeded(&mut self) {
        (self.doubted, self.forbidden) = (None, false);
        if std::mem::take(&mut self.failing) {
            self.contact.seen(S::KIND);
        }
        if self.warned.take().is_some() {
            info!(kind = S::KIND.name(), "the API server answers again");
        }
    }

    async fn failed(&mut self, failure: &Failure) {
        let follows = if self.listed {
            "what is known stays in force; changes are not seen until it answers"
        } else if S::KIND.is_needed() {
            "there is no complete list yet, so pods stay closed until it answers"
        } else {
            "there is no complete list yet, so pods with an egress policy reach Services only if it admits their addresses as they are"
        };
        let (kind, error) = (S::KIND.name(), failure.to_string());
        let silent = if let Failure::Silent(time) = failure { *time } else { Duration::ZERO };
        let forbidden = failure.is_forbidden();
        self.contact.failed(S::KIND, silent, &error, forbidden);
        self.failing = true;
        let news = forbidden && !self.forbidden;
        self.forbidden = forbidden;
        if news || self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            if forbidden {
                // One that starts gives this answer to everybody for a moment.
                let right = plural(S::KIND);
                warn!(kind, error, "this account may not list and watch {right}, or the API server starts: {follows}");
            } else {
                warn!(kind, error, "the API server cannot be watched: {follows}");
            }
        } else {
            debug!(kind, error, "the API server still cannot be watched");
        }
        let mut wait = self.waits.next(Instant::now(), failure.is_gone());
        if let Failure::Refused { retry_after: Some(time), .. } = failure {
            wait = wait.max(RETRY_AFTER_MAX.min(*time));
        }
        tokio::time::sleep(wait).await;
        if failure.is_gone() {
            self.state = State::Start;
        }
    }
}

fn told(reduced: Result<Update, Fault>) -> Option<Update> {
    let tell = |Fault { kind, object, field, message }: &Fault| {
        warn!(kind = kind.name(), object, field, message, "an object of the API server that names no object");
    };
    reduced.inspect_err(tell).ok()
}

/// The version of an object that a watch tells of, which is above that of what it told before. Versions can be compared as numbers; where
/// they are none, nothing is said.
fn newer<S: Shape>(object: &S, version: &str) -> Result<String, Failure> {
    let new = object.resource_version().filter(|version| !version.is_empty());
    let new = new.ok_or_else(|| Failure::Garbage("an event of a watch has no version".to_owned()))?;
    match (new.parse::<u64>(), version.parse::<u64>()) {
        (Ok(number), Ok(before)) if number <= before => {
            Err(Failure::Garbage(format!("an event of version {number} comes after what is of version {before}")))
        }
        _ => Ok(new.to_owned()),
    }
}

/// Doubled from the first to the last, with jitter, as every node of the cluster waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub min: Duration,
    pub max: Duration,
    /// For what a streaming list says next.
    pub stream: Duration,
}

/// How long to wait after each failure.
#[derive(Debug)]
pub(super) struct Waits {
    pub wait: Wait,
    pub last: Option<(Instant, Duration)>,
    /// The last failure was a version that is gone.
    pub gone: bool,
}

impl Waits {
    /// A version that is gone is an answer, so that the waiting for one is over and begins anew.
    pub fn next(&mut self, now: Instant, gone: bool) -> Duration {
        let before = std::mem::replace(&mut self.gone, gone);
        let answered = gone && !before;
        let whole = match self.last {
            Some((at, whole)) if !answered && now.duration_since(at) < WAIT_RESET => self.wait.max.min(2 * whole),
            _first => self.wait.min,
        };
        self.last = Some((now, whole));
        // The upper half by chance, so that the nodes of a cluster do not come back all at once.
        whole / 2 + whole / 2 * (chance() % 1024) / 1024
    }
}

fn chance() -> u32 {
    (RandomState::new().hash_one(()) >> 32) as u32
}
