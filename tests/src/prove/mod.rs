//! Any number of random cases before the judges: what `cargo xtask prove` does.
//!
//! A *case* is a new flow, whole, at some point of the life of a random cluster with random policies: its verdict is the oracle's, and
//! every judge gives it. A *world* is one such cluster with all its changes and packets, a [`Case`] of its own; most of its
//! packets belong to no new flow and come on top. Worlds are numbered, and made from the seed and their number; they count
//! in the order of their numbers, whichever thread is done first, so that a seed gives the same counts on every machine.

mod report;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use anyhow::Result;

use crate::case::{Case, Factory, Outcome, run};
use crate::random;

pub use self::report::{Progress, summary};

/// Worlds in which judges disagree, after which a run ends early.
pub const FOUND_MAX: usize = 5;

/// What came of some worlds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub worlds: u64,
    pub outcome: Outcome,
    /// Numbers of worlds in which judges disagree.
    pub found: Vec<u64>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.outcome.add(other.outcome);
        self.found.extend(other.found);
    }
}

impl Tally {
    fn add(&mut self, number: u64, outcome: Result<Outcome, String>) {
        self.worlds += 1;
        match outcome {
            Ok(mut outcome) => {
                if !outcome.disagreements.is_empty() {
                    self.found.push(number);
                    // They are told of the smaller world.
                    outcome.disagreements.clear();
                }
                self.outcome.add(outcome);
            }
            Err(_) => self.found.push(number),
        }
    }
}

/// The world of this number.
pub fn world(seed: u64, number: u64) -> Case {
    let case = random::case((seed << 32).wrapping_add(number));
    Case { case: format!("seed {seed}, world {number}"), ..case }
}

/// Plays a case; a judge that panics is a finding as well.
fn played(case: &Case, judges: Factory<'_>) -> Result<Outcome, String> {
    match catch_unwind(AssertUnwindSafe(|| run(case, judges))) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(payload) => Err(random::panic_message(&*payload)),
    }
}

/// Worlds from `first` on, by one thread, until there are `cases`.
pub fn one_by_one(seed: u64, first: u64, cases: u64, judges: Factory<'_>, progress: &mut Progress) -> Tally {
    let mut tally = Tally::default();
    let mut number = first;
    while tally.outcome.cases < cases && tally.found.len() < FOUND_MAX {
        tally.add(number, played(&world(seed, number), judges));
        progress.tell(&tally);
        number += 1;
    }
    tally
}

/// The same by several threads, for judges of which each thread can have its own.
pub fn in_parallel(
    seed: u64,
    first: u64,
    cases: u64,
    threads: usize,
    judges: &(dyn Fn(&crate::case::Setup) -> crate::case::Judges + Sync),
    progress: &mut Progress,
) -> Tally {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(cases == 0));
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::sync_channel(64);
        for _ in 0..threads {
            let (send, next, stop) = (send.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if send.send((number, played(&world(seed, number), judges))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        let mut early = BTreeMap::new();
        let mut wanted = first;
        for (number, outcome) in receive {
            early.insert(number, outcome);
            while let Some(outcome) = early.remove(&wanted).filter(|_| !stop.load(Ordering::Relaxed)) {
                tally.add(wanted, outcome);
                wanted += 1;
                if tally.outcome.cases >= cases || tally.found.len() >= FOUND_MAX {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            progress.tell(&tally);
        }
    });
    tally
}

/// What the judges disagree about in a world, small enough to be read: what is told of it, and the case as it would be written.
pub fn explained(seed: u64, number: u64, judges: Factory<'_>) -> Result<(String, String)> {
    let world = world(seed, number);
    if let Ok(Err(error)) = catch_unwind(AssertUnwindSafe(|| run(&world, judges))) {
        return Err(error.context("this world cannot be played"));
    }
    let small = random::shrink(&world, judges);
    let told = match played(&small, judges) {
        Ok(outcome) => outcome.disagreements.first().map(ToString::to_string).unwrap_or_default(),
        Err(message) => message,
    };
    Ok((told, random::print(&small)?))
}
