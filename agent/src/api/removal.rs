//! Whether the DaemonSet that removes Palisade has cleaned every node: for who may look at this one object alone.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout_at};

/// Before the API server is asked again after it gave no answer.
const PAUSE: Duration = Duration::from_secs(1);

/// How far the DaemonSet is: its pod is ready on so many of so many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    ready: u64,
    wanted: u64,
}

impl Progress {
    /// `None`: its controller has not seen it yet.
    fn of(object: &DynamicObject) -> Option<Self> {
        let status = object.data.get("status")?;
        let number = |name: &str| status.get(name).and_then(serde_json::Value::as_u64);
        let seen = number("observedGeneration")?;
        if seen < u64::try_from(object.metadata.generation?).ok()? {
            return None;
        }
        Some(Self { ready: number("numberReady")?, wanted: number("desiredNumberScheduled")? })
    }

    fn is_complete(self) -> bool {
        self.ready == self.wanted
    }
}

/// Returns when its pod is ready on every node. `patience`: for all of it.
///
/// # Errors
///
/// When that does not come in time; says how far it has come.
pub async fn wait(client: Client, namespace: &str, name: &str, patience: Duration) -> anyhow::Result<()> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "DaemonSet"));
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let end = Instant::now() + patience;
    let last = Cell::new(None);
    let complete = |object: Option<&DynamicObject>| {
        let progress = object.and_then(Progress::of);
        if progress.is_some() && progress != last.replace(progress) {
            println!("palisade: {}", told(progress));
        }
        progress.is_some_and(Progress::is_complete)
    };
    loop {
        match timeout_at(end, await_condition(api.clone(), name, complete)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if Instant::now() + PAUSE >= end => {
                return Err(error).with_context(|| format!("DaemonSet {namespace}/{name} cannot be watched"));
            }
            Ok(Err(_)) => sleep(PAUSE).await,
            Err(_) => bail!(
                "{} after {} s; a node that is down is not cleaned, and DaemonSet {namespace}/{name} stays for when it is back: delete it then",
                told(last.get()),
                patience.as_secs()
            ),
        }
    }
}

fn told(progress: Option<Progress>) -> String {
    match progress {
        Some(Progress { ready, wanted }) => format!("{ready} of {wanted} nodes are clean"),
        None => "no node is known to be clean".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn progress(generation: i64, status: Value) -> Option<Progress> {
        let metadata = json!({"name": "d", "generation": generation});
        let object = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "status": status});
        Progress::of(&serde_json::from_value(object).expect("an object"))
    }

    #[test]
    fn what_its_controller_has_not_seen_says_nothing() {
        let status = |seen: u64, ready: u64| json!({"observedGeneration": seen, "numberReady": ready, "desiredNumberScheduled": 3});
        assert_eq!(progress(1, json!({})), None);
        assert_eq!(progress(2, status(1, 3)), None);
        let some = progress(2, status(2, 1)).expect("it was seen");
        assert!(some == Progress { ready: 1, wanted: 3 } && !some.is_complete());
        assert!(progress(2, status(2, 3)).expect("it was seen").is_complete());
    }
}
