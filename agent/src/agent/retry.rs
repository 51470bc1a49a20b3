//! When something that failed is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause, and the longest.
const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retry {
    pub(super) at: Instant,
    pub(super) pause: Duration,
}

impl Retry {
    /// After another failure, each pause is twice the last one.
    pub(super) fn after(last: Option<Self>, now: Instant) -> Self {
        let pause = last.map_or(FIRST, |last| (last.pause * 2).min(LAST));
        Self { at: now + pause, pause }
    }
}
