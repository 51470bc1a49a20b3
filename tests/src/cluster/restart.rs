//! A node that loses its power and comes back: what its pods try meanwhile.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::scene::{Scene, account, connections_taken, pod};
use super::{Cluster, deploy};
use crate::lab::server::Server;
use crate::lab::{Netns, objects};

const NAMESPACE: &str = "restless";
/// How long the node may take until its pods run and are enforced.
const PATIENCE: Duration = Duration::from_secs(240);

/// A machine beside the nodes that counts who connects to it.
struct Witness {
    netns: Netns,
    address: IpAddr,
    _server: Server,
}

impl Witness {
    fn new(cluster: &Cluster, name: &str, number: u8) -> Result<Self> {
        let (netns, [address, _]) = cluster.lab.outside(name, number)?;
        let server = Server::start(cluster.lab.guard(), &netns, name, &[80], &[])?;
        Ok(Self { netns, address, _server: server })
    }

    fn taken(&self) -> Result<u64> {
        connections_taken(&self.netns)
    }
}

/// Two pods of the last node try all the time to get out, as they start and start again; a policy forbids it to one of them.
pub fn last_node(cluster: &mut Cluster) -> Result<String> {
    let at = cluster.nodes.len() - 1;
    let mut node = cluster.nodes[at].clone();
    let (denied, free) = (Witness::new(cluster, "denied", 250)?, Witness::new(cluster, "free", 251)?);
    let mut wanted = vec![
        objects::namespace(NAMESPACE, &[]),
        objects::policy(NAMESPACE, "denied", "{podSelector: {matchLabels: {app: denied}}, policyTypes: [Egress]}")?,
    ];
    for (name, witness) in [("denied", &denied), ("free", &free)] {
        let to = format!("{}:80", witness.address);
        wanted.push(pod(NAMESPACE, name, &node, &["connect", "--timeout=1s", &to]));
    }
    cluster.kubectl.apply(&wanted)?;
    until("the free pod gets out", || Ok(free.taken()? > 0))?;
    drop(Scene::set_up(cluster)?);

    let start = Instant::now();
    node.cut_power(cluster)?;
    let before = free.taken()?;
    let init = node.boot(cluster)?;
    node.set_up(init);
    cluster.nodes[at] = node;
    until("the free pod gets out again", || Ok(free.taken()? > before))?;
    let enforced = |cluster: &Cluster| -> Result<bool> {
        let status = deploy::palisade(cluster, &cluster.nodes[at], &["status"])?;
        Ok(status.contains("enforced         yes"))
    };
    until("the agent enforces", || enforced(cluster))?;
    // The pods of the scene have other addresses by now.
    until("policies hold", || Ok(Scene::set_up(cluster)?.is_enforced()))?;
    let took = start.elapsed();
    let tally = Scene::set_up(cluster)?.check()?;
    let leaks = denied.taken()?;
    ensure!(leaks == 0, "the denied pod got {leaks} connections");
    cluster.kubectl.run(&["delete", "namespace", NAMESPACE])?;
    denied.netns.remove()?;
    free.netns.remove()?;
    Ok(format!(
        "a node without power and back, enforced after {:.0} s: 0 leaks of the pod that may not get out; {}",
        took.as_secs_f64(),
        account(&tally)
    ))
}

/// What fails meanwhile is tried again.
fn until(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match holds() {
            Ok(true) => return Ok(()),
            held if Instant::now() > end => {
                held.map(drop).with_context(|| what.to_owned())?;
                anyhow::bail!("not in time: {what}");
            }
            _ => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}
