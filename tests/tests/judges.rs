//! Every written case before all three judges. The third needs root and the built programs (feature `live`).

use std::fmt::Write as _;

use palisade_tests::case::{self, Judges};
use palisade_tests::judges::{Compiled, Machine};

/// Plays every written case before the judges that `judges` makes, and tells all disagreements.
fn play(judges: impl Fn(&case::Setup) -> Judges) {
    let mut failures = String::new();
    let mut played = 0;
    for (file, cases) in case::written().expect("the files of cases can be read") {
        for case in cases {
            let setup = case.setup().expect("a case's setup is legal");
            let outcome = case::run(&case, judges(&setup));
            played += 1;
            match outcome {
                Ok(outcome) if outcome.disagreements.is_empty() => {}
                Ok(outcome) => {
                    for disagreement in outcome.disagreements {
                        let _ = writeln!(failures, "== {file}\n{disagreement}");
                    }
                }
                Err(error) => {
                    let _ = writeln!(failures, "== {file}: {}: {error:#}", case.case);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    println!("{played} cases");
}

#[test]
fn decision_function_over_compiled_tables() {
    play(|setup| vec![("compiled", Box::new(Compiled::new(setup)))]);
}

#[cfg(feature = "live")]
#[test]
fn loaded_program() {
    use palisade_tests::judges::Loaded;
    let pins = palisade_tests::judges::bpffs("judges").expect("a bpffs can be mounted");
    let machine = Machine::new(pins.path()).expect("the programs can be loaded");
    play(|setup| vec![("loaded", Box::new(Loaded::new(&machine, setup).expect("the maps can be emptied")))]);
}
