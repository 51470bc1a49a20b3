//! Keeps the plugin in the chain while the agent runs: follows the folder of configurations, as the network plugin may rewrite its own.

use std::path::PathBuf;

use anyhow::Context as _;
use tokio::sync::watch;

use super::install::{Installed, Places, install};
use crate::node::results::Folder;

/// Why pods are started without the plugin, or may be; `None`: they are not.
pub type Trouble = watch::Sender<Option<String>>;

/// Runs until the receiver goes.
///
/// # Errors
///
/// When the folder cannot be followed.
pub async fn keep(places: Places, plugin: PathBuf, trouble: Trouble) -> anyhow::Result<()> {
    let mut folder = Folder::watch(places.conf_dir.clone()).context("following the folder of CNI configurations")?;
    let mut told = None;
    loop {
        let now = install(&places, &plugin).map_err(|error| format!("{error:#}"));
        if told.as_ref() != Some(&now) {
            match &now {
                Ok(Installed::From(file)) => {
                    tracing::info!(file, "palisade-cni stands last in the chain of this configuration");
                }
                Ok(Installed::ByHand(file)) => tracing::info!(file, "palisade-cni was put into this chain by hand"),
                Err(error) => tracing::warn!(error, "palisade-cni is not kept in the chain"),
            }
            trouble.send_replace(now.clone().err());
            told = Some(now);
        }
        tokio::select! {
            turn = folder.turn() => drop(turn?),
            () = trouble.closed() => return Ok(()),
        }
    }
}
