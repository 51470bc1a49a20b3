//! libFuzzer in front of one harness of [`palisade_tests::fuzz`], which PALISADE_FUZZ_TARGET names. `cargo xtask fuzz` builds it, with
//! the counters by which libFuzzer sees where an input leads, and runs it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use palisade_tests::fuzz::{self, Target};

/// libFuzzer's own arguments cannot name it: what they do not know they take for a folder of inputs.
const VARIABLE: &str = "PALISADE_FUZZ_TARGET";

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    fuzz::target(&name).unwrap_or_else(|| panic!("{VARIABLE} is `{name}`, which is no target"))
});

fuzz_target!(|input: &[u8]| (TARGET.check)(input));
