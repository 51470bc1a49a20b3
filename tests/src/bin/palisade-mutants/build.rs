//! Builds the mutated tree. The compiler says which mutants do not type-check; without them it is built again.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::schemata::{File, Mutant, Places, written};
use super::tree::{Tree, folder};

/// One build says nothing of borrows where there are wrong types; more rounds than this are a mistake of ours.
const ROUNDS_MAX: usize = 20;

/// A test program, and the folder it runs in.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub path: PathBuf,
    pub folder: PathBuf,
}

/// Builds all test programs; marks the mutants that do not type-check.
pub fn build(tree: &Tree, files: &[File], mutants: &mut [Mutant], jobs: usize) -> Result<Vec<Program>> {
    for round in 1..=ROUNDS_MAX {
        let mut places = HashMap::new();
        for file in files {
            let (text, found) = written(file, |number| !mutants[number].unviable);
            tree.write(file, &text)?;
            places.insert(file.path.as_str(), found);
        }
        let messages = cargo(tree, jobs, &["build", "-p", "palisade-common", "-p", "palisade", "--lib"])?;
        let faults = faults(&messages, &places)?;
        println!("round {round}: {} mutants do not type-check", faults.len());
        if faults.is_empty() {
            let unit = cargo(tree, jobs, &["test", "--no-run", "-p", "palisade-common", "-p", "palisade", "--lib"])?;
            let judges = ["test", "--no-run", "-p", "palisade-tests", "--test", "judges", "--test", "instant"];
            return programs(&[unit, cargo(tree, jobs, &judges)?].concat());
        }
        faults.into_iter().for_each(|number| mutants[number].unviable = true);
    }
    bail!("after {ROUNDS_MAX} rounds there still are mutants that do not type-check")
}

fn cargo(tree: &Tree, jobs: usize, arguments: &[&str]) -> Result<Vec<Value>> {
    // Only the crates of the workspace are built with it: others need not be built anew.
    let wrapper = folder().join("rustc");
    fs::write(&wrapper, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec \"$@\"\n")?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let output = Command::new("cargo")
        .current_dir(&tree.root)
        .args(arguments)
        .args(["--message-format=json", "--quiet", "--jobs", &jobs.to_string(), "--target-dir"])
        .arg(folder().join("target"))
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8(output.stdout).context("cargo's messages are no UTF-8")?;
    let messages = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let told = messages.iter().any(|message| message["message"]["level"] == "error");
    ensure!(output.status.success() || told, "cargo {} failed", arguments.join(" "));
    Ok(messages)
}

fn faults(messages: &[Value], places: &HashMap<&str, Places>) -> Result<BTreeSet<usize>> {
    let mut all = BTreeSet::new();
    let errors = messages.iter().map(|message| &message["message"]).filter(|message| message["level"] == "error");
    for error in errors {
        let spans: Vec<&Value> = error["spans"].as_array().into_iter().flatten().collect();
        // "aborting due to …"
        if spans.is_empty() {
            continue;
        }
        let primary = spans.iter().filter(|span| span["is_primary"] == true);
        let at = |span: &&Value| {
            let place = places.get(span["file_name"].as_str()?)?;
            Some(place.at(usize::try_from(span["byte_start"].as_u64()?).ok()?))
        };
        let found: Vec<usize> =
            primary.chain(&spans).filter_map(at).find(|found| !found.is_empty()).unwrap_or_default();
        ensure!(!found.is_empty(), "no mutant's fault: {}", error["rendered"].as_str().unwrap_or_default());
        all.extend(found);
    }
    Ok(all)
}

fn programs(messages: &[Value]) -> Result<Vec<Program>> {
    let error = messages.iter().find(|message| message["message"]["level"] == "error");
    if let Some(error) = error {
        bail!("the tests do not build: {}", error["message"]["rendered"].as_str().unwrap_or_default());
    }
    let mut all = Vec::new();
    for message in messages.iter().filter(|message| message["profile"]["test"] == true) {
        if let (Some(path), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str()) {
            let folder = PathBuf::from(manifest).parent().context("a manifest lies in a folder")?.to_owned();
            let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
            all.push(Program { name, path: path.into(), folder });
        }
    }
    ensure!(!all.is_empty(), "there are no test programs");
    Ok(all)
}
