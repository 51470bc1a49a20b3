//! Ports: of containers, and as policies ask for them.

use serde_json::{Map, Value};

use super::Faults;
use super::policy::{member, only};
use crate::facts::{PortMatch, Ports, Protocol};

/// `None` for anything that is no protocol of the API; the missing one is TCP (SEMANTICS 7.1).
pub fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None => Some(Protocol::Tcp),
        Some(text) => Protocol::ALL.into_iter().find(|protocol| protocol.name() == text),
    }
}

/// spec.ingress[].ports or spec.egress[].ports. What cannot be understood is left out, and never turns into "all".
pub fn ports(value: Option<&Value>, path: &str, faults: &mut Faults) -> Ports {
    let entries = match value {
        None | Some(Value::Null) => return Ports::All,
        Some(Value::Array(entries)) => entries,
        Some(_other) => {
            faults.add(path, "ports are a list, the rule admits none");
            return Ports::These(Vec::new());
        }
    };
    if entries.is_empty() {
        return Ports::All;
    }
    let read = |(index, entry): (usize, &Value)| match port_match(entry) {
        Ok(found) => Some(found),
        Err((field, reason)) => {
            faults.add(format!("{path}[{index}]{field}"), format!("{reason}, this entry admits nothing"));
            None
        }
    };
    Ports::These(entries.iter().enumerate().filter_map(read).collect())
}

/// The field within the entry, and what is wrong with it.
type Reason = (&'static str, String);

fn port_match(entry: &Value) -> Result<PortMatch, Reason> {
    let entry = entry.as_object().ok_or_else(|| ("", "this is no port entry".to_owned()))?;
    only(entry, &["protocol", "port", "endPort"]).map_err(|reason| ("", reason))?;
    let protocol = match member(entry, "protocol") {
        None => Some(Protocol::Tcp),
        Some(value) => value.as_str().and_then(|text| protocol(Some(text))),
    };
    let protocol = protocol.ok_or_else(|| (".protocol", "a protocol is TCP, UDP or SCTP".to_owned()))?;
    match member(entry, "port") {
        None if member(entry, "endPort").is_some() => {
            Err((".endPort", "endPort needs a port to begin with".to_owned()))
        }
        None => Ok(PortMatch::Range { protocol, first: 0, last: u16::MAX }),
        Some(Value::String(name)) => named(protocol, name, entry),
        Some(port) => {
            let first = number(port).ok_or_else(|| (".port", format!("{port} is no port number")))?;
            Ok(PortMatch::Range { protocol, first, last: last(first, entry)? })
        }
    }
}

fn named(protocol: Protocol, name: &str, entry: &Map<String, Value>) -> Result<PortMatch, Reason> {
    if !is_name(name) {
        return Err((".port", format!("{name:?} is no port name (a number must be written without quotes)")));
    }
    if member(entry, "endPort").is_some() {
        return Err((".endPort", "endPort needs a port number to begin with, not a name".to_owned()));
    }
    Ok(PortMatch::Named { protocol, name: name.into() })
}

fn last(first: u16, entry: &Map<String, Value>) -> Result<u16, Reason> {
    let Some(end) = member(entry, "endPort") else { return Ok(first) };
    match number(end) {
        Some(last) if last >= first => Ok(last),
        Some(last) => Err((".endPort", format!("endPort {last} is below port {first}"))),
        None => Err((".endPort", format!("{end} is no port number"))),
    }
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

/// An IANA service name, as the API validates it: 1 to 15 of a-z, 0-9 and single inner hyphens, one letter at least.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=15).contains(&text.len())
        && text.bytes().all(allowed)
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}
