//! Services under policy: a real kube-proxy translates, real sockets ask, and every answer must come from a backend that
//! the policy admits as it is reached.
#![cfg(feature = "live")]

mod catalogue;
mod question;
mod table;
mod world;

use palisade_tests::lab::Mode;

#[test]
fn services_by_iptables() {
    table::play(Mode::Iptables);
}

#[test]
fn services_by_nftables() {
    table::play(Mode::Nftables);
}
