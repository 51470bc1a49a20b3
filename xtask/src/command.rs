//! Running other programs: what is run is shown when it fails, and a step is announced and timed.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// Runs with our own stdout and stderr; a failure names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    ensure!(status.success(), "{} failed: {status}", line(command));
    Ok(())
}

/// Runs and returns stdout; stderr is shown only as part of the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}\n{}", line(command), output.status, said.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed something that is not UTF-8", line(command)))
}

/// Whether a program of this name is in PATH (or in the folders of an administrator, which a user's PATH lacks).
pub fn present(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// Announces a step, does it, and says how long it took and what came out of it.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
    println!("{name} ...");
    std::io::stdout().flush().context("stdout is closed")?;
    let start = Instant::now();
    let (value, outcome) = work().with_context(|| name.to_owned())?;
    println!("{name}: {outcome} ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(value)
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
