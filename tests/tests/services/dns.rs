//! DNS as pods use it: through the cluster's DNS Service with real servers as backends, and by NodeLocal DNSCache.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use palisade_tests::lab::dns::{DnsServer, Resolver, ZONE};
use palisade_tests::lab::objects::{self, Backend};
use palisade_tests::lab::{Agent, Mode, Netns, Pod, PodSpec, programs};
use serde_json::{Value, json};

use crate::world::World;

/// The Service's cluster IPs.
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::a"];
/// Where a NodeLocal DNSCache listens besides.
const LOCAL: [&str; 2] = ["169.254.20.10", "fd00:20::10"];
/// What the cluster's servers say of every name, and what the node's says.
const OF_CLUSTER: [&str; 2] = ["192.0.2.53", "2001:db8:53::1"];
const OF_NODE: [&str; 2] = ["192.0.2.54", "2001:db8:54::1"];
/// Look-ups of each kind, by this many threads.
const LOOKUPS: usize = 16;
const AT_ONCE: usize = 4;
/// What is not answered by then is not. An answer may take longer where many programs start at once.
const SILENCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

/// A policy of the clients, and at which servers they get answers.
struct Row {
    name: &'static str,
    egress: Option<&'static str>,
    /// Of the cluster's servers, by the Service.
    service: bool,
    /// Of the node's server at the Service's addresses, and at its own.
    node: [bool; 2],
}

const BY_SELECTOR: &str = "[{to: [{namespaceSelector: {matchLabels: {team: system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
                           ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]";

const ROWS: &[Row] = &[
    Row { name: "no policy", egress: None, service: true, node: [true, true] },
    Row { name: "the DNS pods by selector", egress: Some(BY_SELECTOR), service: true, node: [true, false] },
    Row { name: "default deny", egress: Some("[]"), service: false, node: [false, false] },
    Row {
        name: "other pods by selector",
        egress: Some("[{to: [{podSelector: {}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}]"),
        service: false,
        node: [false, false],
    },
    Row {
        name: "the DNS pods by selector, another port",
        egress: Some(
            "[{to: [{namespaceSelector: {matchLabels: {team: system}}}], ports: [{port: 54, protocol: UDP}, {port: 54}]}]",
        ),
        service: false,
        node: [false, false],
    },
    Row {
        name: "the node's own address by ipBlock",
        egress: Some("[{to: [{ipBlock: {cidr: 169.254.20.10/32}}, {ipBlock: {cidr: 'fd00:20::10/128'}}]}]"),
        service: false,
        node: [false, true],
    },
];

struct Scene {
    world: World,
    /// One on node one, with the client of the Service, and one on node two.
    cluster: Vec<DnsServer>,
    node: DnsServer,
    folder: PathBuf,
}

/// What somebody asks.
struct Lookups<'a> {
    text: String,
    from: &'a Netns,
    server: IpAddr,
    over_tcp: bool,
    says: BTreeSet<IpAddr>,
    answered: bool,
}

pub fn play(mode: Mode) {
    let scene = Scene::new(mode);
    scene.wait_for_proxies();
    let mut failures = scene.check(&ROWS[0], "no agent");
    let agents = scene.world.start_agents(true);
    let mut there = Vec::new();
    for row in ROWS {
        there = scene.make(row, &agents, &there);
        failures.extend(scene.check(row, row.name));
    }
    assert!(failures.is_empty(), "{mode:?}:\n{}", failures.join("\n"));
}

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().expect("an address"))
}

// === impl Scene ===

