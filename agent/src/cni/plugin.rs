//! What `palisade-cni` does with one call. Pure but for `ask`, which goes to the agent.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::PLUGIN;
use super::conflist::FILE;
use super::protocol::{Answer, Attachment, Refusal, Request, code, key};

/// Versions of the specification with results that name interfaces, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The variables that a runtime sets; empty where it does not.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// CNI_COMMAND.
    pub command: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS.
    pub netns: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_ARGS.
    pub args: String,
}

/// The network's configuration as it comes on stdin, as far as it is ours to know.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Network {
    cni_version: String,
    name: String,
    /// The agent's.
    socket: PathBuf,
    prev_result: Option<Value>,
    /// Of GC. libcni writes null where there are none.
    #[serde(rename = "cni.dev/valid-attachments", deserialize_with = "null_is_none")]
    valid: Option<Vec<Valid>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

/// A list that is there, though it may be null.
fn null_is_none<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<Valid>>, D::Error> {
    Ok(Some(Option::deserialize(value)?.unwrap_or_default()))
}

/// What goes to stdout; `false`: it is an error.
pub type Output = (String, bool);

/// Carries out one call. `ask` gives the agent's answer, or why there is none.
pub fn run(environment: &Environment, stdin: &[u8], ask: impl Fn(&Path, &Request) -> io::Result<Answer>) -> Output {
    let network = serde_json::from_slice::<Network>(stdin);
    let version = match &network {
        Ok(network) if VERSIONS.contains(&network.cni_version.as_str()) => network.cni_version.clone(),
        Ok(_) | Err(_) => VERSIONS[VERSIONS.len() - 1].to_owned(),
    };
    if environment.command == "VERSION" {
        return (json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string(), true);
    }
    let done = network
        .map_err(|error| refuse(code::UNDECODABLE, format!("the network's configuration: {error}")))
        .and_then(|network| carry_out(environment, network, ask));
    match done {
        Ok(result) => (result.map(|result| result.to_string()).unwrap_or_default(), true),
        Err(Refusal { code, message }) => {
            let error = json!({"cniVersion": version, "code": code, "msg": format!("{PLUGIN}: {message}")});
            (error.to_string(), false)
        }
    }
}

fn refuse(code: u32, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

fn carry_out(
    environment: &Environment,
    network: Network,
    ask: impl Fn(&Path, &Request) -> io::Result<Answer>,
) -> Result<Option<Value>, Refusal> {
    if !VERSIONS.contains(&network.cni_version.as_str()) {
        let versions = VERSIONS.join(", ");
        let message = format!("cniVersion {:?} is none of {versions}", network.cni_version);
        return Err(refuse(code::INCOMPATIBLE_VERSION, message));
    }
    if network.name.is_empty() || !network.socket.is_absolute() {
        return Err(refuse(
            code::INVALID_NETWORK,
            "the configuration needs a name, and the path of the agent's socket",
        ));
    }
    let socket = network.socket.clone();
    match environment.command.as_str() {
        "ADD" => {
            let attachment = attachment(environment, &network, "ADD")?;
            let result = attachment.result.clone();
            answered(&socket, ask(&socket, &Request::Add(attachment)))?;
            Ok(Some(result))
        }
        "CHECK" => {
            let attachment = attachment(environment, &network, "CHECK")?;
            answered(&socket, ask(&socket, &Request::Check(attachment)))?;
            Ok(None)
        }
        // A pod goes, and its interface with it, whether an agent runs or not: it has nothing that must be undone.
        "DEL" => {
            let [container, interface] = named(environment)?;
            let _ = ask(&socket, &Request::Del { key: key(&network.name, container, interface) });
            Ok(None)
        }
        "GC" => {
            let Some(valid) = &network.valid else {
                return Err(refuse(code::INVALID_NETWORK, "GC needs cni.dev/valid-attachments"));
            };
            let of = |valid: &Valid| key(&network.name, &valid.container, &valid.interface);
            let keys: BTreeSet<String> = valid.iter().map(of).collect();
            let _ = ask(&socket, &Request::Gc { network: network.name, keys });
            Ok(None)
        }
        "STATUS" => {
            let unavailable = |refusal: Refusal| refuse(code::NOT_AVAILABLE, refusal.message);
            answered(&socket, ask(&socket, &Request::Status)).map_err(unavailable)?;
            Ok(None)
        }
        other => Err(refuse(code::INVALID_ENVIRONMENT, format!("CNI_COMMAND is {other:?}"))),
    }
}

fn named(environment: &Environment) -> Result<[&str; 2], Refusal> {
    let Environment { container, interface, .. } = environment;
    for (name, value) in [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface)] {
        if value.is_empty() {
            return Err(refuse(code::INVALID_ENVIRONMENT, format!("{name} is not set")));
        }
    }
    Ok([container, interface])
}

fn attachment(environment: &Environment, network: &Network, command: &str) -> Result<Attachment, Refusal> {
    let [container, interface] = named(environment)?;
    if environment.netns.is_empty() {
        return Err(refuse(code::INVALID_ENVIRONMENT, "CNI_NETNS is not set"));
    }
    let Some(result) = network.prev_result.clone() else {
        let message = format!("{command} needs a prevResult: {PLUGIN} makes no interface, it stands last in a chain");
        return Err(refuse(code::INVALID_NETWORK, message));
    };
    Ok(Attachment { key: key(&network.name, container, interface), args: environment.args.clone(), result })
}

fn answered(socket: &Path, answer: io::Result<Answer>) -> Answer {
    answer.unwrap_or_else(|error| {
        let message = format!(
            "the palisade agent of this node does not answer at {} ({error}); no pod is started that it does not enforce. \
             Is its pod running? It is tried again. If Palisade was removed, this node was not cleaned: `palisade uninstall` cleans it, and \
             removing {FILE} from the folder of CNI configurations lets pods start",
            socket.display()
        );
        Err(refuse(code::TRY_AGAIN_LATER, message))
    })
}

#[cfg(test)]
mod tests;
