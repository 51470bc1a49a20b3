//! Metadata that several kinds have: who an object is, and its labels.

use std::collections::BTreeMap;

use super::Faults;
use super::lax::{Lax, Record};
use super::shape::Metadata;
use crate::facts::{Fault, Kind, ObjectName};

/// The namespace of an object that names none, as kubectl would fill it in.
pub const DEFAULT_NAMESPACE: &str = "default";

/// # Errors
/// The name is missing, empty or no text.
pub fn name(kind: Kind, metadata: &Metadata) -> Result<&str, Fault> {
    match &metadata.name {
        Lax::Found(name) if !name.is_empty() => Ok(name),
        Lax::Found(_) | Lax::Missing | Lax::Wrong => Err(Fault {
            kind,
            object: String::new(),
            field: "metadata.name".to_owned(),
            message: "an object needs a name, this one is ignored".to_owned(),
        }),
    }
}

/// # Errors
/// The name is missing, or name or namespace are no texts.
pub fn namespaced_name(kind: Kind, metadata: &Metadata) -> Result<ObjectName, Fault> {
    let name = name(kind, metadata)?;
    match &metadata.namespace {
        Lax::Found(namespace) if !namespace.is_empty() => Ok(ObjectName::new(namespace, name)),
        Lax::Found(_) | Lax::Missing => Ok(ObjectName::new(DEFAULT_NAMESPACE, name)),
        Lax::Wrong => Err(Fault {
            kind,
            object: name.to_owned(),
            field: "metadata.namespace".to_owned(),
            message: "a namespace is a text, this object is ignored".to_owned(),
        }),
    }
}

/// `None`: some label cannot be read. The object cannot be selected correctly then, not even by the others, as NotIn
/// and DoesNotExist match what is absent.
pub fn labels(metadata: &Lax<Record<Metadata>>, faults: &mut Faults, closed: &str) -> Option<BTreeMap<String, String>> {
    let metadata = metadata.or_empty();
    match &metadata.labels {
        Lax::Missing => Some(BTreeMap::new()),
        Lax::Wrong => {
            faults.add("metadata.labels", format!("labels are a map of texts, {closed}"));
            None
        }
        Lax::Found(strings) => {
            let mut labels = BTreeMap::new();
            for (key, value) in strings {
                match value {
                    Lax::Found(value) => drop(labels.insert(key.clone(), value.clone())),
                    // The API server reads null as the empty text.
                    Lax::Missing => drop(labels.insert(key.clone(), String::new())),
                    Lax::Wrong => faults.add(
                        format!("metadata.labels[{key}]"),
                        format!("the value of a label is a text (numbers need quotes), {closed}"),
                    ),
                }
            }
            (labels.len() == strings.len()).then_some(labels)
        }
    }
}
