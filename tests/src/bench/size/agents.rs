//! What agents ask of a real API server: one agent by its own counters, and the watches of very many, simulated, while pods change.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::counters::Counters;
use crate::bench::cluster::{Cluster, LOCAL_PODS, NAMESPACES, PODS, processor_time, size_name};
use crate::bench::machine;
use crate::bench::start::{lists, memory};
use crate::bench::table::Table;
use crate::lab::control_plane::with_client;
use crate::lab::recorded::{RecordedKind, raw};

const AGENTS: [usize; 3] = [0, 100, 1_000];
/// Changes of pods a second.
const RATE: u64 = 10;
const TIME: Duration = Duration::from_secs(60);
/// Handshakes under way.
const BEGUN_AT_ONCE: usize = 32;

pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let cluster = Cluster::new()?;
    cluster.grow()?;
    println!("{}\n", one(&cluster)?);
    let mut table = Table::new(&[
        "agents",
        "watches",
        "changes a second",
        "API server, % of a core",
        "etcd",
        "API server, MB",
        "MB/s sent",
        "events",
        "lost",
    ]);
    for agents in AGENTS {
        table.row(many(&cluster, agents)?);
        println!("{agents} agents: done, load {}", machine::load());
    }
    println!("\n{table}\nLoad at the end: {}", machine::load());
    Ok(())
}

/// What one agent asks for when it starts, and then while pods change; and what its lists cost the server.
fn one(cluster: &Cluster) -> Result<Table> {
    let [_, server] = cluster.plane.processes()[..] else { anyhow::bail!("two processes") };
    let mut table = Table::new(&["one agent", "requests", "watches", "MB received", "API server, ms of a core"]);
    let used = processor_time(server)?;
    cluster.plane.with_client(lists)?;
    let of_lists = (processor_time(server)? - used) * 1e3;
    let agent = cluster.start_agent()?;
    let start = Counters::of(&agent)?;
    let row = |name: String, seen: &Counters, before: &Counters, cost: String| {
        vec![
            name,
            (seen.requests - before.requests).to_string(),
            (seen.watches - before.watches).to_string(),
            format!("{:.2}", (seen.received - before.received) / 1e6),
            cost,
        ]
    };
    table.row(row(
        format!("its start, {}", size_name(true)),
        &start,
        &Counters::default(),
        format!("{of_lists:.0} (the lists)"),
    ));
    let changes = cluster.plane.with_client(async |client| change_pods(&client, TIME).await)?;
    agent.wait_updates(start.updates + changes, Duration::from_secs(10))?;
    let end = Counters::of(&agent)?;
    table.row(row(format!("{changes} changes of pods in {} s", TIME.as_secs()), &end, &start, String::new()));
    ensure!(agent.stop()?.success(), "the agent did not end well");
    Ok(table)
}

/// The watches of so many agents for a minute.
fn many(cluster: &Cluster, agents: usize) -> Result<Vec<String>> {
    let [etcd, server] = cluster.plane.processes()[..] else { anyhow::bail!("two processes") };
    let kubeconfig = Kubeconfig::read_from(&cluster.plane.kubeconfig)?;
    with_client(&cluster.lab.underlay, &cluster.plane.kubeconfig, async |client| {
        let seen = Rc::new(Seen::default());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let versions = versions(&client).await?;
                let mut begun = futures::stream::FuturesUnordered::new();
                for _ in 0..agents {
                    if begun.len() >= BEGUN_AT_ONCE {
                        futures::StreamExt::next(&mut begun).await.context("one was begun")??;
                    }
                    begun.push(watch_all(&kubeconfig, &versions, &seen));
                }
                while let Some(one) = futures::StreamExt::next(&mut begun).await {
                    one?;
                }
                // What was missed since the lists is told at once.
                tokio::time::sleep(Duration::from_secs(3)).await;
                seen.reset();
                let (before, begun) = ([processor_time(etcd)?, processor_time(server)?], Instant::now());
                let changes = change_pods(&client, TIME).await?;
                let seconds = begun.elapsed().as_secs_f64();
                let percent = |now: f64, before: f64| format!("{:.1}", (now - before) / seconds * 100.0);
                let [of_etcd, of_server] =
                    [percent(processor_time(etcd)?, before[0]), percent(processor_time(server)?, before[1])];
                let bytes = seen.bytes.get() as f64;
                tokio::time::sleep(Duration::from_secs(3)).await;
                let expected = changes * agents as u64;
                Ok(vec![
                    agents.to_string(),
                    (agents * RecordedKind::ALL.len()).to_string(),
                    format!("{:.1}", changes as f64 / seconds),
                    of_server,
                    of_etcd,
                    format!("{:.0}", memory(server, "VmRSS:")?),
                    format!("{:.2}", bytes / 1e6 / seconds),
                    seen.events.get().to_string(),
                    expected.saturating_sub(seen.events.get()).to_string(),
                ])
            })
            .await
    })
}

