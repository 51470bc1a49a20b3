//! Writes the file when objects have changed, away from the agent's loop, and keeps a mark while it lags behind what is enforced.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::LastKnown;
use crate::observe::state_dir;

/// How long after a change it is written, so that a burst writes it once.
const DELAY: Duration = Duration::from_secs(1);
/// At least between two times: flash memory wears.
const INTERVAL: Duration = Duration::from_secs(10);

/// Number of the state that was written, or why it could not be.
pub type Written = Result<u64, String>;

/// The agent's side.
#[derive(Debug)]
pub struct Keeper {
    /// While this is there, what the kernel enforces may be newer than the file. It is where a boot finds nothing.
    mark: PathBuf,
    marked: bool,
    /// Number of the state that is known, and of the last that was handed over.
    state: u64,
    given: u64,
    /// When it is to be handed over.
    pub due: Option<Instant>,
    not_before: Instant,
    sender: watch::Sender<Option<(u64, LastKnown)>>,
}

fn mark(pin_dir: &Path) -> PathBuf {
    state_dir(pin_dir).join("last-known-is-old")
}

/// What an earlier agent has in the kernel is not newer than what it wrote.
pub fn is_current(pin_dir: &Path) -> bool {
    !mark(pin_dir).exists()
}

impl Keeper {
    pub fn new(pin_dir: &Path, sender: watch::Sender<Option<(u64, LastKnown)>>) -> Self {
        let mark = mark(pin_dir);
        let marked = mark.exists();
        Self { mark, marked, state: 0, given: 0, due: None, not_before: Instant::now(), sender }
    }

    /// Objects are others: called before they are enforced.
    pub fn changed(&mut self) {
        self.state += 1;
        if !self.marked {
            self.marked = true;
            let folder = self.mark.parent().map_or(Ok(()), fs::create_dir_all);
            if let Err(error) = folder.and_then(|()| File::create(&self.mark).map(drop)) {
                tracing::warn!(%error, path = %self.mark.display(), "cannot mark that the last known objects are old");
            }
        }
        self.due.get_or_insert_with(|| self.not_before.max(Instant::now() + DELAY));
    }

    /// What is known now goes to the disk.
    pub fn give(&mut self, known: LastKnown) {
        self.due = None;
        self.not_before = Instant::now() + INTERVAL;
        self.given = self.state;
        self.sender.send_replace(Some((self.state, known)));
    }

    /// A state is on the disk, or cannot be put there.
    pub fn written(&mut self, written: &Written) {
        match written {
            Ok(state) if *state == self.state => {
                if let Err(error) = fs::remove_file(&self.mark) {
                    tracing::debug!(%error, path = %self.mark.display(), "there was no mark");
                }
                self.marked = false;
            }
            Ok(_) => {}
            // Tried again with the next change, or then.
            Err(_) => drop(self.due.get_or_insert(self.not_before)),
        }
    }
}

/// Writes what is handed over, the newest, until the agent's side is gone.
pub async fn keep(path: PathBuf, mut given: watch::Receiver<Option<(u64, LastKnown)>>, told: watch::Sender<Written>) {
    let mut last: Option<LastKnown> = None;
    while given.changed().await.is_ok() {
        let Some((state, known)) = given.borrow_and_update().clone() else { continue };
        if last.as_ref().is_some_and(|last| last.is_as(&known)) {
            let _ = told.send_replace(Ok(state));
            continue;
        }
        let (place, bytes) = (path.clone(), known.encode());
        let written = tokio::task::spawn_blocking(move || write(&place, &bytes?)).await;
        let outcome = match written.context("the task panicked").and_then(|written| written) {
            Ok(()) => {
                last = Some(known);
                Ok(state)
            }
            Err(error) => {
                last = None;
                Err(format!("{error:#}"))
            }
        };
        let _ = told.send_replace(outcome);
    }
}

/// Whole or not at all, whatever happens to the machine meanwhile.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("the file is in no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let new = path.with_extension("new");
    let wrong = || format!("writing {}", new.display());
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new).with_context(wrong)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(wrong)?;
    fs::rename(&new, path).with_context(|| format!("writing {}", path.display()))?;
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("writing {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_written_whole_and_for_root_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("of-an-agent/last-known");
        let (sender, given) = watch::channel(None);
        let (told, mut written) = watch::channel(Ok(0));
        tokio::spawn(keep(path.clone(), given, told));
        for state in 1..=3_u64 {
            let known = LastKnown { node: "n1".to_owned(), taken: state.to_string(), ..LastKnown::default() };
            sender.send_replace(Some((state, known)));
            written.changed().await.expect("it is told of");
            assert_eq!(*written.borrow_and_update(), Ok(state));
        }
        let known = super::super::read(&path, "n1").expect("it can be read").expect("it is there");
        assert_eq!(known.taken, "1", "the same objects are written once");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("it is there").count(), 1);
    }
}
