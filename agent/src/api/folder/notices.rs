//! What inotify tells about a folder, put together to what there is to do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use tracing::debug;

use super::is_manifest;

#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// These files are new, changed or gone.
    Files(BTreeMap<OsString, Sign>),
    /// Any file may be.
    Everything,
    /// The folder itself is.
    Gone,
}

/// What was last told of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    Written,
    Removed,
}

pub struct Notices {
    dir: PathBuf,
    stream: EventStream<Vec<u8>>,
    /// Of the folder. Events of an earlier one may still come.
    watch: WatchDescriptor,
    /// The folder went after files that are to be told first.
    gone: bool,
}

/// Bytes read at once. Only how many, as the kernel queues the rest.
const BUFFER_BYTES: usize = 64 * 1024;

impl Notices {
    /// # Errors
    /// The folder is not there, or inotify refuses.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let stream = Inotify::init()?.into_event_stream(vec![0; BUFFER_BYTES])?;
        let watch = stream.watches().add(dir, mask())?;
        Ok(Self { dir: dir.to_owned(), stream, watch, gone: false })
    }

    /// Waits until there is something to do.
    ///
    /// # Errors
    /// inotify fails.
    pub async fn next(&mut self) -> io::Result<Notice> {
        if std::mem::take(&mut self.gone) {
            return Ok(Notice::Gone);
        }
        loop {
            let mut files = BTreeMap::new();
            let mut event = self.event().await?;
            loop {
                match self.read(&event) {
                    Some(Notice::Files(names)) => files.extend(names),
                    Some(Notice::Gone) => {
                        self.gone = !files.is_empty();
                        return Ok(if self.gone { Notice::Files(files) } else { Notice::Gone });
                    }
                    Some(Notice::Everything) => return Ok(Notice::Everything),
                    None => {}
                }
                // What else has been told is done in one go.
                match self.event().now_or_never() {
                    Some(next) => event = next?,
                    None => break,
                }
            }
            if !files.is_empty() {
                return Ok(Notice::Files(files));
            }
        }
    }

    /// Waits until the folder is there again, and watches it.
    ///
    /// # Errors
    /// inotify fails.
    pub async fn reopen(&mut self) -> io::Result<()> {
        // A folder that was moved away is still watched where it is now.
        let _already_gone = self.stream.watches().remove(self.watch.clone());
        loop {
            let around = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ATTRIB | WatchMask::DELETE_SELF;
            let watches = &mut self.stream.watches();
            let nearest = self.dir.ancestors().skip(1).find_map(|ancestor| watches.add(ancestor, around).ok());
            let opened = watches.add(&self.dir, mask());
            let opened = match (opened, nearest) {
                (Ok(watch), nearest) => {
                    if let Some(nearest) = nearest {
                        let _already_gone = watches.remove(nearest);
                    }
                    self.watch = watch;
                    return Ok(());
                }
                (Err(error), None) => return Err(error),
                (Err(error), Some(nearest)) => (error, nearest),
            };
            debug!(folder = %self.dir.display(), error = %opened.0, "not there yet");
            self.event().await?;
            let _already_gone = self.stream.watches().remove(opened.1);
        }
    }

    async fn event(&mut self) -> io::Result<EventOwned> {
        let end = || io::Error::new(io::ErrorKind::UnexpectedEof, "inotify ended");
        self.stream.next().await.ok_or_else(end)?
    }

    fn read(&self, event: &EventOwned) -> Option<Notice> {
        let EventOwned { wd, mask, cookie: _, name } = event;
        if mask.contains(EventMask::Q_OVERFLOW) {
            return Some(Notice::Everything);
        }
        if *wd != self.watch {
            return None;
        }
        let gone = EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT;
        if mask.intersects(gone) {
            return Some(Notice::Gone);
        }
        let name = name.as_ref()?;
        if name.as_encoded_bytes().starts_with(b"..") {
            // The kubelet replaces a ConfigMap by renaming ..data_tmp to ..data.
            return mask.contains(EventMask::MOVED_TO).then_some(Notice::Everything);
        }
        // A file that is only created is still being written; a link is complete at once.
        let complete = !mask.contains(EventMask::CREATE) || is_link(&self.dir.join(name));
        let removed = mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM);
        let sign = if removed { Sign::Removed } else { Sign::Written };
        (is_manifest(name) && complete).then(|| Notice::Files(BTreeMap::from([(name.clone(), sign)])))
    }
}

fn mask() -> WatchMask {
    WatchMask::ONLYDIR
        | WatchMask::CREATE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
}

fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}
