//! The demo's cast: pods with servers, policies, and which answers these policies ask for.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use palisade_tests::lab::probe::{self, Probe, ask_all};
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Lab, Manifests, Netns, Node, Outcome, Pod, PodSpec, Transport, objects};

const POLICIES: &[(&str, &str, &str)] = &[
    (
        "shop",
        "db-from-api",
        "\
podSelector: {matchLabels: {app: db}}
policyTypes: [Ingress, Egress]
ingress:
- from:
  - podSelector: {matchLabels: {app: api}}
  ports:
  - {protocol: TCP, port: 5432}
",
    ),
    (
        "shop",
        "api-from-web-and-ops",
        "\
podSelector: {matchLabels: {app: api}}
ingress:
- from:
  - podSelector: {matchLabels: {app: web}}
  - namespaceSelector: {matchLabels: {team: ops}}
  ports:
  - {protocol: TCP, port: http}
",
    ),
    (
        "shop",
        "web-from-outside-to-api",
        "\
podSelector: {matchLabels: {app: web}}
policyTypes: [Ingress, Egress]
ingress:
- from:
  - ipBlock: {cidr: 172.30.0.0/16}
  - ipBlock: {cidr: 'fd00:30::/64'}
egress:
- to:
  - podSelector: {matchLabels: {app: api}}
",
    ),
];

/// What the policies say: from whom (column names below) each pod may be reached; `node` always may (its own node).
const ALLOWED: &[(&str, &[&str])] = &[
    ("shop/web", &["node", "outside"]),
    ("shop/api", &["node", "shop/web", "ops/prometheus"]),
    ("shop/db", &["node", "shop/api"]),
    ("ops/prometheus", &["node", "outside", "shop/api"]),
];

pub struct Scene {
    pub lab: Lab,
    pub node: Node,
    pub manifests: Manifests,
    pub pods: Vec<Pod>,
    outside: Netns,
    servers: Vec<Server>,
}

/// From whom to which pod's server, over one family.
pub struct Question {
    pub from: String,
    pub to: String,
    pub probe: Probe,
}

impl Scene {
    pub fn set_up() -> Result<Self> {
        let lab = Lab::new("demo")?;
        let node = lab.node("node-1", 1)?;
        let (outside, _) = lab.outside("outside", 200)?;
        let specs = [
            PodSpec::new("shop", "web", &[("app", "web")]).port("http", "TCP", 80),
            PodSpec::new("shop", "api", &[("app", "api")]).port("http", "TCP", 8080),
            PodSpec::new("shop", "db", &[("app", "db")]).port("sql", "TCP", 5432),
            PodSpec::new("ops", "prometheus", &[("app", "prometheus")]).port("http", "TCP", 9090),
        ];
        let pods = node.start_pods(&lab, &specs)?;
        let mut servers = Vec::new();
        for pod in &pods {
            let ports: Vec<u16> = pod.ports.iter().map(|(_, _, port)| *port).collect();
            servers.push(Server::start(lab.guard(), &pod.netns, &pod.full_name(), &ports, &ports)?);
        }
        let manifests = Manifests::new(&node.folder.join("manifests"))?;
        manifests.put(&objects::node(&node))?;
        manifests.put(&objects::namespace("shop", &[]))?;
        manifests.put(&objects::namespace("ops", &[("team", "ops")]))?;
        for pod in &pods {
            manifests.put(&objects::pod(pod, &node))?;
        }
        Ok(Self { lab, node, manifests, pods, outside, servers })
    }

    pub fn describe(&self) {
        for pod in &self.pods {
            let addresses: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
            let ports: Vec<String> = pod.ports.iter().map(|(_, _, port)| port.to_string()).collect();
            let (name, host) = (pod.full_name(), &pod.host_interface);
            println!("{name:16} {:34} tcp {:5} behind {host}", addresses.join(" "), ports.join(" "));
        }
    }

    pub fn print_policies(&self) {
        for (namespace, name, spec) in POLICIES {
            println!("{namespace}/{name}:");
            for line in spec.lines() {
                println!("    {line}");
            }
        }
    }

    /// One file after the other.
    pub fn write_policies(&self) -> Result<()> {
        for (namespace, name, spec) in POLICIES {
            self.manifests.put(&objects::policy(namespace, name, spec)?)?;
        }
        Ok(())
    }

    /// How long after the policies are written the last datagram was sent that got through although they forbid it: they are
    /// sent without pause, before that and until none has been answered for a while.
    pub fn last_answer(&self, write: impl FnOnce() -> Result<()>) -> Result<Duration> {
        // A pair of which neither may open a flow to the other.
        let (web, prometheus) = (&self.pods[0], &self.pods[3]);
        let to = SocketAddr::new(web.ipv4(), web.ports[0].2);
        let stream = probe::Datagrams::start(&prometheus.netns, to)?;
        write()?;
        let written = Instant::now();
        let last = stream.last_answered(Duration::from_millis(300), Duration::from_secs(10))?;
        // None: the first was answered, and none since.
        Ok(last.map_or(Duration::ZERO, |sent| sent.saturating_duration_since(written)))
    }

    /// Who asks, in the table's order.
    pub fn askers(&self) -> Vec<(String, &Netns)> {
        let pods = self.pods.iter().map(|pod| (pod.full_name(), &pod.netns));
        pods.chain([("node".to_owned(), &self.node.netns), ("outside".to_owned(), &self.outside)]).collect()
    }

    pub fn questions(&self) -> Vec<Question> {
        let mut questions = Vec::new();
        for (from, netns) in self.askers() {
            for pod in self.pods.iter().filter(|pod| pod.full_name() != from) {
                let (_, _, port) = pod.ports[0];
                for address in &pod.addresses {
                    let probe = Probe::new(netns, Transport::Tcp, *address, port);
                    questions.push(Question { from: from.clone(), to: pod.full_name(), probe });
                }
            }
        }
        questions
    }

    /// In the order of [`Self::questions`].
    pub fn ask_everything(&self) -> Vec<Outcome> {
        let probes: Vec<Probe> = self.questions().into_iter().map(|question| question.probe).collect();
        ask_all(&probes)
    }

    /// Asks until the answers are what the policies say, or the time is over.
    pub fn settled(&self, deadline: Duration) -> Result<Vec<Outcome>> {
        let end = Instant::now() + deadline;
        loop {
            let outcomes = self.ask_everything();
            if self.disagreements(&outcomes).is_empty() || Instant::now() > end {
                return Ok(outcomes);
            }
        }
    }

    pub fn disagreements(&self, outcomes: &[Outcome]) -> Vec<String> {
        let mut wrong = Vec::new();
        for (question, outcome) in self.questions().iter().zip(outcomes) {
            if allowed(&question.from, &question.to) != outcome.reached() {
                wrong.push(format!("{} -> {} at {}: {outcome}", question.from, question.to, question.probe.to));
            }
        }
        wrong
    }

    /// A question that the policies refuse.
    pub fn example(&self) -> (&Netns, SocketAddr) {
        let (web, db) = (&self.pods[0], &self.pods[2]);
        (&web.netns, SocketAddr::new(db.ipv4(), db.ports[0].2))
    }

    /// Leaves everything standing; returns the command that removes it.
    pub fn keep(self) -> Result<String> {
        for server in self.servers {
            server.keep();
        }
        self.lab.keep()
    }
}

fn allowed(from: &str, to: &str) -> bool {
    ALLOWED.iter().any(|(target, sources)| *target == to && sources.contains(&from))
}
