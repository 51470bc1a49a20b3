//! Random cases before the oracle, the decision function over compiled tables, and the loaded program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use palisade_tests::case::{self, Factory, Judges, Setup};
use palisade_tests::judges::{Compiled, Loaded, Machine, bpffs};
use palisade_tests::prove::{self, Progress, Tally};

/// Puts random flows in random clusters before three judges: the oracle, the decision function over compiled tables, and the program
/// as it is loaded. Ends with 1 if they disagree.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask prove")]
struct Options {
    /// New flows that the oracle and the decision function are asked about.
    #[arg(long, default_value_t = 100_000)]
    cases: u64,
    /// The same seed gives the same worlds and the same counts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many of the cases, from the first on, the loaded program is asked about as well (needs root).
    #[arg(long, default_value_t = 0)]
    loaded: u64,
    /// Threads for the others; by default one per CPU.
    #[arg(long)]
    threads: Option<usize>,
    /// Where disagreements are written.
    #[arg(long, default_value = "target/prove")]
    found: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plays the cases of a file instead.
    Play {
        file: PathBuf,
        /// Before the loaded program as well.
        #[arg(long)]
        loaded: bool,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.command {
        Some(Command::Play { file, loaded }) => play(file, *loaded),
        None => {
            // A judge's panic is a finding, which is told when it has been made small.
            std::panic::set_hook(Box::new(|_| {}));
            prove(&options)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("palisade-prove: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn two(setup: &Setup) -> Judges {
    vec![("compiled", Box::new(Compiled::new(setup)))]
}

/// Calls `work` with the loaded program among the judges.
fn with_three<T>(work: impl FnOnce(Factory<'_>) -> T) -> Result<T> {
    let pins = bpffs("prove")?;
    let machine = Machine::new(pins.path())?;
    Ok(work(&|setup| {
        let loaded = Loaded::new(&machine, setup).expect("the maps can be emptied");
        vec![("compiled", Box::new(Compiled::new(setup))), ("loaded", Box::new(loaded))]
    }))
}

/// `false`: the judges disagree.
fn prove(options: &Options) -> Result<bool> {
    let Options { cases, seed, loaded, found, .. } = options;
    let threads = match options.threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    println!("seed {seed}");
    let mut worlds = 0;
    if *loaded > 0 {
        println!("oracle, decision function and loaded program: {loaded} cases");
        let agree = with_three(|judges| -> Result<bool> {
            let mut progress = Progress::new(*loaded);
            let tally = prove::one_by_one(*seed, 0, *loaded, judges, &mut progress);
            worlds = tally.worlds;
            print!("{}", prove::summary(&tally, progress.elapsed()));
            explain(&tally, *seed, judges, found, " --loaded")
        })??;
        if !agree {
            return Ok(false);
        }
    }
    let rest = cases.saturating_sub(*loaded);
    println!("oracle and decision function: {rest} cases, {threads} threads");
    let mut progress = Progress::new(rest);
    let tally = prove::in_parallel(*seed, worlds, rest, threads, &two, &mut progress);
    print!("{}", prove::summary(&tally, progress.elapsed()));
    let agree = explain(&tally, *seed, &two, found, "")?;
    if agree {
        println!("no disagreement");
    }
    Ok(agree)
}

/// Writes and tells what was found, made small.
fn explain(tally: &Tally, seed: u64, judges: Factory<'_>, folder: &Path, option: &str) -> Result<bool> {
    for number in &tally.found {
        let (told, written) = prove::explained(seed, *number, judges)?;
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let file = folder.join(format!("seed-{seed}-world-{number}.yaml"));
        std::fs::write(&file, &written).with_context(|| file.display().to_string())?;
        println!("\n== seed {seed}, world {number}\n{told}\n{written}");
        println!("again: cargo xtask prove play{option} {}", file.display());
    }
    Ok(tally.found.is_empty())
}

fn play(file: &Path, loaded: bool) -> Result<bool> {
    let cases = case::read(file)?;
    let all = |judges: Factory<'_>| -> Result<bool> {
        let mut agree = true;
        for case in &cases {
            let outcome = case::run(case, judges).with_context(|| case.case.clone())?;
            for disagreement in &outcome.disagreements {
                println!("{disagreement}");
            }
            agree &= outcome.disagreements.is_empty();
        }
        Ok(agree)
    };
    if loaded { with_three(all)? } else { all(&two) }
}
