//! What is in the image and what it says of itself: one table, which `deploy/Dockerfile` is held against.

use std::collections::BTreeMap;

use crate::machine::Platform;

/// A file of the image: its name in the root folder, and its permissions. All are owned by 0:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: &'static str,
    pub mode: u32,
}

pub const PROGRAM: Entry = Entry { name: "palisade", mode: 0o755 };
/// The agent copies it to the node from beside its own executable.
pub const PLUGIN: Entry = Entry { name: "palisade-cni", mode: 0o755 };
/// What both are made of; named as scanners of images look for it.
pub const SBOM: Entry = Entry { name: "palisade.cdx.json", mode: 0o644 };

pub const ENTRYPOINT: &str = "/palisade";
/// The agent loads programs into the kernel and pins maps: it is root.
pub const USER: &str = "0:0";

pub const TITLE: &str = "Palisade";
/// As in agent/Cargo.toml.
pub const DESCRIPTION: &str =
    "Enforces Kubernetes NetworkPolicy in the kernel, on clusters whose network plugin does not";
/// The workspace's, which this crate shares with the agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
pub const LICENSE: &str = env!("CARGO_PKG_LICENSE");

/// What one build of the image has of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// As `--version` says it.
    pub revision: String,
    /// Where the sources are, if anybody said.
    pub source: Option<String>,
    /// Seconds since 1970; every time in the image is this one.
    pub created: i64,
}

/// The image's labels, which are the manifest's annotations as well.
pub fn labels(origin: &Origin, platform: Platform) -> BTreeMap<String, String> {
    let standard = |name: &str| format!("org.opencontainers.image.{name}");
    let mut labels = BTreeMap::from([
        (standard("title"), TITLE.to_owned()),
        (standard("description"), DESCRIPTION.to_owned()),
        (standard("version"), VERSION.to_owned()),
        (standard("revision"), origin.revision.clone()),
        (standard("licenses"), LICENSE.to_owned()),
    ]);
    if let Some(source) = &origin.source {
        labels.insert(standard("source"), source.clone());
    }
    if platform == Platform::Arm64 {
        labels.insert("dev.palisade.untested".to_owned(), UNTESTED.to_owned());
    }
    labels
}

const UNTESTED: &str =
    "On arm64 nothing was ever tested in a kernel; that the programs start was seen under an emulator.";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::paths;

    fn read(path: &str) -> String {
        fs::read_to_string(paths::workspace().join(path)).expect("the file is in the repository")
    }

    /// The instructions, continued lines joined.
    fn dockerfile() -> Vec<String> {
        let text = read("deploy/Dockerfile").replace("\\\n", " ");
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect()
    }

    /// What follows these words, for each instruction that begins with them.
    fn all(instructions: &[String], words: &str) -> Vec<String> {
        instructions.iter().filter_map(|line| line.strip_prefix(words)).map(|rest| rest.trim().to_owned()).collect()
    }

    #[test]
    fn dockerfile_makes_the_same_image() {
        let instructions = dockerfile();
        let last = instructions.iter().rposition(|line| line.starts_with("FROM ")).expect("it has stages");
        let (build, image) = instructions.split_at(last);
        assert_eq!(image[0], "FROM scratch");
        let files: Vec<String> = [PROGRAM, PLUGIN, SBOM]
            .iter()
            .map(|entry| format!("--chmod={:04o} /image/{name} /{name}", entry.mode, name = entry.name))
            .collect();
        assert_eq!(all(image, "COPY --from=build "), files);
        assert_eq!(all(image, "ENTRYPOINT "), [format!("[\"{ENTRYPOINT}\"]")]);
        assert_eq!(all(image, "USER "), [USER]);
        assert_eq!(ENTRYPOINT.strip_prefix('/'), Some(PROGRAM.name));

        let toolchain = read("rust-toolchain.toml");
        let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).expect("it names one");
        assert_eq!(all(build, "ARG RUST="), [channel.trim_matches('"')]);

        let origin = Origin { revision: "$REVISION".into(), source: Some("$SOURCE".into()), created: 0 };
        let said: Vec<String> =
            labels(&origin, Platform::Amd64).into_iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        assert_eq!(all(image, "LABEL "), said);
    }

    #[test]
    fn says_what_the_crate_says() {
        assert!(read("agent/Cargo.toml").contains(&format!("description = \"{DESCRIPTION}\"\n")));
    }

    #[test]
    fn arm64_is_said_to_be_untested() {
        let origin = Origin { revision: "0123456789ab".into(), source: None, created: 0 };
        assert!(!labels(&origin, Platform::Amd64).contains_key("dev.palisade.untested"));
        assert!(labels(&origin, Platform::Arm64).contains_key("dev.palisade.untested"));
    }
}
