//! What the figures of the whole agent are taken of: a node with ten pods in a cluster of that size or of a large one, on a real API
//! server.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::{Agent, AgentOptions, ControlPlane, Lab, Node, Pod, PodSpec, Source, objects};

/// Pods of the node that is looked at.
pub const LOCAL_PODS: usize = 10;
/// Of the large cluster, those of the node included.
pub const PODS: usize = 5_000;
pub const POLICIES: usize = 500;
pub const NAMESPACES: usize = 50;
/// Namespaces share a team's label.
const TEAMS: usize = 10;
const NODES: usize = 50;

/// Where the probed pod serves.
pub const PORT: u16 = 8080;

pub struct Cluster {
    pub plane: ControlPlane,
    pub node: Node,
    /// Both in namespace `app-0`, labelled `app` with their names, and selected by no policy that is made here.
    pub client: Pod,
    pub server: Pod,
    /// Last, as it takes the rest away.
    pub lab: Lab,
}

impl Cluster {
    /// With the node's ten pods alone.
    pub fn new() -> Result<Self> {
        let lab = Lab::new("bench")?;
        let plane = ControlPlane::start(&lab)?;
        let node = lab.node("node", 1)?;
        let namespaces: Vec<Value> = (0..NAMESPACES).map(namespace).collect();
        plane.put_all(&namespaces)?;
        plane.put(&objects::node(&node))?;
        let mut pods = Vec::new();
        for number in 0..LOCAL_PODS {
            let spec = match number {
                0 => PodSpec::new("app-0", "client", &[("app", "client")]),
                1 => PodSpec::new("app-0", "server", &[("app", "server")]),
                number => PodSpec::new(
                    &format!("app-{number}"),
                    "local",
                    &[("app", &*format!("a-{}", number % 10)), ("tier", "web")],
                ),
            };
            pods.push(plane.start_pod(&lab, &node, spec)?);
        }
        let mut pods = pods.into_iter();
        let (client, server) = pods.next().zip(pods.next()).context("ten pods were started")?;
        let listener = server.netns.run(|| TcpListener::bind(("::", PORT)))?;
        // Takes connections and closes them; ends with this process.
        std::thread::spawn(move || listener.incoming().for_each(drop));
        Ok(Self { plane, node, client, server, lab })
    }

    /// Makes the cluster large: pods of other nodes, and policies in every namespace.
    pub fn grow(&self) -> Result<()> {
        let nodes = (1..NODES).map(|number| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("worker-{number}")},
                "spec": {"podCIDR": format!("10.100.{number}.0/24"), "podCIDRs": [format!("10.100.{number}.0/24")]}})
        });
        let policies = (0..POLICIES).map(policy);
        let objects: Vec<Value> = nodes.chain(policies).chain((LOCAL_PODS..PODS).map(pod)).collect();
        self.plane.create_all(&objects)
    }

    pub fn options(&self) -> AgentOptions {
        AgentOptions::new(Source::Kubeconfig(self.plane.kubeconfig.clone()))
    }

    pub fn start_agent(&self) -> Result<Agent> {
        Agent::start(&self.lab, &self.node, &self.options())
    }
}

/// "10 pods", "5000 pods and 500 policies".
pub fn size_name(large: bool) -> String {
    if large { format!("{PODS} pods, {POLICIES} policies") } else { format!("{LOCAL_PODS} pods") }
}

fn namespace(number: usize) -> Value {
    objects::namespace(&format!("app-{number}"), &[("team", &*format!("t-{}", number % TEAMS))])
}

/// Ten in each namespace: one for all of its pods, each of the others for those of an app.
fn policy(number: usize) -> Value {
    let (namespace, place) = (number % NAMESPACES, number / NAMESPACES);
    // The node's two pods that are probed are isolated by the measured policy alone.
    let subject = match (place, namespace) {
        (0, 0) => json!({"matchLabels": {"tier": "web"}}),
        (0, _) => json!({}),
        (place, _) => json!({"matchLabels": {"app": format!("a-{place}")}}),
    };
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("app-{namespace}"), "name": format!("p-{place}")},
        "spec": {
            "podSelector": subject,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {"matchLabels": {"app": format!("a-{}", (place + 1) % 10)}}},
                        {
                            "namespaceSelector": {"matchLabels": {"team": format!("t-{}", (namespace + place) % TEAMS)}},
                            "podSelector": {"matchLabels": {"tier": "web"}},
                        },
                    ],
                    "ports": [{"protocol": "TCP", "port": "http"}, {"protocol": "TCP", "port": 9090}],
                },
                {"from": [{"ipBlock": {"cidr": format!("172.20.{place}.0/24"), "except": [format!("172.20.{place}.8/29")]}}]},
            ],
            "egress": [
                {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
                {"to": [{"podSelector": {"matchLabels": {"tier": "db"}}}], "ports": [{"protocol": "TCP", "port": 5432}]},
            ],
        },
    })
}

/// Of another node, and about as long as pods are.
fn pod(number: usize) -> Value {
    let namespace = number % NAMESPACES;
    let app = (number / NAMESPACES) % 10;
    let tier = ["web", "api", "db"][number % 3];
    let [high, low] = u16::try_from(number).expect("there are fewer pods").to_be_bytes();
    let environment: Vec<Value> = (0..12)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value-{n}-of-pod-{number}")}))
        .collect();
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 1});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": format!("app-{namespace}"),
            "name": format!("pod-{number}"),
            "labels": {
                "app": format!("a-{app}"), "tier": tier, "app.kubernetes.io/managed-by": "Helm",
                "pod-template-hash": format!("{:010x}", number / 30),
            },
            "annotations": {"checksum/config": format!("{number:064x}"), "prometheus.io/scrape": "true"},
        },
        "spec": {
            "nodeName": format!("worker-{}", 1 + number % (NODES - 1)),
            "containers": [{
                "name": "main",
                "image": format!("registry.example/team/app-{app}:1.{}", number % 7),
                "ports": [{"name": "http", "protocol": "TCP", "containerPort": 8080}],
                "env": environment,
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe,
                "livenessProbe": probe,
                "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": format!("config-{app}")}}],
        },
        "status": {
            "phase": "Running",
            "conditions": (["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(|kind| {
                json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })),
            "podIP": format!("10.100.{high}.{low}"),
            "podIPs": [{"ip": format!("10.100.{high}.{low}")}, {"ip": format!("fd00:100::{number:x}")}],
            "hostIP": "172.30.0.99",
        },
    })
}

/// Processor time that a process has used so far, threads that have ended included; seconds.
pub fn processor_time(pid: u32) -> Result<f64> {
    let mut clock = 0;
    // SAFETY: the pointer is to a live number.
    let error = unsafe { libc::clock_getcpuclockid(i32::try_from(pid)?, &raw mut clock) };
    ensure!(error == 0, "{}", std::io::Error::from_raw_os_error(error));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as above.
    let error = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(error == 0, "{}", std::io::Error::last_os_error());
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}
