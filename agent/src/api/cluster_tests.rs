//! The cluster source against a server that answers from a script: pages, streams, refusals, versions that are gone, and nonsense.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Config;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::api::contact::{Requests, StaleKinds};
use crate::api::kinds::Shape as _;
use crate::api::reduce::intern::Interner;
use crate::api::watch::{WAIT_RESET, Waits};
use crate::facts::{Change, Kind};

#[test]
fn waits_double_up_to_a_bound_and_begin_again() {
    let (mut waits, mut now) = (Waits { wait: WAIT, last: None, gone: false }, Instant::now());
    let mut whole = WAIT.min;
    for _failure in 0..20 {
        let wait = waits.next(now, false);
        assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
        now += wait;
        whole = WAIT.max.min(2 * whole);
    }
    assert!(waits.next(now, true) <= WAIT.min, "a version that is gone is an answer");
    assert!(waits.next(now, true) > WAIT.min, "unless it is the only one");
    assert!(waits.next(now + WAIT_RESET, false) <= WAIT.min);
}

#[test]
fn an_object_that_is_odd_does_not_stop_the_list() {
    let item =
        r#"{"metadata": {"name": "a", "resourceVersion": "7", "labels": [1]}, "spec": "x", "status": {"podIPs": 3}}"#;
    let pod: PodShape = serde_json::from_str(item).expect("shapes decode from any object");
    assert_eq!(pod.resource_version(), Some("7"));
    let update = pod.reduce(&mut Interner::default()).expect("it has a name");
    assert!(matches!(update.change, Change::Pod { facts: None, .. }));
    let fields: Vec<&str> = update.faults.iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(fields, ["spec", "metadata.labels", "status.podIPs"]);
}

