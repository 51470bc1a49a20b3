//! What the files of a folder amount to: contents in, updates out. Pure.
//!
//! A file is to its objects what `kubectl apply` and `kubectl delete` are: they come, change and go with it. Of an object
//! in several files the one in the file whose name sorts last counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::documents::{self, Document};
use crate::api::reduce::{Reducer, namespace};
use crate::facts::{Change, Fault, Kind, ObjectName, Update};

#[derive(Debug, Default)]
pub struct Shelf {
    reducer: Reducer,
    files: BTreeMap<Arc<str>, File>,
    /// Who says what about an object, in ascending order of precedence.
    claims: HashMap<Key, BTreeMap<Place, Update>>,
    /// What has been told, by object.
    told: HashMap<Key, Update>,
    /// How many pods and policies are in a namespace.
    inhabitants: HashMap<Arc<str>, usize>,
    changed: BTreeSet<Key>,
}

#[derive(Debug, Default)]
struct File {
    claims: BTreeMap<Key, Place>,
    faults: Vec<Fault>,
}

/// File and position in it.
type Place = (Arc<str>, usize);

/// An object's identity in a folder: a pod with another UID is the same object, changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Pod(ObjectName),
    Policy(ObjectName),
    Service(ObjectName),
    Node(Arc<str>),
    /// After those that may imply one.
    Namespace(Arc<str>),
    /// A file, for the faults that belong to no object.
    File(Arc<str>),
}

