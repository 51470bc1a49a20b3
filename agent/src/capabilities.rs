//! What the kernel has to allow the agent, beyond what root's files do.

use anyhow::{Context as _, ensure};
use rustix::thread::{CapabilitySet, capabilities};

/// Each with its name, and what for; deploy/ gives these and no others. See capabilities(7).
const NEEDED: [(CapabilitySet, &str, &str); 4] = [
    (CapabilitySet::BPF, "CAP_BPF", "to load programs and make maps"),
    (CapabilitySet::PERFMON, "CAP_PERFMON", "as the kernel verifies the programs by its rules"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", "to attach programs to interfaces"),
    (CapabilitySet::NET_BROADCAST, "CAP_NET_BROADCAST", "to be told of the addresses of pods"),
];

/// Those that CAP_SYS_ADMIN includes.
const IN_SYS_ADMIN: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);

/// # Errors
///
/// Names what this process lacks. Nothing has been changed by then.
pub fn check() -> anyhow::Result<()> {
    let effective = capabilities(None).context("asking which capabilities this process has")?.effective;
    let lacking = lacking(effective);
    ensure!(
        lacking.is_empty(),
        "this process lacks {}; nothing was changed on this node, and what an earlier agent enforces goes on. Add it to the container's \
         securityContext.capabilities, as deploy/palisade.yaml does",
        lacking.join(", and ")
    );
    Ok(())
}

fn lacking(effective: CapabilitySet) -> Vec<String> {
    let implied = if effective.contains(CapabilitySet::SYS_ADMIN) { IN_SYS_ADMIN } else { CapabilitySet::empty() };
    let has = |one: CapabilitySet| (effective | implied).contains(one);
    NEEDED.iter().filter(|(one, ..)| !has(*one)).map(|(_, name, why)| format!("{name} ({why})")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named() {
        let all = NEEDED.iter().fold(CapabilitySet::empty(), |all, (one, ..)| all | *one);
        assert!(lacking(all).is_empty());
        for (one, name, _) in NEEDED {
            let said = lacking(all.difference(one));
            assert!(matches!(&said[..], [only] if only.starts_with(name)), "{said:?}");
        }
        let network = CapabilitySet::NET_ADMIN | CapabilitySet::NET_BROADCAST;
        assert!(lacking(network | CapabilitySet::SYS_ADMIN).is_empty());
        assert_eq!(lacking(network).len(), 2);
    }
}
