//! Label selectors (SEMANTICS 4).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::policy::{member, only};
use crate::facts::{Operator, Requirement, Selector};

/// The field within the selector, and what is wrong with it.
pub type Reason = (String, String);

/// A selector that is there; whoever asks knows what a missing one means.
///
/// # Errors
/// It cannot be understood, and then as a whole: leaving a requirement out would match more.
pub fn selector(value: &Value) -> Result<Selector, Reason> {
    let object = value.as_object().ok_or_else(|| reason("", "a selector is a map"))?;
    only(object, &["matchLabels", "matchExpressions"]).map_err(|message| (String::new(), message))?;
    let mut requirements = BTreeSet::new();
    match member(object, "matchLabels") {
        None => {}
        Some(Value::Object(labels)) => {
            for (key, value) in labels {
                requirements.insert(label(key, value)?);
            }
        }
        Some(_other) => return Err(reason(".matchLabels", "matchLabels is a map of texts")),
    }
    match member(object, "matchExpressions") {
        None => {}
        Some(Value::Array(expressions)) => {
            for (index, expression) in expressions.iter().enumerate() {
                let inside = |(field, message)| (format!(".matchExpressions[{index}]{field}"), message);
                requirements.insert(requirement(expression).map_err(inside)?);
            }
        }
        Some(_other) => return Err(reason(".matchExpressions", "matchExpressions is a list")),
    }
    Ok(Selector { requirements: requirements.into_iter().collect() })
}

fn reason(field: &str, message: &str) -> Reason {
    (field.to_owned(), message.to_owned())
}

fn label(key: &str, value: &Value) -> Result<Requirement, Reason> {
    let value = match value {
        Value::String(value) => value.clone(),
        // The API server reads null as the empty text.
        Value::Null => String::new(),
        _other => {
            let message = "the value of a label is a text (numbers need quotes)".to_owned();
            return Err((format!(".matchLabels[{key}]"), message));
        }
    };
    Ok(Requirement { key: key.into(), operator: Operator::In(BTreeSet::from([value])) })
}

fn requirement(value: &Value) -> Result<Requirement, Reason> {
    let object = value.as_object().ok_or_else(|| reason("", "an expression is a map"))?;
    only(object, &["key", "operator", "values"]).map_err(|message| (String::new(), message))?;
    let key = match member(object, "key") {
        Some(Value::String(key)) if !key.is_empty() => key.as_str(),
        _missing => return Err(reason(".key", "an expression needs the key of a label")),
    };
    let values = values(object)?;
    let operator = match member(object, "operator").and_then(Value::as_str) {
        Some("In") => Operator::In(some(values)?),
        Some("NotIn") => Operator::NotIn(some(values)?),
        Some("Exists") => none(&values, Operator::Exists)?,
        Some("DoesNotExist") => none(&values, Operator::DoesNotExist)?,
        _unknown => return Err(reason(".operator", "an operator is In, NotIn, Exists or DoesNotExist")),
    };
    Ok(Requirement { key: key.into(), operator })
}

fn values(expression: &Map<String, Value>) -> Result<BTreeSet<String>, Reason> {
    let entries = match member(expression, "values") {
        None => return Ok(BTreeSet::new()),
        Some(Value::Array(entries)) => entries,
        Some(_other) => return Err(reason(".values", "values are a list of texts")),
    };
    let text = |(index, entry): (usize, &Value)| match entry {
        Value::String(text) => Ok(text.clone()),
        _other => Err((format!(".values[{index}]"), "a value is a text (numbers need quotes)".to_owned())),
    };
    entries.iter().enumerate().map(text).collect()
}

fn some(values: BTreeSet<String>) -> Result<BTreeSet<String>, Reason> {
    if values.is_empty() { Err(reason(".values", "In and NotIn need values")) } else { Ok(values) }
}

fn none(values: &BTreeSet<String>, operator: Operator) -> Result<Operator, Reason> {
    if values.is_empty() { Ok(operator) } else { Err(reason(".values", "Exists and DoesNotExist take no values")) }
}