impl Shelf {
    /// A file is there with these contents.
    pub fn put(&mut self, path: &str, contents: &[u8]) {
        let documents = match std::str::from_utf8(contents) {
            Ok(text) if path.ends_with(".json") => documents::json(text),
            Ok(text) => documents::yaml(text),
            Err(error) => {
                let line = 1 + contents[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
                vec![Document { line, object: Err("this is no UTF-8 text".to_owned()) }]
            }
        };
        let path: Arc<str> = path.into();
        let mut faults = Vec::new();
        let mut found: BTreeMap<Key, Vec<(usize, Update)>> = BTreeMap::new();
        for (position, Document { line, object }) in documents.into_iter().enumerate() {
            let reduced = object.map_err(|message| file_fault(&path, line, &message));
            match reduced.and_then(|object| self.reducer.object(object).map_err(|fault| nameless(&path, line, fault))) {
                Ok(Some(update)) => found.entry(key(&update.change)).or_default().push((position, update)),
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        self.replace(&path, found, faults);
    }

    /// A file is there and cannot be read.
    pub fn unreadable(&mut self, path: &str, reason: &str) {
        let path: Arc<str> = path.into();
        let fault = Fault { kind: Kind::Policy, object: path.to_string(), field: String::new(), message: kept(reason) };
        self.replace(&path, BTreeMap::new(), vec![fault]);
    }

    /// A file is gone.
    pub fn remove(&mut self, path: &str) {
        let Some((path, file)) = self.files.remove_entry(path) else { return };
        let File { claims, faults: _ } = file;
        for (key, _place) in claims {
            self.withdraw(key, &path);
        }
        self.changed.insert(Key::File(path));
    }

    pub fn paths(&self) -> Vec<Arc<str>> {
        self.files.keys().cloned().collect()
    }

    /// What has changed since it was last asked.
    pub fn take_updates(&mut self) -> Vec<Update> {
        let mut updates = Vec::new();
        while let Some(key) = self.changed.pop_first() {
            let wanted = self.wanted(&key);
            let told = self.told.get(&key);
            if told == wanted.as_ref() {
                continue;
            }
            if let Key::Pod(ObjectName { namespace, .. }) | Key::Policy(ObjectName { namespace, .. }) = &key {
                let (before, now) = (told.is_some(), wanted.is_some());
                self.settle(&namespace.clone(), before, now);
            }
            if let Some(Update { change, .. }) = self.told.remove(&key)
                && wanted.as_ref().is_none_or(|wanted| !same_object(&change, &wanted.change))
            {
                updates.push(Update::new(gone(change), Vec::new()));
            }
            if let Some(wanted) = wanted {
                updates.push(wanted.clone());
                self.told.insert(key, wanted);
            }
        }
        updates
    }

    /// The file's objects are now these. If something of it could not be read, its earlier objects stay unless they
    /// are among these: the unreadable part may hold them.
    fn replace(&mut self, path: &Arc<str>, found: BTreeMap<Key, Vec<(usize, Update)>>, faults: Vec<Fault>) {
        let file = self.files.entry(Arc::clone(path)).or_default();
        let mut before = std::mem::take(&mut file.claims);
        let keep = !faults.is_empty();
        if file.faults != faults {
            file.faults = faults;
            self.changed.insert(Key::File(Arc::clone(path)));
        }
        let mut claims: BTreeMap<Key, Place> = BTreeMap::new();
        let mut gone = Vec::new();
        before.retain(|key, _place| !found.contains_key(key));
        for (key, place) in before {
            if keep { drop(claims.insert(key, place)) } else { gone.push(key) }
        }
        for (key, updates) in found {
            self.withdraw(key.clone(), path);
            let claim = self.claims.entry(key.clone()).or_default();
            for (position, update) in updates {
                let place = (Arc::clone(path), position);
                claim.insert(place.clone(), update);
                claims.insert(key.clone(), place);
            }
        }
        for key in gone {
            self.withdraw(key, path);
        }
        self.files.entry(Arc::clone(path)).or_default().claims = claims;
    }

    fn withdraw(&mut self, key: Key, path: &Arc<str>) {
        if let Some(claims) = self.claims.get_mut(&key) {
            claims.retain(|(file, _position), _update| file != path);
            if claims.is_empty() {
                self.claims.remove(&key);
            }
        }
        self.changed.insert(key);
    }

    fn wanted(&mut self, key: &Key) -> Option<Update> {
        if let Key::File(path) = key {
            let faults = self.files.get(path).map(|file| file.faults.clone()).unwrap_or_default();
            return (!faults.is_empty()).then(|| Update::new(file_change(path), faults));
        }
        let Some(claims) = self.claims.get(key) else {
            let Key::Namespace(name) = key else { return None };
            let facts = self.inhabitants.contains_key(name).then(|| namespace::implied(name, self.reducer.interner()));
            return facts.map(|facts| Update::new(Change::Namespace(name.clone(), Some(facts)), vec![]));
        };
        let ((used, _position), update) = claims.last_key_value()?;
        // When a file came into being is another matter than when its object was written.
        let mut update = Update { written: None, ..update.clone() };
        for (unused, _position) in claims.keys().rev().skip(1) {
            let message = format!("{unused} holds this object too, what {used} says counts");
            update.faults.push(object_fault(key, message));
        }
        Some(update)
    }

    fn settle(&mut self, namespace: &Arc<str>, before: bool, now: bool) {
        if before == now {
            return;
        }
        let count = self.inhabitants.entry(Arc::clone(namespace)).or_default();
        *count = if now { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.inhabitants.remove(namespace);
        }
        self.changed.insert(Key::Namespace(Arc::clone(namespace)));
    }
}

// === Identities ===

fn key(change: &Change) -> Key {
    match change {
        Change::Namespace(name, _facts) => Key::Namespace(name.clone()),
        Change::Pod { name, uid: _, facts: _ } => Key::Pod(name.clone()),
        Change::Policy(name, _facts) => Key::Policy(name.clone()),
        Change::Node(name, _facts) => Key::Node(name.clone()),
        Change::Service(name, _facts) => Key::Service(name.clone()),
        Change::Relist(_) | Change::Relisted(_) => unreachable!("an object is never a list"),
    }
}

fn same_object(one: &Change, other: &Change) -> bool {
    match (one, other) {
        (Change::Pod { uid: one, .. }, Change::Pod { uid: other, .. }) => one == other,
        _same_key => true,
    }
}

fn gone(change: Change) -> Change {
    match change {
        Change::Namespace(name, _facts) => Change::Namespace(name, None),
        Change::Pod { name, uid, facts: _ } => Change::Pod { name, uid, facts: None },
        Change::Policy(name, _facts) => Change::Policy(name, None),
        Change::Node(name, _facts) => Change::Node(name, None),
        Change::Service(name, _facts) => Change::Service(name, None),
        Change::Relist(_) | Change::Relisted(_) => unreachable!("an object is never a list"),
    }
}

/// An update tells the faults of one object, and those of a file must be told somehow: as those of a policy that is
/// not there, in a namespace that cannot be.
fn file_change(path: &Arc<str>) -> Change {
    Change::Policy(ObjectName { namespace: "".into(), name: Arc::clone(path) }, None)
}

// === Faults ===

fn kept(reason: &str) -> String {
    format!("{reason}; what the file said before still holds")
}

fn file_fault(path: &str, line: usize, reason: &str) -> Fault {
    Fault { kind: Kind::Policy, object: path.to_owned(), field: format!("line {line}"), message: kept(reason) }
}

/// An object that cannot be told from others is named by its file.
fn nameless(path: &str, line: usize, fault: Fault) -> Fault {
    let Fault { kind, object: _, field, message } = fault;
    Fault { kind, object: path.to_owned(), field: format!("line {line}: {field}"), message: kept(&message) }
}

fn object_fault(key: &Key, message: String) -> Fault {
    let (kind, object) = match key {
        Key::Pod(name) => (Kind::Pod, name.to_string()),
        Key::Policy(name) => (Kind::Policy, name.to_string()),
        Key::Node(name) => (Kind::Node, name.to_string()),
        Key::Service(name) => (Kind::Service, name.to_string()),
        Key::Namespace(name) => (Kind::Namespace, name.to_string()),
        Key::File(path) => (Kind::Policy, path.to_string()),
    };
    Fault { kind, object, field: String::new(), message }
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
