//! What is seen of traffic: `palisade flows`, `palisade drops`, the file and the collector, and what Prometheus makes of /metrics.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use palisade_tests::lab::agent::{palisade, palisade_command};
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::{Agent, Connection, Outcome, Pod, Transport, programs};
use serde_json::Value;

use crate::scene::{AT_ONCE, PATIENCE, Scene, eventually};

/// Pod `b` may be sent what is for TCP 80, and may send nothing.
const ONLY_80: &str = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress], \
                       ingress: [{ports: [{port: 80}]}]}";

fn json(scene: &Scene, arguments: &str) -> Vec<Value> {
    let arguments: Vec<&str> = arguments.split(' ').chain(["-o", "json"]).collect();
    let said = palisade(&scene.node, &arguments).expect("palisade runs");
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{arguments:?}: {error}");
    match serde_json::from_slice(&said.stdout).expect("JSON") {
        Value::Array(rows) => rows,
        other => panic!("{other}"),
    }
}

/// What a command prints line by line, on either output, until it is dropped.
struct Stream {
    child: Child,
    lines: Receiver<String>,
}

impl Stream {
    fn start(scene: &Scene, arguments: &[&str]) -> Self {
        let mut command = palisade_command(&scene.node, arguments).expect("palisade is built");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("palisade runs");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let error = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, lines) = channel();
        let errors = sender.clone();
        std::thread::spawn(move || error.lines().map_while(Result::ok).try_for_each(|line| errors.send(line)));
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The first line that has all these words; while they wait, `again` is done now and then.
    fn expect(&self, words: &[&str], mut again: impl FnMut()) -> String {
        let (end, mut seen) = (Instant::now() + PATIENCE, Vec::new());
        while Instant::now() < end {
            again();
            while let Ok(line) = self.lines.recv_timeout(AT_ONCE) {
                if words.iter().all(|word| line.contains(word)) {
                    return line;
                }
                seen.push(line);
            }
        }
        panic!("no line with {words:?} in {seen:#?}");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn refused(from: &Pod, to: IpAddr, port: u16) {
    let probe = Probe::new(&from.netns, Transport::Tcp, to, port);
    assert_eq!(probe.ask_within(Duration::from_millis(100)), Outcome::TimedOut);
}

#[test]
fn flows_have_names_rules_and_what_the_tables_say_of_them_now() {
    let scene = Scene::new("flows");
    let [a, b, c] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", ONLY_80);
    scene.expect_tcp(a, b, 81, false, "before");
    let mut kept: Vec<Connection> =
        [b.ipv4(), b.ipv6()].map(|to| Connection::open(&a.netns, to, 80).expect("a rule admits it")).into();
    let node = Probe::new(&scene.node.netns, Transport::Udp, b.ipv4(), 53);
    assert_eq!(node.ask_within(PATIENCE), Outcome::Reached(b.name.clone()));

    let between = || json(&scene, "flows --pod web/b --peer web/a --port 80 --protocol tcp");
    let flows = between();
    for to in [b.ipv4(), b.ipv6()] {
        let of = |row: &&Value| row["destination"]["address"] == to.to_string() && row["state"] == "open";
        let row = flows.iter().find(of).unwrap_or_else(|| panic!("{to}: {flows:#?}"));
        assert_eq!((&row["source"]["name"], &row["destination"]["name"]), (&"web/a".into(), &"web/b".into()));
        assert_eq!(row["verdict"], "admitted", "{row}");
        assert_eq!(
            (&row["ingress"]["rule"], &row["ingress"]["judged"]),
            (&"web/p ingress rule 0".into(), &true.into())
        );
        assert_eq!(row["egress"], Value::Null, "nobody isolates it");
    }
    let of_node = json(&scene, "flows --verdict node");
    assert!(
        of_node.iter().any(|row| row["destination"]["name"] == "web/b" && row["protocol"] == "udp"),
        "{of_node:#?}"
    );
    assert!(json(&scene, "flows --pod web/c").is_empty(), "no policy isolates it");
    let table = palisade(&scene.node, &["flows", "--namespace", "web"]).expect("palisade runs").stdout;
    let table = String::from_utf8_lossy(&table).into_owned();
    assert!(table.contains("web/b:80") && table.contains("web/p ingress rule 0"), "{table}");

    // A stream says what comes.
    let stream = Stream::start(&scene, &["flows", "--watch", "--pod", "web/b"]);
    stream.expect(&[" is tcp web/a:", "> web/b:80 admitted by web/p ingress rule 0"], || {});
    let mut later = Connection::open(&c.netns, b.ipv6(), 80).expect("a rule admits it");
    stream.expect(&[" new tcp web/c:", "> web/b:80 admitted"], || {});
    let lines = Stream::start(&scene, &["flows", "--watch", "-o", "json", "--peer", "web/c"]);
    let line: Value = serde_json::from_str(&lines.expect(&["web/c"], || {})).expect("one object on a line");
    assert_eq!((&line["event"], &line["destination"]["port"]), (&"is".into(), &80.into()), "{line}");

    // What is not admitted any longer stands out; the agent need not be there for any of it.
    let only_c = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}]}]}";
    scene.policy_in_force(&agent, "p", only_c);
    agent.kill().expect("it runs");
    assert!(!between().is_empty() && between().iter().all(|row| row["verdict"] == "refused"), "{:#?}", between());
    stream.expect(&[" changed tcp web/a:", "> web/b:80 refused"], || {});
    assert!(later.echoes(PATIENCE), "it is admitted");
    assert!(!kept[0].echoes(AT_ONCE), "what was told is what happens");
}

