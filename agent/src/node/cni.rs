//! What a CNI result says of a pod's interfaces: the files that libcni leaves under `results/` at the end of each ADD.
//!
//! Pure: text in, value out. [`super::results`] reads the files, [`super::inventory`] joins them with the interfaces.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use ipnet::IpNet;
use serde::Deserialize;

use crate::facts::ObjectName;

/// What the bridge plugin calls its bridge where its configuration does not say.
pub const BRIDGE_DEFAULT: &str = "cni0";

/// One ADD of one network, as its file tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniResult {
    /// `None` in files of libcni before 0.8, which hold the bare result without the arguments.
    pub pod: Option<(ObjectName, Option<Arc<str>>)>,
    /// Interfaces outside the sandbox: the host's side of the veth, and often the bridge.
    pub hosts: Vec<HostInterface>,
    /// Interfaces inside, the pod's side.
    pub sandboxes: Vec<SandboxInterface>,
    /// The bridge that the configuration names, if a plugin of it makes one.
    pub bridge: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInterface {
    pub name: Arc<str>,
    pub mac: Option<[u8; 6]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxInterface {
    pub name: Arc<str>,
    pub mac: Option<[u8; 6]>,
    /// With prefix lengths (bits).
    pub addresses: Vec<(IpAddr, u8)>,
}

/// What one file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    Result(CniResult),
    /// Complete, but of no pod's network: loopback, or a container that no kubelet asked for.
    Foreign,
    /// Half-written, or not understood. libcni writes in place, so the rest may still come.
    NotYet(String),
}

/// A file as libcni writes it since 0.8; before, it was the bare result, which has no `kind`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    config: String,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    result: ResultFields,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResultFields {
    cni_version: String,
    #[serde(default)]
    interfaces: Option<Vec<InterfaceFields>>,
    #[serde(default)]
    ips: Option<Vec<AddressFields>>,
}

#[derive(Deserialize)]
struct InterfaceFields {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct AddressFields {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    plugins: Vec<Plugin>,
    #[serde(flatten)]
    single: Plugin,
}

#[derive(Deserialize, Default)]
struct Plugin {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    delegate: Option<Box<Plugin>>,
}

/// What a chained plugin was handed: the result of those before it, and CNI_ARGS (`KEY=VALUE`, separated by `;`).
///
/// # Errors
///
/// When it is no result that names interfaces.
pub fn told(result: &serde_json::Value, arguments: &str) -> Result<CniResult, String> {
    let fields: ResultFields = ResultFields::deserialize(result).map_err(|error| error.to_string())?;
    let (hosts, sandboxes) = interfaces(&fields)?;
    let arguments = arguments.split(';').filter_map(|argument| argument.split_once('='));
    let arguments: Vec<(String, String)> = arguments.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(CniResult { pod: pod(&arguments), hosts, sandboxes, bridge: None })
}

pub fn parse(text: &[u8]) -> Reading {
    read(text).unwrap_or_else(Reading::NotYet)
}

fn read(text: &[u8]) -> Result<Reading, String> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if value.get("kind").is_none() {
        let fields: ResultFields = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let (hosts, sandboxes) = interfaces(&fields)?;
        return Ok(match is_loopback(&sandboxes) {
            true => Reading::Foreign,
            false => Reading::Result(CniResult { pod: None, hosts, sandboxes, bridge: None }),
        });
    }
    let cached: Cached = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let Cached { kind, if_name, config, cni_args, result } = cached;
    if kind != "cniCacheV1" {
        return Err(format!("its kind is `{kind}`, not cniCacheV1"));
    }
    let Some(pod) = pod(&cni_args.unwrap_or_default()) else { return Ok(Reading::Foreign) };
    if if_name == "lo" {
        return Ok(Reading::Foreign);
    }
    let (hosts, sandboxes) = interfaces(&result)?;
    Ok(match is_loopback(&sandboxes) {
        true => Reading::Foreign,
        false => Reading::Result(CniResult { pod: Some(pod), hosts, sandboxes, bridge: bridge(&config) }),
    })
}

