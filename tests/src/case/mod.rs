//! Tests as data: a cluster, a sequence of changes and packets, and what becomes of each packet.
//!
//! `tests/cases/*.yaml` are lists of cases; `tests/cases/README.md` says how one is written. [`run`] is the one place that asks the
//! judges: the oracle always, and any others that it is given.

pub mod expectation;
mod flows;
mod judge;
mod objects;
mod outcome;
mod play;
pub mod world;

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::judge::{Endpoint, Existing, Judge, Mark, ObjectChange, PacketStep, Services, Setup};
pub use self::outcome::{Answer, Disagreement, Outcome};
pub use self::play::run;
pub use self::world::World;

/// Judges by their names, the oracle not among them.
pub type Judges = Vec<(&'static str, Box<dyn Judge>)>;

/// Makes judges anew for one case.
pub type Factory<'a> = &'a dyn Fn(&Setup) -> Judges;

/// One case, as written.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name: what is shown, in a few words.
    pub case: String,
    /// Points of SEMANTICS, titles of upstream tests.
    #[serde(default)]
    pub text: String,
    /// Objects that come before its own: `e2e`, `pair`, `services` or `none`.
    #[serde(default = "no_world")]
    pub world: String,
    /// `cut` or `keep`.
    #[serde(default = "cut")]
    pub existing: String,
    /// Mid-stream admissions per endpoint and second.
    #[serde(default = "budget")]
    pub budget: u32,
    /// `judged`, `no-exits` or `no-marks`: whether what goes to Services can be judged where it ends up.
    #[serde(default = "judged")]
    pub services: String,
    /// Only what the objects come to is told, not how they came to it.
    #[serde(default)]
    pub collapsed: bool,
    /// Changes that make up the first state, all at one instant.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Changes (a list: several at one instant), packets and waits.
    pub steps: Vec<Value>,
}

fn no_world() -> String {
    "none".to_owned()
}

fn cut() -> String {
    "cut".to_owned()
}

fn judged() -> String {
    "judged".to_owned()
}

fn budget() -> u32 {
    1000
}

/// Three namespaces of three pods, as the upstream suite has them; `z` lives on the other node.
const E2E: &str = include_str!("../../cases/world-e2e.yaml");
/// Two pods of one namespace on this node, one on the other node.
const PAIR: &str = include_str!("../../cases/world-pair.yaml");
/// A client, a Service with a backend on either node, and the cluster's DNS.
const SERVICES: &str = include_str!("../../cases/world-services.yaml");

impl Case {
    pub fn setup(&self) -> Result<Setup> {
        let existing = match self.existing.as_str() {
            "cut" => Existing::Cut,
            "keep" => Existing::Keep,
            other => anyhow::bail!("existing: {other}"),
        };
        let services = match self.services.as_str() {
            "judged" => Services::Judged,
            "no-exits" => Services::NoExits,
            "no-marks" => Services::NoMarks,
            other => anyhow::bail!("services: {other}"),
        };
        Ok(Setup { node: "n1".to_owned(), existing, midstream_budget: self.budget, services })
    }

    /// The same case with the objects of its world written out.
    pub fn whole(&self) -> Result<Self> {
        let text = match self.world.as_str() {
            "e2e" => E2E,
            "pair" => PAIR,
            "services" => SERVICES,
            "none" => "[]",
            other => anyhow::bail!("world: {other}"),
        };
        let mut objects: Vec<Value> = serde_norway::from_str(text).context("objects of a world")?;
        objects.extend(self.objects.iter().cloned());
        Ok(Self { world: no_world(), objects, ..self.clone() })
    }
}

/// Reads the cases of one file.
pub fn read(path: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_norway::from_str(&text).with_context(|| path.display().to_string())
}

/// All written cases, by file name.
pub fn written() -> Result<Vec<(String, Vec<Case>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or("").to_owned();
        if path.extension().is_some_and(|kind| kind == "yaml") && !name.starts_with("world-") {
            files.push((name, read(&path)?));
        }
    }
    files.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every written case, by the oracle.
    #[test]
    fn written_cases() {
        let mut failures = String::new();
        for (file, cases) in written().expect("the files of cases can be read") {
            for case in cases {
                let told = match run(&case, &|_| Vec::new()) {
                    Ok(outcome) if outcome.disagreements.is_empty() => continue,
                    Ok(outcome) => outcome.disagreements.iter().map(ToString::to_string).collect(),
                    Err(error) => format!("{error:#}\n"),
                };
                failures += &format!("== {file}: {}\n{told}", case.case);
            }
        }
        assert!(failures.is_empty(), "{failures}");
    }

    #[test]
    fn names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        let mut count = 0;
        for (_, cases) in written().expect("the files of cases can be read") {
            for case in cases {
                count += 1;
                assert!(names.insert(case.case.clone()), "two cases are called {:?}", case.case);
            }
        }
        assert!(count >= 200, "{count} cases");
    }
}
