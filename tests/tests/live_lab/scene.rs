//! One node with a few pods, a folder of manifests and, once started, its agent; and waiting for what an agent says.

use std::time::{Duration, Instant};

use palisade_tests::lab::agent::palisade;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Lab, Manifests, Node, Outcome, Pod, PodSpec, Transport, objects};
use serde_json::Value;

/// Short, as a retransmitted SYN (after a second) would hide that the first one was dropped.
pub const AT_ONCE: Duration = Duration::from_millis(500);
/// How long anything may take that has no bound of its own, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Scene {
    pub lab: Lab,
    pub node: Node,
    /// `a`, `b` and `c` of namespace `web`, labelled `app` with their names.
    pub pods: [Pod; 3],
    pub manifests: Manifests,
    _servers: Vec<Server>,
}

impl Scene {
    /// Everybody serves TCP 80 and 81 and UDP 53; the folder has all objects and no policy.
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(name).expect("a lab");
        let node = lab.node("one", 1).expect("a node");
        let specs = ["a", "b", "c"].map(|name| PodSpec::new("web", name, &[("app", name)]));
        let pods = node.start_pods(&lab, &specs).expect("pods");
        let pods: [Pod; 3] = pods.try_into().ok().expect("as many as there are specs");
        let server = |pod: &Pod| Server::start(lab.guard(), &pod.netns, &pod.name, &[80, 81], &[53]).expect("a server");
        let servers = pods.iter().map(server).collect();
        let manifests = Manifests::new(&node.folder.join("manifests")).expect("a folder");
        let scene = Self { lab, node, pods, manifests, _servers: servers };
        scene.put(&objects::node(&scene.node));
        scene.put(&objects::namespace("web", &[]));
        for pod in &scene.pods {
            scene.put(&objects::pod(pod, &scene.node));
        }
        scene
    }

    pub fn put(&self, object: &Value) {
        self.manifests.put(object).expect("the folder can be written to");
    }

    /// Writes a policy of namespace `web`; returns its object, to take it away by.
    pub fn policy(&self, name: &str, spec: &str) -> Value {
        let policy = objects::policy("web", name, spec).expect("YAML");
        self.put(&policy);
        policy
    }

    /// The same, and waits until the agent has taken it in.
    pub fn policy_in_force(&self, agent: &Agent, name: &str, spec: &str) -> Value {
        let before = updates(agent);
        let policy = self.policy(name, spec);
        await_updates(agent, before, 1, name);
        policy
    }

    pub fn options(&self) -> AgentOptions {
        AgentOptions::manifests(&self.manifests.folder)
    }

    pub fn start(&self) -> Agent {
        Agent::start(&self.lab, &self.node, &self.options()).expect("an agent")
    }

    /// Starts an agent with further arguments.
    pub fn start_with(&self, arguments: &[&str]) -> Agent {
        let options = arguments.iter().fold(self.options(), |options, argument| options.argument(argument));
        Agent::start(&self.lab, &self.node, &options).expect("an agent")
    }

    pub fn endpoints(&self) -> Value {
        let said = palisade(&self.node, &["endpoints", "-o", "json"]).expect("palisade runs");
        serde_json::from_slice(&said.stdout).unwrap_or_default()
    }

    /// What `palisade endpoints` says of a pod's interface.
    pub fn endpoint(&self, pod: &Pod) -> Value {
        let all = self.endpoints();
        let mut rows = all["endpoints"].as_array().into_iter().flatten();
        rows.find(|row| row["interface"] == pod.host_interface.as_str()).cloned().unwrap_or_default()
    }

    /// Takes a pod's veth away and gives it another, under the same addresses.
    pub fn replug(&self, pod: &Pod, host_interface: &str, index: Option<u32>) {
        self.node.netns.ip(&[format!("link del {}", pod.host_interface)]).expect("it is there");
        self.plug(pod, host_interface, index);
    }

    /// Gives a pod that has none a veth.
    pub fn plug(&self, pod: &Pod, host_interface: &str, index: Option<u32>) {
        let index = index.map_or(String::new(), |index| format!("index {index} "));
        let (mac, netns) = (pod.mac.map(|byte| format!("{byte:02x}")).join(":"), pod.netns.name());
        let made = format!("link add {host_interface} {index}type veth peer name eth0 address {mac} netns {netns}");
        self.node.netns.ip(&[made]).expect("a veth");
        self.join(pod, host_interface);
    }

    /// Sets up a pod's veth and joins it to the bridge.
    pub fn join(&self, pod: &Pod, host_interface: &str) {
        let of_pod = [
            "link set eth0 up".into(),
            format!("addr add {}/24 dev eth0", pod.ipv4()),
            format!("addr add {}/64 dev eth0 nodad", pod.ipv6()),
        ];
        let ways = [
            format!("route add default via 10.244.{}.1", self.node.number),
            format!("route add default via fd00:244:{}::1", self.node.number),
        ];
        let joined = [format!("link set {host_interface} master cni0 up")];
        pod.netns.ip(&of_pod).and_then(|()| self.node.netns.ip(&joined)).expect("a veth");
        pod.netns.ip(&ways).expect("a way");
    }

    /// The index of an interface of the node.
    pub fn index_of(&self, interface: &str) -> u32 {
        self.node.netns.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("any socket will do");
            rustix::net::netdevice::name_to_index(&socket, interface).expect("it is there")
        })
    }

    /// Asks until the answer is this one.
    pub fn expect_tcp(&self, from: &Pod, to: &Pod, port: u16, reached: bool, when: &str) {
        for address in &to.addresses {
            let probe = Probe::new(&from.netns, Transport::Tcp, *address, port);
            let wanted = if reached { Outcome::Reached(to.name.clone()) } else { Outcome::TimedOut };
            let mut last = None;
            let holds = eventually(PATIENCE, || {
                last = Some(probe.ask_within(AT_ONCE));
                last.as_ref() == Some(&wanted)
            });
            assert!(holds, "{} -> {} {port} at {address} {when}: {last:?}", from.name, to.name);
        }
    }
}

/// Whether it becomes true in time. For what has no event that could be waited for from outside.
pub fn eventually(deadline: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !holds() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// How many changes of objects an agent has taken in.
pub fn updates(agent: &Agent) -> u64 {
    agent.updates().expect("the agent answers")
}

/// Waits until an agent has taken in that many changes more.
pub fn await_updates(agent: &Agent, before: u64, changes: u64, what: &str) {
    agent.wait_updates(before + changes, PATIENCE).unwrap_or_else(|error| panic!("{what}: {error:#}"));
}
