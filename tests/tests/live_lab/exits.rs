//! While what pods send to Services cannot be judged wherever it may end up, those with an egress policy are refused it, and the agent says so.

use std::net::IpAddr;
use std::time::Duration;

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::{Agent, Netns, Outcome, Pod, Transport, objects};
use serde_json::{Value, json};

use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

/// Of the Service.
pub const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

fn status(scene: &Scene) -> Value {
    let said = palisade(&scene.node, &["status", "-o", "json"]).expect("palisade runs");
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

/// What kube-proxy would do for a Service with one backend.
pub fn translate(scene: &Scene, backend: &[IpAddr]) {
    for address in backend {
        let (iptables, vip, to) = match address {
            IpAddr::V4(_) => ("iptables", VIPS[0], format!("{address}:80")),
            IpAddr::V6(_) => ("ip6tables", VIPS[1], format!("[{address}]:80")),
        };
        let rule = format!("-w -t nat -A PREROUTING -d {vip} -p tcp --dport 80 -j DNAT --to {to}");
        run(&scene.node.netns, iptables, &rule);
    }
}

/// Asks the Service until the answer is this one.
pub fn expect(scene: &Scene, from: &Pod, wanted: &Outcome, when: &str) {
    for vip in VIPS {
        let probe = Probe::new(&from.netns, Transport::Tcp, vip.parse().expect("it is an address"), 80);
        let mut last = None;
        let holds = eventually(PATIENCE, || {
            last = Some(probe.ask_within(AT_ONCE));
            last.as_ref() == Some(wanted)
        });
        assert!(holds, "{} -> {vip} {when}: {last:?}\n{}", from.name, status(scene));
    }
}

/// A Service that leads to `b`, which `a` may reach and nobody else.
fn set_up(scene: &Scene) {
    let spec = json!({"clusterIP": VIPS[0], "clusterIPs": VIPS, "selector": {"app": "b"}, "ports": [{"port": 80}]});
    scene.put(&objects::service("web", "s", &spec));
    translate(scene, &scene.pods[1].addresses);
    scene.policy(
        "p",
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}]}",
    );
}

fn run(netns: &Netns, program: &str, arguments: &str) {
    let said = netns.command(program).args(arguments.split(' ')).output().expect("it runs");
    assert!(said.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn services_are_refused_while_a_program_is_missing() {
    let scene = Scene::new("exits");
    let [a, b, c] = &scene.pods;
    set_up(&scene);
    let cgroup = scene.node.folder.join("cgroup");
    let options = scene.options().argument("--cgroup").argument(&cgroup.to_string_lossy());
    let mut agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("an agent");
    assert!(eventually(PATIENCE, || scene.endpoint(a)["state"] == "enforced"), "{}", agent.log_text());
    assert!(eventually(PATIENCE, || status(&scene)["service_traffic_refused"] == true), "{}", status(&scene));
    let (code, reason) = agent.http("/readyz").expect("the agent answers");
    assert!(code == 503 && reason.contains("sockets lack their program"), "{reason}");
    assert!(status(&scene)["exits_missing"].to_string().contains("sockets lack"), "{}", status(&scene));
    expect(&scene, a, &Outcome::TimedOut, "without the program");
    scene.expect_tcp(a, b, 80, true, "not by the Service");
    expect(&scene, c, &Outcome::Reached(b.name.clone()), "without a policy");
    assert!(eventually(PATIENCE, || agent.log_text().contains("reason=\"no-exit\"")), "{}", agent.log_text());

    // What was missing comes, and the agent tries again.
    std::os::unix::fs::symlink(&scene.node.cgroup.path, &cgroup).expect("the folder can be written to");
    agent.wait_ready(Duration::from_secs(60)).expect("it tries again");
    expect(&scene, a, &Outcome::Reached(b.name.clone()), "with every program");
    assert!(eventually(PATIENCE, || status(&scene)["not_ready"].is_null()), "{}", status(&scene));
    let status = status(&scene);
    assert_eq!(status["service_traffic_refused"], false, "{status}");
    assert_eq!(status["pods"], json!({"isolated": 1, "open": 2, "closed": 0, "not_attached": 0}), "{status}");
}

/// Three looks at the counters, ten seconds apart, and one before them.
const LASTING: Duration = Duration::from_secs(60);

#[test]
fn marks_that_others_use_or_erase_are_told_of() {
    let scene = Scene::new("marks");
    let [a, b, c] = &scene.pods;
    set_up(&scene);
    let node = &scene.node.netns;
    let faults = || status(&scene)["faults"].to_string();
    let reached = Outcome::Reached(b.name.clone());
    run(node, "ip", "rule add fwmark 0x1000000/0xff000000 lookup main");
    let _agent = scene.start();
    assert!(eventually(LASTING, || faults().contains("the routing rule")), "{}", status(&scene));
    run(node, "ip", "rule del fwmark 0x1000000/0xff000000 lookup main");

    // What a pod marks is nobody's: not a's, and not the node's.
    run(&c.netns, "iptables", "-w -t mangle -A OUTPUT -j MARK --set-mark 0x1000000");
    run(&c.netns, "ip6tables", "-w -t mangle -A OUTPUT -j MARK --set-mark 0x1000000");
    expect(&scene, c, &reached, "with another's mark");
    scene.expect_tcp(c, a, 80, true, "with another's mark");
    assert!(eventually(LASTING, || !faults().contains("the routing rule")), "{}", status(&scene));
    assert!(!faults().contains("stamp-mask"), "{}", status(&scene));

    run(node, "iptables", "-w -t mangle -A PREROUTING -j MARK --set-mark 0");
    run(node, "ip6tables", "-w -t mangle -A PREROUTING -j MARK --set-mark 0");
    let told = || {
        expect(&scene, a, &reached, "without its mark");
        faults().contains("somebody erases the marks")
    };
    assert!(eventually(LASTING, told), "{}", status(&scene));
}
