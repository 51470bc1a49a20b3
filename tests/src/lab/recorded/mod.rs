//! A server that takes a real API server's place for clusters too large to fill on one machine: it gives lists and watches of objects
//! byte for byte as the real one gives them, from one recording of each sort of object in which the names and numbers are exchanged
//! (`tests/recorded.rs` holds the two against each other). It takes no writes.

mod kind;
mod pattern;
mod store;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use kind::RecordedKind;
pub use pattern::{Pattern, Recording, Template, raw};
pub use store::{Event, Store};

use super::control_plane::{ControlPlane, PORT};
use super::{Lab, Netns};

/// As the real one sends them.
const BOOKMARKS: Duration = Duration::from_secs(60);

/// Serves until it is dropped.
pub struct RecordedServer {
    pub store: Arc<Store>,
    /// Ends the thread when it goes.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RecordedServer {
    /// At the address of a control plane, which is ended, and with its key: kubeconfigs of the one lead to the other.
    pub fn replace(lab: &Lab, plane: ControlPlane, store: Store) -> Result<Self> {
        let folder = plane.kubeconfig.parent().context("the kubeconfig is in the folder of the keys")?.to_owned();
        drop(plane);
        Self::start(&lab.underlay, &folder, PORT, store)
    }

    /// Beside a control plane, with its key.
    pub fn start(netns: &Netns, folder: &Path, port: u16, store: Store) -> Result<Self> {
        let acceptor = acceptor(folder)?;
        let [address, _] = Lab::UNDERLAY;
        let listener = netns.run(|| TcpListener::bind(SocketAddr::new(address, port)))?;
        listener.set_nonblocking(true)?;
        let store = Arc::new(store);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = store.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = serve(listener, acceptor, served) => eprintln!("the recorded server has ended: {result:?}"),
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { store, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for RecordedServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn acceptor(folder: &Path) -> Result<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(folder.join("server.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, store: Arc<Store>) -> Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, store) = (acceptor.clone(), store.clone());
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await?;
            let service = service_fn(|request: Request<Incoming>| {
                let answer = answer(&store, request.uri().path(), request.uri().query().unwrap_or_default());
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // Whoever goes away in between is of no interest.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            Ok::<_, std::io::Error>(())
        });
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn answer(store: &Arc<Store>, path: &str, query: &str) -> Response<Body> {
    let get = |name: &str| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty())
    };
    let Some(kind) = RecordedKind::ALL.into_iter().find(|kind| kind.list_path() == path) else {
        return failure(StatusCode::NOT_FOUND, "NotFound");
    };
    if get("watch") != Some("true") {
        let after = get("continue").map(|token| token.replace('_', "/"));
        let limit = get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        return respond(StatusCode::OK, Full::new(store.page(kind, after.as_deref(), limit)).boxed_unsync());
    }
    let time = get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(1800);
    let (begin, events) = if get("sendInitialEvents") == Some("true") {
        store.watch_list(kind)
    } else {
        let after = get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        match store.watch(kind, after) {
            Ok(events) => events,
            Err(store::Gone) => return failure(StatusCode::GONE, "Expired"),
        }
    };
    respond(StatusCode::OK, watch_body(store.clone(), kind, begin, events, Duration::from_secs(time)))
}

/// Ends after its time, as the real server ends watches.
fn watch_body(
    store: Arc<Store>,
    kind: RecordedKind,
    begin: Vec<Bytes>,
    events: mpsc::Receiver<Bytes>,
    time: Duration,
) -> Body {
    let end = tokio::time::Instant::now() + time;
    let bookmarks = tokio::time::interval_at(tokio::time::Instant::now() + BOOKMARKS, BOOKMARKS);
    let next = futures::stream::unfold((events, bookmarks), move |(mut events, mut bookmarks)| {
        let store = store.clone();
        async move {
            let event = tokio::select! {
                event = events.recv() => event?,
                _ = bookmarks.tick() => store.bookmark(kind),
                () = tokio::time::sleep_until(end) => return None,
            };
            Some((event, (events, bookmarks)))
        }
    });
    let all = futures::stream::iter(begin).chain(next);
    StreamBody::new(all.map(|event| Ok(Frame::data(event)))).boxed_unsync()
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(body).expect("status and header are constants")
}

fn failure(status: StatusCode, reason: &str) -> Response<Body> {
    let code = status.as_u16();
    let text = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code});
    respond(status, Full::new(Bytes::from(format!("{text}\n"))).boxed_unsync())
}
