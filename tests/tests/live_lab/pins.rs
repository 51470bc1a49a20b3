//! Pins that are not as an agent left them, and file systems that take nothing: made whole, or refused with a sentence while what was in
//! force goes on.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade::observe::state_dir;
use palisade_tests::lab::agent::{Source, palisade};
use palisade_tests::lab::probe::{Connection, DEADLINE, Probe, ask_all_within};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Outcome, Pod, PodSpec, Transport, objects};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::births::programs;
use crate::counter::Counter;
use crate::neighbours::attach_tcx;
use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};
use crate::troubles::{bpftool, ifindex, metric, pin, readiness};

/// `b` takes port 80 from the others and nothing else, and may open nothing itself.
const ONLY_80: &str = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress],
    ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}";

/// What is permitted and what is not, now, by new connections and those that are open.
fn expect_in_force(scene: &Scene, connections: &mut [Connection], when: &str) {
    let [a, b, c] = &scene.pods;
    let questions = [(a, b, 80, true), (a, b, 81, false), (b, c, 80, false), (a, c, 81, true)];
    let probes: Vec<_> = questions
        .iter()
        .flat_map(|(from, to, port, _)| {
            to.addresses.iter().map(|address| Probe::new(&from.netns, Transport::Tcp, *address, *port))
        })
        .map(|probe| (probe, AT_ONCE))
        .collect();
    let answers: Vec<bool> = ask_all_within(&probes).iter().map(Outcome::reached).collect();
    let wanted: Vec<bool> = questions.iter().flat_map(|(.., reached)| [*reached; 2]).collect();
    assert_eq!(answers, wanted, "{when}: a -> b 80, a -> b 81, b -> c 80, a -> c 81, by IPv4 and IPv6");
    for connection in connections {
        assert!(connection.echoes(DEADLINE), "{when}: an open connection");
    }
}

fn connect(from: &Pod, to: &Pod) -> Vec<Connection> {
    let open = |address: &std::net::IpAddr| Connection::open(&from.netns, *address, 80).expect("it is permitted");
    to.addresses.iter().map(open).collect()
}

/// How an agent ends that has to refuse, and what it said.
fn refused(scene: &Scene) -> String {
    let _ = fs::remove_file(scene.node.folder.join("agent.log"));
    let mut agent = Agent::spawn(&scene.lab, &scene.node, &scene.options()).expect("it is started");
    let status = agent.wait_end(PATIENCE).unwrap_or_else(|error| panic!("{error:#}: {}", agent.log_text()));
    assert_eq!(status.code(), Some(1), "{}", agent.log_text());
    agent.log_text()
}

fn no_source(scene: &Scene) -> AgentOptions {
    AgentOptions::new(Source::silent(&scene.node.folder).expect("a file"))
}

