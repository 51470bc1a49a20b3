//! `palisade uninstall`: the CNI plugin, programs, maps, pins and state go. Nothing else on the node was touched.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::contact::{Contact, Requests};
use crate::api::{cluster, removal};
use crate::cni::conflist::FILE;
use crate::cni::install::{Installed, Places, install, plugin_beside, uninstall as take_out};
use crate::config::{AwaitFlags, CniInstallFlags, UninstallFlags};
use crate::{kernel, last_known, observe};

/// # Errors
///
/// When an agent runs, or something cannot be removed, with its path.
pub fn uninstall(flags: &UninstallFlags) -> anyhow::Result<()> {
    let pin_dir = flags.pin_dir.as_path();
    let places = flags.folders.places(pin_dir);
    let catalog = observe::read_catalog(pin_dir).ok();
    let state_dir = flags.state_dir.clone().or(catalog.and_then(|catalog| catalog.agent.state_dir));
    if let Some(patience) = flags.wait {
        wait_for_end(pin_dir, patience)?;
    }
    let pins = kernel::abandoned(pin_dir)?;
    // First, as it starts no pod without an agent.
    if take_out(&places)? {
        println!("palisade: took palisade-cni out of the way of new pods ({})", places.conf_dir.display());
    }
    for interface in interfaces()? {
        kernel::detach_clsact(&interface)?;
    }
    if let Some(pins) = &pins {
        kernel::remove_pins(pins)?;
    }
    let state = observe::state_dir(pin_dir);
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
    }
    let kept = state_dir.map(|folder| last_known::path(&folder, pin_dir));
    let kept = kept.as_deref().and_then(Path::parent).filter(|folder| folder.exists());
    if let Some(folder) = kept {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    // The folders of the agents of other pin folders, if there are none.
    for all in [state.parent(), kept.and_then(Path::parent)].into_iter().flatten() {
        let _ = fs::remove_dir(all);
    }
    if pins.is_some() {
        println!("palisade: removed {}; policies are not enforced on this node any longer", pin_dir.display());
    } else {
        println!("palisade: nothing under {}", pin_dir.display());
    }
    if flags.stay {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(stay())?;
    }
    Ok(())
}

/// Returns when no agent runs, or when it has taken too long.
fn wait_for_end(pin_dir: &Path, patience: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    // An agent that is killed tells nobody.
    while pin_dir.exists() && kernel::is_in_use(pin_dir)? && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// # Errors
///
/// See [`removal::wait`].
pub fn await_everywhere(flags: &AwaitFlags) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client =
            cluster::client(None, &Contact::new(Requests::default())).await.context("finding the API server")?;
        removal::wait(client, &flags.namespace, &flags.daemon_set, flags.timeout).await
    })
}

/// Until it is asked to end.
async fn stay() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Interfaces of this network namespace. (sysfs may show another namespace's, /proc/net never does.)
fn interfaces() -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/net/dev").context("reading /proc/net/dev")?;
    Ok(text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect())
}

/// # Errors
///
/// See [`install`].
pub fn cni_install(flags: &CniInstallFlags) -> anyhow::Result<()> {
    let plugin = flags.plugin.clone().map_or_else(plugin_beside, Ok)?;
    let places = flags.folders.places(&flags.pin_dir);
    let conf_dir = places.conf_dir.display();
    match install(&places, &plugin)? {
        Installed::From(file) => println!(
            "palisade: palisade-cni stands last in the chain of {file}, by {}/{FILE}: pods start once they are enforced",
            conf_dir
        ),
        Installed::ByHand(file) => {
            println!("palisade: somebody has put palisade-cni into the chain of {conf_dir}/{file} already")
        }
    }
    Ok(())
}

/// # Errors
///
/// See [`take_out`].
pub fn cni_uninstall(places: &Places) -> anyhow::Result<()> {
    let conf_dir = places.conf_dir.display();
    match take_out(places)? {
        true => {
            println!("palisade: took palisade-cni out of {conf_dir}: pods start without waiting for their enforcement")
        }
        false => println!("palisade: this agent has no palisade-cni in {conf_dir}"),
    }
    Ok(())
}
