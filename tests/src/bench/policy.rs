//! From the API server's answer to a policy write until new connections are judged by it, and what that costs the agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::cluster::{Cluster, PORT, processor_time, size_name};
use super::machine;
use super::prober::Prober;
use super::stats::Sample;
use super::table::Table;
use crate::lab::Agent;

/// Half of them admit the prober, half refuse it.
const CHANGES: usize = 200;
/// After each change, so that all it brings about is counted with it: the catalog of names is written a tenth of a second later.
const PAUSE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(5);
/// Processor time of one change in the large cluster; milliseconds.
const PROCESSOR_GOAL: f64 = 20.0;

/// A policy that is changed again and again.
struct Kind {
    name: &'static str,
    /// The peers, next to the prober, that it names when it admits.
    peers: fn() -> Vec<Value>,
    /// p50 in the small and in the large cluster; milliseconds.
    goals: [f64; 2],
}

const KINDS: [Kind; 2] = [
    Kind { name: "a peer of one pod", peers: Vec::new, goals: [1.5, 3.0] },
    Kind {
        name: "peers of a fifth of all pods",
        peers: || {
            vec![
                json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["t-3", "t-4"]}]}}),
            ]
        },
        goals: [1.5, 3.0],
    },
];
const GOAL_P99: f64 = 10.0;

pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let cluster = Cluster::new()?;
    let columns = ["cluster", "change", "p50, ms", "p99, ms", "worst", "goals", "", "processor, ms", "goal", ""];
    let mut table = Table::new(&columns);
    for large in [false, true] {
        if large {
            cluster.grow()?;
        }
        let agent = cluster.start_agent()?;
        for kind in KINDS.iter().take(if large { 2 } else { 1 }) {
            let (latencies, processor) = series(&cluster, &agent, kind)?;
            let goal = kind.goals[usize::from(large)];
            let (p50, p99) = (latencies.quantile(0.5), latencies.quantile(0.99));
            let verdict = |met: bool| if met { "met" } else { "NOT met" }.to_owned();
            table.row(vec![
                size_name(large),
                kind.name.into(),
                format!("{p50:.2}"),
                format!("{p99:.2}"),
                format!("{:.2}", latencies.greatest()),
                format!("≤ {goal}, ≤ {GOAL_P99}"),
                verdict(p50 <= goal && p99 <= GOAL_P99),
                format!("{processor:.2}"),
                if large { format!("≤ {PROCESSOR_GOAL}") } else { String::new() },
                if large { verdict(processor <= PROCESSOR_GOAL) } else { String::new() },
            ]);
        }
        ensure!(agent.stop()?.success(), "the agent did not end well");
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

/// Milliseconds of each change, and of processor time per change.
fn series(cluster: &Cluster, agent: &Agent, kind: &Kind) -> Result<(Sample, f64)> {
    let to = SocketAddr::new(cluster.server.ipv4(), PORT);
    let prober = Prober::start(&cluster.client.netns, to);
    let pid = agent.pid().context("the agent runs")?;
    cluster.plane.put(&policy(kind, false))?;
    cluster.plane.with_client(async |client| {
        settled(&prober, false, Instant::now()).await?;
        let mut latencies = Vec::new();
        let before = processor_time(pid)?;
        for number in 0..CHANGES {
            let admits = number % 2 == 0;
            let begun = Instant::now();
            let answered = write(&client, &policy(kind, admits)).await?;
            let turned = settled(&prober, admits, begun).await?;
            let late = turned.saturating_duration_since(answered).as_secs_f64();
            let early = answered.saturating_duration_since(turned).as_secs_f64();
            latencies.push((late - early) * 1e3);
            tokio::time::sleep(PAUSE).await;
        }
        let processor = (processor_time(pid)? - before) * 1e3 / CHANGES as f64;
        Ok((Sample::new(latencies), processor))
    })
}

/// Waits until the prober's connections go this way; since when they do.
async fn settled(prober: &Prober, admitted: bool, since: Instant) -> Result<Instant> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(turned) = prober.turned(admitted, since) {
            return Ok(turned);
        }
        ensure!(Instant::now() < end, "the policy is not in force after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// When the head of the API server's answer was there.
async fn write(client: &Client, policy: &Value) -> Result<Instant> {
    let (namespace, name) = (&policy["metadata"]["namespace"], &policy["metadata"]["name"]);
    let (namespace, name) = namespace.as_str().zip(name.as_str()).context("a policy has a name")?;
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}");
    let request = hyper::Request::patch(path)
        .header("content-type", "application/merge-patch+json")
        .body(Body::from(serde_json::to_vec(policy)?))?;
    let answer = client.send(request).await?;
    let answered = Instant::now();
    ensure!(answer.status().is_success(), "the API server says {}", answer.status());
    answer.into_body().collect().await?;
    Ok(answered)
}

fn policy(kind: &Kind, admits: bool) -> Value {
    let mut from = vec![json!({"podSelector": {"matchLabels": {"app": if admits { "client" } else { "nobody" }}}})];
    if admits {
        from.extend((kind.peers)());
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "app-0", "name": "changing"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": from, "ports": [{"protocol": "TCP", "port": PORT}]}],
        },
    })
}
