//! A bpffs for one test.

use std::path::Path;

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// Mounted at a temporary folder until dropped.
#[derive(Debug)]
pub struct Bpffs {
    folder: TempDir,
}

/// Mounts one; `name` only makes the folder recognisable.
pub fn bpffs(name: &str) -> anyhow::Result<Bpffs> {
    let folder = tempfile::Builder::new().prefix(&format!("palisade-{name}-")).tempdir()?;
    mount("bpf", folder.path(), "bpf", MountFlags::empty(), None).context("mounting a bpffs")?;
    Ok(Bpffs { folder })
}

impl Bpffs {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Whoever still has a map open keeps it; the folder itself can go.
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}
