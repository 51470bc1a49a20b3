//! The tests: which mutants each of them reaches, how long it takes, and whether they notice a mutant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::build::Program;
use super::tree::folder;

/// Tests that take less are run on all mutants before any other is.
const QUICK: Duration = Duration::from_secs(1);
/// The least that a group of tests takes which are run together.
const GROUP_MIN: Duration = Duration::from_millis(100);
/// Address space of a test, in KiB: a mutant may never stop asking for more.
const MEMORY_KIB: u32 = 6 << 20;

/// Exit code of `timeout`.
const TIMEOUT: i32 = 124;

#[derive(Clone, Debug)]
pub struct Test {
    program: Program,
    name: String,
    /// Without a mutant.
    time: Duration,
    reached: BTreeSet<usize>,
}

impl Test {
    pub fn reaches(&self, mutant: usize) -> bool {
        self.reached.contains(&mutant)
    }
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// By the first of these tests, or by one that ran together with it.
    Killed(String),
    /// These tests came to no end, or asked for too much memory.
    Stuck(String),
    Survived,
    /// No test comes by it.
    Unreached,
    /// It does not type-check.
    Unviable,
}

impl Fate {
    pub fn is_death(&self) -> bool {
        match self {
            Self::Killed(_) | Self::Stuck(_) => true,
            Self::Survived | Self::Unreached | Self::Unviable => false,
        }
    }
}

/// Runs each test of its own, and notes what it reaches. `quick`: leaves out those that take long.
pub fn measured(programs: &[Program], jobs: usize, quick: bool) -> Result<Vec<Test>> {
    // 0: none.
    let limit = if quick { QUICK.as_secs_f64() } else { 0.0 };
    let mut named = Vec::new();
    for program in programs {
        let listed =
            Command::new(&program.path).current_dir(&program.folder).args(["--list", "--format=terse"]).output()?;
        let text = String::from_utf8(listed.stdout)?;
        named
            .extend(text.lines().filter_map(|line| line.strip_suffix(": test")).map(|name| (program, name.to_owned())));
    }
    let tests = in_parallel(jobs, &named, |position, (program, name)| -> Result<Option<Test>> {
        let program: &Program = program;
        let record = folder().join(format!("reached-{position}"));
        let _ = fs::remove_file(&record);
        let start = Instant::now();
        let output = Command::new("timeout")
            .current_dir(&program.folder)
            .arg(limit.to_string())
            .arg(&program.path)
            .args(["--exact", name])
            .env("MUTANTS_REACHED", &record)
            .output()?;
        if output.status.code() == Some(TIMEOUT) {
            return Ok(None);
        }
        ensure!(output.status.success(), "{name} fails without a mutant:\n{}", String::from_utf8_lossy(&output.stdout));
        let time = start.elapsed();
        let text = fs::read_to_string(&record).unwrap_or_default();
        let _ = fs::remove_file(&record);
        let reached = text.lines().map(|line| line.parse().context("a number")).collect::<Result<_>>()?;
        Ok(Some(Test { program: program.clone(), name: name.clone(), time, reached }))
    });
    let mut tests: Vec<Test> = tests.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    tests.retain(|test| !test.reached.is_empty());
    tests.sort_by_key(|test| test.time);
    Ok(tests)
}

/// Those that take little, and the others.
pub fn parted(tests: &[Test]) -> (&[Test], &[Test]) {
    tests.split_at(tests.partition_point(|test| test.time < QUICK))
}

/// Runs the tests that reach the mutant, in their order, until one fails.
pub fn fate(mutant: usize, tests: &[Test]) -> Result<Fate> {
    let reaching: Vec<&Test> = tests.iter().filter(|test| test.reaches(mutant)).collect();
    if reaching.is_empty() {
        return Ok(Fate::Unreached);
    }
    for group in groups(&reaching) {
        match run(mutant, &group)? {
            None => {}
            Some(true) => return Ok(Fate::Killed(group[0].name.clone())),
            Some(false) => return Ok(Fate::Stuck(group[0].name.clone())),
        }
    }
    Ok(Fate::Survived)
}

/// Tests of one program that are run together: each group takes about as long as all before it.
fn groups<'a>(tests: &[&'a Test]) -> Vec<Vec<&'a Test>> {
    let mut all = Vec::new();
    let mut spent = Duration::ZERO;
    let mut left = tests;
    while !left.is_empty() {
        let mut time = Duration::ZERO;
        let count = left.iter().take_while(|test| {
            time += test.time;
            time <= spent.max(GROUP_MIN)
        });
        let (group, rest) = left.split_at(count.count().max(1));
        spent += group.iter().map(|test| test.time).sum::<Duration>();
        let mut by_program: BTreeMap<&str, Vec<&Test>> = BTreeMap::new();
        group.iter().for_each(|test| by_program.entry(&test.program.name).or_default().push(test));
        all.extend(by_program.into_values());
        left = rest;
    }
    all
}

/// `None`: all of them pass. `Some(false)`: they did not come to an end.
fn run(mutant: usize, group: &[&Test]) -> Result<Option<bool>> {
    /// Exit code of libtest.
    const FAILED: i32 = 101;
    /// Exit codes of a shell whose program was killed.
    const SIGNALS: std::ops::RangeInclusive<i32> = 128..=192;
    let time: Duration = group.iter().map(|test| test.time).sum();
    // What never ends mostly computes; the clock is for what waits, as the machine may have other work.
    let (computing, waiting) = (3 + time.as_secs() * 3, 60 + time.as_secs() * 10);
    let program = &group[0].program;
    let limits = format!("ulimit -v {MEMORY_KIB} -t {computing} -c 0");
    let script = format!("{limits}; exec timeout --signal=KILL {waiting} \"$0\" \"$@\"");
    let status = Command::new("bash")
        .current_dir(&program.folder)
        .args(["-c", &script])
        .arg(&program.path)
        .args(["-Zunstable-options", "--fail-fast", "--exact", "--test-threads=1"])
        .args(group.iter().map(|test| &test.name))
        // For --fail-fast.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("MUTANT", mutant.to_string())
        .env("PALISADE_TOLD_MAX", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(match status.code() {
        Some(0) => None,
        Some(FAILED) => Some(true),
        Some(code) if code == TIMEOUT || SIGNALS.contains(&code) => Some(false),
        None => Some(false),
        Some(code) => bail!("{} ended with {code}, which no test does", program.path.display()),
    })
}

/// `jobs` of them at a time.
pub fn in_parallel<T: Sync, R: Send>(jobs: usize, items: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(position) else { break };
                    let result = work(position, item);
                    done.lock().expect("no worker panics with the lock").insert(position, result);
                }
            });
        }
    });
    done.into_inner().expect("no worker panics with the lock").into_values().collect()
}
