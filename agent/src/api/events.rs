//! Kubernetes Events, for what people should see without looking for it. They are told as well as can be: nothing waits for them.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

/// More that wait for the API server than this are not told.
const QUEUE: usize = 64;
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub regarding: Regarding,
    /// Its type is Warning, not Normal.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    pub note: String,
}

/// Of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regarding {
    /// `Pod` or `Node`.
    pub kind: &'static str,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: String,
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
        if let Err(mpsc::error::TrySendError::Full(Notice { reason, .. })) = self.0.try_send(notice) {
            tracing::warn!(reason, "an Event is not told: too many wait for the API server");
        }
    }
}

/// Tells the API server of each, until the sender goes.
pub async fn publish(client: Client, node_name: String, mut notices: mpsc::Receiver<Notice>) {
    let reporter = Reporter { controller: "palisade".to_owned(), instance: Some(node_name) };
    let recorder = Recorder::new(client, reporter);
    let mut failing = false;
    while let Some(notice) = notices.recv().await {
        let Notice { regarding, warning, reason, note } = notice;
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note),
            action: "Enforce".to_owned(),
            secondary: None,
        };
        let Regarding { kind, namespace, name, uid } = regarding;
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(name),
            uid: Some(uid),
            ..ObjectReference::default()
        };
        let told = tokio::time::timeout(PATIENCE, recorder.publish(&event, &object)).await;
        let error = match told {
            Ok(Ok(())) => {
                failing = false;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if !failing {
            tracing::warn!(error, reason, "the API server does not take Events; told once until it takes one");
        }
        failing = true;
    }
}
