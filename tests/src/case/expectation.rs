//! What a step says should happen, and what did.

use anyhow::{Context, Result, bail, ensure};
use palisade_common::decide::Place;
use palisade_common::{Hook, Reason};
use serde_json::Value;

/// Where a packet can be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Hook(Hook),
    /// Where it leaves the node, or before a process of the node.
    Exit,
}

impl Stop {
    pub const fn of(hook: Hook, place: Place) -> Self {
        match place {
            Place::Pod => Self::Hook(hook),
            Place::Device | Place::Process => Self::Exit,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Hook(hook) => hook.name(),
            Self::Exit => "exit",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = [Self::Hook(Hook::FromPod), Self::Hook(Hook::ToPod), Self::Exit];
        all.into_iter().find(|stop| stop.name() == name)
    }
}

/// What a step says should happen.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// `None`: whatever the oracle says.
    pub pass: Option<bool>,
    pub reason: Option<Reason>,
    /// Where it should be dropped.
    pub at: Option<Stop>,
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
                expectation.at = Stop::named(name);
                ensure!(expectation.at.is_some(), "at egress, at ingress or at exit; not {name:?}");
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
    Dropped(Stop),
    /// The text leaves it open.
    Open,
}
