//! `palisade cni install` and `uninstall`: the plugin's binary and our file of configuration, put there and taken away in one step each.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::conflist::{self, FILE};
use super::{PLUGIN, socket_path};

/// Where a runtime looks, and whom the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub conf_dir: PathBuf,
    pub bin_dir: PathBuf,
    pub socket: PathBuf,
}

/// What is in the chain now, and by which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Our file, made from this one.
    From(String),
    /// This one, in which somebody has put it.
    ByHand(String),
}

// === impl Places ===

impl Places {
    pub fn new(conf_dir: &Path, bin_dir: &Path, pin_dir: &Path) -> Self {
        Self { conf_dir: conf_dir.to_owned(), bin_dir: bin_dir.to_owned(), socket: socket_path(pin_dir) }
    }

    fn file(&self) -> PathBuf {
        self.conf_dir.join(FILE)
    }

    fn binary(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }
}

/// Brings both to what they should be; does nothing where they are.
///
/// # Errors
///
/// When there is no network to chain to, or something cannot be written. What is there stays, but for our file where the one it was
/// made from has gone: a network that is no more must not be used.
pub fn install(places: &Places, plugin: &Path) -> anyhow::Result<Installed> {
    let binary = fs::read(plugin).with_context(|| format!("reading the plugin {}", plugin.display()))?;
    // First, as a chain that names a plugin which is not there starts no pod.
    fs::create_dir_all(&places.bin_dir).with_context(|| format!("making {}", places.bin_dir.display()))?;
    replace(&places.binary(), &binary, 0o755)?;
    let Some(source) = others(&places.conf_dir)?.into_iter().next() else {
        remove_ours(places)?;
        bail!(
            "no network's configuration is in {} yet: the network plugin has not put any there",
            places.conf_dir.display()
        );
    };
    if *source < *FILE {
        bail!(
            "{source} in {} comes before {FILE} by name, so that runtimes would not see ours",
            places.conf_dir.display()
        );
    }
    let path = places.conf_dir.join(&source);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    match conflist::chained(&text, &source, &places.socket).map_err(anyhow::Error::msg)? {
        Some(chained) => {
            replace(&places.file(), &chained, 0o644)?;
            Ok(Installed::From(source))
        }
        None => {
            // Ours would be of the chain as it was.
            if conflist::socket_in(&text).is_some_and(|socket| Path::new(&socket) == places.socket) {
                remove_ours(places)?;
            }
            Ok(Installed::ByHand(source))
        }
    }
}

/// Takes both away, the configuration first; what is another agent's stays. Whether anything was there.
///
/// # Errors
///
/// When somebody has put the plugin into a chain by hand, or something cannot be removed.
pub fn uninstall(places: &Places) -> anyhow::Result<bool> {
    let mut found = remove_ours(places)?;
    remove(&part(&places.file()))?;
    for name in others(&places.conf_dir)?.iter().map(String::as_str).chain([FILE]) {
        let path = places.conf_dir.join(name);
        let Some(socket) = fs::read(&path).ok().and_then(|text| conflist::socket_in(&text)) else { continue };
        if Path::new(&socket) == places.socket {
            bail!("{} has {PLUGIN} in its chain by somebody's hand: take it out, or no pod starts", path.display());
        }
        // Another agent needs the binary.
        return Ok(found);
    }
    remove(&part(&places.binary()))?;
    found |= remove(&places.binary())?;
    Ok(found)
}

/// The plugin beside this program.
///
/// # Errors
///
/// When it is not there.
pub fn plugin_beside() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("looking for this program")?;
    let plugin = own.with_file_name(PLUGIN);
    if !plugin.exists() {
        bail!("{PLUGIN} is not beside this program ({}); name it by --plugin", plugin.display());
    }
    Ok(plugin)
}

/// Names of the configurations that are not ours, in the order in which runtimes look at them.
fn others(conf_dir: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(conf_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", conf_dir.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", conf_dir.display()))?;
        // Runtimes pass over folders, whatever their name.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().into_string();
        names.extend(name.ok().filter(|name| conflist::is_configuration(name) && name != FILE));
    }
    names.sort_unstable();
    Ok(names)
}

/// Our file is there, and its plugin asks the same agent.
fn is_ours(places: &Places) -> anyhow::Result<bool> {
    match fs::read(places.file()) {
        Ok(text) => Ok(conflist::socket_in(&text).is_some_and(|socket| Path::new(&socket) == places.socket)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("reading {}", places.file().display())),
    }
}

/// Removes our file, if it is this agent's. Whether it was there.
fn remove_ours(places: &Places) -> anyhow::Result<bool> {
    Ok(is_ours(places)? && remove(&places.file())?)
}

/// Whether it was there.
fn remove(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

/// Where a file's new contents are until they are whole: a name that runtimes pass over. It stays where the agent is killed meanwhile, and
/// the next one writes it anew.
fn part(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.part"))
}

/// Nothing follows from what becomes of it: it is only ever written from here.
pub(super) fn is_part(path: &Path) -> bool {
    [FILE, PLUGIN].iter().any(|name| path.file_name() == part(Path::new(name)).file_name())
}

/// Whoever reads sees the old contents or the new ones, also after a crash of the node.
fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let same = || fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o777 == mode);
    if same() && fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    let context = || format!("writing {}", path.display());
    let folder = path.parent().with_context(context)?;
    let part = part(path);
    let written = write_through(&part, contents, mode).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        // It may be what fills the disk.
        let _ = fs::remove_file(&part);
    }
    written.and_then(|()| File::open(folder)?.sync_all()).with_context(context)
}

