//! `cargo xtask fuzz`: libFuzzer in front of the harnesses in `tests/src/fuzz`, with the stable compiler.
//!
//! What it tries is kept from run to run in `target/fuzz`; what the repository keeps is in `tests/fuzz/corpus`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{output, run, step};
use crate::{paths, setup};

struct Target {
    name: &'static str,
    /// Bytes of an input at most.
    length_max: u32,
    /// Inputs that the stage of `cargo xtask test` tries, the kept ones included.
    runs: u32,
    dictionary: bool,
}

/// As `tests/src/fuzz/mod.rs` has them. The runs take some five seconds each on one core.
const TARGETS: &[Target] = &[
    Target { name: "parse", length_max: 400, runs: 200_000, dictionary: false },
    Target { name: "decide", length_max: 1000, runs: 10_000, dictionary: false },
    Target { name: "cni", length_max: 2000, runs: 60_000, dictionary: true },
    Target { name: "manifests", length_max: 2000, runs: 3_000, dictionary: true },
    Target { name: "objects", length_max: 2000, runs: 40_000, dictionary: true },
];

/// How long each target is fuzzed where nobody says otherwise.
const SECONDS: u64 = 60;

pub fn fuzz(arguments: &[String]) -> Result<()> {
    let mut arguments = arguments.iter().map(String::as_str);
    let (mut chosen, mut seconds, mut keep) = (Vec::new(), SECONDS, false);
    while let Some(argument) = arguments.next() {
        match argument {
            "--seconds" => {
                let value = arguments.next().context("--seconds needs a number")?;
                seconds = value.parse().with_context(|| format!("`{value}` is no number of seconds"))?;
            }
            "--keep" => keep = true,
            name => chosen.push(TARGETS.iter().find(|target| target.name == name).with_context(|| {
                let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
                format!("there is no target `{name}`, only {}", names.join(", "))
            })?),
        }
    }
    let engine = build()?;
    for target in TARGETS.iter().filter(|target| chosen.is_empty() || chosen.iter().any(|c| c.name == target.name)) {
        println!("\n==== {}", target.name);
        let tried = paths::target().join("fuzz").join(target.name);
        fs::create_dir_all(&tried)?;
        let mut command = target.command(&engine)?;
        run(command.arg(format!("-max_total_time={seconds}")).arg(&tried).arg(target.kept()))?;
        if keep {
            target.keep(&engine, &tried)?;
        }
    }
    Ok(())
}

/// A stage of `cargo xtask test`: the same inputs each time, as many as take a moment.
pub fn bounded() -> Result<()> {
    let engine = build()?;
    for target in TARGETS {
        step(target.name, || {
            // libFuzzer adds to the first folder, which has to be empty for the inputs to be the same each time.
            let tried = paths::target().join("fuzz/bounded").join(target.name);
            if tried.exists() {
                fs::remove_dir_all(&tried)?;
            }
            fs::create_dir_all(&tried)?;
            let mut command = target.command(&engine)?;
            let runs = format!("-runs={}", target.runs);
            output(command.args(["-seed=1", &runs, "-verbosity=0"]).arg(&tried).arg(target.kept()))?;
            Ok(((), format!("{} inputs", target.runs)))
        })?;
    }
    Ok(())
}

/// Only our own crates are compiled anew, with libFuzzer's counters; see `tests/fuzz/rustc`.
fn build() -> Result<PathBuf> {
    setup::cxx()?;
    step("fuzzing engine", || {
        let built = paths::target().join("debug/palisade-fuzz");
        run(Command::new("cargo")
            .current_dir(paths::workspace())
            .args(["build", "--quiet", "--package", "palisade-fuzz", "--target-dir"])
            .arg(paths::target())
            .env("RUSTC_WORKSPACE_WRAPPER", folder().join("rustc"))
            .env_remove("PALISADE_EBPF_OBJECT"))?;
        Ok((built, "built".into()))
    })
}

fn folder() -> PathBuf {
    paths::workspace().join("tests/fuzz")
}

impl Target {
    fn kept(&self) -> PathBuf {
        folder().join("corpus").join(self.name)
    }

    /// What it finds is left in `target/fuzz/found`.
    fn command(&self, engine: &Path) -> Result<Command> {
        let found = paths::target().join("fuzz/found");
        fs::create_dir_all(&found)?;
        let mut command = Command::new(engine);
        command
            .current_dir(paths::workspace())
            .env("PALISADE_FUZZ_TARGET", self.name)
            .env("RUST_BACKTRACE", "0")
            .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
            .arg(format!("-max_len={}", self.length_max))
            .arg(format!("-artifact_prefix={}/{}-", found.display(), self.name));
        if self.dictionary {
            command.arg(format!("-dict={}", folder().join("objects.dict").display()));
        }
        Ok(command)
    }

    /// Keeps the fewest of all inputs that lead everywhere, and those that somebody has given a name.
    fn keep(&self, engine: &Path, tried: &Path) -> Result<()> {
        let kept = self.kept();
        let fewest = kept.with_extension("part");
        ensure!(!fewest.exists(), "{} is left from an earlier run", fewest.display());
        fs::create_dir_all(&fewest)?;
        let mut merge = self.command(engine)?;
        run(merge.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&fewest).args([kept.as_path(), tried]))?;
        for entry in fs::read_dir(&kept)? {
            let entry = entry?;
            // libFuzzer names an input by its SHA-1.
            if entry.file_name().to_string_lossy().contains(|letter: char| !letter.is_ascii_hexdigit()) {
                fs::copy(entry.path(), fewest.join(entry.file_name()))?;
            }
        }
        fs::remove_dir_all(&kept)?;
        fs::rename(&fewest, &kept).with_context(|| format!("cannot write {}", kept.display()))
    }
}
