//! Objects as they are in manifests, with the pods that what makes pods would make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::api::folder::documents::{self, Document};
use crate::api::reduce::{Reducer, namespace};
use crate::facts::{Change, Fault, Kind, Update};

/// Objects of some files, in their order; of one that is there twice the later counts.
#[derive(Debug, Default)]
pub struct Objects {
    pub updates: Vec<Update>,
    /// What cannot be read, or not be enforced as written.
    pub faults: Vec<Fault>,
    /// `namespace/name` of a pod that would be made → what makes it, as in `deploy/shop/web`.
    pub made_by: BTreeMap<String, String>,
    reducer: Reducer,
}

impl Objects {
    /// Takes the objects of a file: YAML, or JSON where its name ends so.
    pub fn read(&mut self, file: &str, text: &str) {
        let documents = if file.ends_with(".json") { documents::json(text) } else { documents::yaml(text) };
        for Document { line, object } in documents {
            match object {
                Ok(object) => self.take(file, line, object),
                Err(message) => self.fault(file, line, message),
            }
        }
    }

    fn take(&mut self, file: &str, line: usize, object: Value) {
        let made = made_pods(&object);
        if let Some((by, pods)) = made {
            for pod in pods {
                let name = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
                self.made_by.insert(format!("{}/{}", name("namespace"), name("name")), by.clone());
                self.reduce(file, line, pod);
            }
            return;
        }
        self.reduce(file, line, object);
    }

    fn reduce(&mut self, file: &str, line: usize, object: Value) {
        match self.reducer.object(object) {
            Ok(Some(update)) => {
                self.faults.extend(update.faults.iter().cloned());
                self.updates.push(update);
            }
            Ok(None) => {}
            Err(fault) => {
                let field = if fault.field.is_empty() { String::new() } else { format!("{}: ", fault.field) };
                self.fault(file, line, format!("{field}{}", fault.message));
            }
        }
    }

    fn fault(&mut self, file: &str, line: usize, message: String) {
        let object = format!("{file}:{line}");
        self.faults.push(Fault { kind: Kind::Policy, object, field: String::new(), message });
    }

    /// Puts a namespace in the way of each pod and policy whose own is not among `known` or the objects themselves.
    pub fn imply_namespaces(&mut self, known: &BTreeSet<Arc<str>>) {
        let mut there = known.clone();
        let mut wanted = BTreeSet::new();
        for update in &self.updates {
            match &update.change {
                Change::Namespace(name, Some(_)) => drop(there.insert(name.clone())),
                Change::Pod { name, .. } | Change::Policy(name, _) => drop(wanted.insert(name.namespace.clone())),
                _ => {}
            }
        }
        for name in wanted.difference(&there) {
            let facts = namespace::implied(name, self.reducer.interner());
            self.updates.push(Update::new(Change::Namespace(name.clone(), Some(facts)), Vec::new()));
        }
    }
}

/// How what makes pods is named by people, how many it makes, and their names and labels.
enum Maker {
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
}

/// `None`: it makes no pods.
fn made_pods(object: &Value) -> Option<(String, Vec<Value>)> {
    let spec = &object["spec"];
    let (maker, short, template) = match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("apps/v1", "Deployment") => (Maker::Deployment, "deploy", &spec["template"]),
        ("apps/v1", "ReplicaSet") | ("v1", "ReplicationController") => (Maker::ReplicaSet, "rs", &spec["template"]),
        ("apps/v1", "StatefulSet") => (Maker::StatefulSet, "sts", &spec["template"]),
        ("apps/v1", "DaemonSet") => (Maker::DaemonSet, "ds", &spec["template"]),
        ("batch/v1", "Job") => (Maker::Job, "job", &spec["template"]),
        ("batch/v1", "CronJob") => (Maker::Job, "job", &spec["jobTemplate"]["spec"]["template"]),
        _ => return None,
    };
    let name = object["metadata"]["name"].as_str()?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let wanted = spec["replicas"].as_u64().unwrap_or(1);
    // Two stand for any number: one pod has nobody of its own kind to talk to.
    let count = if matches!(maker, Maker::DaemonSet) { 2 } else { wanted.min(2) };
    let pod = |number: u64| {
        let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        let mut label = |key: &str, value: &str| drop(labels.insert(key.to_owned(), value.into()));
        let name = match maker {
            Maker::Deployment => {
                label("pod-template-hash", HASH);
                format!("{name}-{HASH}-{number:05}")
            }
            Maker::ReplicaSet => {
                label("pod-template-hash", HASH);
                format!("{name}-{number:05}")
            }
            Maker::StatefulSet => {
                let pod = format!("{name}-{number}");
                label("statefulset.kubernetes.io/pod-name", &pod);
                pod
            }
            Maker::DaemonSet => {
                label("controller-revision-hash", HASH);
                format!("{name}-{number:05}")
            }
            Maker::Job => {
                label("batch.kubernetes.io/job-name", name);
                format!("{name}-{number:05}")
            }
        };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels,
                "annotations": template["metadata"].get("annotations").cloned().unwrap_or(Value::Object(Map::new())),
            },
            "spec": template["spec"],
        })
    };
    Some((format!("{short}/{namespace}/{name}"), (0..count).map(pod).collect()))
}

/// In the place of the hash of a template.
const HASH: &str = "template";
