//! Debian packages whose programs the lab, the tests and libFuzzer's build call.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output, present};

/// Program and the package that has it.
type Programs = &'static [(&'static str, &'static str)];

pub const LAB: Programs = &[("ip", "iproute2"), ("bridge", "iproute2"), ("bpftool", "bpftool"), ("openssl", "openssl")];

/// kube-proxy calls the first two; the lab asks nft for what flannel writes.
pub const KUBE_PROXY: Programs = &[("iptables", "iptables"), ("conntrack", "conntrack"), ("nft", "nftables")];

/// What kube-router calls.
pub const KUBE_ROUTER: Programs = &[("iptables", "iptables"), ("ipset", "ipset")];

/// libFuzzer is C++.
pub const CXX: Programs = &[("c++", "g++")];

pub fn provide(programs: Programs) -> Result<((), String)> {
    let mut missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(((), "present".into()));
    }
    let names = missing.join(" ");
    ensure!(present("apt-get"), "these are missing, and there is no apt-get to install them with: {names}");
    let user = output(Command::new("id").arg("-u"))?;
    ensure!(user.trim() == "0", "these are missing, and only root can install them: apt-get install {names}");
    println!("  apt-get install {names}");
    let install = || {
        let arguments = ["-y", "-q", "--no-install-recommends", "install"];
        output(Command::new("apt-get").args(arguments).args(&missing).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // A machine whose package lists were never fetched, or are old, learns them now.
    if install().is_err() {
        output(Command::new("apt-get").args(["-q", "update"])).context("the package lists cannot be fetched")?;
        install().with_context(|| format!("install these by hand: {names}"))?;
    }
    Ok(((), format!("installed {names}")))
}
