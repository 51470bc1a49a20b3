//! The manifests of deploy/ before a real API server: it takes them, and the agent's account may what the agent does, and no more.
#![cfg(feature = "live")]

use palisade_tests::lab::{ControlPlane, Lab};
use serde::Deserialize as _;
use serde_json::Value;

const MANIFEST: &str = include_str!("../../deploy/palisade.yaml");
const UNINSTALL: &str = include_str!("../../deploy/uninstall.yaml");

fn objects(manifest: &str) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(manifest);
    documents.map(|document| Value::deserialize(document).expect("YAML")).filter(|value| !value.is_null()).collect()
}

fn may(plane: &ControlPlane, verb: &str, group: &str, resource: &str) -> bool {
    plane.allows("system:serviceaccount:palisade:palisade", verb, (group, resource)).expect("the API server answers")
}

#[test]
fn the_api_server_takes_the_manifests_and_the_account_may_read_alone() {
    let lab = Lab::new("deploy").expect("a lab");
    let plane = ControlPlane::start(&lab).expect("a control plane");
    plane.put_all(&objects(MANIFEST)).expect("the manifest is taken");
    let policies = ("networking.k8s.io", "networkpolicies");
    for (group, resource) in [("", "pods"), ("", "namespaces"), ("", "nodes"), ("", "services"), policies] {
        for verb in ["get", "list", "watch"] {
            assert!(may(&plane, verb, group, resource), "{verb} {resource}");
        }
        for verb in ["create", "update", "patch", "delete"] {
            assert!(!may(&plane, verb, group, resource), "{verb} {resource}");
        }
    }
    assert!(may(&plane, "create", "events.k8s.io", "events") && may(&plane, "patch", "events.k8s.io", "events"));
    assert!(!may(&plane, "get", "", "secrets") && !may(&plane, "list", "", "secrets"));
    plane.put_all(&objects(UNINSTALL)).expect("the removal replaces the agents");
}