#[test]
fn what_is_no_map_of_ours_is_refused_by_name() {
    let scene = Scene::new("other");
    let [a, b, c] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let mut open = connect(a, b);
    let index = ifindex(&scene, c);
    let map =
        |kind: &'static str, key: &'static str, value: &'static str, entries: &'static str, flags: &'static str| {
            move |scene: &Scene, place: &Path| {
                let place = place.display().to_string();
                let of =
                    ["type", kind, "key", key, "value", value, "entries", entries, "name", "other", "flags", flags];
                bpftool(scene, &[&["map", "create", &place], &of[..]].concat());
            }
        };
    type Put = Box<dyn Fn(&Scene, &Path)>;
    let cases: [(&str, Put, &str); 7] = [
        ("RULES", Box::new(map("array", "4", "8", "16", "0")), "is an array of 16 entries, 4 and 8 bytes each"),
        ("CLASS_EXACT_V4", Box::new(map("hash", "4", "12", "1024", "0")), "and should be a hash map"),
        ("ENDPOINTS", Box::new(map("hash", "4", "16", "1024", "0")), "4 and 16 bytes each"),
        ("COUNTERS", Box::new(map("percpu_array", "4", "8", "3", "0")), "an array per CPU of 3 entries"),
        ("SERVICES", Box::new(|_, place| fs::create_dir(place).expect("a bpffs takes folders")), "is a folder"),
        (
            "FLOWS",
            Box::new(|_, place| Counter::load().expect("it loads").pin(place).expect("it can be pinned")),
            "is a program",
        ),
        (
            "CONFIG",
            Box::new(move |scene, place| {
                let link = pin(scene, "links", &format!("{index}-to_pod"));
                bpftool(scene, &["link", "pin", "pinned", &link, &place.display().to_string()]);
            }),
            "is a link of the program \"to_pod\"",
        ),
    ];
    for (name, put, said) in &cases {
        let place = PathBuf::from(pin(&scene, "maps", name));
        let kept = place.with_file_name("kept");
        fs::rename(&place, &kept).expect("it is pinned");
        put(&scene, &place);
        let log = refused(&scene);
        let all = [&*place.display().to_string(), said, "and should be", "`palisade uninstall`"];
        assert!(all.iter().all(|part| log.contains(part)), "{name}: {log}");
        expect_in_force(&scene, &mut open, name);
        if place.is_dir() { fs::remove_dir(&place) } else { fs::remove_file(&place) }.expect("it is there");
        fs::rename(&kept, &place).expect("it was kept");
    }
    let agent = scene.start();
    expect_in_force(&scene, &mut open, "as it was");
    agent.stop().expect("it runs");
    // What the sentence says helps.
    for (name, put, _) in &cases[..6] {
        let place = PathBuf::from(pin(&scene, "maps", name));
        fs::remove_file(&place).expect("it is pinned");
        put(&scene, &place);
    }
    let said = palisade(&scene.node, &["uninstall"]).expect("palisade runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let agent = scene.start();
    expect_in_force(&scene, &mut connect(a, b), "made anew");
    drop(agent);
}

#[test]
fn what_is_no_link_of_ours_is_set_aside_and_left_alone() {
    let scene = Scene::new("aside");
    let [a, b, c] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let mut open = connect(a, b);
    let index = ifindex(&scene, b);
    let [from_pod, to_pod] =
        ["from_pod", "to_pod"].map(|name| PathBuf::from(pin(&scene, "links", &format!("{index}-{name}"))));
    let counter = Counter::load().expect("the kernel takes it");
    let theirs = attach_tcx(&scene, &counter, &c.host_interface, true, true).expect("a link");
    fs::remove_file(&from_pod).expect("it is pinned");
    fs::remove_file(&to_pod).expect("it is pinned");
    let of = ["type", "hash", "key", "4", "value", "8", "entries", "4", "name", "other"];
    bpftool(&scene, &[&["map", "create", &from_pod.display().to_string()], &of[..]].concat());
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", theirs.as_raw_fd())).expect("it is open");
    let id = info.lines().find_map(|line| line.strip_prefix("link_id:")).expect("it is a link").trim();
    bpftool(&scene, &["link", "pin", "id", id, &to_pod.display().to_string()]);
    let agent = scene.start();
    expect_in_force(&scene, &mut open, "set aside");
    for pin in [&from_pod, &to_pod] {
        let aside = format!("moved to {}-foreign", pin.display());
        assert!(agent.log_text().contains(&aside), "{aside}: {}", agent.log_text());
    }
    let count = counter.count().expect("it is read");
    scene.expect_tcp(a, c, 81, true, "past theirs");
    assert!(counter.count().expect("it is read") > count, "theirs is where it was");
    agent.stop().expect("it runs");
    assert!(palisade(&scene.node, &["uninstall"]).expect("palisade runs").status.success());
    let count = counter.count().expect("it is read");
    scene.expect_tcp(a, c, 81, true, "uninstalled");
    assert!(counter.count().expect("it is read") > count, "theirs outlives ours");
}

