//! The cluster source of objects against a real API server.
#![cfg(feature = "live")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use palisade::api::cluster;
use palisade::api::contact::{Contact, Requests};
use palisade::facts::{Change, Kind, Update};
use palisade_tests::lab::{ControlPlane, Lab};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver};

/// What has been told, by object.
struct Told {
    updates: Receiver<Vec<Update>>,
    objects: BTreeMap<String, String>,
    complete: Vec<Kind>,
}

impl Told {
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !holds(self) {
            let batch = tokio::time::timeout(Duration::from_secs(30), self.updates.recv()).await;
            let batch = batch.unwrap_or_else(|_elapsed| panic!("{what} is not told, but {:#?}", self.objects));
            for Update { change, faults, .. } in batch.expect("the watch goes on") {
                assert!(faults.is_empty(), "{faults:?}");
                self.apply(change);
            }
        }
        println!("{what}: told after {:?}", begin.elapsed());
    }

    fn apply(&mut self, change: Change) {
        let (key, facts) = match change {
            Change::Relist(_) => return,
            Change::Relisted(kind) => return self.complete.push(kind),
            Change::Namespace(name, facts) => (name.to_string(), facts.map(|facts| format!("{facts:?}"))),
            Change::Pod { name, uid: _, facts } => (name.to_string(), facts.map(|facts| format!("{facts:?}"))),
            Change::Policy(name, facts) => (name.to_string(), facts.map(|facts| format!("{facts:?}"))),
            Change::Service(name, facts) => (format!("service {name}"), facts.map(|facts| format!("{facts:?}"))),
            Change::Node(name, facts) => (name.to_string(), facts.map(|facts| format!("{facts:?}"))),
        };
        match facts {
            Some(facts) => drop(self.objects.insert(key, facts)),
            None => drop(self.objects.remove(&key)),
        }
    }

    fn says(&self, object: &str, part: &str) -> bool {
        self.objects.get(object).is_some_and(|facts| facts.contains(part))
    }
}

fn api(client: &Client, group: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
    let resource = match kind {
        "NetworkPolicy" => {
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), "networkpolicies")
        }
        kind => ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind)),
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

async fn create(api: &Api<DynamicObject>, object: Value) {
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("created");
}

async fn patch(api: &Api<DynamicObject>, name: &str, change: Value) {
    api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.expect("changed");
}

#[test]
fn every_change_is_told() {
    let lab = Lab::new("api").expect("a lab");
    let plane = ControlPlane::start(&lab).expect("a control plane");
    lab.underlay.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(change_everything(&plane));
    });
}

async fn change_everything(plane: &ControlPlane) {
    let contact = Contact::new(Requests::default());
    let client = cluster::client(Some(&plane.kubeconfig), &contact).await.expect("a client");
    let (sender, updates) = mpsc::channel(16);
    let watching = tokio::spawn(cluster::watch(client.clone(), contact, sender));
    let mut told = Told { updates, objects: BTreeMap::new(), complete: Vec::new() };
    told.until("every kind", |told| Kind::ALL.iter().all(|kind| told.complete.contains(kind))).await;
    assert!(told.says("default", "kubernetes.io/metadata.name"));

    let (space, worker, pod, policy) = ("space", "worker", "space/web", "space/web-only");

    let namespaces = api(&client, "", "Namespace", None);
    create(&namespaces, json!({"metadata": {"name": space, "labels": {"team": "a"}}})).await;
    told.until("a namespace", |told| told.says(space, "team")).await;
    let nodes = api(&client, "", "Node", None);
    create(
        &nodes,
        json!({"metadata": {"name": worker}, "spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}),
    )
    .await;
    told.until("a node", |told| told.says(worker, "10.9.0.0/24")).await;

    let pods = api(&client, "", "Pod", Some(space));
    let ports = json!([{"name": "http", "containerPort": 80}]);
    let spec = json!({"nodeName": worker, "containers": [{"name": "c", "image": "i", "ports": ports}]});
    create(&pods, json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": spec})).await;
    told.until("a pod", |told| told.says(pod, worker) && told.says(pod, "http")).await;
    let ips = json!([{"ip": "10.9.0.2"}, {"ip": "fd00::2"}]);
    let status = Patch::Merge(json!({"status": {"phase": "Running", "podIP": "10.9.0.2", "podIPs": ips}}));
    pods.patch_status("web", &PatchParams::default(), &status).await.expect("changed");
    told.until("its addresses", |told| told.says(pod, "[10.9.0.2, fd00::2]")).await;
    patch(&pods, "web", json!({"metadata": {"labels": {"app": "other"}}})).await;
    told.until("its label", |told| told.says(pod, "other")).await;

    let policies = api(&client, "networking.k8s.io", "NetworkPolicy", Some(space));
    let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({"podSelector": {}, "ingress": [{"from": from}]});
    create(&policies, json!({"metadata": {"name": "web-only"}, "spec": spec})).await;
    told.until("a policy", |told| told.says(policy, "app")).await;
    patch(&policies, "web-only", json!({"spec": {"ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}})).await;
    told.until("its rule", |told| told.says(policy, "first: 80, last: 90")).await;

    policies.delete("web-only", &DeleteParams::default()).await.expect("deleted");
    told.until("no policy", |told| !told.objects.contains_key(policy)).await;
    pods.delete("web", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    told.until("no pod", |told| !told.objects.contains_key(pod)).await;
    nodes.delete(worker, &DeleteParams::default()).await.expect("deleted");
    told.until("no node", |told| !told.objects.contains_key(worker)).await;
    drop(told);
    watching.await.expect("no panic").expect("no error");
}
