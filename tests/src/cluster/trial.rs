//! What is tried in a cluster: one after the other, each with a line that says what was seen.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::deploy::{self, DAEMON_SET, Install, NAMESPACE};
use super::scene::{Scene, account, right};
use super::{Cluster, e2e, jobs, moving, restart, told, traces};

/// What is asked for; done in this order.
#[derive(Clone, Debug)]
pub struct Trials {
    pub install: Option<Install>,
    pub move_from_kube_router: bool,
    pub jobs: Option<u32>,
    pub roll: bool,
    pub restart_node: bool,
    /// Which of them, and how many at once.
    pub e2e: Option<(String, u8)>,
    pub uninstall: bool,
}

/// The second version (xtask/src/cluster.rs).
const OTHER: &str = "docker.io/library/palisade:layout-test";
/// Traffic goes on for so long before and after what happens.
const WHILE: Duration = Duration::from_secs(5);

pub fn run(cluster: &mut Cluster, trials: &Trials, start: Instant) -> Result<()> {
    let before = cluster.nodes.iter().map(traces::of).collect::<Result<Vec<_>>>()?;
    if trials.move_from_kube_router {
        moving::from_kube_router(cluster, trials.install.unwrap_or(Install::Manifest), start)?;
    }
    if let Some(how) = trials.install {
        deploy::install(cluster, how)?;
        told(start, &format!("Palisade is installed ({how:?})"));
        installed(cluster, start)?;
    }
    if let Some(count) = trials.jobs {
        told(start, &jobs::run(cluster, count)?);
    }
    if trials.roll {
        roll(cluster, start)?;
    }
    if trials.restart_node {
        told(start, &restart::last_node(cluster)?);
    }
    if let Some((focus, processes)) = &trials.e2e {
        told(start, &e2e::run(cluster, focus, *processes)?);
    }
    if let (true, Some(how)) = (trials.uninstall, trials.install) {
        let scene = Scene::set_up(cluster)?;
        deploy::uninstall(cluster, how)?;
        for (node, before) in cluster.nodes.iter().zip(&before) {
            let after = traces::of(node)?;
            let left: BTreeSet<_> = after.symmetric_difference(before).collect();
            ensure!(left.is_empty(), "node {} is not as it was: {left:#?}", node.name);
        }
        ensure!(scene.is_open(), "something is still enforced");
        told(start, "removed: nodes are as they were, nothing is enforced");
    }
    Ok(())
}

/// Every agent enforces, confined as the manifest says, and has nothing to complain of; and policies hold.
fn installed(cluster: &Cluster, start: Instant) -> Result<()> {
    for node in &cluster.nodes {
        let wrong = deploy::confinement(node)?;
        ensure!(wrong.is_empty(), "the agent of {} is not confined as the manifest says: {wrong:#?}", node.name);
        let status = deploy::palisade(cluster, node, &["status"])?;
        ensure!(status.contains("enforced         yes"), "node {}:\n{status}", node.name);
    }
    told(
        start,
        "each agent has the four capabilities alone, a filter of system calls, a root that cannot be written to",
    );
    let scene = Scene::set_up(cluster)?;
    told(start, &format!("policies hold, {}", account(&scene.check()?)));
    for node in &cluster.nodes {
        let log = cluster.kubectl.run(&["--namespace", NAMESPACE, "logs", &deploy::agent_pod(cluster, node)?])?;
        let complaints: Vec<&str> =
            log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
        ensure!(complaints.is_empty(), "the agent of {} says: {complaints:#?}", node.name);
    }
    Ok(())
}

/// To another version, whose tables have another layout, and back.
fn roll(cluster: &Cluster, start: Instant) -> Result<()> {
    let scene = Scene::set_up(cluster)?;
    let asked = ["--namespace", NAMESPACE, "get", DAEMON_SET, "--output", "jsonpath={..containers[0].image}"];
    let ours = cluster.kubectl.run(&asked)?;
    let traffic = scene.traffic(20)?;
    std::thread::sleep(WHILE);
    for image in [OTHER, &ours] {
        cluster.kubectl.run(&["--namespace", NAMESPACE, "set", "image", DAEMON_SET, &format!("agent={image}")])?;
        cluster.kubectl.rolled_out(NAMESPACE, DAEMON_SET)?;
        std::thread::sleep(WHILE);
    }
    told(start, &format!("rolled to another version and back, {}", account(&right(traffic.stop())?)));
    Ok(())
}
