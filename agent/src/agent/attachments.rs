//! Which interfaces have their programs, and which should have.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::retry::Retry;

/// An interface whose pod is not enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) name: Arc<str>,
    pub(super) error: String,
}

#[derive(Debug, Default)]
pub(super) struct Attachments {
    attached: BTreeMap<u32, Arc<str>>,
    failed: BTreeMap<u32, Failed>,
    /// Names of programs of others that stand in front of ours.
    behind: BTreeMap<u32, String>,
    retry: Option<Retry>,
}

impl Attachments {
    pub(super) fn len(&self) -> usize {
        self.attached.len()
    }

    pub(super) fn has(&self, ifindex: u32) -> bool {
        self.attached.contains_key(&ifindex)
    }

    pub(super) fn all(&self) -> Vec<(u32, Arc<str>)> {
        self.attached.iter().map(|(ifindex, name)| (*ifindex, name.clone())).collect()
    }

    pub(super) fn failed(&self) -> &BTreeMap<u32, Failed> {
        &self.failed
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry.map(|retry| retry.at)
    }

    /// What stands in front of our programs, as it was last looked at.
    pub(super) fn found_behind(&mut self, ifindex: u32, program: Option<String>) {
        match program {
            Some(program) => self.behind.insert(ifindex, program),
            None => self.behind.remove(&ifindex),
        };
    }

    /// Interfaces where a program of somebody else stands in front of ours: their names, and the program's.
    pub(super) fn behind(&self) -> impl Iterator<Item = (&str, &str)> {
        self.behind.iter().filter_map(|(ifindex, program)| Some((&**self.attached.get(ifindex)?, program.as_str())))
    }

    /// What came of trying to attach. Errors are told of as faults, once however often they are met.
    pub(super) fn tried(&mut self, ifindex: u32, name: Arc<str>, result: anyhow::Result<()>) {
        match result {
            Ok(()) => {
                tracing::debug!(interface = %name, ifindex, "programs attached");
                if self.failed.remove(&ifindex).is_some() {
                    tracing::info!(interface = %name, "the programs are attached by now");
                }
                self.attached.insert(ifindex, name);
            }
            Err(error) => {
                let failed = Failed { name: name.clone(), error: format!("{error:#}") };
                self.attached.remove(&ifindex);
                self.failed.insert(ifindex, failed);
            }
        }
    }

    /// The name that an interface has by now.
    pub(super) fn renamed(&mut self, ifindex: u32, name: &Arc<str>) {
        if let Some(known) = self.attached.get_mut(&ifindex) {
            known.clone_from(name);
        }
        if let Some(failed) = self.failed.get_mut(&ifindex) {
            failed.name.clone_from(name);
        }
    }

    /// After a round of trying: when the next one is, if anything failed.
    pub(super) fn schedule(&mut self, now: Instant) {
        self.retry = if self.failed.is_empty() {
            None
        } else {
            match self.retry {
                Some(retry) if retry.at > now => Some(retry),
                last => Some(Retry::after(last, now)),
            }
        };
    }

    /// The interface has gone; its name if it had programs.
    pub(super) fn forget(&mut self, ifindex: u32) -> Option<Arc<str>> {
        self.failed.remove(&ifindex);
        self.behind.remove(&ifindex);
        self.attached.remove(&ifindex)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Not attached is neither forgotten nor called attached, and tried again until it is or the interface has gone.
    #[test]
    fn what_fails_is_tried_again() {
        let mut attachments = Attachments::default();
        let mut now = Instant::now();
        for ifindex in [5, 6] {
            attachments.tried(ifindex, "veth".into(), Err(anyhow::anyhow!("no room")));
        }
        attachments.schedule(now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let at = attachments.retry_at().expect("it is tried again");
            pauses.push(at - now);
            // A change in between does not put it off.
            attachments.schedule(now);
            assert_eq!(attachments.retry_at(), Some(at));
            now = at;
            attachments.tried(5, "veth".into(), Err(anyhow::anyhow!("no room")));
            attachments.schedule(now);
        }
        assert!(pauses.is_sorted() && pauses[0] < pauses[1], "{pauses:?}");
        assert!(pauses[8] <= Duration::from_secs(5), "{pauses:?}");
        assert!(!attachments.has(5) && attachments.failed()[&5].error == "no room");
        attachments.tried(5, "veth".into(), Ok(()));
        attachments.forget(6);
        attachments.schedule(now);
        assert_eq!((attachments.retry_at(), attachments.has(5), attachments.failed().len()), (None, true, 0));
    }
}
