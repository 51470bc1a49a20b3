//! The CNI plugin as a container runtime meets it: through libcni, with the agent there, away, or without objects.
#![cfg(feature = "live")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use palisade::observe::state_dir;
use palisade_tests::lab::agent::{Source, palisade};
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Lab, Manifests, Node, Outcome, Pod, PodSpec, Transport, objects};
use rustix::fs::inotify;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

const AT_ONCE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(15);

/// Every new pod of namespace `web` is denied everything both ways, but from and to whom label `app` is `friend`.
const POLICY: &str = "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [friend, other]}]},
    policyTypes: [Ingress, Egress],
    ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}],
    egress: [{to: [{podSelector: {matchLabels: {app: friend}}}]}]}";

/// A node with two pods of namespace `web`, `friend` and `other`, that serve TCP 80.
struct Scene {
    lab: Lab,
    node: Node,
    friend: Pod,
    other: Pod,
    manifests: Manifests,
    _servers: Vec<Server>,
}

impl Scene {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name).expect("a lab");
        let node = lab.node("one", 1).expect("a node");
        let specs = ["friend", "other"].map(|name| PodSpec::new("web", name, &[("app", name)]));
        let [friend, other] = node.start_pods(&lab, &specs).expect("pods").try_into().ok().expect("two");
        let manifests = Manifests::new(&node.folder.join("manifests")).expect("a folder");
        let server = |pod: &Pod| Server::start(lab.guard(), &pod.netns, &pod.name, &[80], &[]).expect("a server");
        let servers = [&friend, &other].map(server).into();
        let scene = Self { lab, node, friend, other, manifests, _servers: servers };
        let policy = objects::policy("web", "friends", POLICY).expect("YAML");
        for object in [objects::node(&scene.node), objects::namespace("web", &[]), policy] {
            scene.manifests.put(&object).expect("the folder can be written to");
        }
        for pod in [&scene.friend, &scene.other] {
            scene.manifests.put(&objects::pod(pod, &scene.node)).expect("the folder can be written to");
        }
        scene
    }

    fn start(&self) -> Agent {
        Agent::start(&self.lab, &self.node, &AgentOptions::manifests(&self.manifests.folder)).expect("an agent")
    }

    /// The pod's object is there as the scheduler leaves it: without a status.
    fn schedule(&self, name: &str) -> PodSpec {
        let mut spec = PodSpec::new("web", name, &[("app", name)]);
        spec.uid = Some(format!("uid-of-{name}"));
        self.manifests.put(&objects::scheduled(&spec, &self.node)).expect("the folder can be written to");
        spec
    }

    fn start_pod(&self, spec: PodSpec) -> Result<Pod, String> {
        let mut pods = self.node.try_start_pods(&self.lab, &[spec]).expect("libcni can be called");
        pods.remove(0).map_err(|error| format!("{error:#}"))
    }

    /// The new pod may talk with the friend and with nobody else, in both directions and families.
    fn expect_enforced(&self, pod: &Pod) {
        let _server = Server::start(self.lab.guard(), &pod.netns, "new", &[80], &[]).expect("a server");
        for (from, to, reached) in
            [(pod, &self.friend, true), (pod, &self.other, false), (&self.friend, pod, true), (&self.other, pod, false)]
        {
            for address in &to.addresses {
                let outcome = Probe::new(&from.netns, Transport::Tcp, *address, 80).ask_within(AT_ONCE);
                let is_reached = matches!(outcome, Outcome::Reached(_));
                assert_eq!(is_reached, reached, "{} to {}: {outcome:?}", from.full_name(), address);
            }
        }
    }
}

#[test]
fn a_pod_starts_once_it_is_enforced() {
    let scene = Scene::new("cni");
    let agent = scene.start();
    let flannel = fs::read_to_string(scene.node.conflist()).expect("it is there");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        fs::write(scene.node.conflist(), flannel.replace("1.0.0", version)).expect("a file");
        scene.node.install_plugin().expect("Flannel's configuration is there");
        let spec = scene.schedule(&format!("new-{version}"));
        let pod = scene.start_pod(spec).expect("it is enforced");
        // The API server knows no address of it yet, neither as a subject nor as a peer.
        scene.expect_enforced(&pod);
        // What a version has no command for, libcni does not ask plugins.
        if version != "0.3.1" {
            scene.node.check_pod(&pod).expect("it is enforced");
        }
        scene.node.network_status(&pod).expect("pods can be started");
        scene
            .node
            .collect_garbage(&pod, &[pod.clone(), scene.friend.clone(), scene.other.clone()])
            .expect("nothing to do");
        scene.expect_enforced(&pod);
        scene.node.stop_pod(&pod).expect("it goes");
        assert!(scene.node.check_pod(&pod).is_err(), "{version}: it has gone");
    }
    agent.kill().expect("it runs");
    let status = format!("{:#}", scene.node.network_status(&scene.friend).expect_err("no agent runs"));
    assert!(status.contains("does not answer"), "{status}");
    // Nothing is left, of which libcni says null.
    scene.node.collect_garbage(&scene.friend, &[]).expect("it needs no agent");
}

