//! A cluster's API server as the source of objects.
//!
//! Each kind is listed and then watched on its own. A list that begins anew is told as such, so that what vanished
//! meanwhile is known to be gone only when the list is complete; an error is never an empty list, and whatever was known
//! stays in force while the server cannot be asked.

use std::borrow::Cow;
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures::stream::{self, BoxStream, SelectAll};
use futures::{Stream, StreamExt};
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::contact::{Contact, plural};
use super::reduce::intern::Interner;
use super::reduce::shape::{NamespaceShape, NodeShape, PodShape, ServiceShape};
use super::reduce::{namespace, node, pod, policy, service};
use crate::facts::{Change, Fault, Kind, Update};

/// At most this many updates are handed on at once; a longer burst follows in further batches.
const BATCH_MAX: usize = 4096;

/// An API server that says nothing for so long is gone: it sends a bookmark to each watch about once a minute (apiserver's
/// defaultBookmarkFrequency).
const SILENCE_MAX: Duration = Duration::from_secs(100);
/// Before the server is asked again.
const WAIT: Wait = Wait { min: Duration::from_millis(500), max: Duration::from_secs(10) };
/// So long without a failure, and the next one is the first.
const WAIT_RESET: Duration = Duration::from_secs(120);
/// A failure that goes on is told again after this.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// A client for the cluster of a kubeconfig, or for the one whose pod this is.
///
/// # Errors
/// The kubeconfig, or the account that the pod was given, cannot be read.
pub async fn client(kubeconfig: Option<&Path>, contact: &Contact) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let wrong = || format!("kubeconfig {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(wrong)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(wrong)?
        }
        None => Config::incluster().context("the account that a cluster gives its pods")?,
    };
    config.read_timeout = Some(SILENCE_MAX);
    config.reset_reader_on_write = true;
    Ok(ClientBuilder::try_from(config).context("a client for the API server")?.with_layer(contact).build())
}

/// Tells all objects of the cluster, and then every change, until the receiver is gone.
///
/// # Errors
/// None that the API server could cause: it is asked again for ever.
pub async fn watch(client: Client, contact: Contact, updates: Sender<Vec<Update>>) -> anyhow::Result<()> {
    watch_with(WAIT, client, &contact, updates).await
}

async fn watch_with(wait: Wait, client: Client, contact: &Contact, updates: Sender<Vec<Update>>) -> anyhow::Result<()> {
    let kinds: [BoxStream<'static, Update>; 5] = [
        stream_of::<NamespaceShape>(&client, contact, wait).boxed(),
        stream_of::<PodShape>(&client, contact, wait).boxed(),
        stream_of::<PolicyShape>(&client, contact, wait).boxed(),
        stream_of::<NodeShape>(&client, contact, wait).boxed(),
        stream_of::<ServiceShape>(&client, contact, wait).boxed(),
    ];
    // Whatever is there is sent at once, and the kinds take turns: a policy does not wait for a list of pods.
    let mut batches = kinds.into_iter().collect::<SelectAll<_>>().ready_chunks(BATCH_MAX);
    loop {
        let batch = tokio::select! {
            batch = batches.next() => batch.context("the watches have ended")?,
            () = updates.closed() => return Ok(()),
        };
        if updates.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

// === Kinds ===

/// A kind as it is asked for, decoded and reduced.
trait Shape: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;

    fn resource_version(&self) -> Option<&str>;
    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault>;
    fn gone(&self) -> Result<Change, Fault>;
}

/// Policies are few, deep, and read field by field.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
struct PolicyShape(Value);

impl Shape for NamespaceShape {
    const KIND: Kind = Kind::Namespace;
    const GROUP: &'static str = "";

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault> {
        namespace::reduce(self, interner)
    }

    fn gone(&self) -> Result<Change, Fault> {
        namespace::gone(self)
    }
}

impl Shape for PodShape {
    const KIND: Kind = Kind::Pod;
    const GROUP: &'static str = "";

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault> {
        pod::reduce(self, interner)
    }

    fn gone(&self) -> Result<Change, Fault> {
        pod::gone(self)
    }
}

impl Shape for PolicyShape {
    const KIND: Kind = Kind::Policy;
    const GROUP: &'static str = "networking.k8s.io";

    fn resource_version(&self) -> Option<&str> {
        self.0.pointer("/metadata/resourceVersion").and_then(Value::as_str)
    }

    fn reduce(&self, _interner: &mut Interner) -> Result<Update, Fault> {
        policy::reduce(&self.0)
    }

    fn gone(&self) -> Result<Change, Fault> {
        policy::gone(&self.0)
    }
}

impl Shape for NodeShape {
    const KIND: Kind = Kind::Node;
    const GROUP: &'static str = "";

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, _interner: &mut Interner) -> Result<Update, Fault> {
        node::reduce(self)
    }

    fn gone(&self) -> Result<Change, Fault> {
        node::gone(self)
    }
}

impl Shape for ServiceShape {
    const KIND: Kind = Kind::Service;
    const GROUP: &'static str = "";

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault> {
        service::reduce(self, interner)
    }

    fn gone(&self) -> Result<Change, Fault> {
        service::gone(self)
    }
}

/// A shape as kube asks for one: of its metadata, the watch needs the resource version only.
#[derive(Clone, Debug)]
struct Watched<S> {
    meta: ObjectMeta,
    shape: S,
}

