//! Where things are: the workspace, its target folder, and the cache outside the tree that outlives a checkout.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace's folder").to_owned()
}

pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |folder| workspace().join(folder))
}

/// Cargo's folder, in which the sources of dependencies lie.
pub fn cargo_home() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}

/// `$PALISADE_CACHE`, else `palisade` in the user's cache folder. What lies there is named by what it was made from.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("PALISADE_CACHE") {
        return Ok(workspace().join(folder));
    }
    if let Some(folder) = env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        return Ok(PathBuf::from(folder).join("palisade"));
    }
    let home =
        env::var_os("HOME").context("neither PALISADE_CACHE nor HOME is set, so there is no place for a cache")?;
    Ok(PathBuf::from(home).join(".cache/palisade"))
}
