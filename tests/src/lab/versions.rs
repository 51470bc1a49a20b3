//! A node whose agent is replaced by one with another layout of the tables, and traffic of pods that policies isolate meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use palisade::kernel::maps_folder;

use super::server::Server;
use super::traffic::{Stream, Traffic};
use super::{Agent, AgentOptions, Lab, Manifests, Netns, Node, Pod, PodSpec, objects, programs};

/// Which agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Ours,
    /// Of the build that has other layouts.
    Other,
}

impl Version {
    pub const fn other(self) -> Self {
        match self {
            Self::Ours => Self::Other,
            Self::Other => Self::Ours,
        }
    }
}

/// `server` takes connections to port 80 and datagrams to port 53 from `client` and from outside, and opens nothing; `client` opens nothing
/// else; `stranger` may do as it likes.
const POLICIES: [(&str, &str); 2] = [
    (
        "server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: \
         {matchLabels: {app: client}}}, {ipBlock: {cidr: 172.30.0.0/24}}, {ipBlock: {cidr: \"fd00:30::/64\"}}], \
         ports: [{port: 80}, {port: 53, protocol: UDP}]}]}",
    ),
    (
        "client",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: \
         {matchLabels: {app: server}}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}]}",
    ),
];

pub struct Scene {
    pub node: Node,
    pub server: Pod,
    pub client: Pod,
    pub stranger: Pod,
    /// Further pods, without traffic and policy. An agent comes to the server first, to these then, and to the client last.
    pub others: Vec<Pod>,
    /// Beyond the node.
    outside: Netns,
    manifests: Manifests,
    _servers: Vec<Server>,
    /// Last, as it takes the rest away.
    pub lab: Lab,
}

impl Scene {
    pub fn new(name: &str, others: usize) -> Result<Self> {
        let lab = Lab::new(name)?;
        let node = lab.node("one", 1)?;
        let spec = |name: &str| PodSpec::new("web", name, &[("app", name)]);
        let mut specs = vec![spec("server")];
        specs.extend((0..others).map(|number| spec(&format!("other-{number}"))));
        specs.extend(["client", "stranger"].map(spec));
        let mut others = node.start_pods(&lab, &specs)?;
        let (stranger, client) = others.pop().zip(others.pop()).context("pods")?;
        let server = others.remove(0);
        let serve = |pod: &Pod| Server::start(lab.guard(), &pod.netns, &pod.name, &[80, 81], &[53, 54]);
        let servers = [&server, &client, &stranger].map(serve).into_iter().collect::<Result<_>>()?;
        let (outside, _) = lab.outside("outside", 250)?;
        let manifests = Manifests::new(&node.folder.join("manifests"))?;
        manifests.put(&objects::node(&node))?;
        manifests.put(&objects::namespace("web", &[]))?;
        for pod in [&server, &client, &stranger].into_iter().chain(&others) {
            manifests.put(&objects::pod(pod, &node))?;
        }
        for (name, spec) in POLICIES {
            manifests.put(&objects::policy("web", name, spec)?)?;
        }
        Ok(Self { node, server, client, stranger, others, outside, manifests, _servers: servers, lab })
    }

    pub fn options(&self, version: Version) -> Result<AgentOptions> {
        let mut options = AgentOptions::manifests(&self.manifests.folder);
        if version == Version::Other {
            options.program = Some(programs::agent_of_another_layout()?);
        }
        Ok(options)
    }

    pub fn start(&self, version: Version) -> Result<Agent> {
        Agent::start(&self.lab, &self.node, &self.options(version)?)
    }

    /// All kinds of traffic in both families. `connections`: those that stay open, of each pair and family.
    pub fn traffic(&self, connections: usize) -> Result<Traffic> {
        let mut traffic = Traffic::default();
        let Self { server, client, stranger, outside, .. } = self;
        for family in [0, 1] {
            let at = |pod: &Pod, port: u16| SocketAddr::new(pod.addresses[family], port);
            for from in [&client.netns, outside] {
                traffic.add(from, Stream::Kept(connections), at(server, 80))?;
                traffic.add(from, Stream::New, at(server, 80))?;
                traffic.add(from, Stream::Datagrams, at(server, 53))?;
                traffic.add(from, Stream::ForbiddenNew, at(server, 81))?;
                traffic.add(from, Stream::ForbiddenDatagrams, at(server, 54))?;
            }
            traffic.add(&stranger.netns, Stream::ForbiddenNew, at(server, 80))?;
            traffic.add(&stranger.netns, Stream::ForbiddenDatagrams, at(server, 53))?;
            traffic.add(&server.netns, Stream::ForbiddenNew, at(stranger, 80))?;
            traffic.add(&client.netns, Stream::ForbiddenNew, at(stranger, 80))?;
            traffic.add(outside, Stream::ForbiddenNew, at(client, 80))?;
        }
        Ok(traffic)
    }

    /// Versions that have something pinned.
    pub fn pinned(&self) -> Result<Vec<Version>> {
        Ok([Version::Ours, Version::Other].into_iter().filter(|version| self.folder(*version).is_some()).collect())
    }

    /// How many programs of pods are on interfaces by links of a version; `None`: it has pinned nothing.
    pub fn links(&self, version: Version) -> Option<usize> {
        let links = fs::read_dir(self.folder(version)?.join("links")).ok()?;
        Some(links.count())
    }

    /// Unpins a version's FLOWS, whose programs go on with it.
    pub fn forget_flows(&self, version: Version) -> Result<()> {
        let folder = self.folder(version).context("it has pinned nothing")?;
        Ok(fs::remove_file(folder.join("maps/FLOWS"))?)
    }

    fn folder(&self, version: Version) -> Option<PathBuf> {
        let ours = maps_folder(&self.node.pin_dir).parent()?.to_owned();
        let mut folders = fs::read_dir(&self.node.pin_dir).ok()?.flatten().map(|entry| entry.path());
        folders.find(|folder| (*folder == ours) == (version == Version::Ours))
    }
}
