//! The recorded server of the benchmarks says what a real API server says, byte for byte: lists in pages, watches, lists by watches.
#![cfg(feature = "live")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use palisade_tests::lab::control_plane::with_client;
use palisade_tests::lab::recorded::{Event, Pattern, RecordedKind, RecordedServer, Recording, Store, raw};
use palisade_tests::lab::{ControlPlane, Lab};
use serde_json::{Value, json};

const PORT: u16 = 7443;
const PODS: usize = 5;

fn pod() -> Pattern {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "mark-name", "namespace": "default", "labels": {"app": "mark-app", "other": "mark-name"}},
        "spec": {"nodeName": "mark-node", "containers": [{"name": "main", "image": "none", "ports": [{"containerPort": 80, "name": "http"}]}]},
        "status": {"phase": "Running", "podIP": "192.0.2.77", "podIPs": [{"ip": "192.0.2.77"}, {"ip": "2001:db8::77"}]},
    });
    Pattern::new(
        RecordedKind::Pod,
        object,
        &["mark-name", "default", "mark-app", "mark-node", "192.0.2.77", "2001:db8::77"],
    )
}

fn policy() -> Pattern {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "mark-policy", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "mark-app"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 80}]}]},
    });
    Pattern::new(RecordedKind::Policy, object, &["mark-policy", "default", "mark-app"])
}

fn pod_fields(number: usize) -> Vec<String> {
    vec![
        format!("pod-{number}"),
        "default".to_owned(),
        format!("app-{}", number % 2),
        format!("node-{number}"),
        format!("10.0.0.{number}"),
        format!("fd00::{number}"),
    ]
}

/// What differs from run to run: when it was written, and at which version.
fn settled(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut rest = &*text;
    let mut out = String::new();
    let marks = ["\"resourceVersion\":\"", "\"creationTimestamp\":\"", "\"time\":\"", "\"continue\":\""];
    while let Some((at, mark)) = marks.iter().filter_map(|mark| Some((rest.find(mark)?, *mark))).min() {
        let (before, after) = rest.split_at(at + mark.len());
        out.push_str(before);
        rest = &after[after.find('"').unwrap_or(0)..];
    }
    out + rest
}

/// Both servers' answers to a request.
struct Both {
    real: Client,
    recorded: Client,
}

impl Both {
    async fn same(&self, path: &str) -> Result<[Vec<u8>; 2]> {
        let [real, recorded] = [raw(&self.real, path).await?, raw(&self.recorded, path).await?];
        assert_eq!(settled(&real), settled(&recorded), "{path}");
        Ok([real, recorded])
    }

    /// Page by page, each with its own server's token.
    async fn same_pages(&self, path: &str, limit: usize) -> Result<usize> {
        let (mut pages, mut tokens) = (0, [String::new(), String::new()]);
        loop {
            let mut answers = Vec::new();
            for (client, token) in [&self.real, &self.recorded].into_iter().zip(&tokens) {
                answers.push(raw(client, &format!("{path}?limit={limit}&continue={token}")).await?);
            }
            assert_eq!(settled(&answers[0]), settled(&answers[1]), "page {pages} of {path}");
            pages += 1;
            let next = answers.iter().map(|answer| -> Result<Option<String>> {
                let list: Value = serde_json::from_slice(answer)?;
                Ok(list["metadata"]["continue"].as_str().map(str::to_owned))
            });
            match next.collect::<Result<Vec<_>>>()?.as_slice() {
                [Some(real), Some(recorded)] => tokens = [real.clone(), recorded.clone()],
                [None, None] => return Ok(pages),
                others => anyhow::bail!("one server has more: {others:?}"),
            }
        }
    }
}

/// The first lines of a watch.
async fn lines(client: &Client, path: &str, count: usize) -> Result<Vec<String>> {
    let answer = client.send(hyper::Request::get(path).body(Body::empty())?).await?;
    ensure!(answer.status().is_success(), "{path}: {}", answer.status());
    let mut frames = answer.into_body().into_data_stream();
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < count {
        let frame = tokio::time::timeout(Duration::from_secs(10), frames.try_next());
        let frame = frame.await.with_context(|| format!("{path}: {}", String::from_utf8_lossy(&text)))?;
        let frame = frame.map_err(|error| anyhow::anyhow!("{error}"))?;
        text.extend_from_slice(&frame.context("the watch has ended")?);
    }
    Ok(settled(&text).lines().map(str::to_owned).collect())
}

