//! The folder as it is used: files in a directory, the real inotify, and what comes out of the channel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::{self, Receiver};

use crate::facts::{Change, Kind, PodFacts, Update};

/// A folder that is watched, and everything that was told of it so far.
struct Watched {
    /// Holds the folder, so that the folder itself can go.
    base: TempDir,
    updates: Receiver<Vec<Update>>,
    /// Object → labels and addresses; closed or gone objects are not in it.
    objects: BTreeMap<String, String>,
    faults: BTreeMap<String, Vec<String>>,
    complete: BTreeSet<Kind>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Watched {
    async fn new(files: &[(&str, &str)]) -> Self {
        let base = tempfile::tempdir().expect("a temporary folder");
        let dir = base.path().join("manifests");
        fs::create_dir(&dir).expect("a new folder");
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("a new file");
        }
        Self::open(base).await
    }

    async fn open(base: TempDir) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let task = tokio::spawn(super::watch(base.path().join("manifests"), sender));
        let (objects, faults, complete) = Default::default();
        let mut watched = Self { base, updates, objects, faults, complete, task };
        watched.receive().await;
        assert_eq!(watched.complete, Kind::ALL.into(), "the first batch is the complete list");
        watched
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    async fn receive(&mut self) {
        let batch = tokio::time::timeout(Duration::from_secs(10), self.updates.recv()).await;
        for Update { change, faults, .. } in batch.expect("something is told").expect("the watch goes on") {
            let (key, value) = match change {
                Change::Relist(kind) => {
                    assert!(self.objects.is_empty() && self.complete.insert(kind));
                    continue;
                }
                Change::Relisted(kind) => {
                    assert!(self.complete.contains(&kind));
                    continue;
                }
                Change::Namespace(name, facts) => {
                    (format!("ns {name}"), facts.map(|facts| format!("{:?}", facts.labels)))
                }
                Change::Pod { name, uid, facts } => (format!("pod {name} {uid}"), facts.as_ref().map(pod)),
                Change::Policy(name, facts) => {
                    (format!("policy {name}"), facts.map(|facts| format!("{:?}", facts.ingress.len())))
                }
                Change::Service(name, facts) => {
                    (format!("service {name}"), facts.map(|facts| format!("{:?}", facts.addresses)))
                }
                Change::Node(name, facts) => {
                    (format!("node {name}"), facts.map(|facts| format!("{:?}", facts.addresses)))
                }
            };
            match value {
                Some(value) => drop(self.objects.insert(key.clone(), value)),
                None => drop(self.objects.remove(&key)),
            }
            let faults: Vec<String> =
                faults.into_iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
            if faults.is_empty() { drop(self.faults.remove(&key)) } else { drop(self.faults.insert(key, faults)) }
        }
    }

    /// Receives until the objects are these, which must come to pass.
    async fn until(&mut self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        while self.objects != expected {
            let wait = tokio::time::timeout(Duration::from_secs(5), self.receive()).await;
            assert!(wait.is_ok(), "expected {expected:#?}, got {:#?}", self.objects);
        }
    }

    fn told(&self, key: &str) -> String {
        self.faults.get(key).map(|faults| faults.join("; ")).unwrap_or_default()
    }
}

fn pod(facts: &PodFacts) -> String {
    let labels: Vec<String> = facts.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join(",")
}

fn pod_file(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, uid: u, labels: {{{labels}}}}}\n")
}

