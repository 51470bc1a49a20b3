//! The way of a new pod: the chained CNI plugin `palisade-cni`, the agent's socket that it asks, and how it gets into the runtime's
//! configuration.
//!
//! The plugin stands last in the chain, when the pod's veth is there. It hands the agent what the plugins before it have made, and returns
//! when the pod is enforced, or fails so that the kubelet tries again. What it says is by the CNI specification
//! (<https://www.cni.dev/docs/spec/>, versions 0.3.1 to 1.1.0).

pub mod client;
pub mod conflist;
pub mod install;
pub mod keeper;
pub mod plugin;
pub mod protocol;
pub mod server;

use std::path::{Path, PathBuf};

use crate::observe::state_dir;

/// The plugin's `type` in a network's configuration, and the name of its binary.
pub const PLUGIN: &str = "palisade-cni";

/// Where runtimes look for networks and for plugins unless told otherwise.
pub const CONF_DIR: &str = "/etc/cni/net.d";
pub const BIN_DIR: &str = "/opt/cni/bin";

/// The socket of the agent with this `--pin-dir`.
pub fn socket_path(pin_dir: &Path) -> PathBuf {
    state_dir(pin_dir).join("agent.sock")
}
