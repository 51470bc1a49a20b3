//! A proxy between agents and the API server that does what networks, load balancers and servers do when things go wrong.
//!
//! Agents speak HTTP to it, and it asks the API server as the account of a kubeconfig.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::Lab;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meddling {
    None,
    /// Answers break off, and connections end without one.
    Cut,
    /// Whatever is said takes so much longer.
    Delay(Duration),
    /// Each answer breaks off after so many bytes.
    Truncate(usize),
    /// Every other line of a watch is cut in its middle, and what follows goes on.
    Garble,
    /// Each line of a watch is followed by the one before it.
    Replay,
    /// This is the answer, to whoever asks for the resource, or for anything.
    Answer {
        resource: Option<&'static str>,
        status: u16,
        body: &'static str,
    },
}

/// Ends when it is dropped.
pub struct Meddler {
    /// For agents.
    pub kubeconfig: PathBuf,
    meddling: watch::Sender<Meddling>,
    _stop: oneshot::Sender<()>,
}

const PORT: u16 = 8443;

impl Meddler {
    /// Asks as the account of `kubeconfig`.
    pub fn start(lab: &Lab, kubeconfig: &Path) -> Result<Self> {
        let [address, _] = Lab::UNDERLAY;
        let listen = SocketAddr::new(address, PORT);
        let own = lab.folder.join("meddler.kubeconfig");
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": format!("http://{listen}")}}],
            "users": [{"name": "lab", "user": {}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        });
        fs::write(&own, serde_norway::to_string(&content)?)?;
        let (meddling, told) = watch::channel(Meddling::None);
        let (stop, stopped) = oneshot::channel::<()>();
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let netns = lab.underlay.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            netns.enter().expect("a namespace that is open can be entered by root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind(listen).await.expect("the port is free in a namespace of one's own");
                ready.send(()).expect("somebody waits");
                tokio::select! {
                    () = serve(listener, kubeconfig, told) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().context("the proxy did not start")?;
        Ok(Self { kubeconfig: own, meddling, _stop: stop })
    }

    /// What is under way is meddled with, too.
    pub fn begin(&self, meddling: Meddling) {
        self.meddling.send_replace(meddling);
    }

    /// As if whatever is between had begun anew: all connections end.
    pub fn cut(&self, then: Meddling) {
        self.meddling.send_replace(Meddling::Cut);
        // Whoever has an answer under way has to see it.
        std::thread::sleep(Duration::from_millis(50));
        self.meddling.send_replace(then);
    }
}

async fn serve(listener: TcpListener, kubeconfig: Kubeconfig, meddling: watch::Receiver<Meddling>) {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("the lab's own kubeconfig is one");
    config.default_retry = false;
    let client = Client::try_from(config).expect("a client");
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        let (client, meddling) = (client.clone(), meddling.clone());
        let service = service_fn(move |request| answer(client.clone(), request, meddling.clone()));
        let io = hyper_util::rt::TokioIo::new(connection);
        tokio::spawn(http1::Builder::new().serve_connection(io, service));
    }
}

type Frames = mpsc::Receiver<io::Result<Frame<Bytes>>>;
type Answer = StreamBody<stream::BoxStream<'static, io::Result<Frame<Bytes>>>>;

fn body(frames: Frames) -> Answer {
    let frames = stream::unfold(frames, |mut frames| async { Some((frames.recv().await?, frames)) });
    StreamBody::new(Box::pin(frames))
}

fn made(status: u16, text: String) -> Response<Answer> {
    let (sender, frames) = mpsc::channel(1);
    let _ = sender.try_send(Ok(Frame::data(text.into())));
    let mut response = Response::new(body(frames));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    response
}

/// An error ends the connection without an answer.
async fn answer(
    client: Client,
    request: Request<Incoming>,
    meddling: watch::Receiver<Meddling>,
) -> io::Result<Response<Answer>> {
    let now = *meddling.borrow();
    match now {
        Meddling::Cut => return Err(io::ErrorKind::ConnectionAborted.into()),
        Meddling::Delay(time) => tokio::time::sleep(time).await,
        Meddling::Answer { resource, status, body }
            if resource.is_none_or(|resource| request.uri().path().ends_with(resource)) =>
        {
            return Ok(made(status, body.to_owned()));
        }
        _ => {}
    }
    let (head, content) = request.into_parts();
    let content = content.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut asked = http_request(&head, content);
    *asked.headers_mut() = head.headers;
    asked.headers_mut().remove("host");
    match client.send(asked).await {
        Ok(response) => {
            let (head, answered) = response.into_parts();
            let (sender, frames) = mpsc::channel(1);
            let mut response = Response::new(body(frames));
            *response.status_mut() = head.status;
            tokio::spawn(pass(answered, sender, meddling));
            Ok(response)
        }
        Err(error) => Ok(made(502, error.to_string())),
    }
}

fn http_request(head: &hyper::http::request::Parts, content: Bytes) -> Request<Body> {
    let mut request = Request::new(Body::from(content.to_vec()));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    request
}

/// Hands an answer on, meddled with.
async fn pass(mut from: Body, to: mpsc::Sender<io::Result<Frame<Bytes>>>, mut meddling: watch::Receiver<Meddling>) {
    let (mut part, mut passed, mut lines, mut before) = (Vec::new(), 0, 0_usize, Vec::new());
    loop {
        let now = *meddling.borrow_and_update();
        if now == Meddling::Cut {
            let _ = to.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
            return;
        }
        let frame = tokio::select! {
            frame = from.frame() => frame,
            _ = meddling.changed() => continue,
            () = to.closed() => return,
        };
        let Some(Ok(frame)) = frame else { return };
        let Ok(data) = frame.into_data() else { continue };
        let now = *meddling.borrow();
        let mut out = Vec::new();
        match now {
            Meddling::Garble | Meddling::Replay => {
                part.extend_from_slice(&data);
                while let Some(end) = part.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = part.drain(..=end).collect();
                    lines += 1;
                    if now == Meddling::Garble && lines.is_multiple_of(2) {
                        out.extend_from_slice(&line[..line.len() / 2]);
                        out.push(b'\n');
                    } else {
                        out.extend_from_slice(&line);
                    }
                    if now == Meddling::Replay {
                        out.append(&mut before);
                        before = line;
                    }
                }
            }
            _ => {
                out.append(&mut part);
                out.extend_from_slice(&data);
            }
        }
        match now {
            Meddling::Delay(time) => tokio::time::sleep(time).await,
            Meddling::Truncate(bytes) if passed + out.len() > bytes => {
                out.truncate(bytes.saturating_sub(passed));
                let _ = to.send(Ok(Frame::data(out.into()))).await;
                let _ = to.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
                return;
            }
            _ => {}
        }
        passed += out.len();
        if to.send(Ok(Frame::data(out.into()))).await.is_err() {
            return;
        }
    }
}
