//! Files of CNI results: read or not yet, and never read before they are complete.

use palisade::node::cni::{self, CniResult, Reading};
use serde_json::Value;

pub fn check(input: &[u8]) {
    let reading = cni::parse(input);
    assert_eq!(reading, cni::parse(input), "read twice");
    let text = input.trim_ascii_end();
    match reading {
        Reading::NotYet(reason) => assert!(!reason.is_empty(), "no reason"),
        Reading::Foreign => assert_unfinished(text),
        Reading::Result(result) => {
            assert_unfinished(text);
            if let Some((name, uid)) = &result.pod {
                assert!(!name.namespace.is_empty() && !name.name.is_empty(), "a pod without a name: {name}");
                assert!(uid.as_deref() != Some(""), "an empty UID is none");
            }
            let loopback = result.sandboxes.iter().any(|sandbox| &*sandbox.name == "lo");
            assert!(!loopback, "loopback is of no pod's network: {result:?}");
            interfaces_are_as_listed(text, &result);
            for (address, bits) in result.sandboxes.iter().flat_map(|sandbox| &sandbox.addresses) {
                assert!(*bits <= if address.is_ipv4() { 32 } else { 128 }, "{address}/{bits}");
            }
        }
    }
}

/// Each interface is on the side on which it is listed, and none is left out.
fn interfaces_are_as_listed(text: &[u8], result: &CniResult) {
    let value: Value = serde_json::from_slice(text).expect("it was read");
    let fields = if value.get("kind").is_some() { &value["result"] } else { &value };
    let listed = |inside: bool| {
        let interfaces = fields["interfaces"].as_array().into_iter().flatten();
        let here =
            interfaces.filter(move |entry| entry["sandbox"].as_str().is_some_and(|path| !path.is_empty()) == inside);
        here.map(|entry| entry["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let hosts: Vec<String> = result.hosts.iter().map(|host| host.name.to_string()).collect();
    let sandboxes: Vec<String> = result.sandboxes.iter().map(|sandbox| sandbox.name.to_string()).collect();
    // A structure may also be written as a list of its fields.
    if fields.is_object() && fields["interfaces"].as_array().is_none_or(|list| list.iter().all(Value::is_object)) {
        assert_eq!((hosts, sandboxes), (listed(false), listed(true)), "{fields}");
    }
}

/// libcni writes in place: whatever of a file is there so far means nothing yet.
fn assert_unfinished(text: &[u8]) {
    for length in [text.len() / 2, text.len().saturating_sub(1)] {
        let reading = cni::parse(&text[..length]);
        assert!(matches!(reading, Reading::NotYet(_)), "{length} of {} bytes are {reading:?}", text.len());
    }
}