fn write_through(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(contents)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [{"type": "flannel"}]}"#;

    struct Scene {
        folder: tempfile::TempDir,
        places: Places,
        plugin: PathBuf,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let plugin = folder.path().join("plugin");
            fs::write(&plugin, "binary").expect("a file");
            let (conf, bin) = (folder.path().join("net.d"), folder.path().join("bin"));
            fs::create_dir(&conf).expect("a folder");
            let places = Places::new(&conf, &bin, Path::new("/sys/fs/bpf/palisade"));
            Self { folder, places, plugin }
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.places.conf_dir.join(name), text).expect("a file");
        }

        fn install(&self) -> Result<Installed, String> {
            install(&self.places, &self.plugin).map_err(|error| format!("{error:#}"))
        }

        fn files(&self) -> Vec<String> {
            let mut files = Vec::new();
            for folder in [&self.places.conf_dir, &self.places.bin_dir] {
                for entry in fs::read_dir(folder).into_iter().flatten() {
                    files.push(entry.expect("an entry").file_name().into_string().expect("a name"));
                }
            }
            files.sort_unstable();
            files
        }
    }

    #[test]
    fn comes_before_the_others_and_goes_without_a_trace() {
        let scene = Scene::new();
        scene.put("10-flannel.conflist", FLANNEL);
        scene.put("20-other.conf", "{}");
        scene.put("README", "");
        let before = scene.files();
        assert_eq!(scene.install(), Ok(Installed::From("10-flannel.conflist".into())));
        assert_eq!(scene.files()[0], FILE);
        let first = fs::metadata(scene.places.file()).expect("it is there").modified().expect("a time");
        assert!(scene.install().is_ok());
        assert_eq!(fs::metadata(scene.places.file()).expect("it is there").modified().expect("a time"), first);
        // The network plugin rewrites its own: ours follows.
        scene.put("10-flannel.conflist", &FLANNEL.replace("cbr0", "cbr1"));
        assert!(scene.install().is_ok());
        assert!(fs::read_to_string(scene.places.file()).expect("it is there").contains("cbr1"));
        assert!(uninstall(&scene.places).expect("it is ours"));
        assert_eq!(scene.files(), before);
        assert!(!uninstall(&scene.places).expect("nothing is there"));
        drop(scene.folder);
    }

    #[test]
    fn what_is_not_ours_stays() {
        let scene = Scene::new();
        assert!(scene.install().expect_err("no network").contains("has not put any there"));
        scene.put("10-flannel.conflist", FLANNEL);
        assert!(scene.install().is_ok());
        // A half-written file says nothing: what was made of the whole one stays.
        scene.put("10-flannel.conflist", "{");
        assert!(scene.install().expect_err("half-written").contains("is no JSON"));
        assert!(scene.places.file().exists());
        let other = Places::new(&scene.places.conf_dir, &scene.places.bin_dir, Path::new("/sys/fs/bpf/other"));
        assert!(!uninstall(&other).expect("another agent's is left"));
        assert!(scene.places.file().exists() && scene.places.binary().exists());
        // The network is no more.
        fs::remove_file(scene.places.conf_dir.join("10-flannel.conflist")).expect("it was there");
        assert!(scene.install().is_err() && !scene.places.file().exists());
        scene.put("00-multus.conf", FLANNEL);
        assert!(scene.install().expect_err("before ours").contains("comes before"));
    }

    #[test]
    fn what_is_half_written_concerns_nobody() {
        let scene = Scene::new();
        let [file, binary] = [scene.places.file(), scene.places.binary()];
        assert!(is_part(&part(&file)) && is_part(&part(&binary)));
        assert!(!is_part(&file) && !is_part(&binary) && !is_part(Path::new("/etc/cni/net.d/10-flannel.conflist")));
    }

    /// As where an agent was killed while it wrote.
    #[test]
    fn what_was_half_written_goes_with_it() {
        let scene = Scene::new();
        let before = scene.files();
        for file in [scene.places.file(), scene.places.binary()] {
            fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            fs::write(part(&file), "half").expect("a file");
        }
        assert!(!uninstall(&scene.places).expect("nothing is installed"));
        assert_eq!(scene.files(), before);
    }

    #[test]
    fn folders_are_no_configurations() {
        let scene = Scene::new();
        fs::create_dir(scene.places.conf_dir.join("05-old.conf")).expect("a folder");
        scene.put("10-flannel.conflist", FLANNEL);
        assert_eq!(scene.install(), Ok(Installed::From("10-flannel.conflist".into())));
    }

    #[test]
    fn by_hand() {
        let scene = Scene::new();
        scene.put("10-flannel.conflist", FLANNEL);
        assert!(scene.install().is_ok());
        let chain = conflist::chained(FLANNEL.as_bytes(), "x", &scene.places.socket).expect("a list").expect("chained");
        scene.put("10-flannel.conflist", &String::from_utf8(chain).expect("text"));
        assert_eq!(scene.install(), Ok(Installed::ByHand("10-flannel.conflist".into())));
        assert!(!scene.places.file().exists(), "it would not follow the other");
        assert!(uninstall(&scene.places).expect_err("no pod would start").to_string().contains("by somebody's hand"));
        assert!(scene.places.binary().exists());
    }
}