/// Of a request for network policies: what it must contain, and the answer. The last stays.
type Script = Arc<Mutex<VecDeque<(&'static str, u16, String)>>>;

#[derive(Clone)]
struct Server {
    script: Script,
    /// It knows of streaming lists; of other kinds than policies there are none then either.
    streams: bool,
}

const FORBIDDEN: &str = r#"{"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}"#;
const GONE: &str = r#"{"kind": "Status", "code": 410, "reason": "Expired", "message": "gone"}"#;

/// After a body: the connection stays open and nothing follows.
const HELD: &str = "held";

type Answer = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

async fn answer(server: Server, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let policies = resource == "networkpolicies";
    let (status, body) = if query.contains("sendInitialEvents=true") && !(server.streams && policies) {
        assert!(query.contains("resourceVersionMatch=NotOlderThan") && query.ends_with("resourceVersion="), "{query}");
        (422, r#"{"kind": "Status", "code": 422, "reason": "Invalid", "message": "forbidden for watch"}"#.to_owned())
    } else if policies {
        let step = server.script.lock().expect("no test panics with it").pop_front();
        match step {
            Some((wanted, status, body)) => {
                assert!(query.contains(wanted), "{query} is not {wanted}");
                (status, body)
            }
            None => std::future::pending().await,
        }
    } else if query.contains("watch=") {
        std::future::pending().await
    } else {
        let kind = resource[..1].to_uppercase() + resource[1..].trim_end_matches('s');
        (200, format!(r#"{{"kind": "{kind}List", "metadata": {{"resourceVersion": "1"}}, "items": null}}"#))
    };
    let whole = body.strip_suffix(HELD).map(str::to_owned);
    let held = whole.is_some();
    let data = stream::iter([Ok(Frame::data(whole.unwrap_or(body).into()))]);
    let body = if held { data.chain(stream::pending()).boxed() } else { data.boxed() };
    let mut response = Response::new(StreamBody::new(body));
    *response.status_mut() = status.try_into().expect("a status");
    Ok(response)
}

async fn serve(server: Server) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        loop {
            let (connection, _peer) = listener.accept().await.expect("a connection");
            let server = server.clone();
            let service = service_fn(move |request| answer(server.clone(), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
        }
    });
    let mut config = Config::new(format!("http://{address}").parse().expect("a URI"));
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// A list of policies: where it goes on, its version, its items.
fn list(next: &str, version: &str, items: &str) -> String {
    format!(
        r#"{{"kind": "NetworkPolicyList", "metadata": {{"continue": "{next}", "resourceVersion": "{version}"}}, "items": [{items}]}}"#
    )
}

fn item(name: &str) -> String {
    format!(r#"{{"metadata": {{"name": "{name}", "resourceVersion": "2"}}}}"#)
}

/// A line of a watch.
fn line(event: &str, name: &str, version: &str) -> String {
    let object =
        format!(r#"{{"kind": "NetworkPolicy", "metadata": {{"name": "{name}", "resourceVersion": "{version}"}}}}"#);
    format!("{{\"type\": \"{event}\", \"object\": {object}}}\n")
}

fn bookmark(version: &str, ends: bool) -> String {
    let annotations = if ends { r#"{"k8s.io/initial-events-end": "true"}"# } else { "{}" };
    format!(
        "{{\"type\": \"BOOKMARK\", \"object\": {{\"kind\": \"NetworkPolicy\", \"metadata\": {{\"resourceVersion\": \"{version}\", \"annotations\": {annotations}}}}}}}\n"
    )
}

fn error(code: u16) -> String {
    format!("{{\"type\": \"ERROR\", \"object\": {{\"kind\": \"Status\", \"code\": {code}, \"message\": \"no\"}}}}\n")
}

/// What is told of policies until the script has ended and `last` was told, and what was told to be stale then.
async fn told(streams: bool, script: Vec<(&'static str, u16, String)>, last: &str) -> (String, StaleKinds) {
    let (sender, mut updates) = mpsc::channel(1);
    let wait =
        Wait { min: Duration::from_millis(1), max: Duration::from_millis(4), stream: Duration::from_millis(300) };
    let script: Script = Arc::new(Mutex::new(script.into()));
    let client = serve(Server { script: script.clone(), streams }).await;
    let contact = Contact::new(Requests::default());
    let stale = contact.subscribe();
    let watching = tokio::spawn(async move { watch_with(wait, client, &contact, sender).await });
    let mut told: Vec<String> = Vec::new();
    while !told.join(" ").ends_with(last) || !script.lock().expect("no test panics with it").is_empty() {
        let batch = tokio::time::timeout(Duration::from_secs(10), updates.recv()).await;
        let batch = batch.unwrap_or_else(|_elapsed| panic!("nothing follows {}", told.join(" ")));
        told.extend(batch.expect("it goes on").into_iter().filter_map(name));
    }
    let stale = stale.borrow().clone();
    drop(updates);
    watching.await.expect("no panic").expect("no error");
    (told.join(" "), stale)
}

fn name(Update { change, .. }: Update) -> Option<String> {
    match change {
        Change::Relist(Kind::Policy) => Some("[".to_owned()),
        Change::Relisted(Kind::Policy) => Some("]".to_owned()),
        Change::Policy(name, facts) => Some(format!("{}{}", if facts.is_some() { "" } else { "-" }, name.name)),
        Change::Relist(_) | Change::Relisted(_) => None,
        Change::Namespace(..) | Change::Pod { .. } | Change::Node(..) | Change::Service(..) => {
            unreachable!("there are none")
        }
    }
}

#[tokio::test]
async fn failures_pass_and_never_empty_the_list() {
    let script = vec![
        ("limit=500", 403, FORBIDDEN.to_owned()),
        ("limit=500", 401, "who are you".to_owned()),
        ("limit=500", 200, list("next", "", &item("a"))),
        ("continue=next", 500, "later".to_owned()),
        ("limit=500", 503, "busy".to_owned()),
        ("limit=500", 200, list("next", "", &item("a"))),
        ("continue=next", 410, GONE.to_owned()),
        ("limit=500", 200, list("next", "", &item("a"))),
        ("continue=next", 200, list("", "9", r#"{"metadata": {"name": "b"}, "spec": 7}"#)),
        ("resourceVersion=9", 403, FORBIDDEN.to_owned()),
        ("resourceVersion=9", 200, line("ADDED", "c", "10") + &line("DELETED", "a", "11")),
        ("resourceVersion=11", 200, error(410)),
        ("limit=500", 200, list("", "20", "")),
        ("resourceVersion=20", 410, GONE.to_owned()),
        ("limit=500", 200, list("", "30", &item("d"))),
        ("resourceVersion=30", 200, line("ADDED", "e", "31") + &bookmark("40", false)),
        ("resourceVersion=40", 200, error(500)),
        ("resourceVersion=40", 200, line("ADDED", "f", "41")),
    ];
    let (told, _) = told(false, script, "f").await;
    assert_eq!(told, "[ [ [ a [ [ a [ a b ] c -a [ ] [ d ] e f");
}

/// A change that was overlooked would be missed for ever.
#[tokio::test]
async fn after_nonsense_everything_is_listed_anew_and_nothing_of_it_believed() {
    let foreign = line("MODIFIED", "x", "12").replace("NetworkPolicy", "Pod");
    let cut = line("MODIFIED", "x", "12")[..40].to_owned() + "\n";
    let mut script = vec![
        ("limit=500", 200, "{}".to_owned()),
        ("limit=500", 200, "<html>Please log in</html>".to_owned()),
        ("limit=500", 200, list("", "5", &item("x")).replace("NetworkPolicyList", "PodList")),
        ("limit=500", 200, list("", "5", &item("x"))[..60].to_owned()),
        ("limit=500", 200, list("", "", &item("x"))),
        ("limit=500", 200, r#"{"kind": "Status", "status": "Success"}"#.to_owned()),
    ];
    let nonsense = [
        cut,
        foreign,
        // Told before.
        line("MODIFIED", "x", "11"),
        line("DELETED", "a", "9"),
        line("MODIFIED", "x", ""),
        line("FORGOTTEN", "x", "12"),
        "<html>\n".to_owned(),
    ];
    for nonsense in nonsense {
        let after = line("MODIFIED", "y", "13");
        script.push(("limit=500", 200, list("", "10", &item("a"))));
        script.push(("resourceVersion=10", 200, line("MODIFIED", "b", "11") + &nonsense + &after));
    }
    script.push(("limit=500", 200, list("", "20", "")));
    let (told, _) = told(false, script, "[ ]").await;
    assert_eq!(told, format!("{}{}[ ]", "[ ".repeat(6), "[ a ] b ".repeat(7)));
}

#[tokio::test]
async fn a_list_is_a_stream_where_there_are_any() {
    let streams = "sendInitialEvents=true";
    let script = vec![
        (streams, 403, FORBIDDEN.to_owned()),
        // One that breaks off is no list.
        (streams, 200, line("ADDED", "a", "7") + &bookmark("8", false)),
        (streams, 200, line("ADDED", "a", "7") + &error(500)),
        (
            streams,
            200,
            line("ADDED", "b", "6") + &line("ADDED", "a", "3") + &bookmark("8", true) + &line("DELETED", "a", "9"),
        ),
        ("resourceVersion=9", 200, line("ADDED", "c", "12") + "{\"type\": \"ADDED\", \"obj"),
        ("resourceVersion=12", 200, error(410)),
        (streams, 200, line("ADDED", "c", "12") + &bookmark("30", true) + &line("ADDED", "d", "31")),
    ];
    let (told, stale) = told(true, script, "d").await;
    assert_eq!(told, "[ [ a [ a [ b a ] -a c [ c ] d");
    assert!(stale.is_empty(), "{stale:?}");
}

/// Where the storage behind a server cannot say how far it is, the end of a stream never comes.
#[tokio::test]
async fn a_stream_that_does_not_end_gives_way_to_pages() {
    let script = vec![
        ("sendInitialEvents=true", 200, line("ADDED", "a", "7") + HELD),
        ("limit=500", 200, list("", "8", &item("b"))),
        ("resourceVersion=8", 410, GONE.to_owned()),
        ("limit=500", 200, list("", "9", &item("c"))),
    ];
    let (told, _) = told(true, script, "c ]").await;
    assert_eq!(told, "[ a [ b ] [ c ]");
}
