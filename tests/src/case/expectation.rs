//! What a step says should happen, and what did.

use anyhow::{Context, Result, bail, ensure};
use palisade_common::{Hook, Reason};
use serde_json::Value;

/// What a step says should happen.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// `None`: whatever the oracle says.
    pub pass: Option<bool>,
    pub reason: Option<Reason>,
    /// Where it should be dropped.
    pub at: Option<Hook>,
}

impl Expectation {
    pub fn read(value: &Value) -> Result<Self> {
        let line = value.as_str().context("what is expected is text")?;
        let mut words = line.split_whitespace();
        let pass = match words.next() {
            Some("allow" | "pass") => Some(true),
            Some("refuse" | "drop") => Some(false),
            Some("any") => None,
            other => bail!("{other:?} is neither allow, pass, refuse, drop nor any"),
        };
        let mut expectation = Self { pass, reason: None, at: None };
        while let Some(word) = words.next() {
            if word == "at" {
                let name = words.next().unwrap_or("");
                expectation.at = Hook::ALL.into_iter().find(|hook| hook.name() == name);
                ensure!(expectation.at.is_some(), "at egress, or at ingress; not {name:?}");
            } else {
                expectation.reason = Reason::ALL.iter().copied().find(|reason| reason.name() == word);
                ensure!(expectation.reason.is_some(), "there is no reason {word:?}");
            }
        }
        Ok(expectation)
    }
}

/// How far a packet got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passed,
    Dropped(Hook),
    /// The text leaves it open.
    Open,
}
