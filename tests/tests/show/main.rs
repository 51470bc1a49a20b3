//! What the commands say of the loaded state, against what sockets see.
#![cfg(feature = "live")]

mod capture;
mod explain;
mod plugin;
mod policies;
mod world;

use std::time::{Duration, Instant};

/// Until something happens that no event tells of.
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
