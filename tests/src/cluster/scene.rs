//! Pods with policies, and traffic between them while something happens to the cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, ClusterNode};
use crate::lab::server::Server;
use crate::lab::traffic::{Stream, Tally, Traffic};
use crate::lab::{Netns, objects};

pub const NAMESPACE: &str = "web";
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";

/// `server` takes connections to ports 80 and 82 and datagrams to ports 53 and 55 from `client`, and opens nothing; `client` opens nothing
/// else; `stranger` may do as it likes.
const POLICIES: [(&str, &str); 2] = [
    (
        "server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: \
         {matchLabels: {app: client}}}], ports: [{port: 80}, {port: 82}, {port: 53, protocol: UDP}, {port: 55, protocol: UDP}]}]}",
    ),
    (
        "client",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: \
         {matchLabels: {app: server}}}], ports: [{port: 80}, {port: 82}, {port: 53, protocol: UDP}, {port: 55, protocol: UDP}]}]}",
    ),
];

/// The Service of `server`: its ports 80 and 53 are 82 and 55 there. Not the ports that are asked directly, as a client may use one port of its
/// own for both (docs/services.md, the end).
const SERVICE: &str = "10.96.0.80";

/// A pod that runs nothing of its own: servers and clients are started in its network.
pub struct Place {
    netns: Netns,
    address: IpAddr,
    _server: Server,
}

pub struct Scene {
    server: Place,
    client: Place,
    stranger: Place,
}

impl Scene {
    /// The server's pod is on the first node, the others are on the last. Pods that are there already are used again.
    pub fn set_up(cluster: &Cluster) -> Result<Self> {
        let (first, last) = ends(cluster)?;
        let pods = [("server", first), ("client", last), ("stranger", last)];
        let mut wanted = vec![
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": NAMESPACE},
                "spec": {"clusterIP": SERVICE, "selector": {"app": "server"}, "ports": [
                    {"name": "tcp", "port": 80, "targetPort": 82},
                    {"name": "udp", "port": 53, "targetPort": 55, "protocol": "UDP"},
                ]},
            }),
        ];
        for (name, spec) in POLICIES {
            wanted.push(objects::policy(NAMESPACE, name, spec)?);
        }
        wanted.extend(pods.map(|(name, node)| pod(NAMESPACE, name, node, &["pause"])));
        cluster.kubectl.apply(&wanted)?;
        let timeout = format!("--timeout={}s", super::kubectl::PATIENCE.as_secs());
        let wait = ["--namespace", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", &timeout];
        cluster.kubectl.run(&wait).with_context(|| {
            cluster.kubectl.run(&["--namespace", NAMESPACE, "describe", "pods"]).unwrap_or_default()
        })?;
        let place = |(name, node): (&str, &ClusterNode)| Place::of(cluster, node, NAMESPACE, name);
        let [server, client, stranger] = pods.map(place);
        Ok(Self { server: server?, client: client?, stranger: stranger? })
    }

    /// Connections that stay open, new ones and datagrams: to the pod and to its Service; and what policies forbid.
    pub fn traffic(&self, kept: usize) -> Result<Traffic> {
        let Self { server, client, stranger } = self;
        let at = |place: &Place, port: u16| SocketAddr::new(place.address, port);
        let service = |port: u16| SocketAddr::new(SERVICE.parse().expect("an address"), port);
        let mut traffic = Traffic::default();
        traffic.add(&client.netns, Stream::Kept(kept), at(server, 80))?;
        traffic.add(&client.netns, Stream::Kept(kept), service(80))?;
        for to in [at(server, 80), service(80)] {
            traffic.add(&client.netns, Stream::New, to)?;
            traffic.add(&stranger.netns, Stream::ForbiddenNew, to)?;
        }
        for to in [at(server, 53), service(53)] {
            traffic.add(&client.netns, Stream::Datagrams, to)?;
            traffic.add(&stranger.netns, Stream::ForbiddenDatagrams, to)?;
        }
        traffic.add(&client.netns, Stream::ForbiddenNew, at(server, 81))?;
        traffic.add(&client.netns, Stream::ForbiddenNew, at(stranger, 80))?;
        traffic.add(&client.netns, Stream::ForbiddenDatagrams, at(stranger, 53))?;
        traffic.add(&server.netns, Stream::ForbiddenNew, at(stranger, 80))?;
        Ok(traffic)
    }

    /// A few seconds of it.
    pub fn check(&self) -> Result<Tally> {
        let traffic = self.traffic(5)?;
        std::thread::sleep(Duration::from_secs(3));
        right(traffic.stop())
    }

    /// Whether the policies hold, tried once.
    pub fn is_enforced(&self) -> bool {
        let to = SocketAddr::new(self.server.address, 80);
        let ask = |from: &Place| {
            let probe = crate::lab::probe::Probe::new(&from.netns, crate::lab::Transport::Tcp, to.ip(), to.port());
            probe.ask_within(Duration::from_millis(600)).reached()
        };
        ask(&self.client) && !ask(&self.stranger)
    }

    /// Whether nothing is enforced: the stranger reaches what policies forbid.
    pub fn is_open(&self) -> bool {
        let probe =
            crate::lab::probe::Probe::new(&self.stranger.netns, crate::lab::Transport::Tcp, self.server.address, 80);
        probe.ask_within(Duration::from_millis(600)).reached()
    }
}

/// An error where a verdict was wrong, or where there was no traffic of some kind.
pub fn right(tally: Tally) -> Result<Tally> {
    ensure!(tally.is_right() && tally.is_telling(), "wrong verdicts: {tally:#?}");
    Ok(tally)
}

/// A line of an account.
pub fn account(tally: &Tally) -> String {
    let Tally { echoes, opened, answered, tried, .. } = tally;
    format!(
        "0 wrong verdicts: {echoes} echoes over kept connections, {opened} new connections, {answered} datagrams, {tried} forbidden attempts"
    )
}

impl Place {
    /// With a server of the lab in it.
    pub fn of(cluster: &Cluster, node: &ClusterNode, namespace: &str, name: &str) -> Result<Self> {
        let address = cluster.kubectl.get(&["--namespace", namespace, "pod", name])?;
        let address = address["status"]["podIP"].as_str().context("a pod that is ready has an address")?.parse()?;
        let netns = node.pod_netns(namespace, name)?;
        let server = Server::start(cluster.lab.guard(), &netns, name, &[80, 81, 82], &[53, 54, 55])?;
        Ok(Self { netns, address, _server: server })
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn connections_taken(&self) -> Result<u64> {
        connections_taken(&self.netns)
    }
}

/// Connections that anybody has opened to a namespace so far (TcpPassiveOpens, RFC 4022).
pub fn connections_taken(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp: "));
    let (names, values) = lines.next().zip(lines.next()).context("the kernel counts connections")?;
    let at = names.split(' ').position(|name| name == "PassiveOpens").context("the kernel counts connections")?;
    Ok(values.split(' ').nth(at).context("a value for each name")?.parse()?)
}

/// The first and the last node.
pub fn ends(cluster: &Cluster) -> Result<(&ClusterNode, &ClusterNode)> {
    cluster.nodes.first().zip(cluster.nodes.last()).context("a cluster has nodes")
}

/// A pod of agnhost on a node, labelled `app` by its name, whose container is started again when it ends.
pub fn pod(namespace: &str, name: &str, node: &ClusterNode, arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node.name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "agnhost", "image": AGNHOST, "imagePullPolicy": "Never", "args": arguments}],
        },
    })
}
