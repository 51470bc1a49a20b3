//! The world of a case: its objects by name, the veths of this node's pods, and how a line of text becomes a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use super::objects::{merge, namespace, pod, relabel, service, split};
use super::{Endpoint, ObjectChange};
use crate::frame::Mac;
use crate::frame::text::Names;
use crate::oracle::cluster::{addresses, is_peer, text, uid};
use crate::oracle::guard::link_local;

/// The bridge, which routes; and the node as the pods see it.
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 0, 1];
const NODE_V4: &str = "10.244.0.1";
const NODE_V6: &str = "fd00:244::1";
/// Interface index of what comes from other nodes.
pub const UPLINK_IFINDEX: u32 = 2;
const FIRST_IFINDEX: u32 = 10;

#[derive(Clone, Debug)]
pub struct World {
    node: String,
    /// By `namespace/name`.
    pods: BTreeMap<String, Value>,
    namespaces: BTreeMap<String, Value>,
    policies: BTreeMap<String, Value>,
    nodes: BTreeMap<String, Value>,
    services: BTreeMap<String, Value>,
    /// The node's own addresses, as far as a case tells of them.
    own: BTreeSet<IpAddr>,
    endpoints: BTreeMap<String, Endpoint>,
    next_ifindex: u32,
    next_uid: u32,
}

