//! What would have to be otherwise for a refused packet to pass.

use palisade_common::Reason;
use palisade_common::layout::RuleValue;

use super::Question;
use crate::compile::Catalog;
use crate::explain::port::port_text;
use crate::explain::trace::{Asked, admits};
use crate::explain::way::Hop;
use crate::kernel::Live;

/// How many others are named for whom the port is open.
const NAMED: usize = 4;

/// # Errors
///
/// When a map cannot be read.
pub(super) fn changes(
    live: &Live<'_>,
    catalog: &Catalog,
    hop: &Hop,
    questions: &[Question],
) -> anyhow::Result<Vec<String>> {
    let entry = hop.ifindex.and_then(|ifindex| catalog.endpoints.iter().find(|entry| entry.ifindex == ifindex));
    match hop.ruling.reason() {
        Reason::NoRule => match (hop.asked.last(), questions.last()) {
            (Some(asked), Some(question)) => no_rule(live, catalog, asked, question),
            _ => Ok(Vec::new()),
        },
        Reason::Closed => {
            let why = entry.and_then(|entry| entry.closed.clone());
            Ok(vec![format!(
                "the pod has to be known and enforced first: {}",
                why.unwrap_or_else(|| "it has no record".to_owned())
            )])
        }
        Reason::NoExit => Ok(vec![format!(
            "what pods with an egress policy send to Services is refused: {}",
            catalog.agent.exits_missing.join("; ")
        )]),
        Reason::NoStamp => Ok(vec![
            "more pods of this node have an egress policy than --stamp-mask has numbers: give it more bits".to_owned(),
        ]),
        _ => Ok(Vec::new()),
    }
}

fn no_rule(live: &Live<'_>, catalog: &Catalog, asked: &Asked, question: &Question) -> anyhow::Result<Vec<String>> {
    let Question { direction, pod, policies, peer, class_means, row, .. } = question;
    let port = port_text(asked.protocol, asked.port);
    let whom = class_means.as_deref().unwrap_or("somebody");
    let mut changes = Vec::new();
    let (preposition, their) = if asked.ingress { ("from", "who sends") } else { ("to", "whom it reaches") };
    changes.push(format!(
        "no {direction} rule of {} admits {peer} on {port}: one of them needs a rule ({preposition} and ports) that does, or {pod} a further policy",
        policies.join(", ")
    ));
    match row.as_deref() {
        Some("nothing") | None => {}
        Some(row) => changes.push(format!("the same peer may use {row} ({whom})")),
    }
    let mut others = Vec::new();
    for (class, row) in live.rows_of(asked.table)? {
        let Some(rule) = admitting(live, &row, asked) else { continue };
        let means =
            catalog.classes.get(&class).map_or_else(|| format!("class {class}"), |entry| entry.description.clone());
        others.push(format!(
            "{means} (by {})",
            catalog.rules.get(&rule).map_or_else(|| format!("rule {rule}"), ToString::to_string)
        ));
    }
    if !others.is_empty() {
        let more = others.len().saturating_sub(NAMED);
        others.truncate(NAMED);
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        changes.push(format!("{port} is open to {}{more}: {their} would need to be one of these", others.join("; ")));
    }
    Ok(changes)
}

fn admitting(live: &Live<'_>, row: &RuleValue, asked: &Asked) -> Option<u32> {
    admits(live, row, asked.protocol, asked.port)
}
