//! The pin folder: maps and links under one folder per layout version, so that the next agent finds them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use palisade_common::layout::LAYOUT_VERSION;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::uplinks::{UPLINK, pinned_uplinks};
use super::{link, qdisc};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Has an empty folder, as a bpffs takes no files, for each interface that was given its clsact qdisc by us: named by its index.
pub(super) const QDISCS: &str = "clsact";

/// Links of the programs where packets leave and come in, apart from those of pods' interfaces.
pub(super) const EXITS: &str = "exits";

/// Those of pods' interfaces, and the maps.
pub(super) const LINKS: &str = "links";
pub(super) const MAPS: &str = "maps";

/// A folder on a bpffs, locked for this process.
#[derive(Debug)]
pub struct PinDir {
    root: PathBuf,
    _lock: OwnedFd,
}

impl PinDir {
    /// Makes the folder, mounts a bpffs at the nearest sensible place if there is none, and locks it.
    ///
    /// # Errors
    ///
    /// When another agent holds the lock, or the folder cannot be made.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        mount_if_needed(root)?;
        refuse_read_only(root)?;
        fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
        // First, as what is in there is somebody else's business otherwise.
        let Some(lock) = lock_alone(root)? else {
            bail!("{} is in use by another palisade agent; give each its own --pin-dir", root.display());
        };
        let current = root.join(version_name());
        for folder in [MAPS, LINKS, EXITS, QDISCS].map(|folder| current.join(folder)) {
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn current(&self) -> PathBuf {
        self.root.join(version_name())
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.current().join(MAPS).join(name)
    }

    pub fn link(&self, ifindex: u32, program: &str) -> PathBuf {
        self.current().join(LINKS).join(format!("{ifindex}-{program}"))
    }

    /// Where agents of whatever version have it.
    pub fn links_of_all_versions(&self, ifindex: u32, program: &str) -> anyhow::Result<Vec<PathBuf>> {
        let name = format!("{ifindex}-{program}");
        Ok(versions(&self.root)?.into_iter().map(|version| version.join(LINKS).join(&name)).collect())
    }

    /// Of a device by which packets leave the node.
    pub fn exit(&self, ifindex: u32, program: &str) -> PathBuf {
        self.current().join(EXITS).join(format!("{ifindex}-{program}"))
    }

    /// Of a device by which packets come in; `mode`: how the program is there.
    pub(super) fn uplink(&self, ifindex: u32, mode: &str) -> PathBuf {
        self.current().join(EXITS).join(format!("{ifindex}-{UPLINK}-{mode}"))
    }

    /// Links of uplinks that agents of all versions have pinned, and whether it was one of ours.
    pub(super) fn uplinks(&self) -> anyhow::Result<Vec<(bool, PathBuf)>> {
        pinned_uplinks(&self.current(), &versions(&self.root)?)
    }

    /// Of the program before the node's sockets.
    pub fn deliver(&self) -> PathBuf {
        self.current().join(EXITS).join("deliver")
    }

    /// The program goes, whoever's it is.
    pub fn remove_deliver(&self) -> anyhow::Result<()> {
        let pin = self.deliver();
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", pin.display()))
            }
            _ => Ok(()),
        }
    }

    /// Where its link is until it takes the other's place.
    pub fn new_deliver(&self) -> PathBuf {
        self.current().join(EXITS).join("deliver-new")
    }

    /// Devices that have a link pinned, whatever has become of them.
    pub fn exits(&self) -> anyhow::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.current().join(EXITS))? {
            found.extend(Some(entry?.path()).filter(|pin| !is_uplink(pin)).as_deref().and_then(ifindex_of));
        }
        Ok(found)
    }

    fn qdisc(&self, ifindex: u32) -> PathBuf {
        self.current().join(QDISCS).join(ifindex.to_string())
    }

    /// Remembers that the interface's clsact qdisc is ours.
    pub fn own_qdisc(&self, ifindex: u32) -> anyhow::Result<()> {
        let folder = self.qdisc(ifindex);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))
    }

    pub fn owns_qdisc(&self, ifindex: u32) -> bool {
        self.qdisc(ifindex).exists()
    }

    /// Its qdisc is there no longer.
    pub fn forget_qdisc(&self, ifindex: u32) {
        // Mostly it is not there.
        let _ = fs::remove_dir(self.qdisc(ifindex));
    }

    /// Interfaces that have a link pinned or a qdisc of ours, whatever has become of them.
    pub fn interfaces(&self) -> anyhow::Result<Vec<u32>> {
        let mut found = Vec::new();
        for folder in [LINKS, QDISCS] {
            for entry in fs::read_dir(self.current().join(folder))? {
                found.extend(ifindex_of(&entry?.path()));
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// A link of the program on uplinks, among those of programs where packets leave.
pub(super) fn is_uplink(pin: &Path) -> bool {
    pin.file_name().is_some_and(|name| name.to_string_lossy().contains(UPLINK))
}

pub(super) fn ifindex_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.split('-').next()?.parse().ok()
}

/// Folder of the maps of this layout below a pin folder.
pub fn maps_folder(root: &Path) -> PathBuf {
    root.join(version_name()).join(MAPS)
}

/// An error that says so, if what is pinned is another version's alone, or nothing is.
pub(super) fn expect_ours(root: &Path) -> anyhow::Result<()> {
    let names = |versions: Vec<PathBuf>| {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        versions.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let others = others(root).unwrap_or_default();
    if !others.is_empty() && !maps_folder(root).join("CONFIG").exists() {
        bail!(
            "what is pinned below {} has another layout ({}) than this palisade ({}) reads: ask the palisade of the agent that has put it there",
            root.display(),
            names(others),
            version_name()
        );
    }
    // Who may not look is told by what he tries next.
    if let Ok(false) = maps_folder(root).join("CONFIG").try_exists() {
        bail!(
            "nothing is enforced on this node: no agent with --pin-dir {} has made any tables, or `palisade uninstall` has taken them away",
            root.display()
        );
    }
    Ok(())
}

fn version_name() -> String {
    format!("v{LAYOUT_VERSION}")
}

/// Locks the pin folder while the descriptor lives. `None`: somebody else has locked it.
fn lock(root: &Path, how: FlockOperation) -> anyhow::Result<Option<OwnedFd>> {
    let folder = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", root.display()))?;
    match rustix::fs::flock(&folder, how) {
        Ok(()) => Ok(Some(folder)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("locking {}", root.display())),
    }
}

/// As an agent holds it. Whoever asks [`is_in_use`] does not count; that lasts microseconds.
fn lock_alone(root: &Path) -> anyhow::Result<Option<OwnedFd>> {
    loop {
        let locked = lock(root, FlockOperation::NonBlockingLockExclusive)?;
        if locked.is_some() || is_in_use(root)? {
            return Ok(locked);
        }
    }
}

/// Whether an agent has the folder now.
pub fn is_in_use(root: &Path) -> anyhow::Result<bool> {
    Ok(lock(root, FlockOperation::NonBlockingLockShared)?.is_none())
}

/// A pin folder that no agent uses, and none can begin to use.
#[derive(Debug)]
pub struct Abandoned {
    root: PathBuf,
    _lock: OwnedFd,
}

/// `None`: there is no such folder.
///
/// # Errors
///
/// When an agent runs, or when the folder is none of ours.
pub fn abandoned(root: &Path) -> anyhow::Result<Option<Abandoned>> {
    if !root.exists() {
        return Ok(None);
    }
    if !is_bpffs(root)? {
        bail!("{} is not on a bpffs, so it is no --pin-dir of an agent; nothing was removed", root.display());
    }
    let Some(lock) = lock_alone(root)? else {
        bail!("an agent runs with --pin-dir {}; stop it first (SIGTERM), nothing was removed", root.display());
    };
    Ok(Some(Abandoned { root: root.to_owned(), _lock: lock }))
}

/// Takes away what agents have put below the pin folder, of any version, and the folder itself if it is empty then. No program runs on an
/// interface any longer when this returns.
pub fn remove_all(folder: &Abandoned) -> anyhow::Result<()> {
    let root = &folder.root;
    let detach = |pin: &Path| {
        link::detach(pin).with_context(|| format!("detaching {}", pin.display()))?;
        remove_pin(pin)
    };
    let forget = |marker: &Path| {
        if let Some(ifindex) = ifindex_of(marker) {
            qdisc::remove_if_empty(ifindex).with_context(|| format!("the clsact qdisc of interface {ifindex}"))?;
        }
        Ok(fs::remove_dir(marker)?)
    };
    for version in versions(root)? {
        remove_version(&version, detach, forget)?;
    }
    match fs::remove_dir(root) {
        // A mount point stays, and so does what is another's.
        Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        result => result.with_context(|| format!("removing {}", root.display())),
    }
}

/// The folders that agents of whatever version have made.
fn versions(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut versions = entries(root)?;
    versions.retain(|path| path.is_dir() && is_version(path));
    versions.sort();
    Ok(versions)
}

/// Those of other layouts than ours.
pub(super) fn others(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let ours = root.join(version_name());
    Ok(versions(root)?.into_iter().filter(|version| *version != ours).collect())
}

/// The folder of another version whose maps are still there.
pub fn other_version(root: &Path) -> anyhow::Result<Option<PathBuf>> {
    Ok(others(root)?.into_iter().find(|version| version.join(MAPS).join("CONFIG").exists()))
}

/// What is in a folder, with its path; nothing, if there is no folder.
pub(super) fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.with_context(|| format!("reading {}", folder.display()))?,
    };
    listed.map(|entry| Ok(entry?.path())).collect()
}

/// Removes a version's folder: links and marks of qdiscs as it is said, then the maps, of which CONFIG goes first as a sign to who looks
/// at the rest.
pub(super) fn remove_version(
    version: &Path,
    link: impl Fn(&Path) -> anyhow::Result<()>,
    marker: impl Fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for folder in [LINKS, EXITS] {
        remove_folder(&version.join(folder), &link)?;
    }
    remove_folder(&version.join(QDISCS), marker)?;
    let maps = version.join(MAPS);
    match fs::remove_file(maps.join("CONFIG")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("removing CONFIG"),
        _ => {}
    }
    remove_folder(&maps, remove_pin)?;
    fs::remove_dir(version).with_context(|| format!("removing {}", version.display()))
}

/// Named `v` and a number.
fn is_version(folder: &Path) -> bool {
    let number = folder.file_name().and_then(|name| name.to_str()?.strip_prefix('v'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A pin, or an empty folder that somebody put in its place.
pub(super) fn remove_pin(pin: &Path) -> anyhow::Result<()> {
    Ok(if fs::symlink_metadata(pin)?.is_dir() { fs::remove_dir(pin) } else { fs::remove_file(pin) }?)
}

fn remove_folder(folder: &Path, remove: impl Fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for path in entries(folder)? {
        remove(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("removing {}", folder.display())),
    }
}

/// Whether the path (or the nearest folder above it that exists) is on a bpffs.
fn is_bpffs(path: &Path) -> anyhow::Result<bool> {
    let existing = path.ancestors().find(|path| path.exists()).context("not even / exists")?;
    let stat = rustix::fs::statfs(existing).with_context(|| format!("looking at {}", existing.display()))?;
    Ok(stat.f_type as i64 == BPF_FS_MAGIC)
}

fn refuse_read_only(root: &Path) -> anyhow::Result<()> {
    let existing = root.ancestors().find(|path| path.exists()).context("not even / exists")?;
    let stat = rustix::fs::statvfs(existing).with_context(|| format!("looking at {}", existing.display()))?;
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        bail!(
            "the bpffs of {} is mounted read-only, so that maps and links can neither be opened nor pinned; what an earlier agent attached \
             goes on as it is. Mount it again with `mount -o remount,rw`",
            root.display()
        );
    }
    Ok(())
}

fn mount_if_needed(root: &Path) -> anyhow::Result<()> {
    const USUAL: &str = "/sys/fs/bpf";
    if is_bpffs(root)? {
        return Ok(());
    }
    let at = if root.starts_with(USUAL) { Path::new(USUAL) } else { root };
    fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
    rustix::mount::mount("bpf", at, "bpf", rustix::mount::MountFlags::empty(), None).with_context(|| {
        format!("{} is not on a bpffs and none could be mounted at {}", root.display(), at.display())
    })?;
    let private = fs::read_link("/proc/self/ns/mnt").ok() != fs::read_link("/proc/1/ns/mnt").ok();
    if private {
        tracing::warn!(
            at = %at.display(),
            "mounted a bpffs in a mount namespace of its own: pins, and with them enforcement, end with it; \
             mount one outside and pass --pin-dir"
        );
    } else {
        tracing::info!(at = %at.display(), "mounted a bpffs");
    }
    Ok(())
}
