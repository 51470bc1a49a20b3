//! A package of a later Debian, fetched without touching the machine's own apt: its sources, lists, cache and preferences
//! stay as they are.

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
    ensure!(present("apt-get") && present("dpkg-deb"), "this is no Debian (no apt-get)");
    ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing (package debian-archive-keyring)");
    let mirror = mirror(Path::new("/etc/apt")).context("/etc/apt names no mirror of Debian")?;
    let apt = Apt::new(folder.join("apt"), &mirror)?;
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

/// apt with every one of its folders inside ours.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: PathBuf, mirror: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/sources.list.d"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("sources.list"), format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"))?;
        let root = folder.display();
        // What lies in /etc/apt/apt.conf.d (a proxy, say) still holds: Dir::Etc is only moved for sources and preferences.
        let configuration = format!(
            "Dir::Etc::SourceList \"{root}/sources.list\";\nDir::Etc::SourceParts \"{root}/etc/sources.list.d\";\n\
             Dir::Etc::Preferences \"{root}/etc/preferences\";\nDir::Etc::PreferencesParts \"{root}/etc/preferences.d\";\n\
             Dir::State::Lists \"{root}/lists\";\nDir::Cache \"{root}/cache\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        fs::write(folder.join("apt.conf"), configuration)?;
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
    fn version_is_of_the_release_and_no_other() {
        let known = " rust-src | 1.96.0+dfsg1-1~bpo13+1 | http://m trixie-backports/main all\n \
                     rust-src | 1.95.01-1 | m\n rust-src | 1.95.0+dfsg1-2~bpo13+1 | m\n";
        assert_eq!(newest(known, "1.95.0").as_deref(), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(newest(known, "1.94.0"), None);
    }
}
