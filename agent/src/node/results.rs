//! The folder of CNI results, watched with inotify: which files came, changed and went. Reading them is the caller's turn.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};

use super::cni::{self, Reading};
use super::inventory::Event;

/// A result is some kilobytes; a file beyond this is not libcni's work.
const RESULT_MAX: u64 = 4 << 20;

pub struct Folder {
    directory: PathBuf,
    events: EventStream<Vec<u8>>,
    watched: Watched,
}

enum Watched {
    Folder(WatchDescriptor),
    /// The folder is not there; the nearest one above it that is.
    Ancestor(WatchDescriptor),
}

/// What to read.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    File(PathBuf),
    /// All of it: it has appeared.
    Everything,
    /// All of it: events were lost.
    Lost,
}

impl Folder {
    pub fn watch(directory: PathBuf) -> anyhow::Result<Self> {
        let inotify = Inotify::init().context("inotify is needed to follow CNI results")?;
        let events = inotify.into_event_stream(vec![0; 64 << 10])?;
        let watched = follow(&events, &directory)?;
        Ok(Self { directory, events, watched })
    }

    /// Waits for something to read. Nothing is lost if the future is dropped.
    pub async fn turn(&mut self) -> anyhow::Result<Turn> {
        loop {
            let event = self.events.next().await.context("inotify has ended")?;
            let event = event.context("cannot read inotify events of CNI results")?;
            if let Some(turn) = self.sort(event)? {
                return Ok(turn);
            }
        }
    }

    fn sort(&mut self, event: EventOwned) -> anyhow::Result<Option<Turn>> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Ok(Some(Turn::Lost));
        }
        match &self.watched {
            Watched::Folder(descriptor) if event.wd == *descriptor => match event.name {
                Some(name) => Ok(Some(Turn::File(self.directory.join(name)))),
                // The folder itself was removed or renamed.
                None => {
                    self.follow_anew()?;
                    Ok(Some(Turn::Everything))
                }
            },
            Watched::Ancestor(descriptor) if event.wd == *descriptor => {
                self.follow_anew()?;
                Ok(matches!(self.watched, Watched::Folder(_)).then_some(Turn::Everything))
            }
            // Left over from a watch that was given up.
            Watched::Folder(_) | Watched::Ancestor(_) => Ok(None),
        }
    }

    fn follow_anew(&mut self) -> anyhow::Result<()> {
        let (Watched::Folder(old) | Watched::Ancestor(old)) = &self.watched;
        // It is gone already where its folder is.
        let _ = self.events.watches().remove(old.clone());
        self.watched = follow(&self.events, &self.directory)?;
        Ok(())
    }

    /// All files there are, as events.
    pub fn read_all(&self) -> anyhow::Result<Vec<Event>> {
        let context = || format!("cannot list CNI results in {}", self.directory.display());
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if is_missing(&error) => return Ok(vec![Event::ResultFiles(BTreeSet::new())]),
            Err(error) => return Err(error).with_context(context),
        };
        let mut files = BTreeSet::new();
        let mut events = Vec::new();
        for entry in entries {
            let path = entry.with_context(context)?.path();
            files.insert(file_name(&path));
            events.push(read(&path));
        }
        events.push(Event::ResultFiles(files));
        Ok(events)
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Watches the folder or, until it is there, the nearest one above it.
fn follow(events: &EventStream<Vec<u8>>, directory: &Path) -> anyhow::Result<Watched> {
    let whole = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let above =
        WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
    let add = |path: &Path, mask| match events.watches().add(path, mask) {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot watch {}", path.display())),
    };
    'again: loop {
        if let Some(descriptor) = add(directory, whole)? {
            return Ok(Watched::Folder(descriptor));
        }
        let mut below = directory;
        while let Some(parent) = below.parent() {
            let path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            if let Some(descriptor) = add(path, above)? {
                // What was missing may have come before the watch; then there was no event.
                if below.is_dir() {
                    let _ = events.watches().remove(descriptor);
                    continue 'again;
                }
                return Ok(Watched::Ancestor(descriptor));
            }
            below = parent;
        }
        anyhow::bail!("no folder above {} can be watched", directory.display());
    }
}

/// What one file says now.
pub fn read(path: &Path) -> Event {
    let file = file_name(path);
    match text(path) {
        Ok((written, text)) => {
            let reading = cni::parse(&text);
            if let Reading::NotYet(reason) = &reading {
                tracing::warn!(path = %path.display(), reason, "CNI result not understood, or not yet written");
            }
            Event::Result { file, written, reading }
        }
        Err(error) if is_missing(&error) => Event::ResultGone(file),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "CNI result cannot be read");
            Event::Result { file, written: SystemTime::UNIX_EPOCH, reading: Reading::NotYet(error.to_string()) }
        }
    }
}

fn text(path: &Path) -> io::Result<(SystemTime, Vec<u8>)> {
    // O_NONBLOCK: opening a pipe that someone put there must not wait for its writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(RESULT_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > RESULT_MAX {
        return Err(io::Error::other(format!("it is larger than {RESULT_MAX} bytes")));
    }
    Ok((metadata.modified()?, text))
}

fn file_name(path: &Path) -> Arc<str> {
    path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests;
