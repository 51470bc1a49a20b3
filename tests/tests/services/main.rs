//! Services under policy: a real kube-proxy translates, real sockets ask, and every answer must come from a backend that
//! the policy admits as it is reached.
#![cfg(feature = "live")]

mod account;
mod catalogue;
mod connections;
mod datagrams;
mod devices;
mod dns;
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

#[test]
fn dns_by_iptables() {
    dns::play(Mode::Iptables);
}

#[test]
fn dns_by_nftables() {
    dns::play(Mode::Nftables);
}
