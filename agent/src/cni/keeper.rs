//! Keeps the plugin in the chain while the agent runs: follows the folders of configurations and of plugins, as the network plugin may rewrite
//! its own, and a node's upgrade may lay all plugins down anew.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;

use super::install::{Installed, Places, install, is_part};
use crate::node::results::{Folder, Turn};

/// Why pods are started without the plugin, or may be; `None`: they are not.
pub type Trouble = watch::Sender<Option<String>>;

/// Before what failed is tried again: of room on a file system no event tells.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(16);

/// Runs until the receiver goes.
///
/// # Errors
///
/// When a folder cannot be followed.
pub async fn keep(places: Places, plugin: PathBuf, trouble: Trouble) -> anyhow::Result<()> {
    let follow =
        |folder: &PathBuf, what| Folder::watch(folder.clone()).with_context(|| format!("following the {what}"));
    let mut configurations = follow(&places.conf_dir, "folder of CNI configurations")?;
    let mut plugins = follow(&places.bin_dir, "folder of CNI plugins")?;
    let (mut told, mut pause) = (None, PAUSE);
    loop {
        let now = install(&places, &plugin).map_err(|error| format!("{error:#}"));
        let failed = now.is_err();
        if told.as_ref() != Some(&now) {
            match &now {
                Ok(Installed::From(file)) => {
                    tracing::info!(file, "palisade-cni stands last in the chain of this configuration");
                }
                Ok(Installed::ByHand(file)) => tracing::info!(file, "palisade-cni was put into this chain by hand"),
                Err(error) => tracing::warn!(error, "palisade-cni is not kept in the chain"),
            }
            trouble.send_replace(now.clone().err());
            (told, pause) = (Some(now), PAUSE);
        }
        tokio::select! {
            changed = change(&mut configurations) => changed?,
            changed = change(&mut plugins) => changed?,
            () = tokio::time::sleep(pause), if failed => pause = (pause * 2).min(PAUSE_MAX),
            () = trouble.closed() => return Ok(()),
        }
    }
}

/// Until something becomes of the folder that is not our own doing.
async fn change(folder: &mut Folder) -> anyhow::Result<()> {
    loop {
        match folder.turn().await? {
            Turn::File(path) if is_part(&path) => {}
            Turn::File(_) | Turn::Everything | Turn::Lost => return Ok(()),
        }
    }
}
