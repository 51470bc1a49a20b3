//! The kinds that are watched, as the API server has them.

use std::fmt::Debug;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::reduce::intern::Interner;
use super::reduce::shape::{NamespaceShape, NodeShape, PodShape, ServiceShape};
use super::reduce::{namespace, node, pod, policy, service};
use crate::facts::{Change, Fault, Kind, Update};

/// A kind as it is asked for, decoded and reduced.
pub trait Shape: DeserializeOwned + Debug + Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;

    /// What the object says it is; in a list it says nothing.
    fn kind(&self) -> Option<&str>;
    fn resource_version(&self) -> Option<&str>;
    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault>;
    fn gone(&self) -> Result<Change, Fault>;
}

/// Policies are few, deep, and read field by field.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct PolicyShape(Value);

impl Shape for NamespaceShape {
    const KIND: Kind = Kind::Namespace;
    const GROUP: &'static str = "";

    fn kind(&self) -> Option<&str> {
        self.kind.found().map(String::as_str)
    }

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault> {
        namespace::reduce(self, interner)
    }

    fn gone(&self) -> Result<Change, Fault> {
        namespace::gone(self)
    }
}

impl Shape for PodShape {
    const KIND: Kind = Kind::Pod;
    const GROUP: &'static str = "";

    fn kind(&self) -> Option<&str> {
        self.kind.found().map(String::as_str)
    }

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault> {
        pod::reduce(self, interner)
    }

    fn gone(&self) -> Result<Change, Fault> {
        pod::gone(self)
    }
}

impl Shape for PolicyShape {
    const KIND: Kind = Kind::Policy;
    const GROUP: &'static str = "networking.k8s.io";

    fn kind(&self) -> Option<&str> {
        self.0.get("kind").and_then(Value::as_str)
    }

    fn resource_version(&self) -> Option<&str> {
        self.0.pointer("/metadata/resourceVersion").and_then(Value::as_str)
    }

    fn reduce(&self, _interner: &mut Interner) -> Result<Update, Fault> {
        policy::reduce(&self.0)
    }

    fn gone(&self) -> Result<Change, Fault> {
        policy::gone(&self.0)
    }
}

impl Shape for NodeShape {
    const KIND: Kind = Kind::Node;
    const GROUP: &'static str = "";

    fn kind(&self) -> Option<&str> {
        self.kind.found().map(String::as_str)
    }

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, _interner: &mut Interner) -> Result<Update, Fault> {
        node::reduce(self)
    }

    fn gone(&self) -> Result<Change, Fault> {
        node::gone(self)
    }
}

impl Shape for ServiceShape {
    const KIND: Kind = Kind::Service;
    const GROUP: &'static str = "";

    fn kind(&self) -> Option<&str> {
        self.kind.found().map(String::as_str)
    }

    fn resource_version(&self) -> Option<&str> {
        self.metadata.found()?.0.resource_version.found().map(String::as_str)
    }

    fn reduce(&self, interner: &mut Interner) -> Result<Update, Fault> {
        service::reduce(self, interner)
    }

    fn gone(&self) -> Result<Change, Fault> {
        service::gone(self)
    }
}
