//! `kubectl palisade`: the agents of both nodes are asked by a real kubectl and API server, which ask a kubelet's stand-in on each node; and who
//! may is what the cluster's RBAC says.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use palisade_tests::lab::{ControlPlane, Kubelet, Netns, objects, programs};
use serde_json::{Value, json};

use crate::world::World;

const NAMESPACE: &str = "kube-system";
const GROUP: &str = "rbac.authorization.k8s.io";

/// What kubectl talks to, and with whose certificate it does.
struct Cluster {
    underlay: Netns,
    /// Has kubectl, kubectl-palisade, and what kubectl keeps.
    folder: PathBuf,
    /// May list pods and run commands in the agents'.
    looks: PathBuf,
    /// May list pods.
    lists: PathBuf,
    plane: ControlPlane,
    _kubelets: Vec<Kubelet>,
}

impl Cluster {
    fn start(world: &World) -> Self {
        let plane = ControlPlane::start(&world.lab).expect("a control plane");
        let mut kubelets = Vec::new();
        for (number, node) in world.nodes.iter().enumerate() {
            let name = format!("palisade-{number}");
            plane.put_all(&[objects::node(node), agent_pod(&name, &node.name)]).expect("objects are taken");
            let pod = format!("{NAMESPACE}/{name}");
            kubelets.push(Kubelet::start(&world.lab, &plane, node, &pod, "/palisade").expect("a kubelet"));
        }
        let looks = user(
            &plane,
            "looks",
            &json!([{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"]}]),
        );
        let lists = user(&plane, "lists", &json!([]));
        let folder = world.lab.folder.join("bin");
        std::fs::create_dir_all(&folder).expect("a folder");
        let kubectl = programs::kubectl().expect("it was built").join("kubectl");
        symlink(kubectl, folder.join("kubectl")).expect("a link");
        symlink(programs::agent().expect("it was built"), folder.join("kubectl-palisade")).expect("a link");
        Self { underlay: world.lab.underlay.clone(), folder, looks, lists, plane, _kubelets: kubelets }
    }

    /// `kubectl palisade …` of whom this is the kubeconfig.
    fn command(&self, kubeconfig: &Path, arguments: &[&str]) -> Command {
        let mut command = self.underlay.command(self.folder.join("kubectl"));
        let path = format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap_or_default());
        command.arg("palisade").arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command.env("PATH", path).env("HOME", &self.folder);
        command
    }

    /// Exit code, standard output and standard error.
    fn ask(&self, kubeconfig: &Path, arguments: &[&str]) -> (i32, Vec<u8>, String) {
        let output = self.command(kubeconfig, arguments).output().expect("it runs");
        (output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// As deploy/ has it, as far as anybody asks.
fn agent_pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"app.kubernetes.io/name": "palisade"}},
        "spec": {"nodeName": node, "hostNetwork": true, "containers": [{"name": "agent", "image": "none"}]},
        "status": {"phase": "Running"},
    })
}

/// Somebody who may list pods everywhere, and the rest in the agents' namespace; the kubeconfig.
fn user(plane: &ControlPlane, name: &str, rules: &Value) -> PathBuf {
    let kubeconfig = plane.reader(name, &[("", "pods")]).expect("an account");
    let version = format!("{GROUP}/v1");
    let metadata = json!({"namespace": NAMESPACE, "name": name});
    let role = json!({"apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules});
    let binding = json!({
        "apiVersion": version,
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": name},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": name}],
    });
    plane.put_all(&[role, binding]).expect("objects are taken");
    kubeconfig
}

pub fn agents_are_asked_by_kubectl(world: &World) {
    let cluster = Cluster::start(world);
    let ask = |arguments: &[&str]| {
        let (code, output, error) = cluster.ask(&cluster.looks, arguments);
        (code, String::from_utf8_lossy(&output).into_owned(), error)
    };
    // A role that is new counts a moment later.
    crate::wait("the role counts", || ask(&["status"]).0 == 0);
    let (code, output, error) = ask(&["endpoints"]);
    assert_eq!(code, 0, "{error}");
    assert!(output.contains("shop/web") && output.contains("ops/prometheus"), "{output}");
    assert!(error.contains("== node one") && error.contains("== node two"), "{error}");
    let (code, output, _) = ask(&["--node", "two", "policies"]);
    assert_eq!(
        (code, output.contains("shop/db-from-api"), output.contains("shop/api-to-db")),
        (0, true, false),
        "{output}"
    );
    // Each end's node is asked, and one of them refuses.
    let (code, output, error) = ask(&["explain", "-n", "shop", "api", "db-far", "tcp/81"]);
    assert_eq!(code, 3, "{output}{error}");
    assert!(output.contains("leaves shop/api") && output.contains("reaches shop/db-far"), "{output}");
    let (code, output, error) = ask(&["explain", "shop/web", "shop/api", "80"]);
    assert_eq!(code, 0, "{output}{error}");
    assert!(!error.contains("== node"), "both are of one node: {error}");
    let (code, _, error) = ask(&["--node", "three", "status"]);
    assert_eq!((code, error.contains("no agent's pod is running on node three")), (1, true), "{error}");
    assert_eq!(ask(&[]).0, 2);
    // Bytes come through as they are.
    let (code, output, error) = cluster.ask(&cluster.looks, &["capture", "shop/web", "--for", "1s"]);
    assert_eq!((code, &output[..4]), (0, &0x0a0d_0d0a_u32.to_le_bytes()[..]), "{error}");
    who_may_look_is_for_rbac_to_say(&cluster);
}

fn who_may_look_is_for_rbac_to_say(cluster: &Cluster) {
    let (code, output, error) = cluster.ask(&cluster.lists, &["status"]);
    assert_eq!((code, output.is_empty()), (1, true), "{error}");
    assert!(error.contains("pods \"palisade-0\" is forbidden") && error.contains("resource \"pods/exec\""), "{error}");
    // Nobody but the API server has asked the kubelets.
    for node in ["one", "two"] {
        let log = std::fs::read_to_string(cluster.plane.folder().join(format!("kubelet-{node}.log"))).expect("a log");
        let asked: Vec<&str> = log.lines().filter(|line| line.contains(" /exec/")).collect();
        assert!(!asked.is_empty(), "{log}");
        assert!(asked.iter().all(|line| line.ends_with(" as CN=admin,O=system:masters")), "{asked:#?}");
    }
}
