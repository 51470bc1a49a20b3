//! What `cargo xtask image` and `cargo xtask sbom` are told.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::contents::VERSION;
use super::reference::Reference;
use crate::build::Variant;
use crate::command::output;
use crate::machine::Platform;

#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub platforms: Platforms,
    pub reference: Reference,
    /// A folder; below the target folder if there is none.
    pub output: Option<PathBuf>,
    /// Where the sources are published.
    pub source: Option<String>,
    /// Which agent.
    pub variant: Variant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// That of the machine that builds.
    This,
    One(Platform),
    All,
}

// === impl Options ===

impl Options {
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let reference = format!("palisade:{VERSION}").parse()?;
        let mut options =
            Self { platforms: Platforms::This, reference, output: None, source: None, variant: Variant::Palisade };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--layout-test" {
                options.variant = Variant::LayoutTest;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--platform" => options.platforms = Platforms::parse(value?)?,
                "--tag" => options.reference = value?.parse()?,
                "--output" => options.output = Some(value?.into()),
                "--source" => options.source = Some(value?.clone()),
                _ => bail!("there is no `{argument}`, only --platform, --tag, --output, --source and --layout-test"),
            }
        }
        Ok(options)
    }

    pub fn platforms(&self) -> Result<Vec<Platform>> {
        match self.platforms {
            Platforms::This => {
                let said = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
                Ok(vec![Platform::of_triple(said.trim())?])
            }
            Platforms::One(platform) => Ok(vec![platform]),
            Platforms::All => Ok(Platform::ALL.to_vec()),
        }
    }

    /// Of the image's files, without an ending.
    pub fn file_name(&self) -> Result<String> {
        match self.platforms()?.as_slice() {
            [platform] => Ok(format!("palisade-linux-{}", platform.name())),
            _ => Ok("palisade-linux-all".to_owned()),
        }
    }
}

// === impl Platforms ===

impl Platforms {
    fn parse(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let named = Platform::ALL.into_iter().find(|platform| text == format!("linux/{}", platform.name()));
        Ok(Self::One(named.with_context(|| format!("`{text}` is none of linux/amd64, linux/arm64, all"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let plain = parse("").expect("nothing need be said");
        assert_eq!((plain.platforms, plain.reference.name.as_str()), (Platforms::This, "palisade"));
        assert_eq!(plain.variant, Variant::Palisade);
        assert_eq!(parse("--layout-test --tag palisade:2").expect("an agent for tests").variant, Variant::LayoutTest);
        let all = parse("--platform all --tag a/b:1 --output /o --source https://example.org/p").expect("all of them");
        assert_eq!(
            (all.platforms, all.reference.to_string().as_str(), all.output, all.source.as_deref()),
            (Platforms::All, "a/b:1", Some("/o".into()), Some("https://example.org/p"))
        );
        let one = parse("--platform linux/arm64").expect("a platform");
        assert_eq!(one.platforms().expect("no compiler is asked"), [Platform::Arm64]);
        assert_eq!(one.file_name().expect("no compiler is asked"), "palisade-linux-arm64");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["--platform", "--platform arm64", "--platform windows/amd64", "--tag palisade", "--push x", "all"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
