//! Kubernetes Events, for what people should see without looking for it. They are told as well as can be: nothing waits for them.
//!
//! An Event's name is made of what it says, so that the API server itself knows one that was told before: by this agent, by the one before
//! it, or, where a policy is at fault, by another node's.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Error};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// More that wait for the API server than this are not told.
const QUEUE: usize = 64;
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many may follow one another at once, and then one in this time.
const BURST: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(3);
/// The same is not told again within this.
const REPEAT: Duration = Duration::from_secs(600);
/// How long names are remembered: Events live as long (kube-apiserver --event-ttl).
const MEMORY: Duration = Duration::from_secs(3600);
/// What every node of a cluster finds out is told by the first of them; the others come later, by chance up to this.
const SPREAD: Duration = Duration::from_secs(3);
/// An API server that does not answer is asked so often.
const TRIES: u32 = 3;
/// Bytes of a note; the API takes 1024.
const NOTE_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub regarding: Regarding,
    /// Its type is Warning, not Normal.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    pub note: String,
    /// Every node that is concerned says the same.
    pub everywhere: bool,
}

/// Of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regarding {
    /// `Pod`, `Node`, `Namespace`, `Service` or `NetworkPolicy`.
    pub kind: &'static str,
    pub namespace: Option<String>,
    pub name: String,
    /// `None`: the API server is asked.
    pub uid: Option<String>,
}

/// Where notices go.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Notice>);

impl Events {
    pub fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    pub fn tell(&self, notice: Notice) {
        // A folder of manifests takes none.
        if let Err(mpsc::error::TrySendError::Full(Notice { reason, regarding, .. })) = self.0.try_send(notice) {
            tracing::warn!(
                reason,
                object = regarding.name,
                "an Event is not told: too many wait for the API server, or follow one another"
            );
        }
    }
}

/// Tells the API server of each, until the sender goes.
pub async fn publish(client: Client, node_name: String, mut notices: mpsc::Receiver<Notice>) {
    let mut publisher = Publisher { client, node_name, told: HashMap::new(), budget: Budget::new(Instant::now()) };
    let mut failing = false;
    while let Some(notice) = notices.recv().await {
        let name = event_name(&notice);
        if !publisher.is_new(&name) {
            continue;
        }
        sleep(publisher.budget.wait(Instant::now())).await;
        if notice.everywhere {
            sleep(SPREAD.mul_f64((RandomState::new().hash_one(()) % 1024) as f64 / 1024.0)).await;
        }
        match publisher.tell_patiently(&notice, &name).await {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        error,
                        reason = notice.reason,
                        "the API server does not take Events (the account needs create and patch of events.events.k8s.io): people do not \
                         see them, what is enforced is the same; told once until it takes one"
                    );
                }
                failing = true;
            }
        }
    }
}

struct Publisher {
    client: Client,
    node_name: String,
    /// By the Event's name: when it was told last, and how often.
    told: HashMap<String, (Instant, i32)>,
    budget: Budget,
}

impl Publisher {
    fn is_new(&mut self, name: &str) -> bool {
        self.told.retain(|_, (at, _)| at.elapsed() < MEMORY);
        self.told.get(name).is_none_or(|(at, _)| at.elapsed() >= REPEAT)
    }

    async fn tell_patiently(&mut self, notice: &Notice, name: &str) -> Result<(), String> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match timeout(PATIENCE, self.tell(notice, name)).await {
                Ok(Ok(())) => return Ok(()),
                // It has answered: it will not say anything else.
                Ok(Err(Error::Api(status))) if status.code < 500 && status.code != 429 => {
                    return Err(status.to_string());
                }
                Ok(Err(error)) => error.to_string(),
                Err(_elapsed) => "no answer in time".to_owned(),
            };
            if tries == TRIES {
                return Err(error);
            }
            sleep(PATIENCE / 2).await;
        }
    }

    async fn tell(&mut self, notice: &Notice, name: &str) -> Result<(), Error> {
        let Regarding { namespace, uid, .. } = &notice.regarding;
        let uid = match uid {
            Some(uid) => Some(uid.clone()),
            None => match self.uid(&notice.regarding).await {
                // Nobody looks for it any longer.
                Err(Error::Api(status)) if status.code == 404 => return Ok(()),
                // Without one it is found by its name.
                Err(Error::Api(status)) if status.code == 403 => None,
                found => found?,
            },
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace.as_deref().unwrap_or("default"));
        let count = self.told.get(name).map_or(0, |(_, count)| *count) + 1;
        match events.create(&PostParams::default(), &event(notice, name, uid, &self.node_name)).await {
            // Told by somebody else, or before: it counts only how often we have.
            Err(Error::Api(status)) if status.code == 409 => {
                if count > 1 {
                    let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
                    let change = Patch::Merge(serde_json::json!({ "series": series }));
                    events.patch(name, &PatchParams::default(), &change).await?;
                }
            }
            created => drop(created?),
        }
        self.told.insert(name.to_owned(), (Instant::now(), count));
        Ok(())
    }

    async fn uid(&self, Regarding { kind, namespace, name, .. }: &Regarding) -> Result<Option<String>, Error> {
        let (group, version) = api_version(kind).split_once('/').unwrap_or(("", "v1"));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = match *kind {
            "NetworkPolicy" => ApiResource::from_gvk_with_plural(&gvk, "networkpolicies"),
            _ => ApiResource::from_gvk(&gvk),
        };
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok(api.get_metadata(name).await?.metadata.uid)
    }
}

