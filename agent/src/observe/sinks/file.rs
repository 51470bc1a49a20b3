//! A file of JSON lines that is begun anew when it is full; so many full ones are kept, the latest as `NAME.1`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use prometheus_client::metrics::counter::Counter;

use crate::observe::record::Record;

/// Lines that wait for a slow disk.
const QUEUE: usize = 4096;
/// A failure that goes on is told again after this.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    pub path: PathBuf,
    /// Bytes of one file.
    pub size_max: u64,
    /// How many full ones are kept beside it.
    pub kept: u32,
}

/// Takes lines; a thread of its own writes them.
#[derive(Debug)]
pub struct FileSink(SyncSender<Arc<Record>>);

impl FileSink {
    /// `unwritten` counts lines that could not be written.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn start(options: FileOptions, unwritten: Counter) -> anyhow::Result<Self> {
        let mut files = Files::open(options)?;
        let (sender, lines) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("events-file".to_owned())
            .spawn(move || write(&lines, &mut files, &unwritten))
            .context("starting a thread that writes --events-file")?;
        Ok(Self(sender))
    }

    /// Whether it was taken.
    pub fn take(&self, record: Arc<Record>) -> bool {
        !matches!(self.0.try_send(record), Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
    }
}

fn write(lines: &Receiver<Arc<Record>>, files: &mut Files, unwritten: &Counter) {
    let mut warned: Option<Instant> = None;
    while let Ok(record) = lines.recv() {
        let mut count = 1;
        let mut written = files.put(&record);
        while written.is_ok()
            && let Ok(record) = lines.try_recv()
        {
            count += 1;
            written = files.put(&record);
        }
        let written = written.and_then(|()| files.flush());
        if let Err(error) = written {
            unwritten.inc_by(count);
            if warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
                warned = Some(Instant::now());
                let path = files.options.path.display();
                tracing::warn!(%path, %error, "--events-file cannot be written; lines are lost until it can");
            }
            files.again();
        }
    }
}

/// The file that is being written, and those before it.
struct Files {
    options: FileOptions,
    file: Option<BufWriter<File>>,
    size: u64,
}

impl Files {
    fn open(options: FileOptions) -> anyhow::Result<Self> {
        let mut files = Self { options, file: None, size: 0 };
        let opened = files.file().map(drop);
        opened.with_context(|| format!("opening --events-file {}", files.options.path.display()))?;
        Ok(files)
    }

    fn file(&mut self) -> io::Result<&mut BufWriter<File>> {
        if self.file.is_none() {
            // Who talks to whom is nobody's business but root's.
            let file = File::options().create(true).append(true).mode(0o600).open(&self.options.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(BufWriter::new(file));
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn put(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file()?;
        if self.size != 0 && self.size + line.len() as u64 > self.options.size_max {
            self.begin_anew()?;
        }
        self.file()?.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush()
    }

    /// What is in the buffer is lost, lest it be written twice.
    fn again(&mut self) {
        if let Some(file) = self.file.take() {
            drop(file.into_parts());
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file = None;
        let FileOptions { path, kept, .. } = &self.options;
        if *kept == 0 {
            return fs::remove_file(path);
        }
        for number in (1..*kept).rev() {
            match fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(path, numbered(path, 1))
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.json");
        let record = |number: usize| Record { pod: format!("web/{number}"), ..Record::default() };
        let line = serde_json::to_vec(&record(0)).expect("JSON").len() as u64 + 1;
        let mut files = Files::open(FileOptions { path: path.clone(), size_max: 2 * line, kept: 2 }).expect("a file");
        for number in 0..9 {
            files.put(&record(number)).and_then(|()| files.flush()).expect("it can be written");
        }
        let pods = |path: &Path| -> Vec<String> {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str::<Record>(line).expect("a record").pod).collect()
        };
        assert_eq!(pods(&path), ["web/8"]);
        assert_eq!(pods(&numbered(&path, 1)), ["web/6", "web/7"]);
        assert_eq!(pods(&numbered(&path, 2)), ["web/4", "web/5"]);
        assert!(!numbered(&path, 3).exists());
        // A later agent goes on with it.
        let mut files = Files::open(FileOptions { path: path.clone(), size_max: 2 * line, kept: 0 }).expect("a file");
        files.put(&record(9)).and_then(|()| files.put(&record(0))).and_then(|()| files.flush()).expect("it can");
        assert_eq!(pods(&path), ["web/0"], "none is kept");
    }

    #[test]
    fn a_disk_that_cannot_be_written_loses_lines_and_no_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gone/events.json");
        let options = FileOptions { path: path.clone(), size_max: 1 << 20, kept: 1 };
        let error = Files::open(options.clone()).err().expect("there is no folder");
        assert!(format!("{error:#}").contains("gone/events.json"), "{error:#}");
        fs::create_dir(folder.path().join("gone")).expect("a folder");
        let mut files = Files::open(options).expect("a file");
        fs::remove_dir_all(folder.path().join("gone")).expect("it is there");
        files.again();
        assert!(files.put(&Record::default()).is_err());
        fs::create_dir(folder.path().join("gone")).expect("a folder");
        files.put(&Record::default()).and_then(|()| files.flush()).expect("it can be written again");
        assert!(path.exists());
    }
}
