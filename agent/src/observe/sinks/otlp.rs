//! OpenTelemetry logs: OTLP over HTTP in its JSON form (opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding"), which every collector
//! takes beside the binary one and which needs no library that is not here already.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::observe::record::Record;

/// Lines that wait for a slow collector.
const QUEUE: usize = 4096;
/// Lines in one request.
const BATCH_MAX: usize = 512;
/// How long a line waits for others.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// How long a collector may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Between two tries of one batch; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A batch that was not taken for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(120);

/// Takes lines; a task sends them.
#[derive(Debug)]
pub struct OtlpSink(mpsc::Sender<Arc<Record>>);

/// Where they are sent, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(Uri);

impl std::str::FromStr for OtlpEndpoint {
    type Err = String;

    /// `http://HOST:PORT`, to which the standard's `/v1/logs` is added, as OTEL_EXPORTER_OTLP_ENDPOINT has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            return Err("it has to begin with http:// and name a host, as in http://127.0.0.1:4318 (TLS is not spoken: use a collector on \
                        the node or in the cluster)"
                .to_owned());
        }
        let whole = format!("{}/v1/logs", text.trim_end_matches('/'));
        whole.parse().map(Self).map_err(|error| format!("{error}"))
    }
}

impl OtlpSink {
    /// The future sends until the sink is dropped. `unsent` counts lines that no collector took.
    pub fn start(to: OtlpEndpoint, node: String, unsent: Counter) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, lines) = mpsc::channel(QUEUE);
        (Self(sender), send(to, node, lines, unsent))
    }

    /// Whether it was taken.
    pub fn take(&self, record: Arc<Record>) -> bool {
        self.0.try_send(record).is_ok()
    }
}

async fn send(to: OtlpEndpoint, node: String, mut lines: mpsc::Receiver<Arc<Record>>, unsent: Counter) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut works = true;
    while let Some(first) = lines.recv().await {
        let mut batch = vec![first];
        let full = Instant::now() + BATCH_TIME;
        while batch.len() < BATCH_MAX
            && let Ok(Some(record)) = timeout_at(full, lines.recv()).await
        {
            batch.push(record);
        }
        let body = Bytes::from(request(&node, &batch).to_string());
        match deliver(&client, &to, &body).await {
            Ok(()) => works = true,
            Err(error) => {
                unsent.inc_by(batch.len() as u64);
                if std::mem::take(&mut works) {
                    let (to, lines) = (to.0.to_string(), batch.len());
                    tracing::warn!(
                        to,
                        lines,
                        error = format!("{error:#}"),
                        "the collector of --otlp-endpoint does not take lines, they are lost"
                    );
                }
            }
        }
    }
}