#[test]
fn no_pod_starts_without_an_agent() {
    let scene = Scene::new("cnidown");
    let agent = scene.start();
    scene.node.install_plugin().expect("Flannel's configuration is there");
    let first = scene.start_pod(scene.schedule("first")).expect("it is enforced");
    agent.kill().expect("it runs");
    let error = scene.start_pod(scene.schedule("new")).err().expect("no agent runs");
    assert!(error.contains("the palisade agent of this node does not answer"), "{error}");
    scene.expect_enforced(&first);
    scene.node.stop_pod(&first).expect("a pod can always go");
    let agent = scene.start();
    let pod = scene.start_pod(scene.schedule("new")).expect("it is enforced");
    scene.expect_enforced(&pod);
    // It ends while a pod waits, of which no object tells.
    let mut waiting = PodSpec::new("web", "waiting", &[]);
    waiting.uid = Some("uid-of-waiting".into());
    let error = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| scene.start_pod(waiting));
        std::thread::sleep(Duration::from_secs(1));
        agent.kill().expect("it runs");
        waiting.join().expect("it does not panic").err()
    });
    let error = error.expect("no agent runs");
    assert!(error.contains("the palisade agent of this node does not answer"), "{error}");
    // The operator's way out.
    scene.node.uninstall_plugin().expect("it is there");
    assert!(!scene.node.conf_dir().join("00-palisade.conflist").exists());
    scene.start_pod(scene.schedule("free")).expect("nothing stands in its way");
}

#[test]
fn a_pod_that_cannot_be_known_is_not_started_and_it_is_said_why() {
    let scene = Scene::new("cniwait");
    let agent = scene.start();
    scene.node.install_plugin().expect("Flannel's configuration is there");
    let mut unknown = PodSpec::new("web", "unknown", &[]);
    unknown.uid = Some("uid-of-unknown".into());
    let error = scene.start_pod(unknown.clone()).err().expect("no object says what it is");
    assert!(
        error.contains("pod web/unknown is not enforced") && error.contains("the API has not shown yet"),
        "{error}"
    );
    // The object comes while the plugin waits.
    let started = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| scene.start_pod(unknown));
        std::thread::sleep(Duration::from_secs(1));
        scene.schedule("unknown");
        waiting.join().expect("it does not panic")
    });
    scene.expect_enforced(&started.expect("it is known by now"));
    drop(agent);

    // An agent that never had a list.
    palisade(&scene.node, &["uninstall"]).expect("palisade runs");
    let options = AgentOptions::new(Source::silent(&scene.node.folder).expect("a file"));
    let agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("it is started");
    let begun = Instant::now();
    let error = loop {
        let error = scene.start_pod(scene.schedule("early")).err().expect("nothing is known");
        // Until its socket is there it does not answer.
        if !error.contains("does not answer") || begun.elapsed() > PATIENCE {
            break error;
        }
    };
    assert!(error.contains("complete list of objects"), "{error}");
    drop(agent);
}