impl World {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            pods: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            policies: BTreeMap::new(),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            own: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            next_ifindex: FIRST_IFINDEX,
            next_uid: 1,
        }
    }

    pub fn endpoint(&self, name: &str) -> Option<&Endpoint> {
        self.endpoints.get(name)
    }

    pub fn pods(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// The address of a name in one family, if it has one.
    pub fn address_of(&self, name: &str, six: bool) -> Option<IpAddr> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return (address.is_ipv6() == six).then_some(address);
        }
        if name == "node" {
            let address = if six { NODE_V6 } else { NODE_V4 };
            return Some(address.parse().expect("it is an address"));
        }
        if let Some(node) = self.nodes.get(name) {
            let list = node["status"]["addresses"].as_array()?;
            return list
                .iter()
                .filter_map(|entry| text(entry, "address").parse::<IpAddr>().ok())
                .find(|address| address.is_ipv6() == six);
        }
        let of_pod = self.pods.get(name).map(addresses).unwrap_or_default();
        let of_veth = self.endpoints.get(name).into_iter().flat_map(|endpoint| &endpoint.addresses).map(|(ip, _)| *ip);
        let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        of_pod.into_iter().chain(of_veth).find(|address| address.is_ipv6() == six && !link_local(address))
    }

    /// The local pod behind an address.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints.values().find(|endpoint| endpoint.addresses.iter().any(|(own, _)| *own == address))
    }

    /// A process of this node takes in what is sent to the address.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let bridge = [NODE_V4, NODE_V6].iter().any(|own| own.parse() == Ok(address));
        bridge || self.own.contains(&address)
    }

    /// All objects as they are now, as changes.
    pub fn snapshot(&self) -> Vec<ObjectChange> {
        let objects = [&self.namespaces, &self.nodes, &self.services, &self.pods, &self.policies];
        let puts = objects.into_iter().flat_map(BTreeMap::values).cloned().map(ObjectChange::Put);
        let own = (!self.own.is_empty()).then(|| ObjectChange::Own(self.own.clone()));
        puts.chain(own).chain(self.endpoints.values().cloned().map(ObjectChange::Endpoint)).collect()
    }

    /// The changes that empty the cluster; the veths stay.
    pub fn emptying(&self) -> Vec<ObjectChange> {
        let objects = [&self.policies, &self.pods, &self.services, &self.nodes, &self.namespaces];
        objects.into_iter().flat_map(BTreeMap::values).cloned().map(ObjectChange::Delete).collect()
    }

    /// Reads one change. `None`: the item is none.
    pub fn change(&mut self, item: &Value) -> Result<Option<Vec<ObjectChange>>> {
        match item {
            Value::String(line) => self.change_line(line),
            Value::Object(members) if members.len() == 1 => {
                let (key, value) = members.iter().next().expect("there is one");
                self.change_map(key, value)
            }
            other => bail!("neither text nor a map of one member: {other}"),
        }
    }

    fn change_line(&mut self, line: &str) -> Result<Option<Vec<ObjectChange>>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let changes = match words[..] {
            ["ns", name, ref rest @ ..] => vec![self.put_namespace(namespace(name, rest)?)],
            ["node", name, ref rest @ ..] => {
                let list: Vec<Value> =
                    rest.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
                let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": list}});
                self.nodes.insert(name.to_owned(), node.clone());
                vec![ObjectChange::Put(node)]
            }
            ["own", ref rest @ ..] => {
                self.own = rest.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
                vec![ObjectChange::Own(self.own.clone())]
            }
            ["pod", name, ref rest @ ..] => self.put_pod_line(name, rest)?,
            ["label", "pod", name, ref rest @ ..] => {
                let mut pod = self.pods.get(name).with_context(|| format!("pod {name}"))?.clone();
                relabel(&mut pod, rest)?;
                self.put_pod(name, pod)
            }
            ["label", "ns", name, ref rest @ ..] => {
                let mut namespace = self.namespaces.get(name).with_context(|| format!("namespace {name}"))?.clone();
                relabel(&mut namespace, rest)?;
                vec![self.put_namespace(namespace)]
            }
            ["delete", kind, name] => self.delete(kind, name)?,
            ["delete", "pod", name, uid] => self.delete_pod_of(name, uid.strip_prefix("uid:").context("uid:UID")?)?,
            ["forget", "pod", name] => {
                // The object goes, the veth stays.
                vec![ObjectChange::Delete(self.pods.remove(name).with_context(|| format!("pod {name}"))?)]
            }
            ["unveth", name] => self.remove_endpoint(name),
            ["listen", name, ports] => {
                let ports: BTreeSet<u16> = match ports {
                    "none" => BTreeSet::new(),
                    list => list.split(',').map(str::parse).collect::<Result<_, _>>()?,
                };
                let endpoint = self.endpoints.get_mut(name).with_context(|| format!("endpoint {name}"))?;
                endpoint.listening = Some(ports);
                vec![ObjectChange::Endpoint(endpoint.clone())]
            }
            _ => return Ok(None),
        };
        Ok(Some(changes))
    }

    fn change_map(&mut self, key: &str, value: &Value) -> Result<Option<Vec<ObjectChange>>> {
        let words: Vec<&str> = key.split_whitespace().collect();
        let changes = match words[..] {
            ["policy", name] => {
                let (namespace, own) = split(name)?;
                let policy = json!({
                    "apiVersion": "networking.k8s.io/v1",
                    "kind": "NetworkPolicy",
                    "metadata": {"namespace": namespace, "name": own},
                    "spec": value,
                });
                self.policies.insert(name.to_owned(), policy.clone());
                vec![ObjectChange::Put(policy)]
            }
            ["service", name] => {
                let service = service(name, value)?;
                self.services.insert(name.to_owned(), service.clone());
                vec![ObjectChange::Put(service)]
            }
            ["patch", "service", name] => {
                let service = self.services.get_mut(name).with_context(|| format!("service {name}"))?;
                merge(service, value);
                vec![ObjectChange::Put(service.clone())]
            }
            ["patch", "pod", name] => {
                let mut pod = self.pods.get(name).with_context(|| format!("pod {name}"))?.clone();
                merge(&mut pod, value);
                self.put_pod(name, pod)
            }
            ["patch", "ns", name] => {
                let mut namespace = self.namespaces.get(name).with_context(|| format!("namespace {name}"))?.clone();
                merge(&mut namespace, value);
                vec![self.put_namespace(namespace)]
            }
            ["patch", "policy", name] => {
                let policy = self.policies.get_mut(name).with_context(|| format!("policy {name}"))?;
                merge(policy, value);
                vec![ObjectChange::Put(policy.clone())]
            }
            _ => return Ok(None),
        };
        Ok(Some(changes))
    }

    fn put_namespace(&mut self, namespace: Value) -> ObjectChange {
        self.namespaces.insert(text(&namespace, "metadata.name").to_owned(), namespace.clone());
        ObjectChange::Put(namespace)
    }

    fn put_pod_line(&mut self, name: &str, words: &[&str]) -> Result<Vec<ObjectChange>> {
        let uid = format!("uid-{}", self.next_uid);
        self.next_uid += 1;
        let (pod, options) = pod(name, &uid, &self.node, words)?;
        let mut changes = self.put_pod(name, pod);
        if let Some(endpoint) = self.endpoints.get_mut(name) {
            endpoint.older |= options.contains("older");
            let gone = options.contains("noveth").then_some(endpoint.ifindex);
            let endpoint = endpoint.clone();
            changes.retain(|change| !matches!(change, ObjectChange::Endpoint(_)));
            if options.contains("noobject") {
                changes.clear();
                self.pods.remove(name);
            }
            // Only its CNI result says which addresses it has.
            if options.contains("nostatus")
                && let Some(pod) = self.pods.get(name)
            {
                let mut early = pod.clone();
                early["status"] = json!({"phase": "Pending"});
                changes.retain(|change| !matches!(change, ObjectChange::Put(_)));
                changes.push(ObjectChange::Put(early));
            }
            match gone {
                Some(_) => drop(self.endpoints.remove(name)),
                None => changes.push(ObjectChange::Endpoint(endpoint)),
            }
        }
        Ok(changes)
    }

    /// Puts a pod, with its veth where it lives on this node.
    fn put_pod(&mut self, name: &str, pod: Value) -> Vec<ObjectChange> {
        self.pods.insert(name.to_owned(), pod.clone());
        let local = text(&pod, "spec.nodeName") == self.node && is_peer(&pod);
        let mut changes = vec![ObjectChange::Put(pod.clone())];
        if !local {
            changes.splice(0..0, self.remove_endpoint(name));
            return changes;
        }
        let own = addresses(&pod);
        let old = self.endpoints.get(name).filter(|endpoint| endpoint.uid.as_deref() == Some(&uid(&pod)));
        let mut endpoint = match old {
            Some(endpoint) => endpoint.clone(),
            None => {
                changes.splice(0..0, self.remove_endpoint(name));
                self.new_endpoint(name, &uid(&pod))
            }
        };
        endpoint.addresses =
            own.into_iter().map(|address| (address, if address.is_ipv4() { 24 } else { 64 })).collect();
        endpoint.addresses.dedup();
        endpoint.addresses.push((link_local(endpoint.mac).into(), 64));
        if self.endpoints.get(name) != Some(&endpoint) {
            self.endpoints.insert(name.to_owned(), endpoint.clone());
            changes.push(ObjectChange::Endpoint(endpoint));
        }
        changes
    }

    fn new_endpoint(&mut self, name: &str, uid: &str) -> Endpoint {
        let (namespace, pod) = split(name).expect("pods are kept by namespace and name");
        let ifindex = self.next_ifindex;
        self.next_ifindex += 1;
        let [high, low] = (ifindex as u16).to_be_bytes();
        Endpoint {
            ifindex,
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: Some(uid.to_owned()),
            mac: [0x02, 0x42, 0, 0, high, low],
            addresses: Vec::new(),
            older: false,
            listening: None,
        }
    }

    fn remove_endpoint(&mut self, name: &str) -> Vec<ObjectChange> {
        let endpoint = self.endpoints.remove(name);
        endpoint.into_iter().map(|endpoint| ObjectChange::EndpointGone(endpoint.ifindex)).collect()
    }

    /// Another pod may have the name by now; then the world stays as it is.
    fn delete_pod_of(&mut self, name: &str, uid: &str) -> Result<Vec<ObjectChange>> {
        if self.pods.get(name).is_some_and(|pod| text(pod, "metadata.uid") == uid) {
            return self.delete("pod", name);
        }
        let (namespace, own) = split(name)?;
        let metadata = json!({"namespace": namespace, "name": own, "uid": uid});
        Ok(vec![ObjectChange::Delete(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))])
    }

    fn delete(&mut self, kind: &str, name: &str) -> Result<Vec<ObjectChange>> {
        let mut changes = Vec::new();
        let removed = match kind {
            "pod" => {
                changes = self.remove_endpoint(name);
                self.pods.remove(name)
            }
            "policy" => self.policies.remove(name),
            "ns" => self.namespaces.remove(name),
            "node" => self.nodes.remove(name),
            "service" => self.services.remove(name),
            other => bail!("delete {other}"),
        };
        changes.push(ObjectChange::Delete(removed.ok_or_else(|| anyhow!("there is no {kind} {name}"))?));
        Ok(changes)
    }
}

impl Names for World {
    fn address(&self, name: &str) -> Option<IpAddr> {
        if let Some(name) = name.strip_suffix("@ll") {
            return self.endpoints.get(name).map(|endpoint| link_local(endpoint.mac).into());
        }
        match name.strip_suffix("@6") {
            Some(name) => self.address_of(name, true),
            None => self.address_of(name, false),
        }
    }

    fn mac(&self, name: &str) -> Option<Mac> {
        match name {
            "router" => Some(ROUTER_MAC),
            "broadcast" => Some([0xff; 6]),
            name => self.endpoints.get(name).map(|endpoint| endpoint.mac),
        }
    }

    fn mac_of(&self, address: IpAddr) -> Mac {
        self.endpoint_at(address).map_or(ROUTER_MAC, |endpoint| endpoint.mac)
    }
}
