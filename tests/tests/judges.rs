//! Written cases, their variants and random ones before the judges. The third judge needs root and the built programs (feature
//! `live`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use palisade_common::Reason;
use palisade_tests::case::{self, Case, Judges, Outcome, Setup};
use palisade_tests::judges::{Compiled, early};
use palisade_tests::{expand, random};

/// How many disagreements are shrunk and told. Where the variable says 0, the first one ends the test as it is: mutation testing
/// asks only whether there is one.
fn told_max() -> usize {
    std::env::var("PALISADE_TOLD_MAX").map_or(5, |text| text.parse().expect("PALISADE_TOLD_MAX is a number"))
}

type Factory<'a> = &'a dyn Fn(&Setup) -> Judges;

fn compiled(setup: &Setup) -> Judges {
    vec![("compiled", Box::new(Compiled::new(setup)))]
}

/// Plays `cases` and tells their disagreements, each by the smallest case that still shows it.
fn play(cases: impl IntoIterator<Item = (String, Case)>, judges: Factory<'_>) -> Outcome {
    let mut failures = String::new();
    let mut told = 0;
    let told_max = told_max();
    let mut all = Outcome::default();
    for (name, case) in cases {
        match case::run(&case, judges) {
            Ok(outcome) => {
                if !outcome.disagreements.is_empty() {
                    assert!(told_max > 0, "{name}: {}", outcome.disagreements[0]);
                    let small = random::shrink(&case, judges);
                    let written = random::print(&small).unwrap_or_else(|error| format!("{error:#}"));
                    let shown =
                        case::run(&small, judges).ok().and_then(|outcome| outcome.disagreements.into_iter().next());
                    let shown = shown.unwrap_or_else(|| outcome.disagreements[0].clone());
                    let _ = writeln!(failures, "== {name}\n{shown}\n{written}");
                    told += 1;
                }
                all.add(outcome);
            }
            Err(error) => {
                let _ = writeln!(failures, "== {name}: {error:#}");
                told += 1;
            }
        }
        if told >= told_max.max(1) {
            break;
        }
    }
    assert!(failures.is_empty(), "{failures}");
    all
}

fn written() -> Vec<(String, Case)> {
    let files = case::written().expect("the files of cases can be read");
    files
        .into_iter()
        .flat_map(|(file, cases)| cases.into_iter().map(move |case| (format!("{file}: {}", case.case), case)))
        .collect()
}

fn variants() -> impl Iterator<Item = (String, Case)> {
    written().into_iter().flat_map(|(name, case)| {
        let variants = expand::variants(&case).expect("a written case can be varied");
        variants.into_iter().map(move |case| (format!("{name} ({})", case.case), case))
    })
}

/// Random cases until `flows` flows were asked about: at least a third admitted, a third refused.
fn random_flows(seed: u64, flows: u64, judges: Factory<'_>) -> Outcome {
    let mut all = Outcome::default();
    let mut seeds = seed..;
    while all.flows_admitted + all.flows_refused < flows {
        let batch: Vec<(String, Case)> =
            seeds.by_ref().take(20).map(|seed| (format!("random {seed}"), random::case(seed))).collect();
        all.add(play(batch, judges));
    }
    let total = all.flows_admitted + all.flows_refused;
    println!("{total} flows, {} admitted, {} refused, {} packets", all.flows_admitted, all.flows_refused, all.packets);
    println!("reasons: {:?}", all.given);
    assert!(all.flows_admitted * 3 >= total, "fewer than a third of the flows was admitted");
    assert!(all.flows_refused * 3 >= total, "fewer than a third of the flows was refused");
    all
}

#[test]
fn written_cases_over_compiled_tables() {
    play(written(), &compiled);
}

#[test]
fn variants_over_compiled_tables() {
    play(variants(), &compiled);
}

#[test]
fn random_cases_over_compiled_tables() {
    every_reason(&random_flows(1, 50_000, &compiled), "compiled");
    let early = early::COMPILED.load(Relaxed);
    assert!(early > 5000, "only {early} packets were refused where they come in");
}

fn every_reason(outcome: &Outcome, judge: &str) {
    // What only time, other CPUs, a full table or an operator can bring about. A pause is the programs' last word on what is judged,
    // and not part of it: `live_lab` tests it (pause.rs).
    let rare = BTreeSet::from([Reason::Unsettled, Reason::Unremembered, Reason::Paused]);
    let given = &outcome.given[judge];
    let missing: Vec<&Reason> =
        Reason::ALL.iter().filter(|reason| !rare.contains(reason) && !given.contains_key(reason)).collect();
    assert!(missing.is_empty(), "no packet was judged {missing:?} by {judge}");
}

#[cfg(feature = "live")]
mod live {
    use palisade_tests::judges::{Loaded, Machine, bpffs};

    use super::*;

    /// One test, as the programs are loaded once.
    #[test]
    fn loaded_program() {
        let pins = bpffs("judges").expect("a bpffs can be mounted");
        let machine = Machine::new(pins.path()).expect("the programs can be loaded");
        let both = |setup: &Setup| -> Judges {
            let loaded = Loaded::new(&machine, setup).expect("the maps can be emptied");
            vec![("compiled", Box::new(Compiled::new(setup))), ("loaded", Box::new(loaded))]
        };
        let outcome = play(written(), &both);
        println!("{} packets of written cases", outcome.packets);
        let outcome = play(variants(), &both);
        println!("{} packets of their variants", outcome.packets);
        every_reason(&random_flows(1_000_000, 50_000, &both), "loaded");
        let early = early::LOADED.load(Relaxed);
        println!("{early} packets refused where they come in");
        assert!(early > 5000, "only {early} packets were refused where they come in");
    }
}
