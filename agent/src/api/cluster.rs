//! A cluster's API server as the source of objects.
//!
//! Each kind is listed and then watched on its own. A list that begins anew is told as such, so that what vanished
//! meanwhile is known to be gone only when the list is complete; an error is never an empty list, and whatever was known
//! stays in force while the server cannot be asked.

use anyhow::Context;
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use kube::Client;
use tokio::sync::mpsc::Sender;

pub use super::client::client;
use super::contact::Contact;
use super::kinds::PolicyShape;
use super::reduce::shape::{NamespaceShape, NodeShape, PodShape, ServiceShape};
use super::watch::{WAIT, Wait, stream_of};
use crate::facts::Update;

/// At most this many updates are handed on at once; a longer burst follows in further batches.
const BATCH_MAX: usize = 4096;

/// Tells all objects of the cluster, and then every change, until the receiver is gone.
///
/// # Errors
/// None that the API server could cause: it is asked again for ever.
pub async fn watch(client: Client, contact: Contact, updates: Sender<Vec<Update>>) -> anyhow::Result<()> {
    watch_with(WAIT, client, &contact, updates).await
}

async fn watch_with(wait: Wait, client: Client, contact: &Contact, updates: Sender<Vec<Update>>) -> anyhow::Result<()> {
    let kinds: [BoxStream<'static, Update>; 5] = [
        stream_of::<NamespaceShape>(&client, contact, wait).boxed(),
        stream_of::<PodShape>(&client, contact, wait).boxed(),
        stream_of::<PolicyShape>(&client, contact, wait).boxed(),
        stream_of::<NodeShape>(&client, contact, wait).boxed(),
        stream_of::<ServiceShape>(&client, contact, wait).boxed(),
    ];
    // Whatever is there is sent at once, and the kinds take turns: a policy does not wait for a list of pods.
    let mut batches = kinds.into_iter().collect::<SelectAll<_>>().ready_chunks(BATCH_MAX);
    loop {
        let batch = tokio::select! {
            batch = batches.next() => batch.context("the watches have ended")?,
            () = updates.closed() => return Ok(()),
        };
        if updates.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
