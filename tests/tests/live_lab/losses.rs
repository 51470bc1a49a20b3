//! Events that are lost because the agent is not there to take them: what they told of is found out all the same, and counted.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, Pod, PodSpec, objects};
use rustix::process::{Pid, Signal, kill_process};

use crate::scene::{PATIENCE, Scene, eventually};
use crate::troubles::metric;

/// The agent looks at all interfaces every ten seconds; what is lost has to be made good before.
const SOON: Duration = Duration::from_secs(5);

const ONLY_80: &str = "{podSelector: {matchExpressions: [{key: app, operator: In, values: [b, late]}]},
    ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}";

/// An agent that does not run until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(agent: &Agent) -> Self {
        let pid = agent.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
        kill_process(pid, Signal::STOP).expect("it is ours");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn resyncs(agent: &Agent, source: &str) -> f64 {
    metric(agent, &format!("palisade_resyncs_total{{source=\"{source}\"}}")).expect("it is there from the start")
}

/// A pod that nobody has heard of, with servers on 80 and 81.
fn late(scene: &Scene) -> (Pod, Server) {
    let late = scene.node.start_pod(&scene.lab, PodSpec::new("web", "late", &[("app", "late")])).expect("a pod");
    scene.put(&objects::pod(&late, &scene.node));
    let server = Server::start(scene.lab.guard(), &late.netns, "late", &[80, 81], &[]).expect("a server");
    (late, server)
}

/// Far more events than the socket of link events holds.
fn flood_links(scene: &Scene) {
    let made = (0..300).map(|number| format!("link add flood{number} type bridge"));
    let gone = (0..300).map(|number| format!("link del flood{number}"));
    let renamed = (0..20_000).map(|number| format!("link set cni0 alias {number}"));
    scene.node.netns.ip(&made.chain(renamed).chain(gone).collect::<Vec<_>>()).expect("links come and go");
}

#[test]
fn refusals_that_found_no_room_are_counted_and_later_ones_told() {
    let scene = Scene::new("flood");
    let [a, b, c] = &scene.pods;
    scene.policy("p", ONLY_80);
    let agent = scene.start();
    scene.expect_tcp(a, b, 81, false, "before");
    assert_eq!(metric(&agent, "palisade_events_lost_total"), Some(0.0));
    let stopped = Stopped::new(&agent);
    let begun = Instant::now();
    let sent = a.netns.run(|| {
        let mut sent = 0;
        // Each from another port, so that each is a flow of its own; the kernel's events have a budget for each second.
        while begun.elapsed() < Duration::from_secs(4) {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
            socket.send_to(b"flood", (b.ipv4(), 53)).expect("it is sent");
            sent += 1;
        }
        sent
    });
    assert!(sent > 10_000, "{sent} are no flood");
    scene.expect_tcp(a, b, 80, true, "the agent is stopped");
    scene.expect_tcp(c, b, 81, false, "the agent is stopped");
    drop(stopped);
    let lost = || metric(&agent, "palisade_events_lost_total").is_some_and(|lost| lost > 1000.0);
    assert!(eventually(PATIENCE, lost), "{:?}", metric(&agent, "palisade_events_lost_total"));
    scene.expect_tcp(a, b, 80, true, "it goes on");
    let told = |of: &str| agent.log_text().lines().any(|line| line.contains("refused:") && line.contains(of));
    let later = || {
        scene.expect_tcp(b, c, 80, true, "nobody forbids it");
        scene.expect_tcp(c, b, 81, false, "it goes on");
        told("peer=\"web/c\"")
    };
    assert!(eventually(PATIENCE, later), "{}", agent.log_text());
}

#[test]
fn links_that_came_unheard_are_found() {
    let scene = Scene::new("deaf");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    let agent = scene.start();
    let index = scene.index_of(&b.host_interface);
    let before = resyncs(&agent, "links");
    let stopped = Stopped::new(&agent);
    flood_links(&scene);
    // One that is new, and one that is another under the index of one that was there.
    let (late, _server) = late(&scene);
    scene.replug(b, &b.host_interface, Some(index));
    drop(stopped);
    assert!(eventually(SOON, || resyncs(&agent, "links") > before), "{}", agent.log_text());
    let begun = Instant::now();
    for pod in [&late, b] {
        scene.expect_tcp(a, pod, 81, false, "found");
        scene.expect_tcp(a, pod, 80, true, "found");
    }
    assert!(begun.elapsed() < SOON, "found only when it was looked again anyway");
}

#[test]
fn results_that_came_unheard_are_read() {
    let scene = Scene::new("unread");
    let [a, _, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    let agent = scene.start();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
    let limit: usize = limit.trim().parse().expect("a number");
    let results = scene.node.cni_cache().join("results");
    let stopped = Stopped::new(&agent);
    for number in 0..limit + 1000 {
        // Two by turns, as what is the same as the event before it is not queued.
        fs::write(results.join(format!("noise-{}", number % 2)), "{}").expect("a file");
    }
    let (late, _server) = late(&scene);
    drop(stopped);
    assert!(eventually(SOON, || resyncs(&agent, "results") > 0.0), "{}", agent.log_text());
    scene.expect_tcp(a, &late, 81, false, "read");
    scene.expect_tcp(a, &late, 80, true, "read");
    let row = scene.endpoint(&late);
    assert_eq!(row["pod"], "late", "by its result: {row}");
}

#[test]
fn sides_of_pods_that_changed_unheard_are_asked_for() {
    let scene = Scene::new("unseen");
    let [_, b, c] = &scene.pods;
    let agent = scene.start();
    let before = resyncs(&agent, "pod-sides");
    let addresses = || scene.endpoint(b)["addresses"].to_string();
    let stopped = Stopped::new(&agent);
    let renamed = (0..20_000).map(|number| format!("link set eth0 alias {number}"));
    c.netns.ip(&renamed.collect::<Vec<_>>()).expect("it is there");
    b.netns.ip(&["addr add fe80::77/64 dev eth0 nodad".to_owned()]).expect("it is there");
    assert!(!addresses().contains("fe80::77"), "{}", addresses());
    drop(stopped);
    assert!(eventually(SOON, || resyncs(&agent, "pod-sides") > before), "{}", agent.log_text());
    assert!(eventually(SOON, || addresses().contains("fe80::77")), "{}", addresses());
}
