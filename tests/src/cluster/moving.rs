//! From another enforcer to Palisade and back, without a gap: the verdicts of two are an intersection.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::deploy::{Install, install, uninstall};
use super::scene::{Scene, account, right};
use super::{Cluster, ClusterNode, told};
use crate::lab::programs;
use crate::lab::traffic::Tally;

/// Traffic goes on for so long after each step.
const WHILE: Duration = Duration::from_secs(5);

/// kube-router's firewall, which k3s has built in, on every node.
struct KubeRouter(Vec<u32>);

/// With kube-router enforcing, Palisade is installed and kube-router removed; then kube-router starts and Palisade is removed. Ends with
/// neither.
pub fn from_kube_router(cluster: &Cluster, how: Install, start: Instant) -> Result<()> {
    let scene = Scene::set_up(cluster)?;
    let other = KubeRouter::start(cluster)?;
    other.wait_enforcing(cluster, &scene)?;
    told(start, "kube-router enforces");
    let traffic = scene.traffic(5)?;
    std::thread::sleep(WHILE);
    install(cluster, how)?;
    std::thread::sleep(WHILE);
    other.stop(cluster)?;
    std::thread::sleep(WHILE);
    told(start, &format!("from kube-router to Palisade, {}", account(&right(without_rejections(traffic.stop()))?)));
    let traffic = scene.traffic(5)?;
    let other = KubeRouter::start(cluster)?;
    other.wait_enforcing(cluster, &scene)?;
    std::thread::sleep(WHILE);
    uninstall(cluster, how)?;
    std::thread::sleep(WHILE);
    told(start, &format!("from Palisade to kube-router, {}", account(&right(without_rejections(traffic.stop()))?)));
    other.stop(cluster)?;
    ensure!(scene.is_open(), "kube-router has left rules, or Palisade has");
    Ok(())
}

/// kube-router refuses with an ICMP error (`REJECT`), which a client sees as it would see a port that nobody listens at; every port that is
/// tried here has a server, so that nothing else looks like that.
fn without_rejections(mut tally: Tally) -> Tally {
    tally.passed.retain(|passed| !passed.ends_with("Connection refused (os error 111)"));
    tally
}

impl KubeRouter {
    fn start(cluster: &Cluster) -> Result<Self> {
        let program = programs::of_cluster("kube-router", "kube-router")?;
        let mut groups = Vec::new();
        for node in &cluster.nodes {
            let mut command = node.command(&program)?;
            command.args(["--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--v=1"]);
            command.arg(format!("--hostname-override={}", node.name));
            command.arg("--kubeconfig").arg(&cluster.kubectl.kubeconfig);
            groups.push(node.spawn(cluster, "kube-router", &mut command)?);
        }
        Ok(Self(groups))
    }

    /// Its chains are there for every pod that a policy selects, and they hold.
    fn wait_enforcing(&self, cluster: &Cluster, scene: &Scene) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        let chains = |node: &ClusterNode| -> Result<usize> {
            let output = node.command("iptables-save")?.args(["-t", "filter"]).output().context("iptables-save")?;
            let rules = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(rules.lines().filter(|line| line.starts_with(":KUBE-POD-FW-")).count())
        };
        loop {
            let known = cluster.nodes.iter().map(chains).sum::<Result<usize>>()?;
            if known >= 2 && scene.is_enforced() {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "kube-router does not enforce:\n{}",
                cluster.nodes.iter().map(|node| node.said("kube-router")).collect::<Vec<_>>().join("\n")
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// With what it leaves, as its own manual says.
    fn stop(self, cluster: &Cluster) -> Result<()> {
        for group in self.0 {
            let group = Pid::from_raw(i32::try_from(group)?).context("a process has an id")?;
            kill_process_group(group, Signal::KILL)?;
        }
        let program = programs::of_cluster("kube-router", "kube-router")?;
        for node in &cluster.nodes {
            let mut command = node.command(&program)?;
            command.args(["--cleanup-config", "--run-router=false", "--run-service-proxy=false"]);
            let output = command.output().context("cannot run kube-router")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "kube-router --cleanup-config: {said}");
        }
        Ok(())
    }
}
