//! From an object as it was written to what of it can change a verdict. Pure.
//!
//! Every field is read on its own: one that is wrong closes what it concerns and becomes a fault, the others still count.
//! Pods, namespaces and nodes come in great numbers and are decoded straight from the text into [`shape`]s of the few
//! fields needed; policies, which are few and deep, are read from a JSON value.

pub mod cidr;
pub mod intern;
pub mod lax;
pub mod meta;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod policy;
pub mod port;
pub mod selector;
pub mod service;
pub mod shape;

use serde::de::Deserialize;
use serde_json::Value;

use crate::facts::{Fault, Kind, Update};
use intern::Interner;

/// The changes of a manifest object; `None` for a kind that has no part in policy.
///
/// # Errors
/// The object cannot be told from others: its kind, name or namespace cannot be read.
pub fn object(value: Value) -> Result<Option<Update>, Fault> {
    Reducer::default().object(value)
}

/// Reduces objects, sharing what is equal between them.
#[derive(Debug, Default)]
pub struct Reducer {
    interner: Interner,
}

impl Reducer {
    /// As [`object`].
    ///
    /// # Errors
    /// As [`object`].
    pub fn object(&mut self, value: Value) -> Result<Option<Update>, Fault> {
        match kind(&value)? {
            Some(Kind::Pod) => pod::reduce(&shape_of(&value), &mut self.interner).map(Some),
            Some(Kind::Namespace) => namespace::reduce(&shape_of(&value), &mut self.interner).map(Some),
            Some(Kind::Node) => node::reduce(&shape_of(&value)).map(Some),
            Some(Kind::Service) => service::reduce(&shape_of(&value), &mut self.interner).map(Some),
            Some(Kind::Policy) => policy::reduce(&value).map(Some),
            None => Ok(None),
        }
    }

    pub fn interner(&mut self) -> &mut Interner {
        &mut self.interner
    }
}

/// Which of our kinds the object is.
///
/// A fault needs a kind; an object without one may well have been meant as a policy, which would be the gravest loss.
fn kind(value: &Value) -> Result<Option<Kind>, Fault> {
    let unnamed = |field: &str, message: &str| Fault {
        kind: Kind::Policy,
        object: String::new(),
        field: field.to_owned(),
        message: message.to_owned(),
    };
    let Some(object) = value.as_object() else {
        return Err(unnamed("", "this is not an object, it is ignored"));
    };
    let Some(version) = object.get("apiVersion").and_then(Value::as_str) else {
        return Err(unnamed("apiVersion", "an object needs an apiVersion, this one is ignored"));
    };
    let Some(name) = object.get("kind").and_then(Value::as_str) else {
        return Err(unnamed("kind", "an object needs a kind, this one is ignored"));
    };
    match (version, name) {
        ("v1", "Pod") => Ok(Some(Kind::Pod)),
        ("v1", "Namespace") => Ok(Some(Kind::Namespace)),
        ("v1", "Node") => Ok(Some(Kind::Node)),
        ("v1", "Service") => Ok(Some(Kind::Service)),
        ("networking.k8s.io/v1", "NetworkPolicy") => Ok(Some(Kind::Policy)),
        // A slip of the pen that would leave pods open; another vendor's group is another vendor's kind.
        (version, "NetworkPolicy")
            if matches!(version.split_once('/'), None | Some(("networking.k8s.io" | "extensions", _))) =>
        {
            Err(unnamed("apiVersion", "a NetworkPolicy is of networking.k8s.io/v1, this one is ignored"))
        }
        _other => Ok(None),
    }
}

/// Shapes decode from any value: what does not fit is kept as such.
fn shape_of<'a, T: Deserialize<'a> + Default>(value: &'a Value) -> T {
    T::deserialize(value).unwrap_or_default()
}

/// The faults of one object, as they are found.
#[derive(Debug)]
pub struct Faults {
    kind: Kind,
    object: String,
    found: Vec<Fault>,
}

impl Faults {
    pub fn new(kind: Kind, object: String) -> Self {
        Self { kind, object, found: Vec::new() }
    }

    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        let Self { kind, object, found } = self;
        found.push(Fault { kind: *kind, object: object.clone(), field: field.into(), message: message.into() });
    }

    pub fn into_vec(self) -> Vec<Fault> {
        self.found
    }
}

#[cfg(test)]
mod tests;
