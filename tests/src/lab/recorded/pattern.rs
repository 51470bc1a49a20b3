//! Objects with marks in them: written to a real API server once, read back as it formats them, and from then on filled in.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::kind::RecordedKind;
use crate::lab::ControlPlane;

/// An object in which texts stand for what differs from one such object to the next. Marks are replaced wherever they occur, keys and
/// managedFields included; the longest one counts.
#[derive(Clone)]
pub struct Pattern {
    pub kind: RecordedKind,
    object: Value,
    marks: Vec<&'static str>,
}

/// What a real API server has made of it: bytes with places.
pub struct Template {
    pub kind: RecordedKind,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Place(usize),
}

/// One object: what stands in the places of its template.
#[derive(Clone)]
pub struct Recording {
    template: Arc<Template>,
    fields: Arc<[String]>,
}

/// Places that every recorded object has before those of its marks.
const VERSION: usize = 0;
const UID: usize = 1;
const OWN: usize = 2;

// === impl Pattern ===

impl Pattern {
    /// The first mark is the name, the second one the namespace where the kind has one.
    pub fn new(kind: RecordedKind, object: Value, marks: &[&'static str]) -> Self {
        Self { kind, object, marks: marks.to_vec() }
    }

    /// As a client would write it.
    pub fn object(&self, fields: &[String]) -> Result<Value> {
        ensure!(fields.len() == self.marks.len(), "{} fields for {:?}", fields.len(), self.marks);
        let marks: Vec<String> = self.marks.iter().map(ToString::to_string).collect();
        let mut text = Vec::new();
        write(&pieces(self.object.to_string().as_bytes(), &marks), &mut text, |place| &fields[place]);
        Ok(serde_json::from_slice(&text)?)
    }

    /// Writes it with its marks to a real server, reads it back, and removes it.
    pub fn record(&self, plane: &ControlPlane) -> Result<Arc<Template>> {
        plane.create_all(std::slice::from_ref(&self.object))?;
        let bytes = plane.with_client(async |client| raw(&client, &self.kind.path(&self.object)?).await)?;
        plane.remove(&self.object)?;
        let read: Value = serde_json::from_slice(&bytes)?;
        let marks = self.marks.iter().map(ToString::to_string).collect();
        Template::of(self.kind, &bytes, &read, marks).map(Arc::new)
    }
}

// === impl Template ===

impl Template {
    fn of(kind: RecordedKind, bytes: &[u8], read: &Value, own: Vec<String>) -> Result<Self> {
        let text = |name: &str| Ok::<_, anyhow::Error>(read["metadata"][name].as_str().context("a text")?.to_owned());
        // With its key, as other numbers may be the same.
        let version = format!("\"resourceVersion\":\"{}\"", text("resourceVersion")?);
        let marks = [vec![version, text("uid")?], own].concat();
        // An item of a list does not say what it is.
        let body = bytes.strip_prefix(kind.head().as_bytes()).context("an object says first what it is")?;
        let body = body.strip_suffix(b"\n").unwrap_or(body);
        Ok(Self { kind, pieces: pieces(body, &marks) })
    }

    pub fn fill(self: &Arc<Self>, uid: String, fields: Vec<String>) -> Recording {
        Recording { template: self.clone(), fields: [vec![uid], fields].concat().into() }
    }
}

// === impl Recording ===

impl Recording {
    /// An object as a real server has it, taken over whole.
    pub async fn copy(client: &Client, kind: RecordedKind, namespace: &str, name: &str) -> Result<Self> {
        let metadata = serde_json::json!({"metadata": {"namespace": namespace, "name": name}});
        let bytes = raw(client, &kind.path(&metadata)?).await?;
        let read: Value = serde_json::from_slice(&bytes)?;
        let own = [Some(name), Some(namespace).filter(|text| !text.is_empty())].into_iter().flatten();
        let own: Vec<String> = own.map(str::to_owned).collect();
        let uid = read["metadata"]["uid"].as_str().context("every object has one")?.to_owned();
        Ok(Arc::new(Template::of(kind, &bytes, &read, own.clone())?).fill(uid, own))
    }

    pub fn kind(&self) -> RecordedKind {
        self.template.kind
    }

    /// By which it is found and sorted, as in etcd.
    pub fn key(&self) -> String {
        let name = &self.fields[OWN - 1];
        if self.kind().is_namespaced() { format!("{}/{name}", self.fields[OWN]) } else { name.clone() }
    }

    /// As an item of a list.
    pub fn write_item(&self, version: u64, to: &mut Vec<u8>) {
        to.push(b'{');
        self.write_rest(version, to);
    }

    /// As an object by itself.
    pub fn write_object(&self, version: u64, to: &mut Vec<u8>) {
        to.extend_from_slice(self.kind().head().as_bytes());
        self.write_rest(version, to);
    }

    fn write_rest(&self, version: u64, to: &mut Vec<u8>) {
        let version = format!("\"resourceVersion\":\"{version}\"");
        let field = |place| if place == VERSION { &version } else { &self.fields[place - UID] };
        write(&self.template.pieces, to, field);
    }
}

/// The body of an answer, as it came.
pub async fn raw(client: &Client, path: &str) -> Result<Vec<u8>> {
    let answer = client.send(hyper::Request::get(path).body(Body::empty())?).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "GET {path}: {status}: {}", String::from_utf8_lossy(&body));
    Ok(body.to_vec())
}

fn pieces(bytes: &[u8], marks: &[String]) -> Vec<Piece> {
    let mut longest: Vec<usize> = (0..marks.len()).filter(|&mark| !marks[mark].is_empty()).collect();
    longest.sort_by_key(|&mark| std::cmp::Reverse(marks[mark].len()));
    let mut pieces = Vec::new();
    let (mut begun, mut at) = (0, 0);
    while at < bytes.len() {
        let found = longest.iter().find(|&&mark| bytes[at..].starts_with(marks[mark].as_bytes()));
        match found {
            Some(&mark) => {
                pieces.push(Piece::Text(bytes[begun..at].to_vec()));
                pieces.push(Piece::Place(mark));
                at += marks[mark].len();
                begun = at;
            }
            None => at += 1,
        }
    }
    pieces.push(Piece::Text(bytes[begun..].to_vec()));
    pieces
}

fn write<'a>(pieces: &[Piece], to: &mut Vec<u8>, field: impl Fn(usize) -> &'a String) {
    for piece in pieces {
        to.extend_from_slice(match piece {
            Piece::Text(text) => text,
            Piece::Place(place) => field(*place).as_bytes(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mark_counts() {
        let marks = ["mark-name", "mark-namespace"].map(str::to_owned);
        let mut text = Vec::new();
        let fields = ["n", "s"].map(str::to_owned);
        write(&pieces(b"(mark-namespace/mark-name)mark-", &marks), &mut text, |place| &fields[place]);
        assert_eq!(String::from_utf8_lossy(&text), "(s/n)mark-");
    }
}
