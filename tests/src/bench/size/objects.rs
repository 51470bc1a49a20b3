//! The objects of clusters of any size, as patterns and what is filled into them.

use serde_json::{Value, json};

use crate::lab::recorded::{Pattern, RecordedKind};

/// The namespace that the patterns are in while they are recorded.
pub const NAMESPACE: &str = "mark-namespace";
/// Namespaces share a team's label.
const TEAMS: usize = 10;
const APPS: usize = 10;
/// Pods of a workload, which have the same labels.
const REPLICAS: usize = 30;

/// A pod in one moment of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Bound to its node and without an address.
    Pending,
    Ready,
    Unready,
}

pub fn namespace() -> Pattern {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mark-space", "labels":
        {"kubernetes.io/metadata.name": "mark-space", "team": "mark-team"}}});
    Pattern::new(RecordedKind::Namespace, object, &["mark-space", "mark-team"])
}

pub fn namespace_name(number: usize) -> String {
    format!("app-{number}")
}

pub fn team(namespace: usize) -> String {
    format!("t-{}", namespace % TEAMS)
}

pub fn namespace_fields(number: usize) -> Vec<String> {
    vec![namespace_name(number), team(number)]
}

pub fn node() -> Pattern {
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mark-node", "labels":
        {"kubernetes.io/hostname": "mark-node"}},
        "spec": {"podCIDR": "192.0.2.0/24", "podCIDRs": ["192.0.2.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.79"}]}});
    Pattern::new(RecordedKind::Node, object, &["mark-node", "192.0.2.0/24", "192.0.2.79"])
}

pub fn node_fields(number: usize) -> Vec<String> {
    let [.., high, low] = number.to_be_bytes();
    vec![format!("worker-{number}"), format!("10.{}.{low}.0/24", 64 + high), format!("172.31.{high}.{low}")]
}

/// About as long as pods are. `labels`: how many it has.
pub fn pod(moment: Moment, labels: usize) -> Pattern {
    let environment: Vec<Value> = (0..12)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value-{n}-of-pod-mark-number")}))
        .collect();
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 1});
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE,
            "name": "mark-name",
            "labels": {"app": "mark-app", "tier": "mark-tier", "app.kubernetes.io/managed-by": "Helm", "pod-template-hash": "mark-hash"},
            "annotations": {"checksum/config": "mark-checksum", "prometheus.io/scrape": "true"},
        },
        "spec": {
            "nodeName": "mark-worker",
            "containers": [{
                "name": "main",
                "image": "registry.example/team/mark-app:1.0",
                "ports": [{"name": "http", "protocol": "TCP", "containerPort": 8080}],
                "env": environment,
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe,
                "livenessProbe": probe,
                "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "config-mark-app"}}],
        },
    });
    for number in 4..labels {
        // As charts put them: of the workload, but for one that tells the pod.
        let value = if number == 4 { "mark-number".to_owned() } else { format!("mark-app-{number}") };
        object["metadata"]["labels"][format!("example.com/label-{number}")] = value.into();
    }
    object["status"] = status(moment);
    Pattern::new(RecordedKind::Pod, object, &MARKS)
}

/// In the order of [`pod_fields`].
const MARKS: [&str; 11] = [
    "mark-name",
    NAMESPACE,
    "mark-app",
    "mark-tier",
    "mark-hash",
    "mark-checksum",
    "mark-worker",
    "mark-number",
    "192.0.2.77",
    "2001:db8::77",
    "192.0.2.78",
];

