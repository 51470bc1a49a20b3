//! Agents are killed and stopped under traffic; in long this is `cargo xtask bench restart`.
#![cfg(feature = "live")]

use std::time::Duration;

use palisade_tests::bench::restart::{Extent, Size, measure};

#[test]
fn nothing_becomes_of_traffic_while_agents_come_and_go() {
    let held = Extent { connections: 1000, period: Duration::from_secs(1) };
    let size = Size { held, rate: 200, kills: 4, stops: 2, swaps: 0, other: None };
    for phase in measure(&size).expect("it can be measured") {
        assert!(phase.is_clean(), "{phase:#?}");
        assert!(phase.held.exchanges > 200 && phase.attempts.permitted > 50, "too little was asked: {phase:#?}");
    }
}
