//! The objects that were last known, on the node's disk: what is enforced after a cold boot for which there is no API server (SEMANTICS 8.3).
//!
//! A first line says what the file is and how to tell whether it is whole, the rest is JSON. It holds what this node's tables are made of
//! and no more: no Secrets exist in what the agent watches, and of pods no specification is kept.

mod keeper;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
pub use keeper::{Keeper, Written, is_current, keep};
use serde::{Deserialize, Serialize};

use crate::facts::{Change, Fault, Kind, NamespaceFacts, NodeFacts, PodFacts, PolicyFacts, ServiceFacts, Update};
use crate::index::Index;
use crate::observe::flat_name;
use crate::tables::{Tables, address_v4, address_v6};

/// First word of the file.
const MAGIC: &str = "palisade-last-known";
/// A file of another one is not read.
const VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKnown {
    /// Whose tables are made of it.
    pub node: String,
    /// When it was, to the second (RFC 3339).
    pub taken: String,
    namespaces: Vec<NamespaceFacts>,
    pods: Vec<PodFacts>,
    policies: Vec<PolicyFacts>,
    nodes: Vec<NodeFacts>,
    services: Vec<ServiceFacts>,
    /// What could not be enforced as written.
    faults: Vec<Fault>,
}

impl LastKnown {
    /// What of the index the tables of `node` are made of: its pods, those that `tables` have an entry for, their namespaces, the policies of the
    /// node's pods, and all Services.
    pub fn of<'a>(
        node: &str,
        taken: String,
        index: &Index,
        tables: &Tables,
        faults: impl Iterator<Item = &'a Fault>,
    ) -> Self {
        let is_here = |pod: &PodFacts| pod.node.as_deref() == Some(node);
        let has_class = |pod: &PodFacts| {
            pod.addresses.iter().any(|address| match address {
                std::net::IpAddr::V4(address) => tables.exact_v4.contains_key(&address_v4(*address)),
                std::net::IpAddr::V6(address) => tables.exact_v6.contains_key(&address_v6(*address)),
            })
        };
        let mut known = Self { node: node.to_owned(), taken, ..Self::default() };
        for (_, namespace) in index.namespaces() {
            let pods = || namespace.pods.iter().filter_map(|id| index.pod(*id));
            let before = known.pods.len();
            known.pods.extend(pods().filter(|pod| is_here(pod) || has_class(pod)).cloned());
            if known.pods.len() > before {
                known.namespaces.extend(namespace.facts.clone());
            }
            if pods().any(is_here) {
                known.policies.extend(namespace.policies.values().map(|policy| (**policy).clone()));
            }
        }
        known.nodes.extend(index.nodes().filter(|of| &*of.name == node).cloned());
        known.services.extend(index.services().cloned());
        known.services.sort_by(|a, b| a.name.cmp(&b.name));
        known.pods.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        known.faults = faults.filter(|fault| known.has(fault)).cloned().collect();
        known
    }

    /// Everything that is in the index.
    pub fn all<'a>(node: &str, taken: String, index: &Index, faults: impl Iterator<Item = &'a Fault>) -> Self {
        let mut all = Self { node: node.to_owned(), taken, ..Self::default() };
        for (_, namespace) in index.namespaces() {
            all.namespaces.extend(namespace.facts.clone());
            all.policies.extend(namespace.policies.values().map(|policy| (**policy).clone()));
        }
        all.pods.extend(index.pods().map(|(_, pod)| pod.clone()));
        all.nodes.extend(index.nodes().cloned());
        all.services.extend(index.services().cloned());
        all.faults = faults.cloned().collect();
        all
    }

    fn has(&self, fault: &Fault) -> bool {
        match fault.kind {
            Kind::Namespace => self.namespaces.iter().any(|of| *of.name == *fault.object),
            Kind::Pod => self.pods.iter().any(|of| of.name.to_string() == fault.object),
            Kind::Policy => self.policies.iter().any(|of| of.name.to_string() == fault.object),
            Kind::Node => self.nodes.iter().any(|of| *of.name == *fault.object),
            Kind::Service => self.services.iter().any(|of| of.name.to_string() == fault.object),
        }
    }

    /// The same objects, whenever it was.
    fn is_as(&self, other: &Self) -> bool {
        let taken = String::clone(&other.taken);
        Self { taken, ..self.clone() } == *other
    }

    /// As a source would tell it: a complete list of each kind.
    pub fn into_updates(self) -> Vec<Update> {
        let Self { namespaces, pods, policies, nodes, services, mut faults, .. } = self;
        let mut updates = Vec::new();
        let bare = |change| Update::new(change, Vec::new());
        updates.extend(Kind::ALL.map(|kind| bare(Change::Relist(kind))));
        let mut told = |kind: Kind, object: &str, change: Change| {
            let its = |fault: &mut Fault| fault.kind == kind && fault.object == object;
            updates.push(Update::new(change, faults.extract_if(.., its).collect()));
        };
        for of in namespaces {
            told(Kind::Namespace, &of.name.clone(), Change::Namespace(of.name.clone(), Some(of)));
        }
        for of in pods {
            let change = Change::Pod { name: of.name.clone(), uid: of.uid.clone(), facts: Some(of.clone()) };
            told(Kind::Pod, &of.name.to_string(), change);
        }
        for of in policies {
            told(Kind::Policy, &of.name.to_string(), Change::Policy(of.name.clone(), Some(of.clone())));
        }
        for of in nodes {
            told(Kind::Node, &of.name.clone(), Change::Node(of.name.clone(), Some(of)));
        }
        for of in services {
            told(Kind::Service, &of.name.to_string(), Change::Service(of.name.clone(), Some(of.clone())));
        }
        updates.extend(Kind::ALL.map(|kind| bare(Change::Relisted(kind))));
        updates
    }

    fn encode(&self) -> anyhow::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let mut bytes = format!("{MAGIC} {VERSION} {:08x} {}\n", crc32fast::hash(&body), body.len()).into_bytes();
        bytes.extend(body);
        Ok(bytes)
    }

    /// # Errors
    ///
    /// It is of another version, or not whole.
    fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        let end = bytes.iter().position(|&byte| byte == b'\n').context("it has no first line")?;
        let (line, body) =
            (std::str::from_utf8(&bytes[..end]).context("its first line is no text")?, &bytes[end + 1..]);
        let words: Vec<&str> = line.split(' ').collect();
        let [MAGIC, version, sum, len] = words[..] else { bail!("its first line is another file's") };
        ensure!(version == VERSION.to_string(), "it is of version {version}, this agent reads {VERSION}");
        ensure!(len == body.len().to_string(), "it should have {len} bytes and has {}", body.len());
        ensure!(sum == format!("{:08x}", crc32fast::hash(body)), "its checksum is another");
        serde_json::from_slice(body).context("its content is not what it should be")
    }
}

/// The file of the agent with these pins, below its --state-dir.
pub fn path(state_dir: &Path, pin_dir: &Path) -> PathBuf {
    state_dir.join(flat_name(pin_dir)).join("last-known")
}

/// What is in the file, if there is one.
///
/// # Errors
///
/// It cannot be read, is damaged, or is another node's.
pub fn read(path: &Path, node: &str) -> anyhow::Result<Option<LastKnown>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let known = LastKnown::decode(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    ensure!(known.node == node, "{} is of the node {:?}, and this one is {node:?}", path.display(), known.node);
    Ok(Some(known))
}

#[cfg(test)]
mod tests;
