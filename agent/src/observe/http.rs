//! The pages at `--metrics-addr`: `/metrics`, `/livez`, `/readyz`. Nothing here changes anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::metrics::{self, Metrics};

/// A connection is one request, and ends after this time whatever its other end does.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

/// Connections beyond this wait in the kernel until another has ended, which is after [`CONNECTION_TIME_MAX`] at the latest.
const CONNECTIONS_MAX: usize = 64;

/// How long to wait when the process has no descriptors left; no event tells that it has some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Ready means: enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// What is in force may not be what the cluster wants any more: why, as a sentence.
    Stale(String),
    /// What is waited for, as a sentence.
    NotYet(String),
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: watch::Receiver<Readiness>) -> Infallible {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, peer)) => connections.push(connection(stream, peer, &metrics, &readiness)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection at the metrics address");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(()) = connections.next() => {}
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, metrics: &Metrics, readiness: &watch::Receiver<Readiness>) {
    let service = service_fn(|request: Request<Incoming>| {
        let takes = |accept: &str| accept.contains("application/openmetrics-text");
        let accept = request.headers().get_all(ACCEPT).iter();
        let openmetrics = accept.filter_map(|accept| accept.to_str().ok()).any(takes);
        let page = Page { path: request.uri().path(), openmetrics };
        let response = answer(request.method(), page, metrics, &readiness.borrow());
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).timer(TokioTimer::new());
    let served = server.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME_MAX, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection to the metrics address failed"),
        Err(_) => tracing::debug!(%peer, "a connection to the metrics address was too slow"),
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Page<'a> {
    path: &'a str,
    /// Whoever asks takes metrics in that format.
    openmetrics: bool,
}

fn answer(method: &Method, page: Page<'_>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, kind, body) = match (method, page.path) {
        (&Method::GET | &Method::HEAD, "/metrics") if page.openmetrics => {
            (StatusCode::OK, metrics::OPENMETRICS, metrics.encode())
        }
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, metrics::TEXT, metrics::as_text(&metrics.encode()))
        }
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, PLAIN, "ok\n".into()),
        (&Method::GET | &Method::HEAD, "/readyz") => match readiness {
            Readiness::Ready => (StatusCode::OK, PLAIN, "ok\n".into()),
            Readiness::Stale(reason) => (StatusCode::OK, PLAIN, format!("ok, but stale: {reason}\n")),
            Readiness::NotYet(reason) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("not ready: {reason}\n")),
        },
        (_, "/metrics" | "/livez" | "/readyz") => {
            (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD are answered here\n".into())
        }
        _ => (StatusCode::NOT_FOUND, PLAIN, "the pages are /metrics, /livez and /readyz\n".into()),
    };
    let mut response = Response::builder().status(status).header(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response = response.header(ALLOW, "GET, HEAD");
    }
    response.body(Full::new(Bytes::from(body))).expect("status and headers are constants")
}

#[cfg(test)]
mod tests {
    use palisade_common::layout::FlowStats;

    use std::collections::BTreeMap;

    use palisade_common::Reason;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::metrics::{EndpointState, MapUse, Snapshot};
    use super::*;
    use crate::facts::{EventSource, Kind};

    /// Status, headers and body of one request over a real connection.
    async fn ask(address: SocketAddr, request: &str) -> (u16, String, String) {
        ask_for(address, request, "*/*").await
    }

