//! What the plugin asks the agent: one JSON object on a line each way, then the connection ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::explain::names::Reference;
use crate::facts::ObjectName;
use crate::node::cni::{CniResult, told};

/// The specification's error codes ("Error").
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO_FAILURE: u32 = 5;
    pub const UNDECODABLE: u32 = 6;
    pub const INVALID_NETWORK: u32 = 7;
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// Only of STATUS: ADD would fail.
    pub const NOT_AVAILABLE: u32 = 50;
}

/// A line is at most this long (bytes): a result with some hundred addresses is some ten kilobytes.
pub const LINE_MAX: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Request {
    /// Answered when the pod is enforced, or will not be for now.
    Add(Attachment),
    /// Whether it is enforced now.
    Check(Attachment),
    /// It goes; what ADD told of it is forgotten.
    Del { key: String },
    /// Whether ADD can succeed.
    Status,
    /// Not the plugin's: `palisade pause` has written something.
    Pauses,
    /// Not the plugin's: what is known of somebody ([`crate::explain::names::Known`]).
    Find { what: Reference },
    /// Not the plugin's: all that tables are made of ([`crate::drift::Ingredients`]), as JSON within a text.
    Objects,
    /// All attachments of the network that there are.
    Gc { network: String, keys: BTreeSet<String> },
}

/// One interface of one pod, as the plugins before ours made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// [`key`].
    pub key: String,
    /// CNI_ARGS.
    pub args: String,
    /// The configuration's `prevResult`.
    pub result: Value,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One of [`code`].
    pub code: u32,
    pub message: String,
}

/// What the plugin is told.
pub type Answer = Result<(), Refusal>;
/// What others are told: null, as the plugin is, or what was asked for.
pub type Reply = Result<Value, Refusal>;

/// An attachment's name: that of the file in which libcni keeps its result once the whole chain has succeeded.
pub fn key(network: &str, container: &str, interface: &str) -> String {
    format!("{network}-{container}-{interface}")
}

// === impl Attachment ===

impl Attachment {
    /// The pod and what was made for it.
    pub fn read(&self) -> Result<(Told, CniResult), Refusal> {
        let refuse = |code: u32, message: String| Refusal { code, message };
        let result = told(&self.result, &self.args)
            .map_err(|message| refuse(code::UNDECODABLE, format!("prevResult: {message}")))?;
        let Some((pod, uid)) = result.pod.clone() else {
            let message = "CNI_ARGS has no K8S_POD_NAMESPACE and K8S_POD_NAME: only a kubelet's pods can be enforced";
            return Err(refuse(code::INVALID_ENVIRONMENT, message.to_owned()));
        };
        let hosts: BTreeSet<Arc<str>> = result.hosts.iter().map(|host| host.name.clone()).collect();
        if hosts.is_empty() {
            let message = format!("the plugins before {} made pod {pod} no interface on the node", super::PLUGIN);
            return Err(refuse(code::INVALID_NETWORK, format!("{message}: only veths can be enforced")));
        }
        let macs = result.sandboxes.iter().filter_map(|sandbox| sandbox.mac).collect();
        Ok((Told { pod, uid, hosts, macs }, result))
    }
}

/// Whom an attachment is for, the interfaces on the node that it may have (the veth's, and often the bridge), and the MAC addresses of the
/// other ends, where they are told: names are given anew by some network plugins before it is known that their last bearer has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub pod: ObjectName,
    pub uid: Option<Arc<str>>,
    pub hosts: BTreeSet<Arc<str>>,
    pub macs: BTreeSet<[u8; 6]>,
}
