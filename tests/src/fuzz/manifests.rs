//! Files of a folder: whatever is in one, it says the same each time it is read, and takes nothing of another with it.

use std::collections::BTreeMap;

use palisade::api::folder::shelf::Shelf;
use palisade::facts::{Change, Update};

use super::objects::told;

const OTHER: &str = "z.yaml";
const POLICY: &str =
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: other, namespace: there}}";

pub fn check(input: &[u8]) {
    // The first byte says which kind of file it is; YAML is the usual one.
    let (path, contents) = match input {
        [b'\0', contents @ ..] => ("a.json", contents),
        contents => ("a.yaml", contents),
    };
    let mut shelf = Shelf::default();
    shelf.put(OTHER, POLICY.as_bytes());
    let others = shelf.take_updates();
    shelf.put(path, contents);
    let first = shelf.take_updates();
    for Update { faults, .. } in &first {
        told(faults, &path);
    }
    unread(path, contents, &first);
    shelf.put(path, contents);
    assert_eq!(shelf.take_updates(), [], "written again, and nothing changed");
    shelf.remove(path);
    let gone = shelf.take_updates();
    let left = in_force(others.iter().chain(&first).chain(&gone));
    assert_eq!(left, in_force(&others), "everything goes with its file: {first:?}, {gone:?}");
    shelf.put(path, contents);
    assert_eq!(shelf.take_updates(), first, "the same file says the same");
}

/// What cannot be read at all is told with its file and line.
fn unread(path: &str, contents: &[u8], updates: &[Update]) {
    let is_text = std::str::from_utf8(contents).is_ok();
    let is_json = serde_json::from_slice::<serde_json::Value>(contents).is_ok();
    let broken = !is_text || (path.ends_with(".json") && !is_json && !contents.trim_ascii().is_empty());
    let named = |update: &Update| {
        update
            .faults
            .iter()
            .any(|fault| fault.object == path && fault.field.starts_with("line ") && !fault.message.is_empty())
    };
    // Several JSON values may follow each other.
    let several = path.ends_with(".json") && is_text;
    assert!(!broken || several || updates.iter().any(named), "nothing is told of a broken file: {updates:?}");
}

/// The objects that stand after these updates, and those of which something is wrong.
fn in_force<'a>(updates: impl IntoIterator<Item = &'a Update>) -> BTreeMap<String, &'a Update> {
    let mut objects = BTreeMap::new();
    for update in updates {
        let there = match &update.change {
            Change::Namespace(_, facts) => facts.is_some() || !update.faults.is_empty(),
            Change::Pod { facts, .. } => facts.is_some() || !update.faults.is_empty(),
            Change::Policy(_, facts) => facts.is_some() || !update.faults.is_empty(),
            Change::Service(_, facts) => facts.is_some() || !update.faults.is_empty(),
            Change::Node(_, facts) => facts.is_some() || !update.faults.is_empty(),
            Change::Relist(_) | Change::Relisted(_) => panic!("a file is no list"),
        };
        match there {
            true => objects.insert(name(&update.change), update),
            false => objects.remove(&name(&update.change)),
        };
    }
    objects
}

fn name(change: &Change) -> String {
    match change {
        Change::Namespace(name, _) => format!("namespace {name}"),
        Change::Pod { name, uid, .. } => format!("pod {name} {uid}"),
        Change::Policy(name, _) => format!("policy {name}"),
        Change::Service(name, _) => format!("service {name}"),
        Change::Node(name, _) => format!("node {name}"),
        Change::Relist(kind) | Change::Relisted(kind) => kind.name().to_owned(),
    }
}