#[test]
fn missing_maps_are_made_whole_without_a_cut() {
    let scene = Scene::new("half");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let mut open = connect(a, b);
    let others: Vec<&str> = vec!["STAMPS", "SERVICES", "PORTS", "RECORDS", "FLOW_STATS", "COUNTERS"];
    let cases =
        [vec!["RULES"], vec!["CONFIG"], vec!["ENDPOINTS"], vec!["FLOWS"], vec!["COUNTERS", "FRAGMENTS"], others];
    for missing in cases {
        let when = format!("without {missing:?}");
        for name in &missing {
            fs::remove_file(pin(&scene, "maps", name)).expect("it is pinned");
        }
        // Nothing is known yet, so what the earlier agent left has to go on.
        let agent = Agent::spawn(&scene.lab, &scene.node, &no_source(&scene)).expect("it is started");
        let told = || agent.log_text().lines().any(|line| line.contains("are missing") && line.contains(missing[0]));
        assert!(
            eventually(PATIENCE, || told() && agent.log_text().contains("started;")),
            "{when}: {}",
            agent.log_text()
        );
        // The interfaces have been told of.
        assert!(eventually(PATIENCE, || !scene.endpoints()["endpoints"].is_null()), "{when}");
        expect_in_force(&scene, &mut open, &format!("{when}, before the first list"));
        agent.kill().expect("it runs");
        expect_in_force(&scene, &mut open, &format!("{when}, killed before the first list"));
        let agent = scene.start();
        expect_in_force(&scene, &mut open, &format!("{when}, after it"));
        let log = agent.log_text();
        agent.stop().expect("it runs");
        expect_in_force(&scene, &mut open, &format!("{when}, stopped: {log}"));
    }
}

/// Until the programs are verified, and until the first list, others hold their place on a node where no agent was: they let everything
/// pass, and whoever comes next goes on with their links or takes them away.
#[test]
fn what_holds_a_place_changes_nothing() {
    let scene = Scene::new("place");
    let [a, b, c] = &scene.pods;
    scene.policy("p", ONLY_80);
    let mut open = Connection::open(&b.netns, c.addresses[0], 80).expect("nothing is enforced");
    let held = || scene.pods.iter().map(|pod| programs(&scene, "tcx", &pod.host_interface)).sum::<usize>();
    let mut expect_nothing = |when: &str| {
        let probes = [(a, b, 81), (b, c, 80)]
            .map(|(from, to, port)| (Probe::new(&from.netns, Transport::Tcp, to.addresses[0], port), AT_ONCE));
        assert!(ask_all_within(&probes).iter().all(Outcome::reached), "{when}");
        assert!(open.echoes(DEADLINE), "{when}: an open connection");
    };
    for round in ["first", "after an uninstall"] {
        for again in ["", ", again"] {
            let _ = fs::remove_file(scene.node.folder.join("agent.log"));
            let agent = Agent::spawn(&scene.lab, &scene.node, &no_source(&scene)).expect("it is started");
            assert!(eventually(PATIENCE, || agent.log_text().contains("started;")), "{}", agent.log_text());
            assert!(held() > 0, "{round}{again}: {}", agent.log_text());
            expect_nothing(&format!("{round}{again}"));
            agent.kill().expect("it runs");
            expect_nothing(&format!("{round}{again}, killed"));
        }
        if round == "first" {
            assert!(palisade(&scene.node, &["uninstall"]).expect("palisade runs").status.success());
            assert_eq!(held(), 0, "uninstalled");
            expect_nothing("uninstalled");
        }
    }
    let agent = scene.start();
    assert_eq!(held(), 6, "{}", agent.log_text());
    expect_in_force(&scene, &mut [], "taken over");
    agent.stop().expect("it runs");
}

