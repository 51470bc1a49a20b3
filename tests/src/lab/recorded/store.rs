//! The objects of a recorded server, the lists of them, and the events that tell of their changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::kind::RecordedKind;
use super::pattern::Recording;

/// Events that are kept for a watch that begins at an older version, as the real server's cache does it.
const KEPT_EVENTS: usize = 4096;
/// Events that wait for one watch; whoever makes more waits.
const QUEUE: usize = 256;

#[derive(Default)]
pub struct Store {
    shelves: Mutex<Shelves>,
}

#[derive(Default)]
struct Shelves {
    version: u64,
    by_kind: BTreeMap<RecordedKind, Shelf>,
}

#[derive(Default)]
struct Shelf {
    /// With the version at which each was last changed.
    objects: BTreeMap<String, (u64, Recording)>,
    events: VecDeque<(u64, Bytes)>,
    /// The version of the last event that was thrown away.
    forgotten: u64,
    watches: Vec<mpsc::Sender<Bytes>>,
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Added,
    Modified,
    Deleted,
}

/// A version whose events are gone.
#[derive(Debug)]
pub struct Gone;

// === impl Store ===

impl Store {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().expect("nobody panics in here")
    }

    /// Puts objects that are older than everybody who asks.
    pub fn fill(&self, objects: impl IntoIterator<Item = Recording>) {
        let mut shelves = self.shelves();
        for object in objects {
            shelves.version += 1;
            let version = shelves.version;
            let shelf = shelves.by_kind.entry(object.kind()).or_default();
            shelf.objects.insert(object.key(), (version, object));
            shelf.forgotten = version;
        }
    }

    /// How many objects of the kind there are.
    pub fn len(&self, kind: RecordedKind) -> usize {
        self.shelves().by_kind.get(&kind).map_or(0, |shelf| shelf.objects.len())
    }

    /// Changes an object and tells everybody; waits for those that are slow. Not from within a runtime.
    pub fn change(&self, event: Event, object: Recording) {
        let (bytes, watches) = {
            let mut shelves = self.shelves();
            shelves.version += 1;
            let version = shelves.version;
            let shelf = shelves.by_kind.entry(object.kind()).or_default();
            let bytes = event_of(event.name(), |to| object.write_object(version, to));
            match event {
                Event::Added | Event::Modified => drop(shelf.objects.insert(object.key(), (version, object))),
                Event::Deleted => drop(shelf.objects.remove(&object.key())),
            }
            shelf.events.push_back((version, bytes.clone()));
            while shelf.events.len() > KEPT_EVENTS {
                shelf.forgotten = shelf.events.pop_front().map_or(0, |(version, _)| version);
            }
            shelf.watches.retain(|watch| !watch.is_closed());
            (bytes, shelf.watches.clone())
        };
        for watch in watches {
            // One that has ended is of no interest.
            let _ = watch.blocking_send(bytes.clone());
        }
    }

    /// A page of a list, from after a key on.
    pub fn page(&self, kind: RecordedKind, after: Option<&str>, limit: usize) -> Bytes {
        let shelves = self.shelves();
        let empty = Shelf::default();
        let shelf = shelves.by_kind.get(&kind).unwrap_or(&empty);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = shelf.objects.range::<str, _>((from, Bound::Unbounded));
        let mut items = Vec::new();
        let (mut last, mut count) = (None, 0);
        for (key, (version, object)) in rest.by_ref().take(limit) {
            if count > 0 {
                items.push(b',');
            }
            object.write_item(*version, &mut items);
            (last, count) = (Some(key), count + 1);
        }
        let remaining = rest.count();
        let mut page = Vec::with_capacity(items.len() + 256);
        page.extend_from_slice(
            format!("{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",", kind.name(), kind.version()).as_bytes(),
        );
        page.extend_from_slice(format!("\"metadata\":{{\"resourceVersion\":\"{}\"", shelves.version).as_bytes());
        if let Some(last) = last.filter(|_| remaining > 0) {
            let token = last.replace('/', "_");
            page.extend_from_slice(format!(",\"continue\":\"{token}\",\"remainingItemCount\":{remaining}").as_bytes());
        }
        page.extend_from_slice(b"},\"items\":[");
        page.append(&mut items);
        page.extend_from_slice(b"]}\n");
        page.into()
    }

    /// Events from after a version on.
    pub fn watch(&self, kind: RecordedKind, after: u64) -> Result<(Vec<Bytes>, mpsc::Receiver<Bytes>), Gone> {
        let mut shelves = self.shelves();
        let shelf = shelves.by_kind.entry(kind).or_default();
        if after < shelf.forgotten {
            return Err(Gone);
        }
        let missed = shelf.events.iter().filter(|(version, _)| *version > after);
        let missed = missed.map(|(_, event)| event.clone()).collect();
        Ok((missed, shelf.join()))
    }

    /// All objects as events, a bookmark that says so, and what follows.
    pub fn watch_list(&self, kind: RecordedKind) -> (Vec<Bytes>, mpsc::Receiver<Bytes>) {
        let mut shelves = self.shelves();
        let version = shelves.version;
        let shelf = shelves.by_kind.entry(kind).or_default();
        let added = |(at, object): &(u64, Recording)| event_of(Event::Added.name(), |to| object.write_object(*at, to));
        let mut events: Vec<Bytes> = shelf.objects.values().map(added).collect();
        events.push(bookmark(kind, version, true));
        (events, shelf.join())
    }

    pub fn bookmark(&self, kind: RecordedKind) -> Bytes {
        bookmark(kind, self.shelves().version, false)
    }
}

impl Shelf {
    fn join(&mut self) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.watches.push(sender);
        receiver
    }
}

// === impl Event ===

impl Event {
    const fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

fn event_of(name: &str, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut event = format!("{{\"type\":\"{name}\",\"object\":").into_bytes();
    write(&mut event);
    event.extend_from_slice(b"}\n");
    event.into()
}

fn bookmark(kind: RecordedKind, version: u64, ends_list: bool) -> Bytes {
    let note = if ends_list { ",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}" } else { "" };
    event_of("BOOKMARK", |to| {
        to.extend_from_slice(kind.head().as_bytes());
        to.extend_from_slice(format!("\"metadata\":{{\"resourceVersion\":\"{version}\"{note}}}").as_bytes());
        to.extend_from_slice(kind.bookmark_rest().as_bytes());
        to.extend_from_slice(kind.bookmark_end().as_bytes());
        to.push(b'}');
    })
}
