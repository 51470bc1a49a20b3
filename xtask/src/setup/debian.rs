//! Packages of a later Debian or of the machine's own, fetched without touching the machine's own apt: its sources, lists,
//! cache and preferences stay as they are, and nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{output, present};

/// Where Debian keeps new releases of Rust for its stable distribution.
const SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads the newest package of this upstream release into `folder`, checked against the archive's signed index.
pub fn download(package: &str, release: &str, folder: &Path) -> Result<PathBuf> {
    ensure_apt()?;
    ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing (package debian-archive-keyring)");
    let mirror = mirror(Path::new("/etc/apt")).context("/etc/apt names no mirror of Debian")?;
    let apt = Apt::with_source(folder.join("apt"), &format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"))?;
    apt.get(&["update"])?;
    let known = output(apt.command("apt-cache").args(["madison", package]))?;
    let version = newest(&known, release)
        .with_context(|| format!("{SUITE} has no {package} {release} any more, only:\n{}", known.trim_end()))?;
    apt.get(&["download", &format!("{package}={version}")])?;
    let record = output(apt.command("apt-cache").args(["show", &format!("{package}={version}")]))?;
    let expected =
        record.lines().find_map(|line| line.strip_prefix("SHA256: ")).context("the index gives no SHA256 for it")?;
    let file = fs::read_dir(&apt.folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no .deb")?;
    let found = output(Command::new("sha256sum").arg(&file))?;
    ensure!(found.starts_with(expected), "{} has another SHA-256 than the index says: {expected}", file.display());
    let place = folder.join("package.deb");
    fs::rename(file, &place)?;
    fs::remove_dir_all(&apt.folder)?;
    Ok(place)
}

/// Unpacks one folder of a package; the rest of it is never written.
pub fn unpack(package: &Path, member: &str, folder: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb")?;
    let stream = archive.stdout.take().expect("stdout was asked for above");
    let unpacked = Command::new("tar").arg("-x").arg("-C").arg(folder).arg(member).stdin(stream).status()?;
    let read = archive.wait()?;
    ensure!(unpacked.success() && read.success(), "{} could not be unpacked", package.display());
    Ok(())
}

/// The machine's release of Debian, as in `bookworm`.
pub fn release() -> Result<String> {
    ensure_apt()?;
    let known = fs::read_to_string("/etc/os-release")?;
    let name = known.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release")?.trim_matches('"').to_owned())
}

/// Unpacks packages of the machine's own release, and those that they depend on and that are not installed, below `root`.
/// apt checks each against the archive's signed index.
pub fn unpack_missing(packages: &[String], root: &Path) -> Result<()> {
    let apt = Apt::new(root.with_extension("apt"), "")?;
    apt.get(&["update"])?;
    let simulate = ["-q", "--simulate", "--no-install-recommends", "install"];
    let names = to_install(&output(apt.command("apt-get").args(simulate).args(packages))?);
    apt.get(&[&["download"], names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat())?;
    for entry in fs::read_dir(&apt.folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(root))?;
        }
    }
    fs::remove_dir_all(&apt.folder)?;
    Ok(())
}

/// `apt-get --simulate install` prints `Inst package (version archive [architecture])` for what it would install; given
/// back as `package=version`.
fn to_install(said: &str) -> Vec<String> {
    said.lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("Inst ")?.split_whitespace();
            let (package, version) = (words.next()?, words.find_map(|word| word.strip_prefix('('))?);
            Some(format!("{package}={version}"))
        })
        .collect()
}

fn ensure_apt() -> Result<()> {
    ensure!(present("apt-get") && present("dpkg-deb"), "this is no Debian (no apt-get)");
    Ok(())
}

/// apt with every one of its folders inside ours.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// With these sources and no others.
    fn with_source(folder: PathBuf, source: &str) -> Result<Self> {
        for part in ["etc/preferences.d", "etc/sources.list.d"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("sources.list"), source)?;
        let root = folder.display();
        let configuration = format!(
            "Dir::Etc::SourceList \"{root}/sources.list\";\nDir::Etc::SourceParts \"{root}/etc/sources.list.d\";\n\
             Dir::Etc::Preferences \"{root}/etc/preferences\";\nDir::Etc::PreferencesParts \"{root}/etc/preferences.d\";\n"
        );
        Self::new(folder, &configuration)
    }

    /// What lies in /etc/apt still holds (a proxy, say), but for what `configuration` says otherwise.
    fn new(folder: PathBuf, configuration: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let root = folder.display();
        let folders = format!(
            "Dir::State::Lists \"{root}/lists\";\nDir::Cache \"{root}/cache\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        fs::write(folder.join("apt.conf"), format!("{configuration}{folders}"))?;
        Ok(Self { folder })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("APT_CONFIG", self.folder.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    fn get(&self, arguments: &[&str]) -> Result<()> {
        let said = output(self.command("apt-get").args(["-q", "-o", "Acquire::Retries=2"]).args(arguments))?;
        // `update` succeeds with a warning where an index could not be had.
        if let Some(line) = said.lines().find(|line| line.starts_with("Err:")) {
            bail!("apt-get {}: {line}", arguments.join(" "));
        }
        Ok(())
    }
}

/// The mirror that apt is configured with for Debian itself: the first that serves a suite's `main` and is no security
/// or third party's archive. Both notations of apt's sources are read.
fn mirror(etc: &Path) -> Option<String> {
    let parts =
        fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = parts.collect();
    files.sort();
    files.insert(0, etc.join("sources.list"));
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            if let Some(uris) = line.strip_prefix("URIs:") {
                return uris.split_whitespace().next();
            }
            line.strip_prefix("deb ")?.split_whitespace().find(|word| word.contains("://"))
        })
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.rsplit('/').next() == Some("debian"))
        .map(str::to_owned)
}

/// `apt-cache madison` prints `package | version | source`, the newest first.
fn newest(known: &str, release: &str) -> Option<String> {
    known
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim()))
        .find(|version| version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-', '~'])))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_read_in_both_notations() {
        let cases = [
            ("Types: deb\nURIs: http://mirror.test/debian/\nSuites: bookworm\n", Some("http://mirror.test/debian")),
            (
                "deb [arch=amd64] http://a.test/debian-security x main\ndeb http://b.test/debian bookworm main\n",
                Some("http://b.test/debian"),
            ),
            ("# deb http://c.test/debian bookworm main\ndeb https://d.test/apt stable main\n", None),
        ];
        for (text, expected) in cases {
            assert_eq!(mirror_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_apt_would_install_is_read() {
        let said = "Reading package lists...\nInst libc6-arm64-cross (2.36-8cross1 Debian:12.0/oldstable [all])\n\
                    Inst gcc-12 [12.1.0-1] (12.2.0-14 Debian:12.0/oldstable [amd64]) []\nConf gcc-12 (12.2.0-14 D [amd64])\n";
        assert_eq!(to_install(said), ["libc6-arm64-cross=2.36-8cross1", "gcc-12=12.2.0-14"]);
    }

    #[test]
    fn version_is_of_the_release_and_no_other() {
        let known = " rust-src | 1.96.0+dfsg1-1~bpo13+1 | http://m trixie-backports/main all\n \
                     rust-src | 1.95.01-1 | m\n rust-src | 1.95.0+dfsg1-2~bpo13+1 | m\n";
        assert_eq!(newest(known, "1.95.0").as_deref(), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(newest(known, "1.94.0"), None);
    }
}
