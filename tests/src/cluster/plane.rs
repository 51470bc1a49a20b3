//! The control plane of a cluster with nodes: beside the API server, controllers and a scheduler.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::Kubectl;
use crate::lab::control_plane::Profile;
use crate::lab::{ControlPlane, Lab, programs};

pub const POD_CIDR: &str = "10.244.0.0/16";
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// flanneld's user.
pub const FLANNEL: &str = "flannel";
pub const PROXY: &str = "kube-proxy";

/// All of it, and what asks it.
pub fn start(lab: &Lab) -> Result<(ControlPlane, Kubectl)> {
    let mut plane = ControlPlane::start_for(lab, Profile::Nodes)?;
    let kubectl = Kubectl::new(&lab.underlay, &plane.kubeconfig)?;
    // The controllers end where their own roles have not been made yet.
    kubectl.until(&["get", "--raw", "/readyz"], |said| said == "ok")?;
    let manager = plane.credentials("kube-controller-manager", "/CN=system:kube-controller-manager")?;
    let scheduler = plane.credentials("kube-scheduler", "/CN=system:kube-scheduler")?;
    plane.credentials(FLANNEL, "/CN=flannel")?;
    plane.credentials(PROXY, "/CN=system:kube-proxy")?;
    let kubeconfigs = |path: &PathBuf| -> Vec<String> {
        let path = path.display();
        let all = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
        all.iter().map(|name| format!("--{name}={path}")).chain(["--leader-elect=false".to_owned()]).collect()
    };
    let mut arguments = kubeconfigs(&manager);
    let more = [
        "--use-service-account-credentials".to_owned(),
        "--service-account-private-key-file=account.key".to_owned(),
        "--root-ca-file=ca.crt".to_owned(),
        "--cluster-signing-cert-file=ca.crt".to_owned(),
        "--cluster-signing-key-file=ca.key".to_owned(),
        "--allocate-node-cidrs".to_owned(),
        format!("--cluster-cidr={POD_CIDR}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--kube-api-qps=100".to_owned(),
        "--kube-api-burst=200".to_owned(),
    ];
    arguments.extend(more);
    let program = |name| programs::of_cluster("kubernetes", name);
    plane.spawn_program(lab.guard(), &program("kube-controller-manager")?, &arguments)?;
    plane.spawn_program(lab.guard(), &program("kube-scheduler")?, &kubeconfigs(&scheduler))?;
    grant(&kubectl)?;
    Ok((plane, kubectl))
}

/// What flanneld may, as its chart gives it.
fn grant(kubectl: &Kubectl) -> Result<()> {
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    kubectl.apply(&[
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": FLANNEL}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        ]}),
        json!({
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": FLANNEL},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": FLANNEL},
            "subjects": [{"apiGroup": group, "kind": "User", "name": FLANNEL}],
        }),
    ])
}
