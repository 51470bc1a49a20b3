//! The cluster as the oracle sees it: raw objects, read anew at every question.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::case::Endpoint;

/// Namespace objects, policies, Services and pods by their keys.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    namespaces: BTreeMap<String, Value>,
    policies: BTreeMap<(String, String), Value>,
    services: BTreeMap<(String, String), Value>,
    /// By uid (SEMANTICS 9.4).
    pods: BTreeMap<String, Value>,
    /// What CNI results of this node gave, by interface.
    given: BTreeMap<u32, Endpoint>,
}

/// Follows a path of members; `Null` where it ends early.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

/// A member that is text, or "".
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or("")
}

/// A list; missing and null are empty (SEMANTICS 2.4).
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

fn key(object: &Value) -> (String, String) {
    (text(object, "metadata.namespace").to_owned(), text(object, "metadata.name").to_owned())
}

/// Pods are told apart by uid; a folder may leave it out.
pub fn uid(pod: &Value) -> String {
    match text(pod, "metadata.uid") {
        "" => format!("{}/{}", text(pod, "metadata.namespace"), text(pod, "metadata.name")),
        uid => uid.to_owned(),
    }
}

impl Cluster {
    pub fn put(&mut self, object: &Value) {
        match text(object, "kind") {
            "Namespace" => {
                self.namespaces.insert(key(object).1, object.clone());
            }
            "Pod" => {
                self.pods.insert(uid(object), object.clone());
            }
            "NetworkPolicy" => {
                self.policies.insert(key(object), object.clone());
            }
            "Service" => {
                self.services.insert(key(object), object.clone());
            }
            // Node objects decide nothing: nodes are addresses like others (SEMANTICS 12.3), and the own one is known by its
            // packets (12.4).
            "Node" => {}
            kind => panic!("no judge knows kind {kind:?}"),
        }
    }

    pub fn delete(&mut self, object: &Value) {
        match text(object, "kind") {
            "Namespace" => {
                self.namespaces.remove(&key(object).1);
            }
            "Pod" => {
                self.pods.remove(&uid(object));
            }
            "NetworkPolicy" => {
                self.policies.remove(&key(object));
            }
            "Service" => {
                self.services.remove(&key(object));
            }
            "Node" => {}
            kind => panic!("no judge knows kind {kind:?}"),
        }
    }

    /// The policies of one namespace.
    pub fn policies(&self, namespace: &str) -> impl Iterator<Item = &Value> {
        self.policies.iter().filter(move |((own, _), _)| own == namespace).map(|(_, policy)| policy)
    }

    pub fn services(&self) -> impl Iterator<Item = &Value> {
        self.services.values()
    }

    pub fn pods(&self) -> impl Iterator<Item = &Value> {
        self.pods.values()
    }

    /// Labels of a namespace, the one that every namespace has included (SEMANTICS 5.6); `None`: not known.
    pub fn namespace_labels(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let namespace = self.namespaces.get(name)?;
        let mut labels = labels(namespace);
        labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| name.to_owned());
        Some(labels)
    }

    pub fn trusted(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|namespace| {
            at(namespace, "metadata.annotations").get("palisade.dev/trusted-addresses").and_then(Value::as_str)
                == Some("true")
        })
    }

    pub fn pod(&self, uid: &str) -> Option<&Value> {
        self.pods.get(uid)
    }

    pub fn pod_named(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.pods
            .values()
            .find(|pod| text(pod, "metadata.namespace") == namespace && text(pod, "metadata.name") == name)
    }

    /// The pods that `address` may stand for: not hostNetwork ones (10.1), not finished ones (9.3), all families (5.8). Those that were
    /// given it on this node or, if there are none, those that say so: an address is at most one live pod's (9.4).
    pub fn pods_at(&self, address: IpAddr) -> Vec<&Value> {
        let peers = || self.pods.iter().filter(|(_, pod)| is_peer(pod));
        let has = |uid: &String, pod: &Value| {
            self.given.values().any(|endpoint| {
                let named = || key(pod) == (endpoint.namespace.clone(), endpoint.pod.clone());
                let is_its = endpoint.uid.as_ref().map_or_else(named, |own| own == uid);
                is_its && endpoint.addresses.iter().any(|(given, _)| *given == address)
            })
        };
        let given: Vec<&Value> = peers().filter(|(uid, pod)| has(uid, pod)).map(|(_, pod)| pod).collect();
        if given.is_empty() {
            return peers().map(|(_, pod)| pod).filter(|pod| addresses(pod).contains(&address)).collect();
        }
        given
    }

    /// Takes note of what an interface's CNI result gave its pod; link-local addresses are nobody's name.
    pub fn give(&mut self, mut endpoint: Endpoint) {
        endpoint.addresses.retain(|(address, _)| !is_link_local(*address));
        self.given.insert(endpoint.ifindex, endpoint);
    }

    pub fn take_back(&mut self, ifindex: u32) {
        self.given.remove(&ifindex);
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Terminating pods are (SEMANTICS 9.2).
pub fn is_peer(pod: &Value) -> bool {
    let host_network = at(pod, "spec.hostNetwork").as_bool() == Some(true);
    !host_network && !is_finished(pod)
}

pub fn is_finished(pod: &Value) -> bool {
    matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
}

pub fn labels(object: &Value) -> BTreeMap<String, String> {
    let members = at(object, "metadata.labels").as_object();
    members.into_iter().flatten().map(|(key, value)| (key.clone(), value.as_str().unwrap_or("").to_owned())).collect()
}

/// status.podIPs and status.podIP.
pub fn addresses(pod: &Value) -> Vec<IpAddr> {
    list(pod, "status.podIPs")
        .iter()
        .map(|entry| text(entry, "ip"))
        .chain([text(pod, "status.podIP")])
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// Whether the pod declares `port` of `protocol` under `name` (SEMANTICS 7.6, 7.10, 7.11).
pub fn declares(pod: &Value, name: &str, protocol: &str, port: u16) -> bool {
    let sidecars = list(pod, "spec.initContainers").iter().filter(|init| text(init, "restartPolicy") == "Always");
    list(pod, "spec.containers").iter().chain(sidecars).flat_map(|container| list(container, "ports")).any(|declared| {
        let own = match text(declared, "protocol") {
            "" => "TCP",
            own => own,
        };
        text(declared, "name") == name
            && own == protocol
            && at(declared, "containerPort").as_u64() == Some(u64::from(port))
    })
}
