//! The name that an image has where it is imported.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, ensure};

/// A name and a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub name: String,
    pub tag: String,
}

// === impl Reference ===

impl Reference {
    /// As containerd and the kubelet know it: with the registry, which is Docker's where none is named.
    pub fn full(&self) -> String {
        match self.name.split_once('/') {
            None => format!("docker.io/library/{self}"),
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => self.to_string(),
            Some(_) => format!("docker.io/{self}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // What follows the colon of a registry's port is no tag: it has a slash in it.
        let (name, tag) = text.rsplit_once(':').unwrap_or((text, ""));
        let plain = |text: &str, others: &str| {
            text.starts_with(|first: char| first.is_ascii_alphanumeric())
                && text.chars().all(|character| character.is_ascii_alphanumeric() || others.contains(character))
        };
        ensure!(
            plain(name, "._-/:") && !name.ends_with('/') && !name.contains("//"),
            "`{text}` is no name of an image, as in registry.example/palisade:1"
        );
        ensure!(plain(tag, "._-"), "`{text}` needs a tag, as in palisade:1");
        Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_are_those_of_containerd() {
        let cases = [
            ("palisade:1", "docker.io/library/palisade:1"),
            ("team/palisade:1.2-a", "docker.io/team/palisade:1.2-a"),
            ("registry.example/palisade:1", "registry.example/palisade:1"),
            ("localhost/palisade:1", "localhost/palisade:1"),
            ("localhost:5000/a/palisade:1", "localhost:5000/a/palisade:1"),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Reference>().expect(text).full(), expected);
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for text in ["palisade", "localhost:5000/palisade", ":1", "palisade:", "-a:1", "a b:1", "a//b:1", "a/:1"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