fn status(moment: Moment) -> Value {
    let condition = |kind: &str, met: bool| {
        let met = if met { "True" } else { "False" };
        json!({"type": kind, "status": met, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    if moment == Moment::Pending {
        return json!({"phase": "Pending", "conditions": [condition("PodScheduled", true)]});
    }
    let ready = moment == Moment::Ready;
    json!({
        "phase": "Running",
        "conditions": [
            condition("PodScheduled", true), condition("Initialized", true), condition("ContainersReady", ready), condition("Ready", ready),
        ],
        "podIP": "192.0.2.77",
        "podIPs": [{"ip": "192.0.2.77"}, {"ip": "2001:db8::77"}],
        "hostIP": "192.0.2.78",
        "hostIPs": [{"ip": "192.0.2.78"}],
    })
}

/// Of a cluster with so many namespaces and nodes.
pub fn pod_fields(number: usize, namespaces: usize, nodes: usize) -> Vec<String> {
    let app = (number / namespaces) % APPS;
    let workload = number % namespaces + number / namespaces / REPLICAS * namespaces;
    let address = u32::from_be_bytes([10, 100, 0, 0]) + u32::try_from(number).expect("there are fewer pods");
    let worker = number % nodes;
    let [.., high, low] = worker.to_be_bytes();
    vec![
        format!("pod-{number:06}"),
        namespace_name(number % namespaces),
        format!("a-{app}"),
        ["web", "api", "db"][number / namespaces % 3].to_owned(),
        format!("{workload:010x}"),
        format!("{workload:064x}"),
        format!("worker-{worker}"),
        number.to_string(),
        std::net::Ipv4Addr::from(address).to_string(),
        format!("fd00:100::{number:x}"),
        format!("172.31.{high}.{low}"),
    ]
}

/// A policy for all pods of its namespace, or for those of one app, with peers by pods' and namespaces' labels, an ipBlock with an
/// except, named ports and egress.
pub fn policy(of_app: bool) -> Pattern {
    let subject = if of_app { json!({"matchLabels": {"app": "mark-app"}}) } else { json!({}) };
    let object = policy_object(&json!({
        "podSelector": subject,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [
                    {"podSelector": {"matchLabels": {"app": "mark-peer"}}},
                    {
                        "namespaceSelector": {"matchLabels": {"team": "mark-team"}},
                        "podSelector": {"matchLabels": {"tier": "web"}},
                    },
                ],
                "ports": [{"protocol": "TCP", "port": "http"}, {"protocol": "TCP", "port": 9090}],
            },
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/29"]}}]},
        ],
        "egress": [
            {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
            {"to": [{"podSelector": {"matchLabels": {"tier": "db"}}}], "ports": [{"protocol": "TCP", "port": 5432}]},
        ],
    }));
    let marks = ["mark-policy", NAMESPACE, "mark-peer", "mark-team", "192.0.2.0/24", "192.0.2.8/29", "mark-app"];
    Pattern::new(RecordedKind::Policy, object, &marks[..if of_app { 7 } else { 6 }])
}

/// The place-th policy of a namespace. The first is for all of its pods.
pub fn policy_fields(place: usize, namespace: usize) -> Vec<String> {
    let mut fields = vec![
        format!("p-{place}"),
        namespace_name(namespace),
        format!("a-{}", (place + 1) % APPS),
        team(namespace + place),
        format!("172.20.{}.0/24", place % 256),
        format!("172.20.{}.8/29", place % 256),
    ];
    if place > 0 {
        fields.push(format!("a-{}", place % APPS));
    }
    fields
}

/// Selectors of a hundred values each, as subject and as peers.
pub fn wide_policy() -> Pattern {
    let values = |prefix: &str| (0..100).map(|n| format!("{prefix}-{n}")).collect::<Vec<_>>();
    let object = policy_object(&json!({
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": values("a")}]},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [
            {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": values("a")}]}},
            {
                "namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": values("app")}]},
                "podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": values("none")}]},
            },
        ]}],
    }));
    Pattern::new(RecordedKind::Policy, object, &["mark-policy", NAMESPACE])
}

/// A thousand peers: half of them ipBlocks, half of them pods of namespaces. `other`: one of each sort is another.
pub fn long_policy(other: bool) -> Pattern {
    let first = usize::from(other);
    let blocks =
        (first..500 + first).map(|n| json!({"ipBlock": {"cidr": format!("10.{}.{}.0/24", 200 + n / 256, n % 256)}}));
    let pods = (first..500 + first).map(|n| {
        json!({
            "namespaceSelector": {"matchLabels": {"team": format!("t-{}", n % TEAMS)}},
            "podSelector": {"matchLabels": {"app": format!("a-{}", n % APPS), "pod-template-hash": format!("{n:010x}")}},
        })
    });
    let object = policy_object(&json!({
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": blocks.chain(pods).collect::<Vec<_>>(), "ports": [{"protocol": "TCP", "port": 8443}]}],
    }));
    Pattern::new(RecordedKind::Policy, object, &["mark-policy", NAMESPACE])
}

fn policy_object(spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": "mark-policy"},
        "spec": spec,
    })
}
