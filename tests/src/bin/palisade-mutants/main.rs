//! Mutation testing of compile, tables, parse and decide: `cargo xtask mutants`. See docs/mutants.md.
//!
//! All mutants are written into one copy of the sources, each behind a switch, and the tests are built once. Then the tests
//! that reach a mutant are run with its switch on.

mod build;
mod defaults;
mod operators;
mod report;
mod schemata;
mod suite;
mod tree;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use report::Outcome;
use schemata::{File, Mutant};
use suite::{Fate, Test};

const USAGE: &str = "\
usage: cargo xtask mutants [--file F] [--sample N] [--survivors] [--quick] [--jobs N] [--report | --list]

  --file F       only files whose path contains F
  --sample N     only N of them, chosen at random (the same ones each time)
  --survivors    only those that no run has killed yet; a run that was cut short goes on
  --quick        only the tests that take less than a second; names what lives, of which the others may yet kill some
  --jobs N       so many tests at a time; as many as there are processors, if it is not given
  --report       tells what the last runs found, and runs nothing
  --list         names them, and runs nothing
";

#[derive(Debug, Default)]
struct Options {
    file: String,
    sample: Option<usize>,
    survivors: bool,
    quick: bool,
    jobs: Option<NonZeroUsize>,
    list: bool,
    report: bool,
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("palisade-mutants: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} lacks its value"));
        match argument.as_str() {
            "--file" => options.file = value()?,
            "--sample" => options.sample = Some(value()?.parse().context("--sample takes a number")?),
            "--survivors" => options.survivors = true,
            "--jobs" => options.jobs = Some(value()?.parse().context("--jobs takes a number")?),
            "--quick" => options.quick = true,
            "--list" => options.list = true,
            "--report" => options.report = true,
            _ => bail!("{USAGE}"),
        }
    }
    Ok(options)
}

/// Whether enough of the mutants die, and each that lives has its reason.
fn run(options: &Options) -> Result<bool> {
    let (files, mut mutants) = all()?;
    let outcome = Outcome::read()?;
    if options.list {
        mutants
            .iter()
            .filter(|mutant| mutant.file.contains(&options.file))
            .for_each(|mutant| println!("{}", mutant.name()));
        return Ok(true);
    }
    if options.report {
        mutants.iter_mut().for_each(|mutant| mutant.unviable = outcome.is_unviable(mutant));
        let chosen = chosen(options, &mutants, &outcome);
        return report::tell(&options.file, &mutants, &chosen, &outcome);
    }
    let start = Instant::now();
    if options.survivors {
        mutants.iter_mut().for_each(|mutant| mutant.unviable = outcome.is_unviable(mutant));
    }
    let jobs = options.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let tree = tree::Tree::copied()?;
    let programs = build::build(&tree, &files, &mut mutants, jobs)?;
    println!("built after {:.0} s", start.elapsed().as_secs_f64());
    let tests = suite::measured(&programs, jobs, options.quick)?;
    println!("{} tests reach mutants; measured after {:.0} s", tests.len(), start.elapsed().as_secs_f64());
    let chosen = chosen(options, &mutants, &outcome);
    let outcome = Mutex::new(outcome);
    let note = |number: usize, fate: Fate| {
        outcome.lock().expect("no worker panics with the lock").note(&mutants[number], fate)
    };
    (0..mutants.len()).filter(|number| mutants[*number].unviable).try_for_each(|it| note(it, Fate::Unviable))?;
    // Most die of a quick test: the slow ones are for those that do not.
    let (quick, slow) = suite::parted(&tests);
    let living =
        survivors(jobs, &chosen, quick, |number, fate| if fate.is_death() { note(number, fate) } else { Ok(()) })?;
    println!("{} of {} live after {:.0} s", living.len(), chosen.len(), start.elapsed().as_secs_f64());
    if options.quick {
        living.iter().for_each(|number| println!("lives so far: {}", mutants[*number].name()));
        return Ok(living.is_empty());
    }
    let reached = |number: usize| tests.iter().any(|test| test.reaches(number));
    let living = survivors(jobs, &living, slow, |number, fate| {
        let lives = if reached(number) { Fate::Survived } else { Fate::Unreached };
        note(number, if fate.is_death() { fate } else { lives })
    })?;
    println!("{} of {} live after {:.0} s", living.len(), chosen.len(), start.elapsed().as_secs_f64());
    let outcome = outcome.into_inner().expect("no worker panics with the lock");
    report::tell(&options.file, &mutants, &chosen, &outcome)
}

/// Those of the mutants that none of the tests kills; what becomes of each is told to `note` at once.
fn survivors(
    jobs: usize,
    mutants: &[usize],
    tests: &[Test],
    note: impl Fn(usize, Fate) -> Result<()> + Sync,
) -> Result<Vec<usize>> {
    let living = suite::in_parallel(jobs, mutants, |_, &number| -> Result<Option<usize>> {
        let fate = suite::fate(number, tests)?;
        let lives = (!fate.is_death()).then_some(number);
        note(number, fate)?;
        Ok(lives)
    });
    Ok(living.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Every mutant of every file; they are built together, so that one build serves all selections.
fn all() -> Result<(Vec<File>, Vec<Mutant>)> {
    let mut mutants: Vec<Mutant> = Vec::new();
    let mut files = Vec::new();
    for (path, source) in tree::sources()? {
        let is_test = path.contains("/tests/") || path.ends_with("/tests.rs");
        let sites = if is_test { Vec::new() } else { operators::sites(&source).with_context(|| path.clone())? };
        let mut seen: HashMap<(String, String), usize> = HashMap::new();
        let mut numbered = Vec::new();
        for site in sites {
            let first = mutants.len();
            for change in &site.mutants {
                let place = seen.entry((change.function.clone(), change.description.clone())).or_default();
                *place += 1;
                mutants.push(Mutant { file: path.clone(), change: change.clone(), place: *place, unviable: false });
            }
            numbered.push((site, (first..mutants.len()).collect()));
        }
        files.push(File { path, source, sites: numbered });
    }
    Ok((files, mutants))
}

fn chosen(options: &Options, mutants: &[Mutant], outcome: &Outcome) -> Vec<usize> {
    let fits = |mutant: &Mutant| {
        !mutant.unviable && mutant.file.contains(&options.file) && (!options.survivors || !outcome.is_dead(mutant))
    };
    let mut chosen: Vec<usize> = (0..mutants.len()).filter(|number| fits(&mutants[*number])).collect();
    // At random, the same each time: a part of a run is a sample. By their names, so that what is added elsewhere changes nothing.
    chosen.sort_by_key(|number| spread(&mutants[*number].name()));
    chosen.truncate(options.sample.unwrap_or(usize::MAX));
    chosen
}

/// FNV-1a.
fn spread(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