    /// The same of one who takes only that format.
    async fn ask_for(address: SocketAddr, request: &str, accept: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut text = String::new();
        let whole = tokio::time::timeout(CONNECTION_TIME_MAX / 6, stream.read_to_string(&mut text));
        whole.await.expect("the server closes the connection at once").expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, head.to_lowercase(), body.into())
    }

    /// The server on a port of its own, while `client` runs.
    async fn with_server<F: Future<Output = ()>>(
        metrics: Arc<Metrics>,
        readiness: watch::Receiver<Readiness>,
        client: impl FnOnce(SocketAddr) -> F,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::select! {
            never = serve(listener, metrics, readiness) => match never {},
            () = client(address) => {}
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn pages() {
        let (ready, readiness) = watch::channel(Readiness::NotYet("no list of pods yet".into()));
        let metrics = Arc::new(Metrics::new(|| Ok(Snapshot::default())));
        with_server(metrics, readiness, |address| async move {
            let cases = [
                ("GET /livez", 200, "ok\n"),
                ("HEAD /livez", 200, ""),
                ("GET /readyz", 503, "not ready: no list of pods yet\n"),
                ("POST /metrics", 405, "only GET and HEAD are answered here\n"),
                ("GET /", 404, "the pages are /metrics, /livez and /readyz\n"),
            ];
            for (request, status, body) in cases {
                let (found, _, text) = ask(address, request).await;
                assert_eq!((found, text.as_str()), (status, body), "{request}");
            }
            ready.send_replace(Readiness::Ready);
            assert_eq!(ask(address, "GET /readyz").await.0, 200);
            // Connections that say nothing, as many as there may be but one, keep nobody out.
            let mut silent = Vec::new();
            for _ in 1..CONNECTIONS_MAX {
                silent.push(TcpStream::connect(address).await.expect("the server listens"));
            }
            assert_eq!(ask(address, "GET /livez").await.0, 200);
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn numbers() {
        let snapshot = || {
            Ok(Snapshot {
                services: FlowStats {
                    service_answered: 7,
                    service_judged: 8,
                    foreign_marks: 9,
                    ..FlowStats::default()
                },
                packets: BTreeMap::from([(Reason::NoRule, 7)]),
                refused_early: 6,
                events_lost: 3,
                midstream: 2,
                maps: BTreeMap::from([("FLOWS", MapUse { entries: 5, entries_max: 1024 })]),
            })
        };
        let metrics = Arc::new(Metrics::new(snapshot));
        metrics.set_faults(&BTreeMap::from([(Kind::Policy, 4), (Kind::Pod, 1)]));
        metrics.set_faults(&BTreeMap::from([(Kind::Policy, 2)]));
        metrics.set_endpoints(&BTreeMap::from([(EndpointState::Closed, 6)]));
        metrics.updated(Kind::Pod);
        metrics.applied(9, Duration::from_millis(3));
        metrics.apply_failed();
        metrics.set_paused(true, 2);
        metrics.set_failed_writes(4);
        metrics.set_failed_writes(6);
        metrics.resynced(EventSource::Results);
        let (_ready, readiness) = watch::channel(Readiness::Ready);
        with_server(metrics, readiness, |address| async move {
            let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
            let (status, head, body) = ask_for(address, "GET /metrics", accept).await;
            assert_eq!(status, 200);
            assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
            let (_, plain_head, plain) = ask(address, "GET /metrics").await;
            assert!(plain_head.contains("content-type: text/plain; version=0.0.4"), "{plain_head}");
            assert!(plain.contains("# TYPE palisade_packets_total counter\npalisade_packets_total{"), "{plain}");
            assert!(plain.contains("# TYPE palisade_apply_seconds histogram\n"), "{plain}");
            assert!(plain.contains("# HELP palisade_epoch Number") && !plain.contains("# EOF"), "{plain}");
            let samples =
                |page: &str| page.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(samples(&plain), samples(&body));
            let lines: Vec<_> = body.lines().collect();
            for expected in [
                r#"palisade_packets_total{reason="no-rule"} 7"#,
                r#"palisade_packets_total{reason="allowed"} 0"#,
                "palisade_failed_writes_total 6",
                r#"palisade_resyncs_total{source="results"} 1"#,
                r#"palisade_resyncs_total{source="links"} 0"#,
                r#"palisade_faults{kind="NetworkPolicy"} 2"#,
                r#"palisade_faults{kind="Pod"} 0"#,
                r#"palisade_endpoints{state="closed"} 6"#,
                r#"palisade_endpoints{state="open"} 0"#,
                r#"palisade_updates_total{kind="Pod"} 1"#,
                r#"palisade_updates_total{kind="Node"} 0"#,
                "palisade_epoch 9",
                r#"palisade_apply_seconds_bucket{le="0.002"} 0"#,
                r#"palisade_apply_seconds_bucket{le="0.004"} 1"#,
                "palisade_apply_seconds_count 1",
                "palisade_apply_failures_total 1",
                "palisade_paused_node 1",
                "palisade_paused_endpoints 2",
                "palisade_events_lost_total 3",
                r#"palisade_refused_early_total{hook="xdp"} 6"#,
                r#"palisade_xdp_devices{mode="missing"} 0"#,
                "palisade_midstream_total 2",
                "palisade_service_flows_answered_total 7",
                "palisade_service_flows_judged_total 8",
                "palisade_foreign_marks_total 9",
                r#"palisade_map_entries{map="FLOWS"} 5"#,
                r#"palisade_map_entries_max{map="FLOWS"} 1024"#,
                "palisade_snapshot_failures_total 0",
                "# EOF",
            ] {
                assert!(lines.contains(&expected), "no `{expected}` in\n{body}");
            }
            let types = lines.iter().filter(|line| line.starts_with("# TYPE")).count();
            assert_eq!(types, lines.iter().filter(|line| line.starts_with("# HELP")).count());
            assert_eq!(types, 25);
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn maps_that_cannot_be_read_leave_the_rest() {
        let metrics = Metrics::new(|| anyhow::bail!("no pins"));
        metrics.encode();
        let page = metrics.encode();
        assert!(!page.contains("palisade_packets"), "{page}");
        // The failure of a scrape is seen by the next.
        assert!(page.contains("palisade_snapshot_failures_total 1"), "{page}");
        assert!(page.contains("palisade_epoch 0") && page.ends_with("# EOF\n"), "{page}");
    }
}
