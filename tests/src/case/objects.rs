//! Objects from the words of a line, and changes to them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

pub fn split(name: &str) -> Result<(&str, &str)> {
    name.split_once('/').with_context(|| format!("{name} is not namespace/name"))
}

pub fn namespace(name: &str, words: &[&str]) -> Result<Value> {
    let mut labels = Map::new();
    labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
    let mut annotations = Map::new();
    for word in words {
        match word.split_once('=') {
            Some((key, value)) => drop(labels.insert(key.to_owned(), json!(value))),
            None if *word == "trusted" => {
                annotations.insert("palisade.dev/trusted-addresses".to_owned(), json!("true"));
            }
            None => bail!("namespace {name}: {word}"),
        }
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
    }))
}

/// As in Kubernetes; `status` may be among the members of the specification.
pub fn service(name: &str, spec: &Value) -> Result<Value> {
    let (namespace, own) = split(name)?;
    let mut spec = spec.clone();
    let status = spec.as_object_mut().and_then(|spec| spec.remove("status")).unwrap_or_else(|| json!({}));
    let metadata = json!({"namespace": namespace, "name": own});
    Ok(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}))
}

/// Reads `key=value` (a label), addresses, and `node: uid: port: init: host: phase:` with their values; other words are options.
pub fn pod<'a>(name: &str, uid: &str, node: &str, words: &[&'a str]) -> Result<(Value, BTreeSet<&'a str>)> {
    let (namespace, own) = split(name)?;
    let mut labels = Map::new();
    let (mut node, mut uid, mut phase) = (node, uid, "Running");
    let (mut list, mut ports, mut sidecar_ports) = (Vec::new(), Vec::new(), Vec::new());
    let mut options = BTreeSet::new();
    for word in words {
        if word.parse::<IpAddr>().is_ok() {
            list.push(json!({"ip": word}));
            continue;
        }
        match (word.split_once(':'), word.split_once('=')) {
            (Some(("node", value)), _) => node = value,
            (Some(("uid", value)), _) => uid = value,
            (Some(("phase", value)), _) => phase = value,
            (Some(("port", value)), _) => ports.push(container_port(value)?),
            (Some(("host", value)), _) => ports.push(host_port(value)?),
            (Some(("init", value)), _) => sidecar_ports.push(container_port(value)?),
            (_, Some((key, value))) => drop(labels.insert(key.to_owned(), json!(value))),
            (_, None) if ["hostNetwork", "older", "noveth", "noobject", "nostatus", "terminating"].contains(word) => {
                options.insert(*word);
            }
            (_, None) => bail!("pod {name}: {word}"),
        }
    }
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": own, "uid": uid, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": ports}]},
        "status": {"phase": phase, "podIPs": list},
    });
    if let Some(first) = list.first() {
        pod["status"]["podIP"] = first["ip"].clone();
    }
    if !sidecar_ports.is_empty() {
        pod["spec"]["initContainers"] = json!([{"name": "side", "restartPolicy": "Always", "ports": sidecar_ports}]);
    }
    if options.contains("hostNetwork") {
        pod["spec"]["hostNetwork"] = json!(true);
    }
    if options.contains("terminating") {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Ok((pod, options))
}

/// `name=80/TCP`; the protocol may be left out, and then is left out of the object.
fn container_port(word: &str) -> Result<Value> {
    let (name, rest) = word.split_once('=').with_context(|| format!("{word} is not name=port/protocol"))?;
    let (port, protocol) = rest.split_once('/').map_or((rest, None), |(port, protocol)| (port, Some(protocol)));
    let mut value = json!({"containerPort": port.parse::<u16>()?, "name": name});
    if let Some(protocol) = protocol {
        value["protocol"] = json!(protocol);
    }
    Ok(value)
}

/// `8080=80/TCP` or `8080=80/TCP@192.168.0.1`: port of the node, port of the container, and hostIP.
fn host_port(word: &str) -> Result<Value> {
    let (word, address) = word.split_once('@').map_or((word, None), |(word, address)| (word, Some(address)));
    let (host, _) = word.split_once('=').with_context(|| format!("{word} is not port=port/protocol"))?;
    let mut value = container_port(word)?;
    value["name"] = json!(format!("host-{host}"));
    value["hostPort"] = json!(host.parse::<u16>()?);
    if let Some(address) = address {
        value["hostIP"] = json!(address);
    }
    Ok(value)
}

/// `key=value` sets a label, `key-` takes it away.
pub fn relabel(object: &mut Value, words: &[&str]) -> Result<()> {
    let labels = object["metadata"]["labels"].as_object_mut().context("labels")?;
    for word in words {
        match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) => drop(labels.insert(key.to_owned(), json!(value))),
            (None, Some(key)) => ensure!(labels.remove(key).is_some(), "there is no label {key}"),
            (None, None) => bail!("label {word}"),
        }
    }
    Ok(())
}

/// RFC 7396.
pub fn merge(object: &mut Value, patch: &Value) {
    let Some(members) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in members {
        if value.is_null() {
            object.as_object_mut().expect("it is one").remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}