#[test]
fn a_recorded_server_says_what_a_real_one_says() -> Result<()> {
    let lab = Lab::new("recorded")?;
    let plane = ControlPlane::start(&lab)?;
    let (pod, policy) = (pod(), policy());
    let (pod_template, policy_template) = (pod.record(&plane)?, policy.record(&plane)?);
    for number in 0..PODS {
        plane.create_all(&[pod.object(&pod_fields(number))?])?;
    }
    let policy_fields = ["p", "default", "app-0"].map(str::to_owned).to_vec();
    plane.create_all(&[policy.object(&policy_fields)?])?;
    // The UIDs that the real one has given.
    let uid = |object: &Value| -> Result<String> {
        Ok(plane.get(object)?["metadata"]["uid"].as_str().context("an object has a UID")?.to_owned())
    };
    let recording = |number| -> Result<Recording> {
        Ok(pod_template.fill(uid(&pod.object(&pod_fields(number))?)?, pod_fields(number)))
    };
    let store = Store::default();
    store.fill((0..PODS).map(&recording).collect::<Result<Vec<_>>>()?);
    store.fill([policy_template.fill(uid(&policy.object(&policy_fields)?)?, policy_fields.clone())]);
    let namespaces = plane.with_client(async |client| {
        let list: Value = serde_json::from_slice(&raw(&client, "/api/v1/namespaces").await?)?;
        let mut copies = Vec::new();
        for item in list["items"].as_array().into_iter().flatten() {
            let name = item["metadata"]["name"].as_str().context("a name")?;
            copies.push(Recording::copy(&client, RecordedKind::Namespace, "", name).await?);
        }
        Ok(copies)
    })?;
    assert!(!namespaces.is_empty());
    store.fill(namespaces);
    let folder = plane.kubeconfig.parent().context("a folder")?;
    let server = RecordedServer::start(&lab.underlay, folder, PORT, store)?;
    let kubeconfig = folder.join("recorded.kubeconfig");
    let text = std::fs::read_to_string(&plane.kubeconfig)?.replace(":6443", &format!(":{PORT}"));
    std::fs::write(&kubeconfig, text)?;
    let recorded = with_client(&lab.underlay, &kubeconfig, async |client| Ok(client.default_namespace().to_owned()));
    assert_eq!(recorded?, "default");

    let version = |list: &[u8]| -> Result<String> {
        let list: Value = serde_json::from_slice(list)?;
        Ok(list["metadata"]["resourceVersion"].as_str().context("a version")?.to_owned())
    };
    // One more pod comes while both are watched, changes, and goes.
    let last = PODS;
    let extra = pod.object(&pod_fields(last))?;
    let paths = plane.with_client(async |real| {
        let recorded = {
            let kubeconfig = kube::config::Kubeconfig::read_from(&kubeconfig)?;
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
            Client::try_from(config)?
        };
        let both = Both { real, recorded };
        for kind in [RecordedKind::Pod, RecordedKind::Policy, RecordedKind::Namespace] {
            both.same(kind.list_path()).await?;
        }
        assert_eq!(both.same_pages(RecordedKind::Pod.list_path(), 2).await?, 3);
        for kind in [RecordedKind::Pod, RecordedKind::Policy, RecordedKind::Namespace, RecordedKind::Node] {
            let path = format!(
                "{}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan",
                kind.list_path()
            );
            let count = server.store.len(kind) + 1;
            let [mut one, mut other] =
                [lines(&both.real, &path, count).await?, lines(&both.recorded, &path, count).await?];
            // Initial events have no order.
            one.sort_unstable();
            other.sort_unstable();
            assert_eq!(one, other, "{path}");
        }
        let mut paths = Vec::new();
        for list in both.same(RecordedKind::Pod.list_path()).await? {
            paths.push(format!("/api/v1/pods?watch=true&resourceVersion={}", version(&list)?));
        }
        Ok(paths)
    })?;
    plane.create_all(std::slice::from_ref(&extra))?;
    let uid = uid(&extra)?;
    plane.remove(&extra)?;
    let extra = pod_template.fill(uid, pod_fields(last));
    // Created, given its status, gone: the real one told of the first without a status, which is another template.
    for event in [Event::Modified, Event::Deleted] {
        server.store.change(event, extra.clone());
    }
    let real = with_client(&lab.underlay, &plane.kubeconfig, async |client| lines(&client, &paths[0], 3).await)?;
    let recorded = with_client(&lab.underlay, &kubeconfig, async |client| lines(&client, &paths[1], 2).await)?;
    assert_eq!(real[1], recorded[0]);
    assert!(
        recorded[1].starts_with("{\"type\":\"DELETED\"")
            && real.last().is_some_and(|line| line.starts_with("{\"type\":\"DELETED\""))
    );
    // A version whose events are gone.
    let gone = with_client(&lab.underlay, &kubeconfig, async |client| {
        let request = hyper::Request::get("/api/v1/pods?watch=true&resourceVersion=1").body(Body::empty())?;
        Ok(client.send(request).await?.status().as_u16())
    });
    assert_eq!(gone?, 410);
    Ok(())
}
