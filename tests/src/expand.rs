//! One case makes several: reversed, squashed, with an empty cluster between its states, and each state alone.
//!
//! After Felix's state tests. Only whole flows keep what is written about them, as their openings are judged by the state alone; packets
//! as they stand are asked about without it, and packets of flows from earlier states are left out.

use serde_json::{Value, json};

use crate::case::Case;

/// A change or several at one instant, and what is sent then.
struct State {
    changes: Vec<Value>,
    packets: Vec<Value>,
}

/// The variants of a case, by how they came about.
pub fn variants(case: &Case) -> anyhow::Result<Vec<Case>> {
    let case = case.whole()?;
    let states = states(&case);
    let mut all = vec![reversed(&case)];
    if states.len() < 2 {
        return Ok(all);
    }
    all.push(squashed(&case, &states));
    all.push(emptied(&case, &states));
    for index in 0..states.len() {
        all.push(alone(&case, &states, index));
    }
    all.retain(|variant| !variant.steps.is_empty());
    Ok(all)
}

/// The first state has no changes: the case's objects are there before it.
fn states(case: &Case) -> Vec<State> {
    let mut states = vec![State { changes: Vec::new(), packets: Vec::new() }];
    for step in &case.steps {
        let last = states.last_mut().expect("there is one from the start");
        match changes(step) {
            Some(items) if last.packets.is_empty() && !last.changes.is_empty() => last.changes.extend(items),
            Some(items) => states.push(State { changes: items, packets: Vec::new() }),
            None => last.packets.extend(stateless(step)),
        }
    }
    states
}

fn changes(step: &Value) -> Option<Vec<Value>> {
    let (word, kinds): (&str, &[&str]) = match step {
        Value::Array(items) => return Some(items.clone()),
        Value::String(line) => {
            (line.split(' ').next()?, &["ns", "node", "own", "pod", "label", "delete", "forget", "unveth", "listen"])
        }
        Value::Object(members) => (members.keys().next()?.split(' ').next()?, &["policy", "service", "patch"]),
        Value::Null | Value::Bool(_) | Value::Number(_) => return None,
    };
    kinds.contains(&word).then(|| vec![step.clone()])
}

/// The packet, if it needs no flow of an earlier state.
fn stateless(step: &Value) -> Option<Value> {
    let (key, value) = step.as_object()?.iter().next()?;
    let mut words = key.split_whitespace();
    match (words.next()?, words.next()?) {
        ("only", _) | (_, "->") => Some(json!({key: value})),
        // Nor the mark that its sender gave it.
        ("from" | "to", _) if !key.contains(" mark=") => Some(json!({key: "any"})),
        _ => None,
    }
}

fn named(case: &Case, how: &str) -> Case {
    Case { case: format!("{} ({how})", case.case), ..case.clone() }
}

/// New objects in the opposite order; what changes them comes after them.
fn reversed(case: &Case) -> Case {
    let makes = |item: &Value| {
        let key = match item {
            Value::String(line) => line.as_str(),
            Value::Object(members) => members.keys().next().map_or("", String::as_str),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => "",
        };
        ["ns ", "node ", "own ", "pod ", "policy ", "service "].iter().any(|kind| key.starts_with(kind))
    };
    let (made, rest): (Vec<Value>, Vec<Value>) = case.objects.iter().cloned().partition(makes);
    let objects = made.into_iter().rev().chain(rest).collect();
    Case { objects, ..named(case, "reversed") }
}

fn squashed(case: &Case, states: &[State]) -> Case {
    let changes = states.iter().flat_map(|state| state.changes.iter().cloned());
    let objects = case.objects.iter().cloned().chain(changes).collect();
    let steps = states.last().map(|state| state.packets.clone()).unwrap_or_default();
    Case { objects, steps, ..named(case, "squashed") }
}

fn emptied(case: &Case, states: &[State]) -> Case {
    let mut steps = Vec::new();
    for state in states {
        if !state.changes.is_empty() {
            steps.push(Value::Array(state.changes.clone()));
        }
        steps.push(json!("empty"));
        steps.extend(state.packets.iter().cloned());
    }
    Case { steps, ..named(case, "empty between") }
}

fn alone(case: &Case, states: &[State], index: usize) -> Case {
    let changes = states[..=index].iter().flat_map(|state| state.changes.iter().cloned());
    let objects = case.objects.iter().cloned().chain(changes).collect();
    let steps = states[index].packets.clone();
    Case { objects, steps, collapsed: true, ..named(case, &format!("state {} alone", index + 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{run, written};

    /// What is written about whole flows holds in every variant.
    #[test]
    fn variants_of_written_cases() {
        let mut failures = String::new();
        let mut count = 0;
        for (file, cases) in written().expect("the files of cases can be read") {
            for variant in cases.iter().flat_map(|case| variants(case).expect("worlds are known")) {
                count += 1;
                match run(&variant, &|_| Vec::new()) {
                    Ok(outcome) => {
                        let told: String = outcome.disagreements.iter().map(ToString::to_string).collect();
                        failures += &told;
                    }
                    Err(error) => failures += &format!("{file}: {}: {error:#}\n", variant.case),
                }
            }
        }
        assert!(failures.is_empty(), "{failures}");
        assert!(count > 800, "{count} variants");
    }
}