fn is_loopback(sandboxes: &[SandboxInterface]) -> bool {
    sandboxes.iter().any(|sandbox| &*sandbox.name == "lo")
}

/// The pod that kubelet's runtime asked for; the UID is missing with containerd before 1.6 and CRI-O before 1.21.
fn pod(arguments: &[(String, String)]) -> Option<(ObjectName, Option<Arc<str>>)> {
    let value = |key: &str| {
        arguments.iter().find(|(name, value)| name == key && !value.is_empty()).map(|(_, value)| value.as_str())
    };
    let name = ObjectName::new(value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?);
    Some((name, value("K8S_POD_UID").map(Arc::from)))
}

fn interfaces(fields: &ResultFields) -> Result<(Vec<HostInterface>, Vec<SandboxInterface>), String> {
    if matches!(fields.cni_version.as_str(), "0.1.0" | "0.2.0") {
        return Err(format!("results of CNI version {} name no interfaces", fields.cni_version));
    }
    let listed = fields.interfaces.as_deref().unwrap_or_default();
    let ips = fields.ips.as_deref().unwrap_or_default();
    let inside: Vec<usize> = (0..listed.len()).filter(|&at| !listed[at].sandbox.is_empty()).collect();
    let mut addresses: BTreeMap<usize, Vec<(IpAddr, u8)>> = BTreeMap::new();
    for ip in ips {
        // An address without an index is the only interface's; with several nobody can tell whose it is.
        let at = match (ip.interface, &inside[..]) {
            (Some(index), _) => usize::try_from(index).ok(),
            (None, [only]) => Some(*only),
            (None, _) => None,
        };
        if let Some(at) = at.filter(|at| inside.binary_search(at).is_ok()) {
            addresses.entry(at).or_default().push(address(&ip.address)?);
        }
    }
    let mut hosts = Vec::new();
    let mut sandboxes = Vec::new();
    for (at, interface) in listed.iter().enumerate() {
        let (name, mac) = (Arc::from(interface.name.as_str()), mac(&interface.mac)?);
        if interface.sandbox.is_empty() {
            hosts.push(HostInterface { name, mac });
        } else {
            sandboxes.push(SandboxInterface { name, mac, addresses: addresses.remove(&at).unwrap_or_default() });
        }
    }
    Ok((hosts, sandboxes))
}

fn mac(text: &str) -> Result<Option<[u8; 6]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        // from_str_radix takes a sign too.
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| format!("`{text}` is no MAC address"))?;
    }
    match parts.next() {
        Some(_) => Err(format!("`{text}` is no MAC address")),
        None => Ok(Some(bytes)),
    }
}

/// An address with its prefix; the host bits stay, as they are the address.
fn address(text: &str) -> Result<(IpAddr, u8), String> {
    let net: IpNet = text.parse().map_err(|_| format!("`{text}` is no address with a prefix length"))?;
    Ok((net.addr(), net.prefix_len()))
}

/// The bridge that the network's configuration (base64 of a JSON list or plugin) makes. What is not understood names none:
/// the interfaces in the result still do.
fn bridge(config: &str) -> Option<Arc<str>> {
    let json = base64::engine::general_purpose::STANDARD.decode(config).ok()?;
    let Configuration { plugins, single } = serde_json::from_slice(&json).ok()?;
    plugins.iter().chain([&single]).find_map(|plugin| match plugin.kind.as_deref()? {
        "bridge" => Some(plugin.bridge.as_deref().unwrap_or(BRIDGE_DEFAULT).into()),
        "flannel" => {
            // Flannel delegates to the bridge plugin where it is not told to use another.
            let delegate = plugin.delegate.as_deref();
            let kind = delegate.and_then(|delegate| delegate.kind.as_deref()).unwrap_or("bridge");
            let name = delegate.and_then(|delegate| delegate.bridge.as_deref()).unwrap_or(BRIDGE_DEFAULT);
            (kind == "bridge").then(|| name.into())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests;
