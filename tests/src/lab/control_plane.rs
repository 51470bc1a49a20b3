//! A real API server with its etcd, on the underlay: objects written to it as a client does, and a kubeconfig for agents.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::keys::{SIGNED, kubeconfig_of, request, write_keys};
use super::{Guard, Lab, Netns, Node, Pod, PodSpec, objects, programs};

/// What the API server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Objects alone: pods are written by tests and have no accounts.
    Objects,
    /// Nodes with kubelets, whose pods have accounts.
    Nodes,
}

/// Both servers; dropping them ends them. They live in the underlay's namespace, so their ports are always free.
pub struct ControlPlane {
    netns: Netns,
    folder: PathBuf,
    children: Vec<Child>,
    /// What else was started with them.
    others: Vec<Child>,
    programs: PathBuf,
    /// For agents: a certificate of an administrator.
    pub kubeconfig: PathBuf,
    profile: Profile,
}

pub(super) const PORT: u16 = 6443;
/// Requests under way when many objects are made.
const CREATED_AT_ONCE: usize = 16;
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";

impl ControlPlane {
    /// Starts both and waits until the API server is ready.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_for(lab, Profile::Objects)
    }

    pub fn start_for(lab: &Lab, profile: Profile) -> Result<Self> {
        let folder = lab.folder.join("control-plane");
        fs::create_dir_all(&folder)?;
        write_keys(&folder)?;
        let kubeconfig = folder.join("admin.kubeconfig");
        fs::write(&kubeconfig, serde_norway::to_string(&kubeconfig_of(&folder, "admin"))?)?;
        let mut plane = Self {
            netns: lab.underlay.clone(),
            folder,
            children: Vec::new(),
            others: Vec::new(),
            programs: programs::control_plane()?,
            kubeconfig,
            profile,
        };
        plane.start_etcd(lab.guard())?;
        plane.start_api_server(lab.guard())?;
        Ok(plane)
    }

    fn start_etcd(&mut self, guard: &Guard) -> Result<()> {
        let data = self.folder.join("etcd");
        let arguments = [
            "--name=lab".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            format!("--listen-peer-urls={ETCD_PEER}"),
            format!("--initial-advertise-peer-urls={ETCD_PEER}"),
            format!("--initial-cluster=lab={ETCD_PEER}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.spawn(guard, "etcd", &arguments)
    }

    fn start_api_server(&mut self, guard: &Guard) -> Result<()> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let [address, _] = Lab::UNDERLAY;
        let mut arguments = vec![
            format!("--etcd-servers={ETCD}"),
            format!("--bind-address={address}"),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={address}"),
            // Else an open watch holds up the end for a minute.
            "--shutdown-watch-termination-grace-period=1s".to_owned(),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            "--allow-privileged=true".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("account.crt")),
            format!("--service-account-signing-key-file={}", file("account.key")),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112".to_owned(),
            "--kubelet-client-certificate=admin.crt".to_owned(),
            "--kubelet-client-key=admin.key".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        let more: &[&str] = match self.profile {
            Profile::Objects => &[
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount",
                "--endpoint-reconciler-type=none",
            ],
            Profile::Nodes => &["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"],
        };
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self.spawn(guard, "kube-apiserver", &arguments)?;
        self.wait_ready()
    }

    fn spawn(&mut self, guard: &Guard, name: &str, arguments: &[String]) -> Result<()> {
        let child = self.run(guard, &self.programs.join(name), arguments)?;
        self.children.push(child);
        Ok(())
    }

    /// Runs one more part of the control plane, in its namespace and folder, until this is dropped. It logs to NAME.log there.
    pub fn spawn_program(&mut self, guard: &Guard, program: &Path, arguments: &[String]) -> Result<()> {
        let child = self.run(guard, program, arguments)?;
        self.others.push(child);
        Ok(())
    }

    fn run(&self, guard: &Guard, program: &Path, arguments: &[String]) -> Result<Child> {
        let name = program.file_name().context("a program has a name")?.to_string_lossy();
        let log = File::options().create(true).append(true).open(self.folder.join(format!("{name}.log")))?;
        let child = self
            .netns
            .command(program)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        guard.process(child.id());
        Ok(child)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(90);
        let [address, _] = Lab::UNDERLAY;
        let to = SocketAddr::new(address, PORT);
        loop {
            let listens = self.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))).is_ok();
            if listens && self.ready().is_ok() {
                return Ok(());
            }
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    bail!("the control plane stopped: {status}\n{}", self.log_tail());
                }
            }
            ensure!(Instant::now() < end, "the API server is not ready\n{}", self.log_tail());
            // There is no event to wait for from outside.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A list is answered with 403 for a moment after the start, so /readyz alone does not tell.
    fn ready(&self) -> Result<()> {
        self.with_client(async |client| {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Namespace"));
            Api::<DynamicObject>::all_with(client, &resource).get("default").await?;
            Ok(())
        })
    }

    /// The folder is gone with the lab, so an error carries what it needs.
    fn log_tail(&self) -> String {
        ["etcd.log", "kube-apiserver.log"]
            .iter()
            .filter_map(|name| fs::read_to_string(self.folder.join(name)).ok())
            .flat_map(|text| text.lines().rev().take(8).map(str::to_owned).collect::<Vec<_>>().into_iter().rev())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// A kubeconfig of an account that may list and watch these resources (API group, name), and do nothing else. Called
    /// again, it changes what the account may.
    pub fn reader(&self, name: &str, readable: &[(&str, &str)]) -> Result<PathBuf> {
        let kubeconfig = self.credentials(name, &format!("/CN={name}"))?;
        let rules: Vec<Value> = readable
            .iter()
            .map(|(group, name)| json!({"apiGroups": [group], "resources": [name], "verbs": ["get", "list", "watch"]}))
            .collect();
        let group = "rbac.authorization.k8s.io";
        let version = format!("{group}/v1");
        self.put_all(&[
            json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
            json!({
                "apiVersion": version,
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": group, "kind": "User", "name": name}],
            }),
        ])?;
        Ok(kubeconfig)
    }

    /// Whether an account may, by what the authorizer knows now: a role that changes counts a moment later.
    pub fn allows(&self, user: &str, verb: &str, (group, resource): (&str, &str)) -> Result<bool> {
        let attributes = json!({"verb": verb, "group": group, "resource": resource});
        let review = serde_json::from_value(json!({"spec": {"user": user, "resourceAttributes": attributes}}))?;
        let answer = self.with_client(async |client| {
            Ok(Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &review).await?)
        })?;
        Ok(answer.status.context("a review without a verdict")?.allowed)
    }

    /// Of etcd and the API server.
    pub fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// A kubeconfig of this name whose certificate has this subject; made where it is not there yet.
    pub fn credentials(&self, name: &str, subject: &str) -> Result<PathBuf> {
        let kubeconfig = self.folder.join(format!("{name}.kubeconfig"));
        if !kubeconfig.exists() {
            request(&self.folder, name, subject, SIGNED)?;
            fs::write(&kubeconfig, serde_norway::to_string(&kubeconfig_of(&self.folder, name))?)?;
        }
        Ok(kubeconfig)
    }

    /// Key and certificate of a server at an address, signed by the lab's authority.
    pub fn server_keys(&self, name: &str, subject: &str, address: IpAddr) -> Result<[PathBuf; 2]> {
        let names = format!("subjectAltName=IP:{address}");
        request(&self.folder, name, subject, &[SIGNED, &["-addext", &names]].concat())?;
        Ok(["key", "crt"].map(|kind| self.folder.join(format!("{name}.{kind}"))))
    }

    /// With its keys, kubeconfigs and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves its processes to the guard.
    pub fn keep(mut self) {
        self.children.clear();
        self.others.clear();
    }

    /// SIGKILL to the API server, or a new one over the same etcd.
    pub fn kill_api_server(&mut self) -> Result<()> {
        let mut child = self.children.pop().context("the API server runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub fn restart_api_server(&mut self, guard: &Guard) -> Result<()> {
        self.start_api_server(guard)
    }

    /// SIGKILL to etcd, or a new one over the same data. The API server goes on meanwhile, and answers nothing.
    pub fn kill_etcd(&mut self) -> Result<()> {
        let mut child = self.children.remove(0);
        let killed = child.kill();
        child.wait()?;
        Ok(killed?)
    }

    pub fn restart_etcd(&mut self, guard: &Guard) -> Result<()> {
        self.start_etcd(guard)?;
        self.children.rotate_right(1);
        self.wait_ready()
    }

    /// etcd forgets every state but the one that is now.
    pub fn compact(&self) -> Result<()> {
        let range = self.ask_etcd("range", &json!({"key": "AA=="}))?;
        let revision = range["header"]["revision"].as_str().with_context(|| format!("no revision in {range}"))?;
        let done = self.ask_etcd("compaction", &json!({"revision": revision, "physical": true}))?;
        ensure!(done["header"].is_object(), "etcd does not compact: {done}");
        Ok(())
    }

    /// Puts an object where the API server keeps it, unseen by its validation.
    pub fn put_raw(&self, key: &str, object: &Value) -> Result<()> {
        let [key, value] = [key.to_owned(), object.to_string()].map(|text| BASE64_STANDARD.encode(text));
        let done = self.ask_etcd("put", &json!({"key": key, "value": value}))?;
        ensure!(done["header"].is_object(), "etcd does not take it: {done}");
        Ok(())
    }

    /// Over its JSON gateway.
    fn ask_etcd(&self, what: &str, question: &Value) -> Result<Value> {
        let answer = self.netns.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(ETCD.trim_start_matches("http://"))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let body = question.to_string();
            let length = body.len();
            write!(stream, "POST /v3/kv/{what} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok(serde_json::from_str(body)?)
    }

    /// Creates or changes an object, its status included.
    pub fn put(&self, object: &Value) -> Result<()> {
        self.with_client(async |client| put(client, object).await)
    }

    /// A pod's birth as in a cluster: the object first, whose UID the CNI call carries, and its addresses after that.
    pub fn start_pod(&self, lab: &Lab, node: &Node, mut spec: PodSpec) -> Result<Pod> {
        let object = objects::scheduled(&spec, node);
        self.put(&object)?;
        spec.uid = self.get(&object)?["metadata"]["uid"].as_str().map(str::to_owned);
        let pod = node.start_pod(lab, spec)?;
        self.put(&objects::pod(&pod, node))?;
        Ok(pod)
    }

    /// Many with one connection, in order.
    pub fn put_all(&self, objects: &[Value]) -> Result<()> {
        self.writer().put_all(objects)
    }

    /// Writes objects while something happens to the servers.
    pub fn writer(&self) -> Writer {
        Writer { netns: self.netns.clone(), kubeconfig: self.kubeconfig.clone() }
    }

    /// Makes many that are not there yet, [`CREATED_AT_ONCE`] at a time, in no certain order.
    pub fn create_all(&self, objects: &[Value]) -> Result<()> {
        self.with_client(async |client| {
            let created = stream::iter(objects).map(|object| create(client.clone(), object));
            created.buffer_unordered(CREATED_AT_ONCE).try_for_each(async |()| Ok(())).await
        })
    }

    pub fn remove(&self, object: &Value) -> Result<()> {
        self.with_client(async |client| {
            let (api, name) = api_of(client, object)?;
            // No kubelet is there to finish a pod's grace period.
            api.delete(&name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
            Ok(())
        })
    }

    /// A field of the object as it is there; its UID, say.
    pub fn get(&self, object: &Value) -> Result<Value> {
        self.with_client(async |client| {
            let (api, name) = api_of(client, object)?;
            Ok(serde_json::to_value(api.get(&name).await?)?)
        })
    }

    /// Inside the underlay's namespace, with a connection of its own.
    pub fn with_client<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        with_client(&self.netns, &self.kubeconfig, work)
    }
}

/// An administrator.
#[derive(Clone)]
pub struct Writer {
    netns: Netns,
    kubeconfig: PathBuf,
}

impl Writer {
    /// See [`ControlPlane::put_all`].
    pub fn put_all(&self, objects: &[Value]) -> Result<()> {
        with_client(&self.netns, &self.kubeconfig, async |client| {
            for object in objects {
                put(client.clone(), object).await?;
            }
            Ok(())
        })
    }
}

/// Inside a namespace, with a connection to the server that the kubeconfig names.
pub fn with_client<T: Send>(
    netns: &Netns,
    kubeconfig: &Path,
    work: impl AsyncFnOnce(Client) -> Result<T> + Send,
) -> Result<T> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    netns.run(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            work(Client::try_from(config)?).await
        })
    })
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.children.iter_mut().chain(&mut self.others) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn create(client: Client, object: &Value) -> Result<()> {
    let (api, name) = api_of(client, object)?;
    let wrong = || format!("cannot create {name}");
    let stored =
        api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await.with_context(wrong)?;
    if object.get("status").is_some() {
        let status = json!({ "metadata": {"uid": stored.metadata.uid}, "status": object["status"] });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.with_context(wrong)?;
    }
    Ok(())
}

async fn put(client: Client, object: &Value) -> Result<()> {
    let (api, name) = api_of(client, object)?;
    let mut body = object.clone();
    // The server gives the UID, and takes the status only at its own address.
    body["metadata"].as_object_mut().context("an object has metadata")?.remove("uid");
    let status = body.as_object_mut().context("an object is a map")?.remove("status");
    let parameters = PatchParams::apply("palisade-lab").force();
    api.patch(&name, &parameters, &Patch::Apply(&body)).await.with_context(|| format!("cannot write {name}"))?;
    if let Some(status) = status {
        // Merged, not applied: a dual-stack node has two addresses of one type, which apply takes for one key twice.
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({ "status": status })))
            .await
            .with_context(|| format!("cannot write the status of {name}"))?;
    }
    Ok(())
}

fn api_of(client: Client, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let field = |value: &Value, what: &str| Ok::<_, anyhow::Error>(value.as_str().context(what.to_owned())?.to_owned());
    let version = field(&object["apiVersion"], "an object has an apiVersion")?;
    let kind = field(&object["kind"], "an object has a kind")?;
    let name = field(&object["metadata"]["name"], "an object has a name")?;
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    Ok((api, name))
}