impl Scene {
    fn new(mode: Mode) -> Self {
        let world = World::new(mode);
        let folder = world.lab.folder.join("dns");
        let labels = [("k8s-app", "kube-dns")];
        let spec = |name| {
            let spec = PodSpec::new("kube-system", name, &labels);
            spec.port("dns", "UDP", 53).port("dns-tcp", "TCP", 53)
        };
        let pods = [world.start_pod(0, spec("dns-one")), world.start_pod(1, spec("dns-two"))];
        let start = |pod: &Pod| {
            let command = pod.netns.command(programs::dns().expect("CoreDNS is built"));
            let own = [pod.ipv4(), pod.ipv6()];
            DnsServer::start(world.lab.guard(), command, &folder.join(&pod.name), &own, &addresses(OF_CLUSTER))
        };
        let cluster = pods.iter().map(|pod| start(pod).expect("a DNS server")).collect();
        write_service(&world, &pods);
        let node = start_on_node(&world, folder.join("node"));
        Self { world, cluster, node, folder }
    }

    /// The Service came after they had started.
    fn wait_for_proxies(&self) {
        let end = Instant::now() + PATIENCE;
        for lookups in self.lookups(&ROWS[0]) {
            let resolver = self.resolver(&lookups);
            while resolver.addresses(&format!("ready.{ZONE}"), SILENCE).expect("getent runs") != lookups.says {
                assert!(Instant::now() < end, "{}: no answer", lookups.text);
            }
        }
    }

    fn make(&self, row: &Row, agents: &[Agent], there: &[Value]) -> Vec<Value> {
        let spec = |egress| format!("{{podSelector: {{}}, policyTypes: [Egress], egress: {egress}}}");
        let policies: Vec<Value> =
            row.egress.iter().map(|egress| self.world.policy("web/dns", &spec(egress))).collect();
        self.world.change_policies(agents, there, &policies);
        policies
    }

    fn resolver(&self, lookups: &Lookups<'_>) -> Resolver {
        Resolver::new(&self.folder, lookups.from, lookups.server, lookups.over_tcp)
            .expect("the folder can be written to")
    }

