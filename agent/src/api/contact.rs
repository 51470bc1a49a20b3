//! Whether the API server answers: told per kind of object, and counted per request, with what was received.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use jiff::Timestamp;
use kube::client::Body;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::watch;
use tower::{Layer, Service};

use crate::facts::Kind;

/// Changes of objects of this kind are not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    pub kind: Kind,
    /// When that was noticed, or, where the server fell silent, when it was last heard; to the second.
    pub since: Timestamp,
    pub error: String,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} since {}: {}", self.kind.name(), self.since, self.error)
    }
}

/// By kind; those that are missing are seen.
pub type StaleKinds = BTreeMap<Kind, Stale>;

/// What was asked of the API server. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// By what was asked for and how it was answered.
    pub answers: Family<Request, Counter>,
    /// Bytes of answers' bodies.
    pub received: Family<Received, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Received {
    /// As of a [`Request`].
    pub resource: String,
    pub verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// Plural name, as in the URL.
    pub resource: String,
    /// `list`, `watch`, or the HTTP method in small letters.
    pub verb: &'static str,
    /// HTTP status; `none`: there was no answer.
    pub code: String,
}

/// Shared by all who ask the API server.
#[derive(Clone, Debug)]
pub struct Contact {
    stale: watch::Sender<StaleKinds>,
    requests: Requests,
}

impl Contact {
    pub fn new(requests: Requests) -> Self {
        Self { stale: watch::Sender::new(StaleKinds::new()), requests }
    }

    pub fn subscribe(&self) -> watch::Receiver<StaleKinds> {
        self.stale.subscribe()
    }

    /// Objects of the kind cannot be listed or watched, and have not been for the time `silent`. What is told first stays told until they can,
    /// unless the account is found not to be allowed to (`forbidden`): that is for people to mend.
    pub fn failed(&self, kind: Kind, silent: Duration, error: &str, forbidden: bool) {
        self.stale.send_if_modified(|stale| {
            let now = Timestamp::now();
            let heard = now - jiff::SignedDuration::try_from(silent).unwrap_or_default();
            let since = heard.round(jiff::Unit::Second).unwrap_or(heard);
            match stale.entry(kind) {
                Entry::Vacant(entry) => {
                    entry.insert(Stale { kind, since, error: error.to_owned() });
                    true
                }
                Entry::Occupied(mut entry) if forbidden && entry.get().error != error => {
                    entry.get_mut().error = error.to_owned();
                    true
                }
                Entry::Occupied(_) => false,
            }
        });
    }

    /// They can.
    pub fn seen(&self, kind: Kind) {
        self.stale.send_if_modified(|stale| stale.remove(&kind).is_some());
    }

    fn count(&self, asked: &Asked, code: Option<http::StatusCode>) {
        let code = code.map_or_else(|| "none".to_owned(), |code| code.as_str().to_owned());
        self.requests
            .answers
            .get_or_create(&Request { resource: asked.resource.clone(), verb: asked.verb, code })
            .inc();
    }

    /// Of the bytes of an answer's body.
    fn counter(&self, asked: &Asked) -> Counter {
        let received = Received { resource: asked.resource.clone(), verb: asked.verb };
        self.requests.received.get_or_create_owned(&received)
    }
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    resource: String,
    verb: &'static str,
}

impl Asked {
    fn of(method: &http::Method, uri: &http::Uri) -> Self {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        // (api/v1 | apis/GROUP/VERSION) [namespaces/NAME] RESOURCE
        let rest = match parts[..] {
            ["api", _, ref rest @ ..] | ["apis", _, _, ref rest @ ..] => rest,
            ref other => other,
        };
        let resource = match rest {
            ["namespaces", _, resource, ..] | [resource, ..] => (*resource).to_owned(),
            [] => String::new(),
        };
        let is_watch = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        let verb = match *method {
            http::Method::GET if is_watch => "watch",
            http::Method::GET => "list",
            http::Method::POST => "post",
            http::Method::PATCH => "patch",
            _ => "other",
        };
        Self { resource, verb }
    }
}

pub const fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::Pod => "pods",
        Kind::Policy => "networkpolicies",
        Kind::Node => "nodes",
        Kind::Service => "services",
    }
}

// === As part of a client ===

impl<S> Layer<S> for Contact {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, contact: self.clone() }
    }
}

#[derive(Clone, Debug)]
pub struct Observed<S> {
    inner: S,
    contact: Contact,
}

impl<S, B> Service<http::Request<Body>> for Observed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
    S::Future: Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
{
    type Response = http::Response<UnsyncBoxBody<Bytes, B::Error>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let asked = Asked::of(request.method(), request.uri());
        let contact = self.contact.clone();
        let answer = self.inner.call(request);
        let observed = move |answer: Result<http::Response<B>, S::Error>| {
            contact.count(&asked, answer.as_ref().ok().map(http::Response::status));
            let received = contact.counter(&asked);
            let counted = move |body: B| {
                let count = move |frame: Frame<Bytes>| {
                    received.inc_by(frame.data_ref().map_or(0, |data| data.len() as u64));
                    frame
                };
                body.map_frame(count).boxed_unsync()
            };
            answer.map(|answer| answer.map(counted))
        };
        answer.map(observed).boxed()
    }
}

/// An error with what is behind it, which often says more.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_is_for() {
        let cases = [
            ("/api/v1/pods?&limit=500", "pods", "list"),
            ("/api/v1/pods?&watch=true&resourceVersion=1", "pods", "watch"),
            ("https://[::1]:6443/apis/networking.k8s.io/v1/networkpolicies?watch=true", "networkpolicies", "watch"),
            ("/api/v1/namespaces?watch=true", "namespaces", "watch"),
            ("/api/v1/namespaces/a/pods?watch=true", "pods", "watch"),
            ("/apis/events.k8s.io/v1/namespaces/a/events", "events", "list"),
            ("/", "", "list"),
        ];
        for (uri, resource, verb) in cases {
            let asked = Asked::of(&http::Method::GET, &uri.parse().expect("a URI"));
            assert_eq!((&*asked.resource, asked.verb), (resource, verb), "{uri}");
        }
    }

    #[test]
    fn the_first_failure_stays_told_until_the_kind_is_seen() {
        let contact = Contact::new(Requests::default());
        let told = contact.subscribe();
        contact.failed(Kind::Pod, Duration::from_secs(100), "refused", false);
        contact.failed(Kind::Pod, Duration::ZERO, "another", false);
        contact.failed(Kind::Node, Duration::ZERO, "refused", false);
        contact.failed(Kind::Node, Duration::ZERO, "not allowed", true);
        assert_eq!(told.borrow()[&Kind::Node].error, "not allowed", "that is for people to mend");
        let since = |kind| told.borrow()[&kind].since.as_second();
        assert!((99..=101).contains(&(since(Kind::Node) - since(Kind::Pod))), "{told:?}");
        assert_eq!(told.borrow()[&Kind::Pod].error, "refused");
        contact.seen(Kind::Pod);
        assert_eq!(told.borrow().keys().copied().collect::<Vec<_>>(), [Kind::Node]);
    }
}
