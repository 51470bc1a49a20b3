//! The door: Kubernetes objects come in from a folder or an API server and leave as [`crate::facts`].
//!
//! Nothing behind it sees a Kubernetes type. What cannot be understood is reduced to its closed reading, with a
//! [`Fault`](crate::facts::Fault) that names object and field (SEMANTICS 15.2).

mod client;
pub mod cluster;
pub mod contact;
pub mod events;
pub mod folder;
mod kinds;
pub mod reduce;
pub mod removal;
mod watch;
mod wire;

use std::path::PathBuf;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::config::Source;
use crate::facts::Update;
use contact::Contact;

/// A source that can be read, as far as can be said without asking the API server.
pub enum OpenSource {
    Folder(PathBuf),
    Cluster(kube::Client, Contact),
}

impl OpenSource {
    /// # Errors
    ///
    /// When the folder or the kubeconfig cannot be read.
    pub async fn open(source: &Source, contact: Contact) -> anyhow::Result<Self> {
        match source {
            Source::Folder(folder) => {
                std::fs::read_dir(folder).with_context(|| format!("reading --manifests {}", folder.display()))?;
                Ok(Self::Folder(folder.clone()))
            }
            Source::Cluster(kubeconfig) => {
                let client =
                    cluster::client(kubeconfig.as_deref(), &contact).await.context("finding the API server")?;
                Ok(Self::Cluster(client, contact))
            }
        }
    }

    /// Tells Events, if there is an API server to tell.
    pub fn publisher(
        &self,
        node_name: &str,
        notices: mpsc::Receiver<events::Notice>,
    ) -> Option<impl Future<Output = ()> + use<>> {
        match self {
            Self::Folder(_) => None,
            Self::Cluster(client, _) => Some(events::publish(client.clone(), node_name.to_owned(), notices)),
        }
    }

    /// Tells all objects and then every change, until the receiver is gone.
    pub async fn watch(self, updates: mpsc::Sender<Vec<Update>>) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => {
                let context = format!("watching {}", folder.display());
                folder::watch(folder, updates).await.context(context)
            }
            Self::Cluster(client, contact) => {
                cluster::watch(client, contact, updates).await.context("watching the API server")
            }
        }
    }
}
