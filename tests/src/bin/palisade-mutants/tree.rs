//! The copy of the workspace that is mutated, under target/mutants.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::schemata::File;

/// Folders and files (`.rs` left out, as a file may become a folder) whose functions are mutated, and the crates they are in.
const MODULES: [&str; 6] = [
    "agent/src/compile",
    "agent/src/tables",
    "common/src/decide",
    "common/src/flow",
    "common/src/parse",
    "common/src/neighbour",
];
const CRATES: [&str; 2] = ["agent", "common"];
/// Compiled with optimisation, as a run of a test costs more than compiling it.
const OPTIMISED: [&str; 4] = ["palisade", "palisade-common", "palisade-tests", "mutant-switch"];

pub struct Tree {
    pub root: PathBuf,
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace's folder").to_owned()
}

/// Where all of it is: the copy, what is built from it, and what the last run found.
pub fn folder() -> PathBuf {
    workspace().join("target/mutants")
}

/// The module of a file: the first of [`MODULES`] that holds it.
pub fn module(path: &str) -> Option<&'static str> {
    let rest = |module: &&str| path.strip_prefix(*module).is_some_and(|rest| rest.starts_with('/') || rest == ".rs");
    MODULES.into_iter().find(rest)
}

impl Tree {
    /// Copies what is in the repository, or would be; a file that is the same is left as it is, for cargo's sake.
    pub fn copied() -> Result<Self> {
        let root = folder().join("tree");
        let mut git = Command::new("git");
        let listed =
            git.current_dir(workspace()).args(["ls-files", "--cached", "--others", "--exclude-standard"]).output()?;
        ensure!(listed.status.success(), "git ls-files failed");
        let paths = String::from_utf8(listed.stdout)?;
        // Programs of the tests crate would only be linked for nothing.
        for path in paths.lines().filter(|path| !path.starts_with("tests/src/bin/")) {
            let Ok(mut contents) = fs::read(workspace().join(path)) else { continue };
            if CRATES.iter().any(|name| path == format!("{name}/Cargo.toml")) {
                contents.extend(b"\n[dependencies.mutant-switch]\npath = \"../mutant-switch\"\n");
            }
            if path == "Cargo.toml" {
                for name in OPTIMISED {
                    contents.extend(format!("\n[profile.dev.package.{name}]\nopt-level = 1\n").into_bytes());
                }
            }
            // Mutated files are written when it is known with which mutants.
            if module(path).is_none() || !path.ends_with(".rs") {
                put(&root.join(path), &contents)?;
            }
        }
        let manifest = "[package]\nname = \"mutant-switch\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        put(&root.join("mutant-switch/Cargo.toml"), manifest.as_bytes())?;
        put(&root.join("mutant-switch/src/lib.rs"), include_bytes!("switch.rs"))?;
        Ok(Self { root })
    }

    pub fn write(&self, file: &File, text: &str) -> Result<()> {
        put(&self.root.join(&file.path), text.as_bytes())
    }
}

/// All files of the modules; tests are left as they are.
pub fn sources() -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for name in CRATES {
        collect(&workspace().join(name).join("src"), &mut all)?;
    }
    all.sort();
    Ok(all)
}

fn collect(folder: &Path, all: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, all)?;
            continue;
        }
        let name = path.strip_prefix(workspace())?.to_str().context("a path that is not UTF-8")?.to_owned();
        if name.ends_with(".rs") && module(&name).is_some() {
            all.push((name, fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn put(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == contents) {
        return Ok(());
    }
    let parent = path.parent().context("a path without a folder")?;
    fs::create_dir_all(parent)?;
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}
