//! Many short-lived Jobs whose only process tries at once what a default deny forbids.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Cluster;
use super::scene::{AGNHOST, Place, ends, pod};
use crate::lab::objects;

const TARGET: &str = "jobs-target";
const DENIED: &str = "jobs-denied";
const FREE: &str = "jobs-free";
/// How long all of them may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// Jobs in a namespace that denies everything, and a tenth as many in one that does not, to a pod that anybody may reach. A line that says
/// what was seen; an error if one of the denied got a connection, or one of the others did not.
pub fn run(cluster: &Cluster, count: u32) -> Result<String> {
    let kubectl = &cluster.kubectl;
    let (_, last) = ends(cluster)?;
    let namespaces = [TARGET, DENIED, FREE].map(|name| objects::namespace(name, &[]));
    let deny = objects::policy(DENIED, "default-deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}")?;
    kubectl.apply(&[&namespaces[..], &[deny, pod(TARGET, "target", last, &["pause"])]].concat())?;
    kubectl.run(&["--namespace", TARGET, "wait", "--for=condition=Ready", "pod/target", "--timeout=180s"])?;
    let target = Place::of(cluster, last, TARGET, "target")?;
    let at = format!("{}:80", target.address());
    let start = Instant::now();
    let some = |namespace, count: u32| (0..count).map(|number| job(namespace, number, &at)).collect::<Vec<_>>();
    let free = count.div_ceil(10);
    for (namespace, jobs) in [(FREE, some(FREE, free)), (DENIED, some(DENIED, count))] {
        let before = target.connections_taken()?;
        kubectl.apply(&jobs)?;
        let (succeeded, failed) = ended(cluster, namespace, jobs.len())?;
        let taken = target.connections_taken()? - before;
        let expected = if namespace == FREE { (free, 0, u64::from(free)) } else { (0, count, 0) };
        ensure!(
            (succeeded, failed, taken) == expected,
            "of the Jobs in {namespace}, {succeeded} say that they got through and {failed} that they did not, and the target took {taken} \
             connections, where it should be {expected:?}"
        );
    }
    for name in [TARGET, DENIED, FREE] {
        kubectl.run(&["delete", "namespace", name])?;
    }
    Ok(format!(
        "{count} Jobs under a default deny, {free} without: 0 leaks, {free} of {free} let through, in {:.0} s",
        start.elapsed().as_secs_f64()
    ))
}

/// Its process ends well if it gets a connection.
fn job(namespace: &str, number: u32, at: &str) -> Value {
    let arguments = ["connect", "--timeout=2s", at];
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": format!("try-{number}"), "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "try", "image": AGNHOST, "imagePullPolicy": "Never", "args": arguments}],
        }}},
    })
}

/// Waits until every Job has ended; how many ended well, and how many did not.
fn ended(cluster: &Cluster, namespace: &str, count: usize) -> Result<(u32, u32)> {
    let end = Instant::now() + PATIENCE;
    loop {
        let jobs = cluster.kubectl.get(&["--namespace", namespace, "jobs"])?;
        let jobs = jobs["items"].as_array().context("a list")?;
        let of = |condition: &str| {
            let has = |job: &&Value| {
                let all = job["status"]["conditions"].as_array().into_iter().flatten();
                all.into_iter().any(|one| one["type"] == condition && one["status"] == "True")
            };
            jobs.iter().filter(has).count()
        };
        let (succeeded, failed) = (of("Complete"), of("Failed"));
        if succeeded + failed == count {
            return Ok((u32::try_from(succeeded)?, u32::try_from(failed)?));
        }
        ensure!(Instant::now() < end, "of {count} Jobs in {namespace}, {succeeded} and {failed} have ended");
        std::thread::sleep(Duration::from_secs(1));
    }
}
