//! A cgroup v2 folder for the processes of a node: a machine that holds several nodes has them apart only so.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::Guard;

/// Cheap to clone; the folder lives until the lab's guard removes it.
#[derive(Clone)]
pub struct Cgroup {
    pub path: PathBuf,
    /// Its cgroup.procs: who writes there, moves.
    members: Arc<fs::File>,
}

impl Cgroup {
    /// Below the machine's hierarchy of version 2, which is mounted at `fallback` where it is not mounted at all.
    pub fn create(guard: &Guard, name: &str, fallback: &Path) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
        let root = match hierarchy(&mounts) {
            Some(root) => root,
            None => {
                fs::create_dir_all(fallback)?;
                guard.mount(fallback);
                rustix::mount::mount("cgroup2", fallback, "cgroup2", MountFlags::empty(), None)
                    .context("cannot mount a cgroup2")?;
                fallback.to_owned()
            }
        };
        let path = root.join(name);
        guard.cgroup(&path);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Self::open(&path)
    }

    /// One that is there.
    pub fn open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let members = fs::File::options().write(true).open(path.join("cgroup.procs"))?;
        Ok(Self { path, members: Arc::new(members) })
    }

    /// The command's process, and what it starts, will be members, and so will their sockets.
    pub fn admit(&self, command: &mut Command) {
        let members = self.members.clone();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; this is one write on a descriptor
        // that the closure keeps open, and nothing is allocated.
        unsafe {
            // Zero stands for the process that writes it.
            command.pre_exec(move || rustix::io::write(members.as_fd(), b"0").map(drop).map_err(Into::into));
        }
    }
}

/// The first mount of version 2: at /sys/fs/cgroup, or below it where version 1 is in use as well.
fn hierarchy(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| place.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchy_is_found_wherever_it_is_mounted() {
        let first = "sysfs /sys sysfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        assert_eq!(hierarchy(first), None);
        let hybrid = format!("{first}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
        assert_eq!(hierarchy(&hybrid), Some("/sys/fs/cgroup/unified".into()));
    }
}