impl<'de, S: Shape> Deserialize<'de> for Watched<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let shape = S::deserialize(deserializer)?;
        let resource_version = shape.resource_version().map(str::to_owned);
        Ok(Self { meta: ObjectMeta { resource_version, ..ObjectMeta::default() }, shape })
    }
}

impl<S: Shape> Resource for Watched<S> {
    type DynamicType = ();
    /// All are asked for in all namespaces at once.
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        S::KIND.name().into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        S::GROUP.into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        plural(S::KIND).into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

// === Watching ===

type Events<S> = BoxStream<'static, watcher::Result<Event<Watched<S>>>>;

struct Watch<S: Shape> {
    client: Client,
    contact: Contact,
    events: Events<S>,
    interner: Interner,
    waits: Waits,
    /// There has been a complete list.
    listed: bool,
    /// When the failure that goes on was last told.
    warned: Option<Instant>,
}

fn stream_of<S: Shape>(client: &Client, contact: &Contact, wait: Wait) -> impl Stream<Item = Update> + Send + use<S> {
    stream::unfold(Watch::<S>::new(client.clone(), contact.clone(), wait), |mut watch| async move {
        let update = watch.next().await;
        Some((update, watch))
    })
}

/// Lists are read from the server's newest state, in pages: an older one, as another server of the cluster may have it,
/// would take verdicts back in time.
fn events<S: Shape>(client: &Client) -> Events<S> {
    watcher::watcher(Api::all(client.clone()), watcher::Config::default()).boxed()
}

impl<S: Shape> Watch<S> {
    fn new(client: Client, contact: Contact, wait: Wait) -> Self {
        Self {
            events: events(&client),
            client,
            contact,
            interner: Interner::default(),
            waits: Waits { wait, last: None, gone: false },
            listed: false,
            warned: None,
        }
    }

    async fn next(&mut self) -> Update {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    if let Some(update) = self.update(event) {
                        return update;
                    }
                }
                Some(Err(error)) => self.failed(&error).await,
                // A watcher never ends; if it did, it would begin again.
                None => self.events = events(&self.client),
            }
        }
    }

    fn update(&mut self, event: Event<Watched<S>>) -> Option<Update> {
        let bare = |change| Update { change, faults: Vec::new() };
        // A list that succeeds and a watch that fails may take turns: only an event of the watch shows that all is well.
        if matches!(event, Event::Apply(_) | Event::Delete(_)) {
            self.waits.last = None;
        }
        let reduced = match event {
            // Told before the server has been asked.
            Event::Init => return Some(bare(Change::Relist(S::KIND))),
            Event::InitDone => {
                self.listed = true;
                Ok(bare(Change::Relisted(S::KIND)))
            }
            Event::Apply(object) | Event::InitApply(object) => object.shape.reduce(&mut self.interner),
            Event::Delete(object) => object.shape.gone().map(bare),
        };
        if self.warned.take().is_some() {
            info!(kind = S::KIND.name(), "the API server answers again");
        }
        reduced
            .inspect_err(|Fault { object, field, message, .. }| {
                warn!(
                    kind = S::KIND.name(),
                    object, field, message, "an object of the API server that names no object"
                );
            })
            .ok()
    }

    async fn failed(&mut self, error: &watcher::Error) {
        let follows = if self.listed {
            "what is known stays in force; changes are not seen until it answers"
        } else if S::KIND.is_needed() {
            "there is no complete list yet, so pods stay closed until it answers"
        } else {
            "there is no complete list yet, so pods with an egress policy reach Services only if it admits their addresses as they are"
        };
        self.contact.failed(S::KIND, &causes(error));
        let kind = S::KIND.name();
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            warn!(kind, error = causes(error), "the API server cannot be watched: {follows}");
        } else {
            debug!(kind, error = causes(error), "the API server still cannot be watched");
        }
        let gone = is_gone(error);
        tokio::time::sleep(self.waits.next(Instant::now(), gone)).await;
        // Where a watch cannot begin, kube would ask for the same version for ever; within one, it lists again.
        if gone && matches!(error, watcher::Error::WatchStartFailed(_)) {
            self.events = events(&self.client);
        }
    }
}

/// The server no longer has the version that the watch was at, as after its restart: everything is listed again.
fn is_gone(error: &watcher::Error) -> bool {
    const GONE: u16 = 410;
    match error {
        watcher::Error::WatchError(status) => status.code == GONE,
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == GONE,
        _other => false,
    }
}

/// Doubled from the first to the last, with jitter, as every node of the cluster waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    min: Duration,
    max: Duration,
}

/// How long to wait after each failure.
#[derive(Debug)]
struct Waits {
    wait: Wait,
    last: Option<(Instant, Duration)>,
    /// The last failure was a version that is gone.
    gone: bool,
}

impl Waits {
    /// A version that is gone is an answer, so that the waiting for one is over and begins anew.
    fn next(&mut self, now: Instant, gone: bool) -> Duration {
        let before = std::mem::replace(&mut self.gone, gone);
        let answered = gone && !before;
        let whole = match self.last {
            Some((at, whole)) if !answered && now.duration_since(at) < WAIT_RESET => self.wait.max.min(2 * whole),
            _first => self.wait.min,
        };
        self.last = Some((now, whole));
        // The upper half by chance, so that the nodes of a cluster do not come back all at once.
        let chance = RandomState::new().hash_one(()) % 1024;
        whole / 2 + whole / 2 * u32::try_from(chance).expect("below 1024") / 1024
    }
}

/// An error with what is behind it, which often says more.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
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
#[path = "cluster_tests.rs"]
mod tests;
