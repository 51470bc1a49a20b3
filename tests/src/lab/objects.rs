//! API objects of what is in the lab, as values; and a folder of them for `--manifests`.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Node, Pod, PodSpec};

pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {}}});
    // As the API server does for every namespace.
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    for (key, value) in labels {
        object["metadata"]["labels"][key] = (*value).into();
    }
    object
}

pub fn node(node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    let cidrs = node.pod_cidrs();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {"addresses": addresses},
    })
}

pub fn pod(pod: &Pod, node: &Node) -> Value {
    let spec = PodSpec {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        labels: pod.labels.clone(),
        ports: pod.ports.clone(),
        host_ports: pod.host_ports.clone(),
        uid: Some(pod.uid.clone()),
    };
    let addresses: Vec<Value> = pod.addresses.iter().map(|address| json!({"ip": address})).collect();
    let mut object = scheduled(&spec, node);
    object["status"] = json!({
        "phase": "Running",
        "podIP": pod.ipv4(),
        "podIPs": addresses,
        "hostIP": node.addresses[0],
    });
    object
}

/// A pod as it is before it runs: bound to its node, without a status.
pub fn scheduled(spec: &PodSpec, node: &Node) -> Value {
    let port = |protocol: &str, port: u16| json!({"protocol": protocol, "containerPort": port});
    let mut ports: Vec<Value> = Vec::new();
    for (name, protocol, number) in &spec.ports {
        let mut port = port(protocol, *number);
        port["name"] = name.as_str().into();
        ports.push(port);
    }
    for (host, protocol, number) in &spec.host_ports {
        let port = port(protocol, *number);
        let same = |listed: &Value| ["protocol", "containerPort"].iter().all(|key| listed[key] == port[key]);
        let place = ports.iter().position(same).unwrap_or_else(|| {
            ports.push(port.clone());
            ports.len() - 1
        });
        ports[place]["hostPort"] = (*host).into();
    }
    let mut metadata = json!({"namespace": spec.namespace, "name": spec.name, "labels": spec.labels});
    if let Some(uid) = &spec.uid {
        metadata["uid"] = uid.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node.name, "containers": [{"name": "server", "image": "none", "ports": ports}]},
    })
}

/// A Service by its spec. Which pods are behind it is said by [`endpoint_slice`], as no controller is there to find them.
pub fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    })
}

/// A backend of a Service: its address, and the node that it is on if it is on one.
pub struct Backend {
    pub address: IpAddr,
    pub node: Option<String>,
}

/// One slice of a Service: backends of one family, and the ports that they all have.
pub fn endpoint_slice(service: &Value, number: usize, backends: &[Backend], ports: &Value) -> Value {
    let metadata = &service["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let family = if backends.iter().all(|backend| backend.address.is_ipv4()) { "IPv4" } else { "IPv6" };
    let endpoints: Vec<Value> = backends
        .iter()
        .map(|backend| {
            let mut endpoint = json!({"addresses": [backend.address], "conditions": {"ready": true}});
            if let Some(node) = &backend.node {
                endpoint["nodeName"] = node.as_str().into();
            }
            endpoint
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": format!("{name}-{}-{number}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A NetworkPolicy by its spec in YAML.
pub fn policy(namespace: &str, name: &str, spec: &str) -> Result<Value> {
    let spec: Value = serde_norway::from_str(spec).with_context(|| format!("policy {namespace}/{name}"))?;
    Ok(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }))
}

/// A folder with one file per object, as the agent watches it.
#[derive(Clone)]
pub struct Manifests {
    pub folder: PathBuf,
}

impl Manifests {
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Writes or replaces the object's file, at once as a whole.
    pub fn put(&self, object: &Value) -> Result<()> {
        self.put_text(&file_name(object)?, &serde_norway::to_string(object)?)
    }

    /// The same with a text, which need not be YAML.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let place = self.folder.join(file);
        // A hidden name without the extension, which nobody takes for a manifest.
        let part = self.folder.join(format!(".{file}.part"));
        fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
        fs::rename(&part, &place).with_context(|| format!("cannot write {}", place.display()))
    }

    pub fn remove(&self, object: &Value) -> Result<()> {
        let place = self.folder.join(file_name(object)?);
        fs::remove_file(&place).with_context(|| format!("cannot remove {}", place.display()))
    }

    pub fn path(&self, object: &Value) -> Result<PathBuf> {
        Ok(self.folder.join(file_name(object)?))
    }
}

fn file_name(object: &Value) -> Result<String> {
    let kind = object["kind"].as_str().context("an object has a kind")?.to_lowercase();
    let name = object["metadata"]["name"].as_str().context("an object has a name")?;
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind}-{namespace}-{name}.yaml"),
        None => format!("{kind}-{name}.yaml"),
    })
}
