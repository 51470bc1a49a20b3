//! The cluster source against a server that answers from a script: pages, refusals, and versions that are gone.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::api::contact::Requests;

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
    let pod: Watched<PodShape> = serde_json::from_str(item).expect("shapes decode from any object");
    assert_eq!(pod.meta.resource_version.as_deref(), Some("7"));
    let update = pod.shape.reduce(&mut Interner::default()).expect("it has a name");
    assert!(matches!(update.change, Change::Pod { facts: None, .. }));
    let fields: Vec<&str> = update.faults.iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(fields, ["spec", "metadata.labels", "status.podIPs"]);
}

/// Of a request for network policies: what it must contain, and the answer. The last stays.
type Script = Arc<Mutex<VecDeque<(&'static str, u16, &'static str)>>>;

const NOTHING: &str = r#"{"metadata": {"resourceVersion": "1"}, "items": []}"#;

async fn answer(script: Script, request: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (status, body) = if request.uri().path().ends_with("/networkpolicies") {
        let step = script.lock().expect("no test panics with it").pop_front();
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
        (200, NOTHING)
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status.try_into().expect("a status");
    Ok(response)
}

async fn server(script: Script) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        loop {
            let (connection, _peer) = listener.accept().await.expect("a connection");
            let script = Arc::clone(&script);
            let service = service_fn(move |request| answer(Arc::clone(&script), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
        }
    });
    Client::try_from(Config::new(format!("http://{address}").parse().expect("a URI"))).expect("a client")
}

#[tokio::test]
async fn failures_pass_and_never_empty_the_list() {
    let script = VecDeque::from([
        ("limit=500", 403, r#"{"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}"#),
        ("limit=500", 401, "who are you"),
        (
            "limit=500",
            200,
            r#"{"metadata": {"continue": "next"}, "items": [{"metadata": {"name": "a", "resourceVersion": "2"}}]}"#,
        ),
        ("continue=next", 500, "later"),
        (
            "limit=500",
            200,
            r#"{"metadata": {"continue": "next"}, "items": [{"metadata": {"name": "a", "resourceVersion": "2"}}]}"#,
        ),
        (
            "continue=next",
            200,
            r#"{"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "b"}, "spec": 7}]}"#,
        ),
        ("resourceVersion=9", 403, r#"{"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}"#),
        (
            "resourceVersion=9",
            200,
            "{\"type\": \"ADDED\", \"object\": {\"metadata\": {\"name\": \"c\", \"resourceVersion\": \"10\"}}}\n{\"type\": \"DELETED\", \"object\": {\"metadata\": {\"name\": \"a\", \"resourceVersion\": \"11\"}}}\n",
        ),
        (
            "resourceVersion=11",
            200,
            "{\"type\": \"ERROR\", \"object\": {\"kind\": \"Status\", \"code\": 410, \"message\": \"gone\"}}\n",
        ),
        ("limit=500", 200, r#"{"metadata": {"resourceVersion": "20"}, "items": []}"#),
        ("resourceVersion=20", 410, r#"{"kind": "Status", "code": 410, "reason": "Expired", "message": "gone"}"#),
        (
            "limit=500",
            200,
            r#"{"metadata": {"resourceVersion": "30"}, "items": [{"metadata": {"name": "d", "resourceVersion": "2"}}]}"#,
        ),
    ]);
    let (sender, mut updates) = mpsc::channel(1);
    let wait = Wait { min: Duration::from_millis(1), max: Duration::from_millis(4) };
    let client = server(Arc::new(Mutex::new(script))).await;
    let contact = Contact::new(Requests::default());
    let watching = tokio::spawn(async move { watch_with(wait, client, &contact, sender).await });
    let mut told = Vec::new();
    while !told.ends_with(&["d".to_owned(), "]".to_owned()]) {
        let batch = tokio::time::timeout(Duration::from_secs(10), updates.recv()).await;
        let batch = batch.unwrap_or_else(|_elapsed| panic!("nothing follows {}", told.join(" ")));
        told.extend(batch.expect("it goes on").into_iter().filter_map(name));
    }
    let expected = "[ [ [ a [ a b ] c -a [ ] [ d ]";
    assert_eq!(told.join(" "), expected);
    drop(updates);
    watching.await.expect("no panic").expect("no error");
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
