//! Namespaces.

use std::collections::BTreeMap;

use super::intern::Interner;
use super::lax::Lax;
use super::shape::NamespaceShape;
use super::{Faults, meta};
use crate::facts::{Change, Fault, Kind, NamespaceFacts, Update};

/// Carried by every namespace, with its name (SEMANTICS 5.6).
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

const CLOSED: &str = "no namespaceSelector matches its pods";

/// # Errors
/// It has no name.
pub fn reduce(shape: &NamespaceShape, interner: &mut Interner) -> Result<Update, Fault> {
    let metadata = shape.metadata.or_empty();
    let name = meta::name(Kind::Namespace, &metadata)?;
    let mut faults = Faults::new(Kind::Namespace, name.to_owned());
    let labels = meta::labels(&shape.metadata, &mut faults, CLOSED);
    let trusted = trusted(&metadata.annotations, &mut faults);
    let facts = labels.map(|labels| facts(name, labels, trusted, interner));
    Ok(Update::new(Change::Namespace(name.into(), facts), faults.into_vec()))
}

/// # Errors
/// It has no name.
pub fn gone(shape: &NamespaceShape) -> Result<Change, Fault> {
    let metadata = shape.metadata.or_empty();
    meta::name(Kind::Namespace, &metadata).map(|name| Change::Namespace(name.into(), None))
}

/// A namespace of which nothing is known but that it must be there.
pub fn implied(name: &str, interner: &mut Interner) -> NamespaceFacts {
    facts(name, BTreeMap::new(), false, interner)
}

fn facts(name: &str, mut labels: BTreeMap<String, String>, trusted: bool, interner: &mut Interner) -> NamespaceFacts {
    labels.insert(NAME_LABEL.to_owned(), name.to_owned());
    NamespaceFacts { name: name.into(), labels: interner.labels(labels), trusted }
}

fn trusted(annotations: &Lax<super::shape::Annotations>, faults: &mut Faults) -> bool {
    let annotations = annotations.or_empty();
    match &annotations.trusted_addresses {
        Lax::Missing => false,
        Lax::Found(text) if text == "true" => true,
        Lax::Found(text) if text == "false" => false,
        Lax::Found(_) | Lax::Wrong => {
            faults.add(
                "metadata.annotations[palisade.dev/trusted-addresses]",
                "this is neither \"true\" nor \"false\", the pods are not trusted with other addresses",
            );
            false
        }
    }
}