const N: (&str, &str) = ("ns n", r#"{"kubernetes.io/metadata.name": "n"}"#);

#[tokio::test]
async fn files_come_change_and_go() {
    let mut folder =
        Watched::new(&[("a.yaml", &pod_file("a", "v: one")), ("ignored.txt", "x"), (".hidden.yaml", "{")]).await;
    folder.until(&[N, ("pod n/a u", "v=one")]).await;
    folder.write("b.yml", &pod_file("b", "v: one"));
    folder.until(&[N, ("pod n/a u", "v=one"), ("pod n/b u", "v=one")]).await;
    folder.write("a.yaml", &pod_file("a", "v: two"));
    folder.until(&[N, ("pod n/a u", "v=two"), ("pod n/b u", "v=one")]).await;
    fs::remove_file(folder.path("a.yaml")).expect("it is there");
    folder.until(&[N, ("pod n/b u", "v=one")]).await;
    fs::rename(folder.path("b.yml"), folder.path("b.away")).expect("it is there");
    folder.until(&[]).await;
    fs::rename(folder.path("b.away"), folder.path("c.json")).expect("it is there");
    // What is YAML is no JSON.
    folder.receive().await;
    assert!(folder.told(&format!("policy /{}", folder.path("c.json").display())).starts_with("line 1: "));
    folder.write("c.json", r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w"}}"#);
    folder.until(&[("node w", "[]")]).await;
    assert!(folder.faults.is_empty(), "{:?}", folder.faults);
}

#[tokio::test]
async fn a_link_is_read_and_a_file_that_is_open_is_not() {
    let mut folder = Watched::new(&[]).await;
    let elsewhere = folder.base.path().join("elsewhere");
    fs::write(&elsewhere, pod_file("a", "v: one")).expect("a file");
    symlink(&elsewhere, folder.path("a.yaml")).expect("a link");
    folder.until(&[N, ("pod n/a u", "v=one")]).await;
    fs::hard_link(&elsewhere, folder.path("a2.yaml")).expect("a link");
    folder.receive().await;
    assert!(folder.told("pod n/a u").contains("a.yaml"), "{:?}", folder.faults);
    fs::remove_file(folder.path("a2.yaml")).expect("it is there");
    folder.receive().await;
    assert!(folder.faults.is_empty(), "{:?}", folder.faults);

    use std::io::Write;
    let mut open = fs::File::create(folder.path("b.yaml")).expect("a file");
    let text = pod_file("b", "v: one");
    open.write_all(&text.as_bytes()[..20]).expect("written");
    folder.write("c.yaml", &pod_file("c", ""));
    folder.until(&[N, ("pod n/a u", "v=one"), ("pod n/c u", "")]).await;
    assert!(folder.faults.is_empty(), "{:?}", folder.faults);
    open.write_all(&text.as_bytes()[20..]).expect("written");
    drop(open);
    folder.until(&[N, ("pod n/a u", "v=one"), ("pod n/b u", "v=one"), ("pod n/c u", "")]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_replaced_at_once() {
    let base = tempfile::tempdir().expect("a temporary folder");
    let dir = base.path().join("manifests");
    fs::create_dir_all(dir.join("..1")).expect("a new folder");
    fs::write(dir.join("..1/a.yaml"), pod_file("a", "v: one")).expect("a file");
    fs::write(dir.join("..1/b.yaml"), pod_file("b", "v: one")).expect("a file");
    symlink("..1", dir.join("..data")).expect("a link");
    for name in ["a.yaml", "b.yaml"] {
        symlink(PathBuf::from("..data").join(name), dir.join(name)).expect("a link");
    }
    let mut folder = Watched::open(base).await;
    folder.until(&[N, ("pod n/a u", "v=one"), ("pod n/b u", "v=one")]).await;
    fs::create_dir(dir.join("..2")).expect("a new folder");
    fs::write(dir.join("..2/a.yaml"), pod_file("a", "v: two")).expect("a file");
    symlink("..2", dir.join("..data_tmp")).expect("a link");
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("replaced");
    folder.receive().await;
    let expected = BTreeMap::from([N, ("pod n/a u", "v=two")].map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(folder.objects, expected, "in one batch");
}

#[tokio::test]
async fn a_folder_that_goes_stays_in_force_until_it_is_back() {
    let mut folder = Watched::new(&[("a.yaml", &pod_file("a", "v: one")), ("b.yaml", &pod_file("b", ""))]).await;
    let (dir, away) = (folder.base.path().join("manifests"), folder.base.path().join("away"));
    for _time in 0..3 {
        fs::write(dir.join("b.yaml"), pod_file("b", "")).expect("a file");
        fs::rename(&dir, &away).expect("moved");
        let wait = tokio::time::timeout(Duration::from_millis(50), folder.receive()).await;
        assert!(wait.is_err(), "nothing changes");
        // What is done to it elsewhere does not count.
        fs::write(away.join("c.yaml"), pod_file("c", "")).expect("a file");
        fs::remove_file(away.join("c.yaml")).expect("it is there");
        fs::create_dir(&dir).expect("a new folder");
        fs::write(dir.join("a.yaml"), pod_file("a", "v: two")).expect("a file");
        folder.until(&[N, ("pod n/a u", "v=two")]).await;
        fs::write(dir.join("b.yaml"), pod_file("b", "")).expect("a file");
        fs::write(dir.join("a.yaml"), pod_file("a", "v: one")).expect("a file");
        folder.until(&[N, ("pod n/a u", "v=one"), ("pod n/b u", "")]).await;
        fs::remove_dir_all(&away).expect("removed");
    }
    fs::remove_dir_all(&dir).expect("removed");
    folder.until(&[]).await;
    fs::create_dir(&dir).expect("a new folder");
    fs::write(dir.join("a.yaml"), pod_file("a", "v: one")).expect("a file");
    folder.until(&[N, ("pod n/a u", "v=one")]).await;
}

#[tokio::test]
async fn a_folder_that_is_missing_at_the_start_is_an_error() {
    let (sender, _updates) = mpsc::channel(1);
    let error = super::watch(PathBuf::from("/nonexistent/manifests"), sender).await.expect_err("it is missing");
    assert!(format!("{error:#}").contains("/nonexistent/manifests"), "{error:#}");
    assert!(format!("{error:#}").contains("No such file"), "{error:#}");
}

#[tokio::test]
async fn it_ends_with_its_receiver() {
    let folder = Watched::new(&[]).await;
    drop(folder.updates);
    let end = tokio::time::timeout(Duration::from_secs(5), folder.task).await;
    end.expect("it ends").expect("without a panic").expect("without an error");
}

#[tokio::test]
async fn what_comes_in_numbers_is_complete() {
    let mut folder = Watched::new(&[]).await;
    // More than the kernel queues, if they are not read in time: then everything is read anew.
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").ok();
    let limit: usize = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(16384).min(40_000);
    let count = 100;
    for number in 0..count {
        folder.write(&format!("{number}.yaml"), &pod_file(&format!("p{number}"), ""));
    }
    // The runtime has one thread: nothing was read so far, and what follows overflows the queue.
    for _event in 0..limit / 2 {
        fs::write(folder.path("x.yaml"), "").expect("a file");
        fs::remove_file(folder.path("x.yaml")).expect("it is there");
    }
    fs::remove_file(folder.path("0.yaml")).expect("it is there");
    folder.write("last.yaml", &pod_file("last", ""));
    while !folder.objects.contains_key("pod n/last u") {
        folder.receive().await;
    }
    assert_eq!(folder.objects.len(), count - 1 + 2, "{:?}", folder.objects);
    assert!(!folder.objects.contains_key("pod n/p0 u"));
}
