//! The short form of `cargo xtask bench pods`: new pods under default deny both ways leak nothing, and do not start without an agent.
#![cfg(feature = "live")]

use palisade_tests::bench::pods::{Size, measure};

#[test]
fn new_pods_leak_nothing() {
    let size = Size { pods: 300, wave: 75, unenforced: 0, without_plugin: 30, without_agent: 30 };
    let [_, with, without, stopped] = measure(size).expect("a world of pods");
    assert_eq!((with.pods, with.not_started), (300, 0));
    assert_eq!((with.leaking, with.leaks), (0, 0), "with the plugin");
    assert_eq!((with.connected(), with.refused), ([300; 3], 0), "with the plugin");
    // Without it a pod may be faster than the notice of its interface; that is for the benchmark to count.
    assert_eq!((without.pods, without.not_started), (30, 0));
    assert_eq!((stopped.pods, stopped.not_started, stopped.leaks), (0, 30, 0), "without an agent");
}
