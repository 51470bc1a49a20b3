//! The kinds of objects that a recorded server has, by the names that they have on the way.

use anyhow::{Context, Result};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordedKind {
    Namespace,
    Pod,
    Policy,
    Node,
    Service,
}

// === impl RecordedKind ===

impl RecordedKind {
    pub const ALL: [Self; 5] = [Self::Namespace, Self::Pod, Self::Policy, Self::Node, Self::Service];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Policy => "NetworkPolicy",
            Self::Node => "Node",
            Self::Service => "Service",
        }
    }

    /// As in an object's `apiVersion`.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Policy => "networking.k8s.io/v1",
            Self::Namespace | Self::Pod | Self::Node | Self::Service => "v1",
        }
    }

    /// Of all of its objects.
    pub const fn list_path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Pod => "/api/v1/pods",
            Self::Policy => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::Node => "/api/v1/nodes",
            Self::Service => "/api/v1/services",
        }
    }

    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// Of one object, by its metadata.
    pub(super) fn path(self, object: &Value) -> Result<String> {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().context("an object has a name")?;
        let (root, plural) = self.list_path().rsplit_once('/').context("a path has parts")?;
        Ok(if self.is_namespaced() {
            let namespace = metadata["namespace"].as_str().context("an object of this kind has a namespace")?;
            format!("{root}/namespaces/{namespace}/{plural}/{name}")
        } else {
            format!("{root}/{plural}/{name}")
        })
    }

    /// How an object by itself begins.
    pub(super) fn head(self) -> String {
        format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", self.name(), self.version())
    }

    /// What a bookmark's object has beside its metadata: the fields that the kind's type always writes.
    pub(super) const fn bookmark_rest(self) -> &'static str {
        match self {
            Self::Namespace => ",\"spec\":{}",
            Self::Policy => ",\"spec\":{\"podSelector\":{}}",
            Self::Pod => ",\"spec\":{\"containers\":null}",
            Self::Node => ",\"spec\":{}",
            Self::Service => ",\"spec\":{}",
        }
    }

    /// As [`Self::bookmark_rest`], what follows the spec.
    pub(super) const fn bookmark_end(self) -> &'static str {
        match self {
            Self::Policy => "",
            Self::Namespace | Self::Pod => ",\"status\":{}",
            Self::Node => {
                ",\"status\":{\"daemonEndpoints\":{\"kubeletEndpoint\":{\"Port\":0}},\"nodeInfo\":{\"machineID\":\"\",\"systemUUID\":\"\",\"bootID\":\"\",\"kernelVersion\":\"\",\"osImage\":\"\",\"containerRuntimeVersion\":\"\",\"kubeletVersion\":\"\",\"kubeProxyVersion\":\"\",\"operatingSystem\":\"\",\"architecture\":\"\"}}"
            }
            Self::Service => ",\"status\":{\"loadBalancer\":{}}",
        }
    }
}
