//! How much may be wanted of each table. What does not fit is closed and named, never silently dropped.

use serde::{Deserialize, Serialize};

/// Limits of what is compiled, by table. The kernel's maps hold twice as much: what is new is there before the old is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Endpoints of the node.
    pub endpoints_max: usize,
    /// Addresses with an entry of their own, per family: of pods that have a class, and as far as there is room prefixes of one host.
    pub exact_max: usize,
    /// Prefixes of ipBlocks, excepts and those of one host included, per family.
    pub prefixes_max: usize,
    /// Rows of RULES.
    pub rules_max: usize,
    /// Prefixes of PORTS.
    pub ports_max: usize,
    /// Addresses and ports of Services, node ports and host ports.
    pub services_max: usize,
    /// Pods whose packets can be told apart by their mark: the highest stamp.
    pub stamps_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            endpoints_max: 1_024,
            exact_max: 262_144,
            prefixes_max: 262_144,
            rules_max: 524_288,
            ports_max: 1_048_576,
            services_max: 65_536,
            stamps_max: 255,
        }
    }
}