#[test]
fn drops_are_told_by_name_recent_and_live_and_nobody_hides_another() {
    let scene = Scene::new("drops");
    let [a, b, c] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", ONLY_80);
    scene.policy_in_force(&agent, "q", "{podSelector: {matchLabels: {app: c}}}");
    let stream = Stream::start(&scene, &["drops", "--watch"]);
    // What is told before is not told again for a while.
    stream.expect(&["palisade: watching"], || {});
    for (to, port) in [(b.ipv4(), 81), (b.ipv6(), 81)] {
        let line = stream.expect(
            &["refused ingress tcp web/a", "> web/b", "no-rule isolated by web/p", &to.to_string()],
            || {
                refused(a, to, port);
            },
        );
        assert!(line.contains(":81)"), "{line}");
    }
    refused(b, a.ipv6(), 80);
    assert!(eventually(PATIENCE, || !json(&scene, "drops --pod web/b --peer web/a --port 80").is_empty()));
    let out = &json(&scene, "drops --pod web/b --peer web/a --port 80")[0];
    assert_eq!(
        (&out["direction"], &out["namespace"], &out["reason"]),
        (&"egress".into(), &"web".into(), &"no-rule".into())
    );
    assert_eq!((&out["pod"], &out["peer"], &out["protocol"]), (&"web/b".into(), &"web/a".into(), &"tcp".into()));
    assert_eq!((&out["policies"][0], &out["rule"]), (&"web/p".into(), &Value::Null));
    assert!(json(&scene, "drops --reason closed").is_empty() && json(&scene, "drops --admitted").is_empty());

    // One that is refused tens of thousands of times does not hide another's first packet.
    (0..3).for_each(|_| refused(a, b.ipv4(), 81));
    flood(a, b, 40_000);
    refused(a, c.ipv4(), 80);
    let line = stream.expect(&["web/a", "> web/c", "tcp", "isolated by web/q"], || {});
    assert!(line.contains("refused ingress"), "{line}");
    let top = json(&scene, "drops --top 1");
    assert_eq!((top.len(), &top[0]["pod"]), (1, &"web/b".into()), "{top:#?}");
    let told =
        agent.log_text().lines().filter(|line| line.contains("refused: ") && line.contains("protocol=\"udp\"")).count();
    assert!(told <= 40, "{told} lines for one pod that is flooded");

    let status = agent.kill();
    assert!(status.is_ok());
    let said = palisade(&scene.node, &["drops"]).expect("palisade runs");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && text.contains("no agent runs") && text.contains("no-rule"), "{text}");
    assert!(text.contains("stays enforced"), "{text}");
}

/// Datagrams to many ports, none of which is admitted.
fn flood(from: &Pod, to: &Pod, count: u32) {
    let socket = from.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
    for number in 0..count {
        // The queue may be full for a moment: fewer will do as well.
        let _ = socket.send_to(b"x", SocketAddr::new(to.ipv4(), 1024 + (number % 50_000) as u16));
    }
}

#[test]
fn a_file_and_a_collector_get_the_same_lines_and_admitted_flows_if_they_are_wanted() {
    let scene = Scene::new("sinks");
    let [a, b, _] = &scene.pods;
    let file = scene.node.folder.join("events.json");
    let listener = scene.node.netns.run(|| TcpListener::bind("127.0.0.1:0")).expect("a port");
    let collector = format!("http://{}", listener.local_addr().expect("an address"));
    let requests = collect(listener);
    let agent = scene.start_with(&[
        "--admitted-events",
        "--events-file",
        &file.display().to_string(),
        "--otlp-endpoint",
        &collector,
    ]);
    scene.policy_in_force(&agent, "p", ONLY_80);
    refused(a, b.ipv6(), 81);
    scene.expect_tcp(a, b, 80, true, "a rule admits it");
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("one object on a line")).collect()
    };
    let has = |verdict: &str, port: u16| lines().iter().any(|line| line["verdict"] == verdict && line["port"] == port);
    assert!(eventually(PATIENCE, || has("refused", 81) && has("admitted", 80)), "{:#?}", lines());
    let admitted = lines().into_iter().find(|line| line["verdict"] == "admitted").expect("it is there");
    assert_eq!((&admitted["rule"], &admitted["peer"]), (&"web/p ingress rule 0".into(), &"web/a".into()), "{admitted}");
    assert_eq!(json(&scene, "drops --admitted --pod web/b --port 80")[0]["reason"], "allowed");

    let mut sent = String::new();
    let both = || {
        sent.extend(requests.try_iter());
        sent.contains("refused ingress web/b web/a tcp/81 no-rule")
            && sent.contains("admitted ingress web/b web/a tcp/80 allowed")
    };
    assert!(eventually(PATIENCE, both), "{:?}", requests.try_iter().collect::<Vec<_>>());
    assert!(sent.starts_with("POST /v1/logs HTTP/1.1") && sent.contains("content-type: application/json"), "{sent}");
    let (_, page) = agent.http("/metrics").expect("a page");
    for sink in ["file", "otlp", "watch"] {
        let line = format!("palisade_event_lines_lost_total{{sink=\"{sink}\"}} 0");
        assert!(page.lines().any(|told| told == line), "{line}\n{page}");
    }
}

