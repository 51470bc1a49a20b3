//! Upstream's end-to-end tests.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::lab::programs;

/// The machine's kernel may have no sockets of SCTP.
const SKIP: &str = "SCTPConnectivity";

/// Returns ginkgo's own summary.
pub fn run(cluster: &Cluster, focus: &str, processes: u8) -> Result<String> {
    let start = Instant::now();
    let folder = cluster.places.folder.join("e2e");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("e2e.log");
    let log = File::create(&path)?;
    let mut command = cluster.kubectl.tool(&programs::of_cluster("e2e", "ginkgo")?);
    command.args([format!("--procs={processes}"), format!("--focus={focus}"), format!("--skip={SKIP}")]);
    command.args(["--no-color", "--timeout=4h"]).arg(programs::of_cluster("e2e", "e2e.test")?).arg("--");
    command.args(["--provider=skeleton", "--allowed-not-ready-nodes=-1", "--minStartupPods=0"]);
    command.args(["--dump-logs-on-failure=false", "--node-os-distro=custom"]);
    command.arg(format!("--num-nodes={}", cluster.nodes.len()));
    command.arg("--kubeconfig").arg(&cluster.kubectl.kubeconfig).arg("--report-dir").arg(&folder);
    let status = command.stdout(log.try_clone()?).stderr(log).status().context("cannot run ginkgo")?;
    let text = std::fs::read_to_string(&path)?;
    let summary: Vec<&str> = text
        .lines()
        .filter(|line| ["Ran ", "SUCCESS!", "FAIL!", "[FAIL]", "  [FAIL]"].iter().any(|start| line.starts_with(start)))
        .collect();
    let summary = summary.join("\n");
    if !status.success() {
        bail!("the end-to-end tests failed ({}):\n{summary}", path.display());
    }
    Ok(format!("end-to-end tests `{focus}` without `{SKIP}`, in {:.0} s: {summary}", start.elapsed().as_secs_f64()))
}
