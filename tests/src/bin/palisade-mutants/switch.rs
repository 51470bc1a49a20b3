//! Which mutant is on: the only code that the mutated crates call. It is copied into a crate of its own, `mutant-switch`.

#![feature(const_eval_select, core_intrinsics)]
#![allow(internal_features)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Nobody has asked yet.
const UNKNOWN: u32 = u32::MAX;
/// No mutant is on; those that are asked for are written down.
const RECORDING: u32 = u32::MAX - 1;
/// No mutant has this number.
const NONE: u32 = u32::MAX - 2;
const MUTANTS_MAX: usize = 1 << 14;

static ACTIVE: AtomicU32 = AtomicU32::new(UNKNOWN);
static REACHED: [AtomicBool; MUTANTS_MAX] = [const { AtomicBool::new(false) }; MUTANTS_MAX];
static RECORD: LazyLock<File> = LazyLock::new(|| {
    let path = std::env::var_os("MUTANTS_REACHED").expect("recording goes to a file");
    OpenOptions::new().create(true).append(true).open(path).expect("the record can be written")
});

/// Whether a mutant is on: `MUTANT` has its number. At compile time none is.
#[inline(always)]
pub const fn on(number: u32) -> bool {
    std::intrinsics::const_eval_select((number,), never, asked)
}

const fn never(_: u32) -> bool {
    false
}

/// Asked at every turn: one load and two comparisons, where the test runs a mutant.
#[inline(always)]
fn asked(number: u32) -> bool {
    let active = ACTIVE.load(Ordering::Relaxed);
    if active < RECORDING { active == number } else { asked_otherwise(number, active) }
}

#[cold]
#[inline(never)]
fn asked_otherwise(number: u32, active: u32) -> bool {
    if active == UNKNOWN {
        learn();
        return asked(number);
    }
    record(number);
    false
}

fn learn() {
    let active = match std::env::var("MUTANT") {
        Ok(text) => text.parse().expect("MUTANT is a number"),
        Err(_) if std::env::var_os("MUTANTS_REACHED").is_some() => RECORDING,
        Err(_) => NONE,
    };
    ACTIVE.store(active, Ordering::Relaxed);
}

fn record(number: u32) {
    let reached = &REACHED[number as usize];
    if !reached.load(Ordering::Relaxed) && !reached.swap(true, Ordering::Relaxed) {
        RECORD.try_clone().and_then(|mut file| writeln!(file, "{number}")).expect("the record can be written");
    }
}
