//! `palisade uninstall`: programs, maps, pins and state go. Nothing else on the node was touched.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::{kernel, observe};

/// # Errors
///
/// When an agent runs, or something cannot be removed, with its path.
pub fn uninstall(pin_dir: &Path) -> anyhow::Result<()> {
    let pins = kernel::abandoned(pin_dir)?;
    for interface in interfaces()? {
        kernel::detach_clsact(&interface);
    }
    if let Some(pins) = &pins {
        kernel::remove_pins(pins)?;
    }
    let state = observe::state_dir(pin_dir);
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
    }
    if pins.is_some() {
        println!("palisade: removed {}; policies are not enforced on this node any longer", pin_dir.display());
    } else {
        println!("palisade: nothing under {}", pin_dir.display());
    }
    Ok(())
}

/// Interfaces of this network namespace. (sysfs may show another namespace's, /proc/net never does.)
fn interfaces() -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/net/dev").context("reading /proc/net/dev")?;
    Ok(text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect())
}