/// Tries until the batch was taken, is refused for good, or is too old.
async fn deliver(client: &Client<HttpConnector, Full<Bytes>>, to: &OtlpEndpoint, body: &Bytes) -> anyhow::Result<()> {
    let (begun, mut pause) = (Instant::now(), RETRY_MIN);
    loop {
        let request = Request::post(&to.0).header("content-type", "application/json").body(Full::new(body.clone()))?;
        let asked = timeout(ANSWER_TIME, async {
            let answer = client.request(request).await?;
            let status = answer.status();
            anyhow::Ok((status, answer.into_body().collect().await?.to_bytes()))
        });
        let failed = match asked.await.context("no answer in time") {
            Ok(Ok((status, _))) if status.is_success() => return Ok(()),
            // Of the others the standard says that they are not to be tried again.
            Ok(Ok((status, said))) if !is_passing(status) => {
                let said = String::from_utf8_lossy(&said[..said.len().min(200)]).into_owned();
                bail!("it answers {status}: {said}")
            }
            Ok(Ok((status, _))) => anyhow::anyhow!("it answers {status}"),
            Ok(Err(error)) | Err(error) => error,
        };
        if begun.elapsed() + pause > GIVE_UP {
            return Err(failed);
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// An `ExportLogsServiceRequest`.
fn request(node: &str, records: &[Arc<Record>]) -> Value {
    let resource = [("service.name", "palisade"), ("service.version", crate::VERSION), ("k8s.node.name", node)];
    json!({"resourceLogs": [{
        "resource": {"attributes": resource.map(|(key, value)| attribute(key, json!({"stringValue": value})))},
        "scopeLogs": [{
            "scope": {"name": "palisade.flows"},
            "logRecords": records.iter().map(|record| log_record(record)).collect::<Vec<_>>(),
        }],
    }]})
}

fn attribute(key: &str, value: Value) -> Value {
    json!({"key": key, "value": value})
}

/// Names are those of OpenTelemetry's conventions where there are any. 64-bit integers are strings in this form.
fn log_record(record: &Record) -> Value {
    let at = record.time.parse::<Timestamp>().unwrap_or_default().as_nanosecond().to_string();
    let text = |key: &str, value: Option<&str>| value.map(|value| attribute(key, json!({"stringValue": value})));
    let number = |key: &str, value: u64| Some(attribute(key, json!({"intValue": value.to_string()})));
    let list = |key: &str, values: &[String]| {
        let values: Vec<Value> = values.iter().map(|value| json!({"stringValue": value})).collect();
        (!values.is_empty()).then(|| attribute(key, json!({"arrayValue": {"values": values}})))
    };
    let pod = record.namespace.as_ref().and_then(|_| record.pod.split_once('/')).map(|(_, name)| name);
    let ends = [&record.source, &record.destination].map(|end| end.as_deref().map(split));
    let address = |end: usize| ends[end].map(|(address, _)| address);
    let port = |key: &str, end: usize| ends[end].and_then(|(_, port)| port).and_then(|port| number(key, port.into()));
    let attributes: Vec<Value> = [
        text("palisade.verdict", Some(&record.verdict)),
        text("palisade.reason", Some(&record.reason)),
        text("palisade.direction", Some(&record.direction)),
        text("k8s.namespace.name", record.namespace.as_deref()),
        text("k8s.pod.name", pod),
        text("palisade.pod", Some(&record.pod)),
        text("palisade.peer", record.peer.as_deref()),
        text("network.transport", record.protocol.as_deref()),
        text("source.address", address(0)),
        port("source.port", 0),
        text("destination.address", address(1)),
        port("destination.port", 1),
        list("palisade.policies", &record.policies),
        text("palisade.rule", record.rule.as_deref()),
        text("palisade.at", record.at.as_deref()),
        number("palisade.packets", record.packets),
        number("palisade.more", record.more),
        number("palisade.others", record.others),
    ]
    .into_iter()
    .flatten()
    .collect();
    json!({
        "timeUnixNano": at,
        "observedTimeUnixNano": at,
        "severityNumber": 9,
        "severityText": "INFO",
        "body": {"stringValue": sentence(record)},
        "attributes": attributes,
    })
}

/// What `record::end` put together.
fn split(end: &str) -> (&str, Option<u16>) {
    if let Ok(whole) = end.parse::<std::net::SocketAddr>() {
        let (address, _) = end.rsplit_once(':').unwrap_or((end, ""));
        return (address.trim_start_matches('[').trim_end_matches(']'), Some(whole.port()));
    }
    (end, None)
}

fn sentence(record: &Record) -> String {
    let peer = record.peer.clone().or_else(|| record.peer_address.map(|address| address.to_string()));
    let peer = peer.unwrap_or_else(|| "below IP".to_owned());
    let Record { verdict, pod, direction, reason, .. } = record;
    let (protocol, port) = (record.protocol.as_deref().unwrap_or(""), record.port);
    let to = port.map_or_else(|| protocol.to_owned(), |port| format!("{protocol}/{port}"));
    format!("{verdict} {direction} {pod} {peer} {to} {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let uri = |text: &str| text.parse::<OtlpEndpoint>().map(|endpoint| endpoint.0.to_string());
        assert_eq!(uri("http://127.0.0.1:4318"), Ok("http://127.0.0.1:4318/v1/logs".to_owned()));
        assert_eq!(uri("http://collector.monitoring:4318/"), Ok("http://collector.monitoring:4318/v1/logs".to_owned()));
        for wrong in ["https://a:4318", "127.0.0.1:4318", "", "http://"] {
            assert!(uri(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_as_the_standard_wants_it() {
        let record = Record {
            time: "2026-01-01T00:00:00.500Z".to_owned(),
            verdict: "refused".to_owned(),
            reason: "no-rule".to_owned(),
            direction: "ingress".to_owned(),
            namespace: Some("shop".to_owned()),
            pod: "shop/db".to_owned(),
            peer_address: Some("fd00::1".parse().expect("an address")),
            protocol: Some("tcp".to_owned()),
            port: Some(5432),
            source: Some("[fd00::1]:40000".to_owned()),
            destination: Some("[fd00::2]:5432".to_owned()),
            policies: vec!["shop/p".to_owned()],
            packets: 3,
            ..Record::default()
        };
        let said = request("one", &[Arc::new(record)]);
        let logs = &said["resourceLogs"][0];
        assert_eq!(logs["resource"]["attributes"][2]["value"]["stringValue"], "one");
        let line = &logs["scopeLogs"][0]["logRecords"][0];
        assert_eq!(line["timeUnixNano"], "1767225600500000000");
        assert_eq!(line["body"]["stringValue"], "refused ingress shop/db fd00::1 tcp/5432 no-rule");
        let value = |key: &str| {
            let attributes = line["attributes"].as_array().expect("a list");
            attributes.iter().find(|attribute| attribute["key"] == key).map(|attribute| attribute["value"].clone())
        };
        assert_eq!(value("k8s.pod.name"), Some(json!({"stringValue": "db"})));
        assert_eq!(value("source.address"), Some(json!({"stringValue": "fd00::1"})));
        assert_eq!(value("destination.port"), Some(json!({"intValue": "5432"})));
        assert_eq!(value("palisade.policies"), Some(json!({"arrayValue": {"values": [{"stringValue": "shop/p"}]}})));
        assert_eq!(value("palisade.peer"), None);
        assert_eq!(split("10.0.0.1:80"), ("10.0.0.1", Some(80)));
        assert_eq!(split("fd00::1"), ("fd00::1", None));
    }
}
