//! While what pods send to Services cannot be judged wherever it may end up, those with an egress policy are refused it, and the agent says so.

use std::net::IpAddr;

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::{Agent, Outcome, Pod, Transport, objects};
use serde_json::{Value, json};

use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

fn status(scene: &Scene) -> Value {
    let said = palisade(&scene.node, &["status", "-o", "json"]).expect("palisade runs");
    serde_json::from_slice(&said.stdout).unwrap_or_default()
}

/// What kube-proxy would do for a Service with one backend.
fn translate(scene: &Scene, backend: &Pod) {
    for address in &backend.addresses {
        let (iptables, vip, to) = match address {
            IpAddr::V4(_) => ("iptables", VIPS[0], format!("{address}:80")),
            IpAddr::V6(_) => ("ip6tables", VIPS[1], format!("[{address}]:80")),
        };
        let rule =
            ["-w", "-t", "nat", "-A", "PREROUTING", "-d", vip, "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to", &to];
        let said = scene.node.netns.command(iptables).args(rule).output().expect("iptables runs");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

fn expect(scene: &Scene, from: &Pod, wanted: &Outcome, when: &str) {
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

#[test]
fn services_are_refused_while_a_program_is_missing() {
    let scene = Scene::new("exits");
    let [a, b, c] = &scene.pods;
    scene.put(&objects::service(
        "web",
        "s",
        &json!({"clusterIP": VIPS[0], "clusterIPs": VIPS, "selector": {"app": "b"}, "ports": [{"port": 80}]}),
    ));
    translate(&scene, b);
    scene.policy("p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}]}");
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
    agent.wait_ready(std::time::Duration::from_secs(60)).expect("it tries again");
    expect(&scene, a, &Outcome::Reached(b.name.clone()), "with every program");
    assert!(eventually(PATIENCE, || status(&scene)["not_ready"].is_null()), "{}", status(&scene));
    let status = status(&scene);
    assert_eq!(status["service_traffic_refused"], false, "{status}");
    assert_eq!(status["pods"], json!({"isolated": 1, "open": 2, "closed": 0, "not_attached": 0}), "{status}");
}