/// Heads and bodies of the requests to a collector that takes everything.
fn collect(listener: TcpListener) -> Receiver<String> {
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            loop {
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                        break;
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                        length = value.trim().parse().expect("a number");
                    }
                    head += &line;
                }
                if head.is_empty() {
                    break;
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a whole body");
                if sender.send(head + &String::from_utf8_lossy(&body)).is_err() {
                    return;
                }
                reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("it waits");
            }
        }
    });
    requests
}

/// By promtool's linter, and Prometheus' own parsers and engine (tests/go/prom).
#[test]
fn prometheus_takes_the_metrics_the_rules_and_the_dashboard() {
    let scene = Scene::new("metrics");
    let [a, b, _] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", ONLY_80);
    scene.expect_tcp(a, b, 80, true, "a rule admits it");
    scene.expect_tcp(a, b, 81, false, "none does");
    refused(b, a.ipv6(), 80);
    let (_, page) = agent.http("/metrics").expect("a page");
    let value = |name: &str, labels: &[&str]| -> f64 {
        let its = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        let line = page.lines().find(its).unwrap_or_else(|| panic!("{name} {labels:?} in\n{page}"));
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    };
    let web = "namespace=\"web\"";
    let (ingress, egress) = ("direction=\"ingress\"", "direction=\"egress\"");
    assert!(value("palisade_admitted_flows_total", &[web, ingress]) >= 2.0);
    assert!(value("palisade_policy_admitted_flows_total", &[web, ingress, "policy=\"p\""]) >= 2.0);
    assert!(value("palisade_refused_packets_total", &[web, ingress, "policies=\"p\""]) >= 2.0);
    assert!(value("palisade_refused_packets_total", &[web, egress, "policies=\"p\""]) >= 1.0);
    assert!(value("palisade_flow_insertions_total", &[]) >= 2.0);
    assert!(value("palisade_build_info", &["version="]) == 1.0);

    // An API server and the kernel's own statistics are not here, and their families are empty: what the dashboard asks of them has to be
    // somewhere.
    let file = scene.node.folder.join("page");
    let more = "# HELP palisade_api_requests_total From another run.\n# TYPE palisade_api_requests_total counter\n\
                palisade_api_requests_total{resource=\"pods\",verb=\"list\",code=\"200\"} 1\n";
    let page: Vec<&str> = page.lines().filter(|line| !line.contains("palisade_api_requests_total")).collect();
    std::fs::write(&file, page.join("\n") + "\n" + more).expect("it can be written");
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/palisade/files");
    let said = Command::new(programs::promcheck().expect("it is built"))
        .arg(&file)
        .args(["alerts.yaml", "dashboard.json"].map(|name| files.join(name)))
        .output()
        .expect("it runs");
    let (out, error) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}{error}");
}

/// Pods' counters begin with the pod, and an agent that comes later goes on with them.
#[test]
fn counts_outlive_an_agent() {
    let scene = Scene::new("counts");
    let [a, b, _] = &scene.pods;
    let agent = scene.start();
    scene.policy_in_force(&agent, "p", ONLY_80);
    refused(a, b.ipv4(), 81);
    let count = |agent: &Agent| -> f64 {
        let (_, page) = agent.http("/metrics").expect("a page");
        let its = |line: &&str| line.starts_with("palisade_refused_packets_total{") && line.contains("policies=\"p\"");
        page.lines().find(its).and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0.0)
    };
    let before = count(&agent);
    assert!(before >= 1.0);
    agent.kill().expect("it runs");
    refused(a, b.ipv4(), 81);
    let agent = scene.start();
    // Names come with the catalog, a moment after the tables.
    assert!(eventually(PATIENCE, || count(&agent) > before), "{before} and {}", count(&agent));
    let counts = &scene.endpoint(b)["counts"];
    assert!(counts["refused_ingress"].as_u64() >= Some(2) && counts["refused_egress"] == 0, "{counts}");
    let one = palisade(&scene.node, &["endpoints", "web/b", "-o", "json"]).expect("palisade runs").stdout;
    let one: Value = serde_json::from_slice(&one).expect("JSON");
    assert_eq!(one["endpoints"].as_array().map(Vec::len), Some(1), "{one}");
    assert!(!palisade(&scene.node, &["endpoints", "web/nobody"]).expect("palisade runs").status.success());
}
