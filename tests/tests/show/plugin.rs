//! `kubectl palisade`, with a kubectl that runs the agents' commands where the agents are: what is found by it, asked by it and told by it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use palisade_tests::lab::programs;
use serde_json::json;

use crate::world::World;

/// `get pods` gives a list, `exec … POD … -- /palisade ARGUMENTS` runs the agent's binary in the node's namespace; both are written down.
fn kubectl(world: &World) -> std::path::PathBuf {
    let folder = world.lab.folder.join("bin");
    std::fs::create_dir_all(&folder).expect("a folder");
    let pod = |node: usize| {
        json!({
            "metadata": {"name": format!("palisade-{node}"), "namespace": "kube-system"},
            "spec": {"nodeName": world.nodes[node].name},
        })
    };
    std::fs::write(folder.join("pods.json"), json!({"items": [pod(1), pod(0)]}).to_string()).expect("a list");
    let agent = programs::agent().expect("it was built");
    let run = |node: usize| {
        let node = &world.nodes[node];
        format!(
            "exec ip netns exec {} {} \"$@\" --pin-dir {}",
            node.netns.name(),
            agent.display(),
            node.pin_dir.display()
        )
    };
    let script = format!(
        "#!/bin/sh\n\
         echo \"$@\" >> {folder}/log\n\
         case \"$1\" in --context=lab) shift;; *) echo no context >&2; exit 1;; esac\n\
         if [ \"$1\" = get ]; then exec cat {folder}/pods.json; fi\n\
         [ \"$1 $2 $3\" = 'exec --namespace kube-system' ] || exit 1\n\
         pod=$4; shift 8\n\
         case $pod in palisade-0) {};; palisade-1) {};; esac\n",
        run(0),
        run(1),
        folder = folder.display()
    );
    let path = folder.join("kubectl");
    std::fs::write(&path, script).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    folder
}

/// Exit code, standard output and standard error.
fn plugin(folder: &std::path::Path, arguments: &[&str]) -> (i32, String, String) {
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(programs::agent().expect("it was built"));
    let output = command.arg0("kubectl-palisade").args(["--context", "lab"]).args(arguments).env("PATH", path).output();
    let output = output.expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

pub fn agents_are_asked_by_kubectl(world: &World) {
    let folder = kubectl(world);
    let ask = |arguments: &[&str]| plugin(&folder, arguments);
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
    let log = std::fs::read_to_string(folder.join("log")).expect("kubectl was run");
    assert!(log.contains("exec --namespace kube-system palisade-1 --container agent -- /palisade policies"), "{log}");
}