    /// a asks the cluster's servers, d that of its node.
    fn lookups(&self, row: &Row) -> Vec<Lookups<'_>> {
        let kinds = [
            ("a", SERVICE, OF_CLUSTER, row.service),
            ("d", SERVICE, OF_NODE, row.node[0]),
            ("d", LOCAL, OF_NODE, row.node[1]),
        ];
        let mut lookups = Vec::new();
        for (from, servers, says, answered) in kinds {
            for (server, over_tcp) in
                addresses(servers).into_iter().flat_map(|server| [(server, false), (server, true)])
            {
                lookups.push(Lookups {
                    text: format!("{from} asks {server} over {}", if over_tcp { "TCP" } else { "UDP" }),
                    from: &self.world.places[from].netns,
                    server,
                    over_tcp,
                    says: addresses(says).into(),
                    answered,
                });
            }
        }
        lookups
    }

    /// Each look-up once: nothing is repeated, so whatever is lost shows.
    fn check(&self, row: &Row, when: &str) -> Vec<String> {
        let lookups = self.lookups(row);
        std::thread::scope(|scope| {
            let ask =
                |(number, lookups): (usize, &'_ Lookups<'_>)| self.ask(lookups, &format!("{}-{number}", slug(when)));
            let threads: Vec<_> =
                lookups.iter().enumerate().map(|numbered| scope.spawn(move || ask(numbered))).collect();
            let wrong = threads.into_iter().filter_map(|thread| thread.join().expect("nothing panics"));
            wrong.map(|wrong| format!("{when}: {wrong}")).collect()
        })
    }

    fn ask(&self, lookups: &Lookups<'_>, prefix: &str) -> Option<String> {
        let resolver = self.resolver(lookups);
        // Silence is the same each time.
        let (count, deadline) = if lookups.answered { (LOOKUPS, PATIENCE) } else { (AT_ONCE, SILENCE) };
        let names: Vec<String> = (0..count).map(|number| format!("{prefix}-{number}.{ZONE}")).collect();
        let answers: Vec<BTreeSet<IpAddr>> = std::thread::scope(|scope| {
            let ask = |names: &[String]| -> Vec<BTreeSet<IpAddr>> {
                names.iter().map(|name| resolver.addresses(name, deadline).expect("getent runs")).collect()
            };
            let threads: Vec<_> = names.chunks(count / AT_ONCE).map(|names| scope.spawn(move || ask(names))).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("nothing panics")).collect()
        });
        let wanted = if lookups.answered { lookups.says.clone() } else { BTreeSet::new() };
        let right = answers.iter().filter(|answer| **answer == wanted).count();
        let queries = if lookups.answered { 2 } else { 0 };
        let asked: Vec<usize> = names.iter().map(|name| self.wait_queries(name, queries)).collect();
        let repeated = asked.iter().any(|asked| *asked != queries);
        (right < count || repeated).then(|| {
            format!(
                "{}: {right} of {count} right, queries seen by servers: {asked:?}, expected {queries} each",
                lookups.text
            )
        })
    }

    /// How often any server was asked for a name. A server writes that down after its answer.
    fn wait_queries(&self, name: &str, wanted: usize) -> usize {
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            let servers = self.cluster.iter().chain([&self.node]);
            let seen = servers.map(|server| server.queries(name)).sum();
            if seen >= wanted || Instant::now() > end {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// As part of a name, which servers write down in lower case.
fn slug(text: &str) -> String {
    text.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' }).collect()
}

fn write_service(world: &World, pods: &[Pod]) {
    let ports = json!([
        {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": "dns-tcp"},
    ]);
    let selector = json!({"k8s-app": "kube-dns"});
    let service = objects::service(
        "kube-system",
        "kube-dns",
        &json!({
            "clusterIP": SERVICE[0], "clusterIPs": SERVICE, "ipFamilyPolicy": "RequireDualStack",
            "selector": selector, "ports": ports,
        }),
    );
    world.plane.put(&service).expect("a Service");
    let targets =
        json!([{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53}]);
    for family in 0..2 {
        let backends: Vec<Backend> =
            pods.iter().map(|pod| Backend { address: pod.addresses[family], node: Some(pod.node.clone()) }).collect();
        world.plane.put(&objects::endpoint_slice(&service, family, &backends, &targets)).expect("a slice");
    }
}

/// As the manifest of NodeLocal DNSCache does it: a device has the addresses, and what is for them is not tracked, so that
/// kube-proxy does not translate it. The device is a bridge without ports, as not every kernel has the dummy type.
fn start_on_node(world: &World, folder: PathBuf) -> DnsServer {
    let node = &world.nodes[2];
    let all = [SERVICE, LOCAL].concat();
    let mut lines = vec!["link add nodelocaldns type bridge".to_owned(), "link set nodelocaldns up".to_owned()];
    lines.extend(all.iter().map(|address| {
        if address.contains(':') {
            format!("addr add {address}/128 dev nodelocaldns nodad")
        } else {
            format!("addr add {address}/32 dev nodelocaldns")
        }
    }));
    node.netns.ip(&lines).expect("a device");
    let ([s4, s6], [l4, l6]) = (SERVICE, LOCAL);
    let untracked = |side: &str, port: &str| {
        let to = format!("th {port} 53 meta l4proto {{ tcp, udp }} notrack");
        format!("ip {side} {{ {s4}, {l4} }} {to}\nip6 {side} {{ {s6}, {l6} }} {to}\n")
    };
    let rules = format!(
        "table inet nodelocaldns {{\nchain prerouting {{ type filter hook prerouting priority raw;\n{}}}\n\
         chain output {{ type filter hook output priority raw;\n{}{}}}\n}}\n",
        untracked("daddr", "dport"),
        untracked("saddr", "sport"),
        untracked("daddr", "dport"),
    );
    node.netns.nft(&rules).expect("rules of nftables");
    let command = node.command(programs::dns().expect("CoreDNS is built"));
    let at = all.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
    DnsServer::start(world.lab.guard(), command, &folder, &at, &addresses(OF_NODE)).expect("a DNS server")
}