/// What has been enforced goes on; what came since then must not be taken for what is older than the node's first agent.
#[test]
fn a_pod_that_came_while_maps_were_missing_is_closed() {
    let scene = Scene::new("orphan");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let mut open = connect(a, b);
    fs::remove_file(pin(&scene, "maps", "RULES")).expect("it is pinned");
    let late = scene.node.start_pod(&scene.lab, PodSpec::new("web", "late", &[("app", "b")])).expect("a pod");
    scene.put(&objects::pod(&late, &scene.node));
    let _server = Server::start(scene.lab.guard(), &late.netns, "late", &[80, 81], &[]).expect("a server");
    scene.expect_tcp(a, &late, 81, true, "no agent runs");
    let agent = Agent::spawn(&scene.lab, &scene.node, &no_source(&scene)).expect("it is started");
    let closed = || scene.endpoint(&late)["state"] == "closed";
    assert!(eventually(PATIENCE, closed), "{}: {}", scene.endpoint(&late), agent.log_text());
    scene.expect_tcp(a, &late, 80, false, "nothing is known of it");
    expect_in_force(&scene, &mut open, "before the first list");
    agent.kill().expect("it runs");
    let agent = scene.start();
    scene.expect_tcp(a, &late, 80, true, "known");
    scene.expect_tcp(a, &late, 81, false, "known");
    expect_in_force(&scene, &mut open, "after it");
    drop(agent);
}

#[test]
fn an_interface_that_came_again_under_its_index_is_enforced() {
    let scene = Scene::new("again");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let index = u32::try_from(ifindex(&scene, b)).expect("an index");
    scene.replug(b, &b.host_interface, Some(index));
    scene.expect_tcp(a, b, 81, true, "with its interface, its programs have gone");
    let agent = scene.start();
    assert_eq!(ifindex(&scene, b), u64::from(index));
    expect_in_force(&scene, &mut connect(a, b), "under the same index");
    let bound = || fs::read_dir(Path::new(&pin(&scene, "links", ""))).expect("the folder").count();
    assert_eq!(bound(), 6, "two for each");
    drop(agent);
}

#[test]
fn a_read_only_bpffs_is_refused_with_a_sentence() {
    let scene = Scene::new("sealed");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    scene.start().stop().expect("it runs");
    let mut open = connect(a, b);
    mount_remount(scene.lab.bpffs(), MountFlags::RDONLY, c"").expect("it is mounted");
    let log = refused(&scene);
    assert!(log.contains("mounted read-only") && log.contains("remount,rw"), "{log}");
    expect_in_force(&scene, &mut open, "refused");
    mount_remount(scene.lab.bpffs(), MountFlags::empty(), c"").expect("it is mounted");
    let agent = scene.start();
    expect_in_force(&scene, &mut open, "writable again");
    drop(agent);
}

#[test]
fn a_full_state_folder_stops_nothing() {
    let scene = Scene::new("brimful");
    let [a, b, _] = &scene.pods;
    scene.policy("p", ONLY_80);
    let state = state_dir(&scene.node.pin_dir);
    fs::create_dir_all(&state).expect("a folder");
    // The mount goes before the folder.
    scene.lab.guard().folder(&state);
    scene.lab.guard().mount(&state);
    mount("tmpfs", &state, "tmpfs", MountFlags::empty(), Some(c"size=4k")).expect("a tmpfs");
    let filling = state.join("filling");
    fs::write(&filling, [0; 4096]).expect("it is as large as that");
    let agent = scene.start();
    expect_in_force(&scene, &mut connect(a, b), "no room for names");
    let faults = || metric(&agent, "palisade_faults{kind=\"Node\"}");
    assert!(eventually(PATIENCE, || faults() == Some(1.0)), "{:?}: {}", faults(), agent.log_text());
    assert!(agent.log_text().contains("No space left on device"), "{}", agent.log_text());
    assert_eq!(readiness(&agent).0, 200);
    // Another change, which is in force all the same.
    scene.policy_in_force(&agent, "q", "{podSelector: {matchLabels: {app: c}}, policyTypes: [Ingress]}");
    scene.expect_tcp(a, &scene.pods[2], 81, false, "no room for names");
    assert!(scene.endpoints()["endpoints"].is_null(), "nothing could be written");
    mount_remount(&state, MountFlags::empty(), c"size=1m").expect("it is mounted");
    let shown = || scene.endpoint(&scene.pods[2])["ingress_policies"] == serde_json::json!(["web/q"]);
    assert!(eventually(Duration::from_secs(15), shown), "{}", scene.endpoints());
    assert!(eventually(PATIENCE, || faults() == Some(0.0)), "{:?}", faults());
    drop(agent);
    unmount(&state, UnmountFlags::empty()).expect("it is mounted");
}
