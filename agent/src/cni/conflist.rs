//! The network's configuration with our plugin as the last one of its chain. Text in, text out.
//!
//! It becomes a file of its own, named so that runtimes take it before the one it is made from: that one stays the network plugin's,
//! which rewrites it whenever it likes, and our plugin stays in the chain all the same, whether an agent runs or not.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::PLUGIN;
use super::plugin::VERSIONS;

/// Runtimes take the first file by name.
pub const FILE: &str = "00-palisade.conflist";

/// Tells in our file from which one it was made. Runtimes pass over what they do not know.
const SOURCE: &str = "palisade.dev/source";

/// What runtimes take for a network's configuration.
pub fn is_configuration(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|extension| name.ends_with(extension))
}

/// The chain of `source` with ours at its end; `None`: somebody has put it into that chain already.
///
/// # Errors
///
/// A sentence saying why it can not be chained.
pub fn chained(source: &[u8], name: &str, socket: &Path) -> Result<Option<Vec<u8>>, String> {
    let value: Value = serde_json::from_slice(source).map_err(|error| format!("{name} is no JSON: {error}"))?;
    let Value::Object(mut network) = value else { return Err(format!("{name} is no network's configuration")) };
    if network.get("plugins").is_none() {
        network = list_of_one(network, name)?;
    }
    keep_versions(&mut network, name)?;
    if network.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(format!("{name} gives its network no name"));
    }
    let Some(Value::Array(plugins)) = network.get_mut("plugins") else {
        return Err(format!("`plugins` in {name} is no list"));
    };
    if plugins.is_empty() {
        return Err(format!("`plugins` in {name} is empty"));
    }
    if plugins.iter().any(is_ours) {
        return Ok(None);
    }
    plugins.push(json!({"type": PLUGIN, "socket": socket}));
    network.insert(SOURCE.to_owned(), name.into());
    let mut text = serde_json::to_vec_pretty(&network).map_err(|error| error.to_string())?;
    text.push(b'\n');
    Ok(Some(text))
}

/// Leaves only versions that our plugin knows: a runtime takes the highest of `cniVersion` and `cniVersions` that it knows itself.
fn keep_versions(network: &mut Map<String, Value>, name: &str) -> Result<(), String> {
    let mut listed = None;
    match network.get_mut("cniVersions") {
        None => {}
        Some(Value::Array(versions)) => {
            versions.retain(|version| version.as_str().is_some_and(|version| VERSIONS.contains(&version)));
            listed = VERSIONS.into_iter().rfind(|known| versions.iter().any(|version| version == known));
        }
        Some(_) => return Err(format!("`cniVersions` in {name} is no list")),
    }
    let version = network.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    let Some(listed) = listed else {
        return Err(format!("the cniVersion of {name} is {version:?}, which is none of {}", VERSIONS.join(", ")));
    };
    network.insert("cniVersion".to_owned(), listed.into());
    Ok(())
}

/// A single plugin's configuration, as lists have them.
fn list_of_one(mut plugin: Map<String, Value>, name: &str) -> Result<Map<String, Value>, String> {
    if plugin.get("type").and_then(Value::as_str).is_none() {
        return Err(format!("{name} names no plugin"));
    }
    let mut network = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = plugin.remove(key) {
            network.insert(key.to_owned(), value);
        }
    }
    network.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin)]));
    Ok(network)
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// The socket that our plugin's entry names; `None`: it is in no chain of this file.
pub fn socket_in(text: &[u8]) -> Option<String> {
    let network: Value = serde_json::from_slice(text).ok()?;
    let ours = network.get("plugins")?.as_array()?.iter().find(|plugin| is_ours(plugin))?;
    Some(ours.get("socket").and_then(Value::as_str).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kube-flannel.yml has it.
    const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn chain(source: &str) -> Result<Option<Value>, String> {
        let text = chained(source.as_bytes(), "10-flannel.conflist", Path::new("/run/s"))?;
        Ok(text.map(|text| serde_json::from_slice(&text).expect("it is JSON")))
    }

    #[test]
    fn stands_last_and_changes_nothing_else() {
        let mut network = chain(FLANNEL).expect("a list").expect("without ours");
        let text = serde_json::to_vec(&network).expect("it is JSON");
        assert_eq!(socket_in(&text).as_deref(), Some("/run/s"));
        assert!(chained(&text, "again", Path::new("/run/s")).expect("a list").is_none(), "it is there once");
        let plugins = network["plugins"].as_array_mut().expect("a list");
        assert_eq!(plugins.pop(), Some(json!({"type": "palisade-cni", "socket": "/run/s"})));
        network.as_object_mut().expect("an object").remove(SOURCE);
        assert_eq!(network, serde_json::from_str::<Value>(FLANNEL).expect("it is JSON"));
    }

    #[test]
    fn one_plugin_becomes_a_list() {
        let network = chain(r#"{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "b"}"#);
        let network = network.expect("a plugin").expect("without ours");
        let expected = json!([{"type": "bridge", "bridge": "b"}, {"type": "palisade-cni", "socket": "/run/s"}]);
        assert_eq!((&network["name"], &network["plugins"]), (&json!("n"), &expected));
    }

    /// Of those that a file allows a runtime takes the highest, which must be one that the plugin takes.
    #[test]
    fn versions_that_the_plugin_does_not_know_are_not_offered() {
        let chain = |versions: &str| {
            let network = chain(&format!(r#"{{{versions}, "name": "n", "plugins": [{{"type": "a"}}]}}"#));
            let network = network.expect("a list").expect("without ours");
            (network["cniVersion"].clone(), network["cniVersions"].clone())
        };
        let list = r#""cniVersions": ["1.0.0", "1.1.0", "1.2.0"]"#;
        let known = json!(["1.0.0", "1.1.0"]);
        assert_eq!(chain(list), (json!("1.1.0"), known.clone()));
        assert_eq!(chain(&format!(r#""cniVersion": "1.2.0", {list}"#)), (json!("1.1.0"), known.clone()));
        assert_eq!(chain(&format!(r#""cniVersion": "0.4.0", {list}"#)), (json!("0.4.0"), known));
        assert_eq!(chain(r#""cniVersion": "0.4.0""#), (json!("0.4.0"), Value::Null));
    }

    #[test]
    fn what_cannot_be_chained_is_named() {
        for (source, said) in [
            ("", "is no JSON"),
            ("[]", "is no network's configuration"),
            (r#"{"cniVersion": "1.0.0", "name": "n"}"#, "names no plugin"),
            (r#"{"cniVersion": "0.2.0", "name": "n", "plugins": [{"type": "a"}]}"#, "which is none of 0.3.1"),
            (r#"{"cniVersions": ["9.0.0"], "name": "n", "plugins": [{"type": "a"}]}"#, "which is none of 0.3.1"),
            (r#"{"cniVersions": "1.0.0", "name": "n", "plugins": [{"type": "a"}]}"#, "is no list"),
            (r#"{"cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#, "gives its network no name"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#, "is empty"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": {}}"#, "is no list"),
        ] {
            let error = chain(source).expect_err(source);
            assert!(error.contains(said) && error.contains("10-flannel.conflist"), "{error}");
        }
        assert_eq!(socket_in(FLANNEL.as_bytes()), None);
    }
}
