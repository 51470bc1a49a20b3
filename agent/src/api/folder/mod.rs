//! A folder of manifests as the source of objects, watched by inotify.
//!
//! All *.yaml, *.yml and *.json files directly in the folder count, except hidden ones. Files are read when they have
//! been written and closed, moved or linked, never half-written. A mounted ConfigMap, where one rename of `..data`
//! replaces everything, is followed; a symbolic link to a file elsewhere is read, but changes there are not noticed.

mod bounds;
pub mod documents;
mod notices;
pub mod shelf;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use crate::facts::{Change, Kind, Update};
use notices::{Notice, Notices, Sign};
use shelf::Shelf;

/// Tells all objects of the folder, and then every change, until the receiver is gone.
///
/// # Errors
/// The folder is missing or cannot be read at the start, or inotify fails. A folder that goes away later is waited for,
/// and meanwhile everything it held stays in force.
pub async fn watch(dir: PathBuf, updates: Sender<Vec<Update>>) -> anyhow::Result<()> {
    let dir = std::path::absolute(&dir).with_context(|| format!("folder {}", dir.display()))?;
    // Watched first: what changes while it is read is read again.
    let mut notices = Notices::open(&dir).with_context(|| format!("watching folder {}", dir.display()))?;
    let (mut shelf, read) = scan(dir.clone(), Shelf::default()).await?;
    read.with_context(|| format!("reading folder {}", dir.display()))?;

    let bare = |change| Update::new(change, Vec::new());
    let mut first: Vec<Update> = Kind::ALL.map(|kind| bare(Change::Relist(kind))).into();
    first.extend(shelf.take_updates());
    first.extend(Kind::ALL.map(|kind| bare(Change::Relisted(kind))));
    if updates.send(first).await.is_err() {
        return Ok(());
    }
    loop {
        let notice = tokio::select! {
            notice = notices.next() => notice.context("reading inotify events")?,
            () = updates.closed() => return Ok(()),
        };
        shelf = match notice {
            Notice::Files(files) => read_files(dir.clone(), files, shelf).await?,
            Notice::Everything => rescan(&dir, shelf).await?,
            Notice::Gone => {
                warn!(folder = %dir.display(), "the folder is gone; what it held stays in force until it is back");
                tokio::select! {
                    back = notices.reopen() => back.context("waiting for the folder")?,
                    () = updates.closed() => return Ok(()),
                }
                info!(folder = %dir.display(), "the folder is back");
                rescan(&dir, shelf).await?
            }
        };
        let changes = shelf.take_updates();
        if !changes.is_empty() && updates.send(changes).await.is_err() {
            return Ok(());
        }
    }
}

/// Which files count.
fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    !name.as_encoded_bytes().starts_with(b".")
        && ["yaml", "yml", "json"].iter().any(|known| extension == Some(OsStr::new(known)))
}

/// Reads everything anew. A folder that cannot be listed is not an empty one: nothing changes.
async fn rescan(dir: &Path, shelf: Shelf) -> anyhow::Result<Shelf> {
    let (shelf, read) = scan(dir.to_owned(), shelf).await?;
    if let Err(error) = read {
        warn!(folder = %dir.display(), %error, "the folder cannot be read; what it held stays in force");
    }
    Ok(shelf)
}

async fn scan(dir: PathBuf, mut shelf: Shelf) -> anyhow::Result<(Shelf, io::Result<()>)> {
    // On a thread of its own, as many files take seconds to parse.
    let scan = move || {
        let read = scan_now(&dir, &mut shelf);
        (shelf, read)
    };
    tokio::task::spawn_blocking(scan).await.context("the reader of the folder")
}

async fn read_files(dir: PathBuf, files: BTreeMap<OsString, Sign>, mut shelf: Shelf) -> anyhow::Result<Shelf> {
    let read = move || {
        for (name, sign) in files {
            let path = dir.join(name);
            // Whoever removes a folder removes its files, one by one; whoever moves it away does not.
            if sign == Sign::Removed || path.exists() || dir.is_dir() {
                read_file(&path, &mut shelf);
            }
        }
        shelf
    };
    tokio::task::spawn_blocking(read).await.context("the reader of the folder")
}

fn scan_now(dir: &Path, shelf: &mut Shelf) -> io::Result<()> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if is_manifest(&name) {
            names.insert(name);
        }
    }
    let paths: BTreeSet<String> = names.iter().map(|name| dir.join(name).to_string_lossy().into_owned()).collect();
    for path in shelf.paths() {
        if !paths.contains(&*path) {
            shelf.remove(&path);
        }
    }
    for name in names {
        read_file(&dir.join(name), shelf);
    }
    Ok(())
}

fn read_file(path: &Path, shelf: &mut Shelf) {
    let name = path.to_string_lossy();
    // Only regular files: reading a fifo would wait for ever.
    let contents = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_file() { std::fs::read(path) } else { Err(io::ErrorKind::NotFound.into()) }
    });
    match contents {
        Ok(contents) => shelf.put(&name, &contents),
        Err(error) if error.kind() == io::ErrorKind::NotFound => shelf.remove(&name),
        Err(error) => shelf.unreadable(&name, &error.to_string()),
    }
}
