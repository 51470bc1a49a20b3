//! What is known of a cluster that was left standing, as a file.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{ClusterNode, Settings};

#[derive(Serialize, Deserialize)]
pub struct State {
    /// The lab's folder.
    pub lab: PathBuf,
    pub settings: Settings,
    pub nodes: Vec<ClusterNode>,
    pub kubeconfig: PathBuf,
}

impl State {
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("standing.json")
    }

    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        let context = || format!("reading {}", path.display());
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(context),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(context),
        }
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let path = Self::path(folder);
        fs::write(&path, serde_json::to_vec_pretty(self)?).with_context(|| format!("writing {}", path.display()))
    }
}
