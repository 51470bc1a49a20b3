//! Removes what a lab has made, also when the lab's process is killed: a child that waits for the end of a pipe.
//!
//! Whatever is to be made is first told to the guard, so that nothing can fall between. The list is also a file in the lab's folder, from which a lab that was
//! left standing on purpose is removed later. Processes are ended by their id, and only if they are still the same.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use super::programs;

const LIST: &str = "made";
const KEEP: &str = "keep";

/// Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    child: Arc<GuardProcess>,
}

struct GuardProcess(Mutex<Option<Child>>);

impl Guard {
    pub fn start(folder: &Path) -> Result<Self> {
        let program = programs::helper()?;
        let mut child = Command::new(&program)
            .arg("guard")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A group of its own: Ctrl-C ends the lab's process, and the guard then does its work.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout was asked for above")).read_line(&mut line)?;
        ensure!(line == "ready\n", "the guard of {} did not start", folder.display());
        Ok(Self { child: Arc::new(GuardProcess(Mutex::new(Some(child)))) })
    }

    pub fn netns(&self, name: &str) {
        self.tell(&format!("netns {name}"));
    }

    pub fn mount(&self, path: &Path) {
        self.tell(&format!("mount {}", path.display()));
    }

    /// A folder, with all that is in it.
    pub fn folder(&self, path: &Path) {
        self.tell(&format!("folder {}", path.display()));
    }

    /// An empty folder, which is in the way of nothing; it goes only if it is still empty.
    pub fn mount_point(&self, path: &Path) {
        self.tell(&format!("mount-point {}", path.display()));
    }

    /// A cgroup, with those below it. Its members are ended first, as they are told later.
    pub fn cgroup(&self, path: &Path) {
        self.tell(&format!("cgroup {}", path.display()));
    }

    /// The leader of a process group, and so whatever it starts.
    pub fn process(&self, pid: u32) {
        if let Some(start) = start_time(pid) {
            self.tell(&format!("process {pid} {start}"));
        }
    }

    /// From now on nothing is removed when the lab's process ends.
    pub fn keep(&self) -> Result<()> {
        self.tell(KEEP);
        self.finish()
    }

    /// Removes everything now; returns when that is done.
    pub fn finish(&self) -> Result<()> {
        self.child.finish()
    }

    /// A guard that has gone is no reason to fail: what it was told is in its file.
    fn tell(&self, line: &str) {
        let mut child = self.child.0.lock().expect("nobody panics while holding this");
        if let Some(stdin) = child.as_mut().and_then(|child| child.stdin.as_mut()) {
            let _ = writeln!(stdin, "{line}");
        }
    }
}

impl GuardProcess {
    fn finish(&self) -> Result<()> {
        let child = self.0.lock().expect("nobody panics while holding this").take();
        if let Some(mut child) = child {
            drop(child.stdin.take());
            child.wait().context("the guard cannot be waited for")?;
        }
        Ok(())
    }
}

impl Drop for GuardProcess {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// The guard's own process: makes the lab's folder, reads until the end, then removes.
pub fn watch(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let list = folder.join(LIST);
    // A lab that was left standing goes on.
    let begun = list.exists();
    let file = fs::File::options().create(true).append(true).open(&list);
    let mut file = file.with_context(|| format!("cannot write {}", list.display()))?;
    if !begun {
        writeln!(file, "folder {}", folder.display())?;
    }
    println!("ready");
    for line in BufReader::new(std::io::stdin()).lines() {
        let line = line?;
        if line == KEEP {
            return Ok(());
        }
        writeln!(file, "{line}")?;
    }
    drop(file);
    clean(folder)
}

/// Removes everything on the list, the newest first. What is gone already is no error.
pub fn clean(folder: &Path) -> Result<()> {
    let list = folder.join(LIST);
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let mut failures = Vec::new();
    for line in text.lines().rev() {
        if let Err(error) = remove(line) {
            failures.push(format!("{line}: {error:#}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("could not remove everything:\n{}", failures.join("\n")) }
}

fn remove(line: &str) -> Result<()> {
    let (kind, what) = line.split_once(' ').with_context(|| format!("odd line `{line}`"))?;
    match kind {
        "process" => {
            let (pid, start) = what.split_once(' ').context("a process has an id and a start time")?;
            let pid: u32 = pid.parse()?;
            if start_time(pid).as_deref() == Some(start)
                && let Some(pid) = Pid::from_raw(i32::try_from(pid)?)
            {
                // It may end between the question and the signal.
                let _ = kill_process_group(pid, Signal::KILL);
            }
            Ok(())
        }
        "netns" => {
            let path = PathBuf::from("/run/netns").join(what);
            if path.exists() {
                // A mount that is already gone leaves the file.
                let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
                fs::remove_file(&path)?;
            }
            Ok(())
        }
        "mount" => match rustix::mount::unmount(what, UnmountFlags::DETACH) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        },
        "folder" => match fs::remove_dir_all(what) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            Err(_) | Ok(()) => Ok(()),
        },
        "mount-point" => {
            let _ = fs::remove_dir(what);
            Ok(())
        }
        "cgroup" => remove_cgroup(Path::new(what)),
        other => bail!("odd kind `{other}`"),
    }
}

/// What was killed is a member until it is gone, which the kernel does in its own time and does not tell us.
fn remove_cgroup(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            Err(_) | Ok(()) => return Ok(()),
        }
    }
}

/// When the process started (field 22 of /proc/PID/stat): with the id it names one process for good.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain spaces; after it comes field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}
