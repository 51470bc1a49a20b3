//! One agent for each network namespace: two with pin folders of their own would both judge the same pods, and write over each other's marks.
//!
//! A file in the agent's state folder says in which namespace it runs, and is locked for as long as it does.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

use crate::observe::state_dir;

const FILE: &str = "network-namespace";

/// Held while the agent runs.
#[derive(Debug)]
pub struct Presence(#[expect(dead_code, reason = "it is locked while it is open")] File);

/// What names the network namespace of this process: `net:[4026531840]`.
fn own_namespace() -> anyhow::Result<String> {
    let name = fs::read_link("/proc/self/ns/net").context("reading /proc/self/ns/net")?;
    Ok(name.display().to_string())
}

/// # Errors
///
/// An agent with another pin folder runs here.
pub fn refuse_others(pin_dir: &Path) -> anyhow::Result<()> {
    let own = state_dir(pin_dir);
    if let Some(other) = other_in(&own, &own_namespace()?)? {
        bail!(
            "another palisade agent runs in this network namespace (its state is in {}): two would both judge the same pods, and write over \
             each other's marks; stop one of them. Nothing was changed",
            other.display()
        );
    }
    Ok(())
}

/// Says to others that this agent runs here. `None`: it cannot be said, as where a disk is full; enforcement does not wait for that.
///
/// # Errors
///
/// Another agent has come in between.
pub fn announce(pin_dir: &Path) -> anyhow::Result<Option<Presence>> {
    let path = state_dir(pin_dir).join(FILE);
    let presence = write(&path, &own_namespace()?).inspect_err(|error| {
        tracing::warn!(%error, path = %path.display(), "a second agent with another pin folder would not be told of this one");
    });
    refuse_others(pin_dir)?;
    Ok(presence.ok())
}

fn write(path: &Path, namespace: &str) -> std::io::Result<Presence> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    // Who reads it meanwhile holds a shared lock for microseconds.
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    file.set_len(0)?;
    file.write_all(namespace.as_bytes())?;
    Ok(Presence(file))
}

/// The state folder beside `own` whose agent runs in the namespace.
fn other_in(own: &Path, namespace: &str) -> anyhow::Result<Option<PathBuf>> {
    let all = own.parent().context("a state folder is in another")?;
    let entries = match fs::read_dir(all) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.with_context(|| format!("reading {}", all.display()))?,
    };
    for folder in entries {
        let folder = folder?.path();
        if folder != own && runs_in(&folder.join(FILE)).is_some_and(|other| other == namespace) {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// The namespace of the agent that holds the file.
fn runs_in(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut namespace = String::new();
    file.read_to_string(&mut namespace).ok()?;
    Some(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_runs_in_the_same_namespace_is_in_the_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let (own, other) = (folder.path().join("own"), folder.path().join("other"));
        assert_eq!(other_in(&own.join("deeper"), "net:[1]").expect("there is nothing"), None);
        let presence = write(&other.join(FILE), "net:[1]").expect("it can be written");
        let in_the_way = |namespace| other_in(&own, namespace).expect("it can be read");
        assert_eq!(in_the_way("net:[1]"), Some(other.clone()));
        assert_eq!(in_the_way("net:[2]"), None);
        assert_eq!(other_in(&other, "net:[1]").expect("it can be read"), None, "itself");
        drop(presence);
        assert_eq!(in_the_way("net:[1]"), None, "it has ended");
        let _again = write(&other.join(FILE), "net:[2]").expect("it can be written");
        assert_eq!(in_the_way("net:[1]"), None);
    }
}