/// Of all watches together.
#[derive(Default)]
struct Seen {
    bytes: Cell<u64>,
    /// Changes of pods.
    events: Cell<u64>,
}

impl Seen {
    fn reset(&self) {
        self.bytes.set(0);
        self.events.set(0);
    }
}

/// From which version on each kind is watched.
async fn versions(client: &Client) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for kind in RecordedKind::ALL {
        let list: Value = serde_json::from_slice(&raw(client, &format!("{}?limit=1", kind.list_path())).await?)?;
        versions.push(list["metadata"]["resourceVersion"].as_str().context("a list has a version")?.to_owned());
    }
    Ok(versions)
}

/// One agent: a client of its own, and a watch of each kind as the agent asks for it.
async fn watch_all(kubeconfig: &Kubeconfig, versions: &[String], seen: &Rc<Seen>) -> Result<()> {
    let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    for (kind, version) in RecordedKind::ALL.into_iter().zip(versions) {
        let path = format!(
            "{}?watch=true&timeoutSeconds=290&allowWatchBookmarks=true&resourceVersion={version}",
            kind.list_path()
        );
        let answer = client.send(hyper::Request::get(path).body(Body::empty())?).await?;
        ensure!(answer.status().is_success(), "a watch is answered with {}", answer.status());
        let (client, seen, mut body) = (client.clone(), seen.clone(), answer.into_body());
        tokio::task::spawn_local(async move {
            let mut begins = true;
            while let Some(Ok(frame)) = body.frame().await {
                let Some(data) = frame.data_ref() else { continue };
                seen.bytes.set(seen.bytes.get() + data.len() as u64);
                if kind == RecordedKind::Pod {
                    seen.events.set(seen.events.get() + events(data, &mut begins));
                }
            }
            drop(client);
        });
    }
    Ok(())
}

/// How many events other than bookmarks begin in these bytes; they end with a line each.
fn events(data: &[u8], begins: &mut bool) -> u64 {
    let mut count = 0;
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        count += u64::from(*begins && !line.starts_with(b"{\"type\":\"BOOKMARK\""));
        *begins = line.ends_with(b"\n");
    }
    count
}

/// Pods of other nodes become ready or cease to be; returns how many did.
async fn change_pods(client: &Client, time: Duration) -> Result<u64> {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let begun_at = STARTED.get_or_init(Instant::now);
    let begun = tokio::time::Instant::now();
    let mut number = 0;
    while begun.elapsed() < time {
        tokio::time::sleep_until(begun + Duration::from_nanos(number * 1_000_000_000 / RATE)).await;
        let pod = LOCAL_PODS + usize::try_from(number)? % (PODS - LOCAL_PODS);
        // Never the same again, or nothing would change.
        let message = format!("{} ms after the start", begun_at.elapsed().as_millis());
        let condition = json!({"type": "Ready", "status": "True", "message": message});
        let path = format!("/api/v1/namespaces/app-{}/pods/pod-{pod}/status", pod % NAMESPACES);
        let request = hyper::Request::patch(path)
            .header("content-type", "application/strategic-merge-patch+json")
            .body(Body::from(serde_json::to_vec(&json!({"status": {"conditions": [condition]}}))?))?;
        let answer = client.send(request).await?;
        ensure!(answer.status().is_success(), "a change is answered with {}", answer.status());
        answer.into_body().collect().await?;
        number += 1;
    }
    Ok(number)
}
