//! From the text of a file to its objects as JSON values. Pure.

use serde_json::{Map, Number, Value};
use serde_norway::Value as Yaml;

use super::bounds;

/// Of so many documents of a file that do not parse the exact place is looked for, which costs as much as all that is above them.
const PLACED_MAX: usize = 8;

/// An object of a file, or what stands where one was expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The line on which it begins, or on which the error is; the first is 1.
    pub line: usize,
    pub object: Result<Value, String>,
}

/// The objects of a JSON file; several may follow each other.
pub fn json(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match value {
            Ok(value) => objects(1, value, &mut documents),
            Err(error) => documents.push(Document { line: error.line(), object: Err(error.to_string()) }),
        }
    }
    documents
}

/// The objects of a YAML file. A document that does not parse takes no other with it.
pub fn yaml(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut placed = 0;
    for (line, part) in parts(text.trim_start_matches('\u{feff}')) {
        match parse(part) {
            Ok(Value::Null) => {}
            Ok(value) => objects(line, value, &mut documents),
            Err(message) if placed < PLACED_MAX => {
                placed += 1;
                documents.push(wrong(line, part, message));
            }
            // The message then counts from the document's own first line.
            Err(message) => documents.push(Document { line, object: Err(message) }),
        }
    }
    documents
}

/// A document that does not parse, read once more with the lines above it, so that the message has the numbers of the file.
fn wrong(line: usize, part: &str, message: String) -> Document {
    if bounds::check(part).is_err() {
        return Document { line, object: Err(message) };
    }
    let padded = format!("{}{part}", "\n".repeat(line - 1));
    let error = serde_norway::from_str::<Yaml>(&padded).err();
    let place = error.as_ref().and_then(serde_norway::Error::location).map_or(line, |at| at.line());
    let message = error.map_or(message, |error| error.to_string());
    Document { line: place, object: Err(message) }
}

/// `kind: List` stands for its items, and so does a `PodList`, whose items need not name their kind.
fn objects(line: usize, value: Value, documents: &mut Vec<Document>) {
    let kind = value.get("kind").and_then(Value::as_str).and_then(|kind| kind.strip_suffix("List"));
    let (Some(kind), Some(Value::Array(items))) = (kind, value.get("items")) else {
        documents.push(Document { line, object: Ok(value) });
        return;
    };
    for item in items {
        let mut item = item.clone();
        if let (false, Value::Object(object)) = (kind.is_empty(), &mut item) {
            object.entry("kind").or_insert_with(|| kind.into());
            object.entry("apiVersion").or_insert_with(|| value.get("apiVersion").cloned().unwrap_or_default());
        }
        objects(line, item, documents);
    }
}

/// Splits at the markers `---` and `...`, which in YAML mean this wherever they begin a line, even within a text.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let is_marker = |line: &str, marker: &str| {
        line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    // (line, first byte) of the part that has begun.
    let mut begin = (1, 0);
    let mut parts = Vec::new();
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        if is_marker(line, "---") {
            parts.push((begin.0, &text[begin.1..offset]));
            begin = (index + 1, offset);
        } else if is_marker(line, "...") {
            parts.push((begin.0, &text[begin.1..offset]));
            begin = (index + 2, next);
        }
        offset = next;
    }
    parts.push((begin.0, &text[begin.1..]));
    // Directives end at the next marker and say nothing that matters here.
    let is_idle = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%');
    parts.retain(|(_line, part)| !part.lines().all(is_idle));
    parts
}

fn parse(text: &str) -> Result<Value, String> {
    bounds::check(text)?;
    let mut yaml: Yaml = serde_norway::from_str(text).map_err(|error| error.to_string())?;
    yaml.apply_merge().map_err(|error| error.to_string())?;
    value(yaml)
}

/// Refuses what JSON cannot say rather than to let it become null, which would be read as a field left out.
fn value(yaml: Yaml) -> Result<Value, String> {
    match yaml {
        Yaml::Null => Ok(Value::Null),
        Yaml::Bool(flag) => Ok(flag.into()),
        Yaml::String(text) => Ok(text.into()),
        Yaml::Number(number) => {
            let whole = number.as_u64().map(Number::from).or_else(|| number.as_i64().map(Number::from));
            let number = whole.or_else(|| number.as_f64().and_then(Number::from_f64));
            number.map(Value::Number).ok_or_else(|| "not a number that JSON has".to_owned())
        }
        Yaml::Sequence(items) => items.into_iter().map(value).collect::<Result<_, _>>().map(Value::Array),
        Yaml::Mapping(entries) => {
            let mut object = Map::new();
            for (key, entry) in entries {
                let key = match key {
                    Yaml::String(key) => key,
                    Yaml::Number(key) => key.to_string(),
                    Yaml::Bool(key) => key.to_string(),
                    Yaml::Null | Yaml::Sequence(_) | Yaml::Mapping(_) | Yaml::Tagged(_) => {
                        return Err("the name of a field is a text".to_owned());
                    }
                };
                object.insert(key, value(entry)?);
            }
            Ok(Value::Object(object))
        }
        Yaml::Tagged(tagged) => Err(format!("the tag {} means nothing here", tagged.tag)),
    }
}
