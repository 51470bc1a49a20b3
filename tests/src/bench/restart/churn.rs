//! Policies that come, change and go all the time: one that selects none of the pods between which connections are held, and one that
//! selects both and admits nothing that is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Manifests, objects};

pub struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Churn {
    /// One change at each `interval`.
    pub fn start(manifests: &Manifests, interval: Duration) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (manifests, stopped) = (Manifests { folder: manifests.folder.clone() }, stop.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                change(&manifests, number)?;
                number += 1;
                std::thread::sleep(interval);
            }
            Ok(())
        });
        Self { stop, thread }
    }

    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

/// By turns, of each of the two: added, changed, changed, gone.
fn change(manifests: &Manifests, number: usize) -> Result<()> {
    let (name, selector) = if number.is_multiple_of(2) {
        ("elsewhere", "{matchLabels: {app: stranger}}")
    } else {
        ("here", "{matchExpressions: [{key: app, operator: In, values: [client, server]}]}")
    };
    let port = 9000 + number % 1000;
    let spec = format!(
        "{{podSelector: {selector}, policyTypes: [Ingress], ingress: [{{from: [{{podSelector: {{matchLabels: {{app: nobody}}}}}},
          {{ipBlock: {{cidr: 192.0.2.0/24}}}}], ports: [{{port: {port}}}]}}]}}"
    );
    let policy = objects::policy("bench", name, &spec)?;
    if number / 2 % 4 == 3 { manifests.remove(&policy) } else { manifests.put(&policy) }
}