fn api_version(kind: &str) -> &'static str {
    if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" }
}

/// A name of an object, as Events have: the object's, and what tells this Event from others of it.
fn event_name(Notice { regarding, warning, reason, note, .. }: &Notice) -> String {
    /// The API takes 253 bytes.
    const NAME_MAX: usize = 253 - 9;
    let Regarding { kind, namespace, name, uid } = regarding;
    let said = format!("{kind}\0{namespace:?}\0{name}\0{uid:?}\0{warning}\0{reason}\0{note}");
    format!("{}.{:08x}", cut(name, NAME_MAX), crc32fast::hash(said.as_bytes()))
}

fn event(notice: &Notice, name: &str, uid: Option<String>, node_name: &str) -> Event {
    let Notice { regarding, warning, reason, note, .. } = notice;
    let Regarding { kind, namespace, name: object, .. } = regarding;
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        action: Some("Enforce".to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        note: Some(cut(note, NOTE_MAX).to_owned()),
        reason: Some((*reason).to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(api_version(kind).to_owned()),
            kind: Some((*kind).to_owned()),
            namespace: namespace.clone(),
            name: Some(object.clone()),
            uid,
            ..ObjectReference::default()
        }),
        reporting_controller: Some("palisade".to_owned()),
        reporting_instance: Some(cut(node_name, 128).to_owned()),
        type_: Some(if *warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

/// At most so many bytes of a text.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// How many Events may still be told at once.
#[derive(Debug)]
struct Budget {
    left: u32,
    filled: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: BURST, filled: now }
    }

    /// Takes one, which may be used after so long.
    fn wait(&mut self, now: Instant) -> Duration {
        let more = now.duration_since(self.filled).as_millis() / INTERVAL.as_millis();
        if let Ok(more) = u32::try_from(more)
            && more < BURST
        {
            self.left = BURST.min(self.left + more);
            self.filled += INTERVAL * more;
        } else {
            *self = Self::new(now);
        }
        if self.left == 0 {
            self.filled += INTERVAL;
            return self.filled.duration_since(now);
        }
        self.left -= 1;
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bounded_in_time() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        assert!((0..BURST).all(|_| budget.wait(now).is_zero()));
        for _one in 0..3 {
            let wait = budget.wait(now);
            assert!(!wait.is_zero() && wait <= INTERVAL, "{wait:?}");
            now += wait;
        }
        assert!(budget.wait(now + INTERVAL).is_zero() && !budget.wait(now + INTERVAL).is_zero());
        now += INTERVAL * BURST * 100;
        assert!((0..BURST).all(|_| budget.wait(now).is_zero()) && !budget.wait(now).is_zero());
    }

    #[test]
    fn names_and_notes_fit_what_the_api_takes() {
        let regarding = Regarding { kind: "Pod", namespace: None, name: "ä".repeat(200), uid: None };
        let note = "é".repeat(900);
        let notice = Notice { regarding, warning: true, reason: "NotEnforced", note, everywhere: false };
        let name = event_name(&notice);
        assert!(name.len() <= 253, "{}", name.len());
        let made = event(&notice, &name, None, "node");
        assert!(made.note.is_some_and(|note| note.len() <= NOTE_MAX && note.ends_with('é')));
        let other = Notice { note: "another".to_owned(), ..notice.clone() };
        assert_ne!(event_name(&other), name);
        assert_eq!(event_name(&notice), name);
    }
}
