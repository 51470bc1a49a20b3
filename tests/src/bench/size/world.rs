//! A node in a cluster of any size: its pods are real, what else there is comes from a recorded server.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::objects::{self, Moment};
use crate::lab::recorded::{Event, RecordedKind, RecordedServer, Recording, Store, Template};
use crate::lab::{Agent, AgentOptions, ControlPlane, Lab, Node, PodSpec, Source, objects as lab_objects};

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub pods: usize,
    pub namespaces: usize,
    pub policies: usize,
    pub nodes: usize,
    /// Of each pod.
    pub labels: usize,
    /// Pods of the node that is looked at, beside the others.
    pub local: usize,
    /// With policies of a hundred values and of a thousand peers.
    pub is_hard: bool,
}

pub struct World {
    pub shape: Shape,
    pub server: RecordedServer,
    pub node: Node,
    pub kubeconfig: PathBuf,
    /// Of pods, by [`Moment`].
    pods: [Arc<Template>; 3],
    /// The policy of a thousand peers, and as it is changed.
    long: Option<[Recording; 2]>,
    /// Last, as it takes the rest away.
    pub lab: Lab,
}

/// What differs from pod to pod is in the UID too.
fn uid(kind: RecordedKind, number: usize) -> String {
    format!("{:08x}-0000-4000-8000-{number:012x}", kind as usize)
}

// === impl World ===

impl World {
    pub fn new(shape: Shape) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let plane = ControlPlane::start(&lab)?;
        let node = lab.node("node", 1)?;
        let mut copied = vec![(RecordedKind::Node, String::new(), node.name.clone())];
        plane.put(&lab_objects::node(&node))?;
        plane.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": objects::NAMESPACE}}))?;
        for number in 0..shape.local.min(shape.namespaces) {
            let name = objects::namespace_name(number);
            plane.put(&lab_objects::namespace(&name, &[("team", &*objects::team(number))]))?;
            copied.push((RecordedKind::Namespace, String::new(), name));
        }
        for number in 0..shape.local {
            let namespace = objects::namespace_name(number % shape.namespaces);
            let name = format!("local-{number}");
            let labels = [("app", &*format!("a-{}", number % 10)), ("tier", "web")];
            plane.start_pod(&lab, &node, PodSpec::new(&namespace, &name, &labels).port("http", "TCP", 8080))?;
            copied.push((RecordedKind::Pod, namespace, name));
        }
        let store = Store::default();
        let moments = [Moment::Pending, Moment::Ready, Moment::Unready];
        let [pending, ready, unready] = moments.map(|moment| objects::pod(moment, shape.labels).record(&plane));
        let pods = [pending?, ready?, unready?];
        let long = fill(&store, &plane, shape, &pods)?;
        let copies = plane.with_client(async |client| {
            let mut copies = Vec::new();
            for (kind, namespace, name) in &copied {
                copies.push(Recording::copy(&client, *kind, namespace, name).await?);
            }
            Ok(copies)
        })?;
        store.fill(copies);
        let kubeconfig = plane.kubeconfig.clone();
        let server = RecordedServer::replace(&lab, plane, store)?;
        Ok(Self { shape, server, node, kubeconfig, pods, long, lab })
    }

    pub fn options(&self) -> AgentOptions {
        AgentOptions::new(Source::Kubeconfig(self.kubeconfig.clone()))
    }

    pub fn start_agent(&self) -> Result<Agent> {
        let mut agent = Agent::spawn(&self.lab, &self.node, &self.options())?;
        agent.wait_ready(std::time::Duration::from_secs(120))?;
        Ok(agent)
    }

    pub fn pod(&self, number: usize, moment: Moment) -> Recording {
        pod(&self.pods[moment as usize], self.shape, number)
    }

    /// Tells of the policy of a thousand peers: as it was at first, or changed.
    pub fn tell_long_policy(&self, event: Event, changed: bool) {
        if let Some(long) = &self.long {
            self.server.store.change(event, long[usize::from(changed)].clone());
        }
    }
}

fn pod(template: &Arc<Template>, shape: Shape, number: usize) -> Recording {
    template.fill(uid(RecordedKind::Pod, number), objects::pod_fields(number, shape.namespaces, shape.nodes))
}

/// All but what is really there.
fn fill(
    store: &Store,
    plane: &ControlPlane,
    shape: Shape,
    pods: &[Arc<Template>; 3],
) -> Result<Option<[Recording; 2]>> {
    let namespace = objects::namespace().record(plane)?;
    let named = |number| namespace.fill(uid(RecordedKind::Namespace, number), objects::namespace_fields(number));
    store.fill((shape.local..shape.namespaces).map(named));
    let node = objects::node().record(plane)?;
    store.fill((0..shape.nodes).map(|number| node.fill(uid(RecordedKind::Node, number), objects::node_fields(number))));
    store.fill((0..shape.pods).map(|number| pod(&pods[Moment::Ready as usize], shape, number)));
    let policies = [objects::policy(false).record(plane)?, objects::policy(true).record(plane)?];
    store.fill((0..shape.policies).map(|number| {
        let (namespace, place) = (number % shape.namespaces, number / shape.namespaces);
        policies[usize::from(place > 0)]
            .fill(uid(RecordedKind::Policy, number), objects::policy_fields(place, namespace))
    }));
    if !shape.is_hard {
        return Ok(None);
    }
    let of = |template: &Arc<Template>, name: &str, namespace: usize, number: usize| {
        template.fill(uid(RecordedKind::Policy, number), vec![name.to_owned(), objects::namespace_name(namespace)])
    };
    let wide = objects::wide_policy().record(plane)?;
    store.fill((1..100).map(|number| of(&wide, "wide", number, shape.policies + number)));
    let [first, changed] = [objects::long_policy(false).record(plane)?, objects::long_policy(true).record(plane)?];
    let long = [&first, &changed].map(|template| of(template, "long", 0, shape.policies));
    store.fill([long[0].clone()]);
    Ok(Some(long))
}
