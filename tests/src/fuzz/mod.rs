//! What arbitrary input is put to: one check for each target, which panics where something is wrong.
//!
//! libFuzzer calls the checks from `tests/fuzz`; plain `cargo test` puts the kept inputs (`tests/fuzz/corpus`) to them again.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

mod cni;
pub mod decide;
mod manifests;
mod objects;
mod parse;
mod reference;
pub mod scene;
mod shot;

/// A check and its inputs.
#[derive(Debug)]
pub struct Target {
    /// Also the name of the folder of its kept inputs.
    pub name: &'static str,
    pub about: &'static str,
    pub check: fn(&[u8]),
}

pub const TARGETS: &[Target] = &[
    Target { name: "parse", about: "frames: our parser against etherparse", check: parse::check },
    Target {
        name: "decide",
        about: "tables, changes and frames: the decision function's promises",
        check: decide::check,
    },
    Target { name: "cni", about: "files of CNI results", check: cni::check },
    Target { name: "manifests", about: "files of a folder", check: manifests::check },
    Target { name: "objects", about: "API objects as JSON", check: objects::check },
];

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// The kept inputs by file, in the order of their names.
    ///
    /// # Errors
    /// The folder or a file in it cannot be read.
    pub fn kept(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(self.name);
        let mut inputs = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let input = std::fs::read(&path).with_context(|| path.display().to_string())?;
            inputs.push((path, input));
        }
        inputs.sort();
        Ok(inputs)
    }
}
