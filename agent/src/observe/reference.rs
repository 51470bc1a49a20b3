//! The reference pages, made from the code: docs/metrics.md from a page of /metrics, and the table of reasons in docs/events.md. A test compares
//! them with what is in git; `PALISADE_WRITE_DOCS=1 cargo test --package palisade reference` writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use palisade_common::Reason;

use super::accounts;
use super::metrics::{MapUse, Metrics, Snapshot};
use super::reporter::Reporter;
use crate::api::contact::{Received, Request, Requests};

/// A page with a sample of every family.
fn page() -> String {
    let snapshot = || {
        let maps = BTreeMap::from([("FLOWS", MapUse::default())]);
        Ok(Snapshot { maps, ..Snapshot::default() })
    };
    let mut metrics = Metrics::new(snapshot);
    let requests = Requests::default();
    let request = Request { resource: "pods".to_owned(), verb: "list", code: "200".to_owned() };
    drop(requests.answers.get_or_create(&request));
    drop(requests.received.get_or_create(&Received { resource: request.resource.clone(), verb: request.verb }));
    metrics.register_requests(requests);
    drop(Reporter::new(metrics.registry_mut()));
    metrics.registry_mut().register_collector(accounts::sample());
    metrics.encode()
}

#[derive(Default)]
struct Family<'a> {
    help: &'a str,
    kind: &'a str,
    labels: BTreeSet<&'a str>,
}

fn families(page: &str) -> BTreeMap<&str, Family<'_>> {
    let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name).or_default().help = help;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name).or_default().kind = kind;
        } else if let Some((name, labels)) = line.split_once('{') {
            let labels =
                labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).filter(|it| *it != "le");
            let base = ["_total", "_bucket"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let family = if families.contains_key(base) { base } else { name };
            families.entry(family).or_default().labels.extend(labels);
        }
    }
    families
}

fn metrics_table(page: &str) -> String {
    let mut text = String::from("| Metric | Type | Labels | What it says, and what to do |\n|---|---|---|---|\n");
    for (name, Family { help, kind, labels }) in families(page) {
        let total = if kind == "counter" { "_total" } else { "" };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let help = help.replace("\\\"", "\"").replace('|', "\\|");
        text.push_str(&format!("| `{name}{total}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    text
}

fn reasons_table() -> String {
    let mut text = String::from("| Reason | Verdict | |\n|---|---|---|\n");
    for reason in Reason::ALL {
        let verdict = if reason.passes() { "passed" } else { "refused" };
        text.push_str(&format!("| `{}` | {verdict} | {} |\n", reason.name(), reason.text()));
    }
    text
}

const BEGIN: &str = "<!-- made from the code -->\n";
const END: &str = "<!-- to here -->\n";

/// Compares what is between the two marks of a page in docs/, or writes it.
fn keep(name: &str, made: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (head, rest) = text.split_once(BEGIN).expect("the first mark");
    let (found, tail) = rest.split_once(END).expect("the second mark");
    if env::var_os("PALISADE_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{made}{END}{tail}")).expect("it can be written");
        return;
    }
    assert_eq!(
        found, made,
        "docs/{name} is not what the code says: PALISADE_WRITE_DOCS=1 cargo test --package palisade reference"
    );
}

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    let page = page();
    for (name, family) in families(&page) {
        assert!(!family.kind.is_empty() && family.help.len() > 20, "{name} says too little");
        assert!(!family.help.contains("  "), "{name}: the text is torn: {}", family.help);
    }
    keep("metrics.md", &metrics_table(&page));
}

#[test]
fn the_table_of_reasons_is_what_the_code_says() {
    keep("events.md", &reasons_table());
}
