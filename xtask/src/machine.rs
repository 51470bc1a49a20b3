//! For which machine something is built: this one, or one of the two platforms that images are for.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::paths;
use crate::setup::{self, Cross, Toolchain};

/// What images are for, Linux in both cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    Amd64,
    Arm64,
}

/// A machine, and what building for it takes.
pub struct Machine {
    pub toolchain: Toolchain,
    /// As in `x86_64-unknown-linux-gnu`.
    pub triple: String,
    /// Where it is not this machine.
    pub cross: Option<Cross>,
}

// === impl Platform ===

impl Platform {
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// As OCI and Debian call the architecture.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust, GCC and qemu do.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The one that a compiler's host triple is of.
    pub fn of_triple(triple: &str) -> Result<Self> {
        let architecture = triple.split('-').next().unwrap_or(triple);
        Self::ALL
            .into_iter()
            .find(|platform| platform.architecture() == architecture)
            .with_context(|| format!("there are images for amd64 and arm64, none for {architecture}"))
    }
}

// === impl Machine ===

impl Machine {
    /// The one that builds.
    pub fn this() -> Result<Self> {
        let toolchain = setup::toolchain()?;
        Ok(Self { triple: toolchain.compiler.host.clone(), toolchain, cross: None })
    }

    /// One of this platform; what building for another machine takes is set up.
    pub fn of(platform: Platform) -> Result<Self> {
        let this = Self::this()?;
        if Platform::of_triple(&this.triple).is_ok_and(|own| own == platform) {
            return Ok(this);
        }
        let triple = format!("{}-unknown-linux-gnu", platform.architecture());
        let cross = setup::cross(&this.toolchain.compiler, &triple, platform)?;
        Ok(Self { triple, cross: Some(cross), ..this })
    }

    pub fn architecture(&self) -> &str {
        self.triple.split('-').next().unwrap_or(&self.triple)
    }

    /// A folder of the target folder; another machine's says whose it is.
    pub fn folder(&self, name: &str) -> PathBuf {
        match self.cross {
            None => paths::target().join(name),
            Some(_) => paths::target().join(format!("{name}-{}", self.architecture())),
        }
    }
}