#[test]
fn the_agent_keeps_it_in_the_chain() {
    let scene = Scene::new("cnikeep");
    let flannel = fs::read_to_string(scene.node.conflist()).expect("it is there");
    let ours = scene.node.conf_dir().join("00-palisade.conflist");
    let mut options = AgentOptions::manifests(&scene.manifests.folder);
    options.extra.extend(scene.node.cni_folders());
    let agent = Agent::start(&scene.lab, &scene.node, &options).expect("an agent");
    let becomes = |text: &str, said: &str| {
        let end = Instant::now() + PATIENCE;
        while !fs::read_to_string(&ours).is_ok_and(|now| now.contains(text)) {
            assert!(Instant::now() < end, "{said}: {:?}", fs::read_to_string(&ours));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    becomes("palisade-cni", "from the start");
    // As Flannel's init container does it: in place.
    fs::write(scene.node.conflist(), flannel.replace("1450", "1400")).expect("a file");
    becomes("1400", "Flannel has rewritten its own");
    let before = fs::read_to_string(scene.node.conflist()).expect("it is there");
    assert!(!before.contains("palisade-cni"), "Flannel's own is left alone");
    fs::remove_file(&ours).expect("it is there");
    becomes("palisade-cni", "somebody has removed it");
    // What follows from that is over.
    std::thread::sleep(Duration::from_secs(1));
    let plugin = scene.node.bin_dir().join("palisade-cni");
    fs::remove_file(&plugin).expect("it is there");
    let end = Instant::now() + PATIENCE;
    while !plugin.exists() {
        assert!(Instant::now() < end, "somebody has laid all plugins down anew");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pod = scene.start_pod(scene.schedule("new")).expect("it is enforced");
    scene.expect_enforced(&pod);
    // Without an agent it stays in the chain whatever Flannel does.
    agent.kill().expect("it runs");
    fs::write(scene.node.conflist(), flannel).expect("a file");
    assert!(scene.start_pod(scene.schedule("later")).is_err(), "no agent runs");
}

/// How many files of a folder are written in two seconds.
fn written(folder: &std::path::Path) -> usize {
    let events = inotify::init(inotify::CreateFlags::NONBLOCK).expect("inotify");
    // Of two events that are the same one after the other only one is told, so that each needs another before it.
    let both = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&events, folder, both).expect("it is there");
    std::thread::sleep(Duration::from_secs(2));
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&events, &mut buffer);
    let all = std::iter::from_fn(|| reader.next().ok().map(|event| event.events()));
    all.filter(|event| event.contains(inotify::ReadFlags::CLOSE_WRITE)).count()
}

/// No event tells that there is room again, and what the agent tries itself is none that calls for another try.
#[test]
fn a_full_disk_is_told_and_tried_again() {
    let scene = Scene::new("cnifull");
    let folder = scene.node.conf_dir();
    let flannel = fs::read_to_string(scene.node.conflist()).expect("it is there");
    scene.lab.guard().mount(&folder);
    mount("tmpfs", &folder, "tmpfs", MountFlags::empty(), Some(c"size=8k")).expect("a tmpfs");
    fs::write(scene.node.conflist(), flannel).expect("there is room for one");
    fs::write(folder.join("filling"), [0; 4096]).expect("and for this");
    let mut options = AgentOptions::manifests(&scene.manifests.folder);
    options.extra.extend(scene.node.cni_folders());
    let agent = Agent::start(&scene.lab, &scene.node, &options).expect("an agent");
    let ours = folder.join("00-palisade.conflist");
    let eventually = |what: &dyn Fn() -> bool| {
        let end = Instant::now() + PATIENCE;
        while !what() {
            assert!(Instant::now() < end, "{}", agent.log_text());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    eventually(&|| agent.log_text().contains("No space left on device"));
    let tried = written(&folder);
    assert!(tried < 5, "{tried} times in two seconds");
    assert!(!ours.exists());
    mount_remount(&folder, MountFlags::empty(), c"size=1m").expect("it is mounted");
    eventually(&|| ours.exists());
    let pod = scene.start_pod(scene.schedule("new")).expect("it is enforced");
    scene.expect_enforced(&pod);
    agent.kill().expect("it runs");
    unmount(&folder, UnmountFlags::empty()).expect("it is mounted");
}

#[test]
fn uninstall_leaves_no_file() {
    let scene = Scene::new("cnigone");
    let folders = [scene.node.conf_dir(), scene.node.bin_dir(), scene.lab.bpffs(), state_dir(&scene.node.pin_dir)];
    let files = || {
        let mut files = Vec::new();
        for folder in &folders {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                files.push((path.clone(), fs::read(path).unwrap_or_default()));
            }
        }
        files.sort();
        files
    };
    fs::create_dir_all(scene.node.bin_dir()).expect("a folder");
    let before = files();
    let mut options = AgentOptions::manifests(&scene.manifests.folder);
    options.extra.extend(scene.node.cni_folders());
    let agent = Agent::start(&scene.lab, &scene.node, &options).expect("an agent");
    scene.start_pod(scene.schedule("new")).expect("it is enforced");
    assert!(files().len() >= before.len() + 4, "{:?}", files());
    agent.stop().expect("it runs");
    // It knows from the agent where it was put.
    let said = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let names =
        |files: &[(std::path::PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    let after = files();
    assert_eq!(names(&after), names(&before));
    assert!(after == before, "contents differ");
    scene.start_pod(scene.schedule("free")).expect("nothing stands in its way");
}

#[test]
fn only_root_may_ask() {
    let scene = Scene::new("cniroot");
    let agent = scene.start();
    let socket = palisade::cni::socket_path(&scene.node.pin_dir);
    let mode = |path: &std::path::Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().expect("a folder")), 0o700);
    // Even where somebody has opened both to all.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("root may");
    for folder in socket.ancestors().skip(1).take(2) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("root may");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = folder.path().join("palisade-cni");
    let built = palisade_tests::lab::programs::agent().expect("it is built").with_file_name("palisade-cni");
    fs::copy(built, &plugin).expect("it can be copied");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let network = serde_json::json!({"cniVersion": "1.1.0", "name": "n", "type": "palisade-cni", "socket": socket});
    let status = |uid: u32| {
        let mut command = std::process::Command::new(&plugin);
        let mut child = command
            .uid(uid)
            .env("CNI_COMMAND", "STATUS")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("the plugin runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut stdin, network.to_string().as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(status(0), (true, String::new()));
    let (success, said) = status(65534);
    assert!(!success && said.contains("\"code\":50") && said.contains("only root may ask"), "{said}");
    assert!(agent.log_text().contains("only root may ask"), "{}", agent.log_text());
}
