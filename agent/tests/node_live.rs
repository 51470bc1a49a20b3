//! Finding pods on a real kernel: `palisade::node::watch` in a network namespace of its own, with bridges, veths and pods that
//! iproute2 makes. Needs root; `cargo test -p palisade --features live --test node_live`.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use palisade::facts::{NodeChange, Veth, VethChange};
use palisade::node::{NodeConfig, watch};
use tokio::sync::{mpsc, watch as value};

/// A time in which every event has long come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node: a namespace with the bridge cni0 and an uplink to a router, and the agent's view of it.
struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    cache: tempfile::TempDir,
    pod_cidrs: value::Sender<Vec<IpNet>>,
    changes: Option<mpsc::Receiver<Vec<NodeChange>>>,
    /// As told last.
    devices: String,
    addresses: String,
    agent: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
    known: std::collections::BTreeMap<String, Veth>,
}

impl Lab {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pn-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self {
            devices: String::new(),
            addresses: String::new(),
            prefix,
            namespaces: Vec::new(),
            cache: tempfile::tempdir().expect("a folder"),
            pod_cidrs: value::Sender::new(Vec::new()),
            changes: None,
            agent: None,
            known: Default::default(),
        };
        lab.namespace("node");
        lab.ip("link set lo up");
        lab.ip("link add cni0 type bridge");
        lab.ip("link set cni0 up");
        lab
    }

    fn name(&self, namespace: &str) -> String {
        format!("{}-{namespace}", self.prefix)
    }

    fn namespace(&mut self, namespace: &str) {
        let name = self.name(namespace);
        run(&format!("ip netns add {name}"));
        self.namespaces.push(name);
    }

    /// In the node. `@x` stands for the namespace x of this lab.
    fn ip(&self, arguments: &str) {
        self.ip_in("node", arguments);
    }

    fn ip_in(&self, namespace: &str, arguments: &str) {
        let arguments = arguments.replace('@', &format!("{}-", self.prefix));
        run(&format!("ip -n {} {arguments}", self.name(namespace)));
    }

    fn results(&self) -> PathBuf {
        self.cache.path().join("results")
    }

    fn result(&self, file: &str, pod: &str, host: &str, mac: &str, address: &str) {
        fs::create_dir_all(self.results()).expect("a folder");
        let text = format!(
            r#"{{"kind":"cniCacheV1","containerId":"{file}","config":"e30=","ifName":"eth0","networkName":"cbr0",
                "cniArgs":[["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","{pod}"],["K8S_POD_UID","uid-{pod}"]],
                "result":{{"cniVersion":"1.0.0","interfaces":[{{"name":"{host}"}},
                {{"name":"eth0","mac":"{mac}","sandbox":"/var/run/netns/x"}}],"ips":[{{"address":"{address}","interface":1}}]}}}}"#
        );
        fs::write(self.results().join(file), text).expect("a file");
    }

    /// A pod as the bridge plugin makes it: the pair from inside the pod, then the bridge, then the addresses.
    fn pod(&mut self, pod: &str, mac: &str, address: &str) {
        self.namespace(pod);
        self.ip_in(pod, &format!("link add eth0 address {mac} type veth peer name veth-{pod} netns @node"));
        self.ip(&format!("link set veth-{pod} up"));
        self.ip_in(pod, "link set eth0 up");
        self.ip(&format!("link set veth-{pod} master cni0"));
        self.ip_in(pod, &format!("address add {address} dev eth0"));
    }

    fn start(&mut self) {
        let (sender, receiver) = mpsc::channel(64);
        let config = NodeConfig {
            cni_cache_dir: self.cache.path().to_path_buf(),
            bridge: None,
            pod_cidrs: self.pod_cidrs.subscribe(),
            tellings: mpsc::channel(1).1,
        };
        let node = fs::File::open(Path::new("/run/netns").join(self.name("node"))).expect("the node's namespace");
        // Only this test puts its thread into the node's namespace, as the agent is started in its own.
        self.agent = Some(std::thread::spawn(move || {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&node),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch(config, sender))
        }));
        self.changes = Some(receiver);
    }

    /// Takes batches until the veths are these lines.
    fn expect(&mut self, expected: &[&str]) {
        while self.lines() != expected {
            let Some(batch) = self.next_within(PATIENCE) else {
                panic!("expected {expected:#?}, found {:#?}", self.lines())
            };
            self.take(batch);
        }
    }

    fn take(&mut self, batch: Vec<NodeChange>) {
        for change in batch {
            match change {
                NodeChange::Veth(VethChange { ifindex, veth }) => {
                    self.known.retain(|_, known| known.ifindex != ifindex);
                    if let Some(veth) = veth {
                        self.known.insert(veth.name.to_string(), veth);
                    }
                }
                NodeChange::Devices(devices) => {
                    let text = devices.iter().map(|device| {
                        let kind = if device.has_link_header { "" } else { "/raw" };
                        format!("{}{kind}{}", device.name, if device.up { "+" } else { "" })
                    });
                    self.devices = text.collect::<Vec<_>>().join(" ");
                }
                NodeChange::Addresses(addresses) => {
                    self.addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                }
                NodeChange::PodGateways(_) | NodeChange::Resynced(_) => {}
            }
        }
    }

    /// Takes batches until the devices (`+`: up, `/raw`: without link header) and the node's addresses are these.
    fn expect_node(&mut self, devices: &str, addresses: &str) {
        while (self.devices.as_str(), self.addresses.as_str()) != (devices, addresses) {
            let Some(batch) = self.next_within(PATIENCE) else {
                panic!("expected {devices:?} {addresses:?}, found {:?} {:?}", self.devices, self.addresses)
            };
            self.take(batch);
        }
    }

    /// What the next batch says, whatever it is.
    fn next(&mut self) -> Vec<VethChange> {
        let batch = self.next_within(PATIENCE).expect("a batch");
        let veth = |change| if let NodeChange::Veth(change) = change { Some(change) } else { None };
        batch.into_iter().filter_map(veth).collect()
    }

    fn next_within(&mut self, time: Duration) -> Option<Vec<NodeChange>> {
        let changes = self.changes.as_mut().expect("the agent was started");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        match runtime.block_on(async { tokio::time::timeout(time, changes.recv()).await }) {
            Ok(Some(batch)) => Some(batch),
            Ok(None) => panic!("the agent has ended: {:?}", self.agent.take().map(|agent| agent.join())),
            Err(_) => None,
        }
    }

    fn lines(&self) -> Vec<String> {
        self.known.values().map(line).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.changes = None;
        if let Some(agent) = self.agent.take() {
            let ended = agent.join();
            if !std::thread::panicking() {
                ended.expect("the agent does not panic").expect("the agent ends well when nobody listens");
            }
        }
        for namespace in &self.namespaces {
            run(&format!("ip netns delete {namespace}"));
        }
    }
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().expect("a command")).args(words).status().expect("iproute2 is there");
    assert!(status.success(), "{line}");
}

fn line(veth: &Veth) -> String {
    let Veth { ifindex: _, name, pod_mac, netns_id, addresses, pod, older, awaits_result: _ } = veth;
    let mut line = name.to_string();
    line += &pod_mac.map(|mac| format!(" {}", mac.map(|byte| format!("{byte:02x}")).join(":"))).unwrap_or_default();
    line += if netns_id.is_some() { "" } else { " (no namespace)" };
    for (address, length) in addresses {
        // Made from the MAC, when the kernel finds the time for it; `link_local` looks for it.
        if !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
            line += &format!(" {address}/{length}");
        }
    }
    line += &pod.as_ref().map(|(name, uid)| format!(" {name} {}", uid.as_deref().unwrap_or("-"))).unwrap_or_default();
    line + if *older { " older" } else { "" }
}

#[test]
fn older_pods_are_whole_in_the_first_batch() {
    let mut lab = Lab::new();
    lab.pod("a", "02:00:00:00:00:0a", "10.9.0.2/24");
    lab.pod("b", "02:00:00:00:00:0b", "10.9.0.3/24");
    lab.ip_in("b", "address add fd09::3/64 dev eth0 nodad");
    lab.result("cbr0-a-eth0", "web", "veth-a", "02:00:00:00:00:0a", "10.9.0.2/24");
    // Names are reused: this one is of a pod that has gone.
    lab.result("cbr0-z-eth0", "old", "veth-b", "02:00:00:00:00:ff", "10.9.0.3/24");
    lab.start();
    for VethChange { veth, .. } in lab.next() {
        let veth = veth.expect("nothing has gone");
        lab.known.insert(veth.name.to_string(), veth);
    }
    let expected = [
        "veth-a 02:00:00:00:00:0a 10.9.0.2/24 default/web uid-web older",
        "veth-b 02:00:00:00:00:0b 10.9.0.3/24 fd09::3/64 older",
    ];
    assert_eq!(lab.lines(), expected);
}

#[test]
fn a_pod_is_born_and_dies() {
    let mut lab = Lab::new();
    lab.start();
    assert_eq!(lab.next(), [], "the first batch is told even if nothing is there");
    lab.namespace("a");
    lab.ip_in("a", "link add eth0 address 02:00:00:00:00:0a type veth peer name veth-a netns @node");
    lab.ip("link set veth-a master cni0");
    lab.expect(&["veth-a 02:00:00:00:00:0a"]);
    // No event in the node's namespace tells of these.
    lab.ip_in("a", "address add 10.9.0.2/24 dev eth0");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24"]);
    lab.ip_in("a", "address add fd09::2/64 dev eth0 nodad");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24 fd09::2/64"]);
    lab.result("cbr0-a-eth0", "web", "veth-a", "02:00:00:00:00:0a", "10.9.0.2/24");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24 default/web uid-web"]);
    lab.ip("link set veth-a name veth-r");
    // It is known by the name that it had.
    lab.expect(&["veth-r 02:00:00:00:00:0a 10.9.0.2/24 default/web uid-web"]);
    lab.ip("link set veth-r name veth-a");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24 default/web uid-web"]);
    // The pod calls itself another: the result is not of this interface.
    lab.ip_in("a", "link set eth0 address 02:00:00:00:00:0e");
    lab.expect(&["veth-a 02:00:00:00:00:0e 10.9.0.2/24 fd09::2/64"]);
    lab.ip("link delete veth-a");
    lab.expect(&[]);
    // The name is used again.
    lab.ip_in("a", "link add eth0 address 02:00:00:00:00:1a type veth peer name veth-a netns @node");
    lab.ip("link set veth-a master cni0");
    lab.expect(&["veth-a 02:00:00:00:00:1a"]);
}

#[test]
fn others_are_left_alone() {
    let mut lab = Lab::new();
    lab.namespace("router");
    lab.ip("link add uplink address 02:00:00:00:00:01 type veth peer name node netns @router");
    lab.ip_in("router", "address add 192.0.2.1/24 dev node");
    lab.ip("link add docker0 type bridge");
    lab.namespace("c");
    lab.ip_in("c", "link add eth0 address 02:00:00:00:00:0c type veth peer name veth-c netns @node");
    lab.ip("link set veth-c master docker0");
    lab.ip_in("c", "address add 172.17.0.2/16 dev eth0");
    // Routed, on no bridge: its address tells.
    lab.namespace("p");
    lab.ip_in("p", "link add eth0 address 02:00:00:00:00:0d type veth peer name cali-p netns @node");
    lab.ip_in("p", "address add 10.9.0.7/32 dev eth0");
    lab.start();
    assert_eq!(lab.next(), []);
    lab.pod_cidrs.send_replace(vec!["10.9.0.0/24".parse().expect("a net")]);
    lab.expect(&["cali-p 02:00:00:00:00:0d 10.9.0.7/32 older"]);
    lab.pod("a", "02:00:00:00:00:0a", "10.9.0.2/24");
    let a = "veth-a 02:00:00:00:00:0a 10.9.0.2/24";
    lab.expect(&["cali-p 02:00:00:00:00:0d 10.9.0.7/32 older", a]);
    // A result names a veth of another bridge.
    lab.result("cbr0-c-eth0", "cee", "veth-c", "02:00:00:00:00:0c", "172.17.0.2/16");
    lab.expect(&[
        "cali-p 02:00:00:00:00:0d 10.9.0.7/32 older",
        a,
        "veth-c 02:00:00:00:00:0c 172.17.0.2/16 default/cee uid-cee older",
    ]);
}

#[test]
fn a_pair_made_on_the_node_and_moved() {
    let mut lab = Lab::new();
    lab.start();
    assert_eq!(lab.next(), []);
    lab.namespace("a");
    lab.namespace("b");
    lab.ip("link add veth-a type veth peer name tmp address 02:00:00:00:00:0a");
    lab.ip("link set veth-a master cni0");
    lab.expect(&["veth-a 02:00:00:00:00:0a (no namespace)"]);
    lab.ip("link set tmp netns @a");
    lab.expect(&["veth-a 02:00:00:00:00:0a"]);
    let first = lab.known["veth-a"].netns_id;
    lab.ip_in("a", "link set tmp netns @b");
    lab.ip_in("b", "address add 10.9.0.2/24 dev tmp");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24"]);
    assert_ne!(lab.known["veth-a"].netns_id, first);
}

/// More events than the socket holds, while nobody listens to the agent.
#[test]
fn lost_events_are_made_good() {
    let mut lab = Lab::new();
    lab.pod("a", "02:00:00:00:00:0a", "10.9.0.2/24");
    lab.start();
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24 older"]);
    let toggles: String = (0..20_000).map(|count| format!("link set veth-a alias {count}\n")).collect();
    let batch = lab.cache.path().join("batch");
    // Each rename is a change, so the channel fills and the agent waits.
    let renames: String =
        (0..200).map(|count| format!("link set veth-{} name veth-{}\n", name(count), name(count + 1))).collect();
    fs::write(&batch, renames + &toggles.replace("veth-a", &format!("veth-{}", name(200)))).expect("a file");
    run(&format!("ip -n {} -batch {}", lab.name("node"), batch.display()));
    lab.pod("z", "02:00:00:00:00:0f", "10.9.0.3/24");
    lab.ip(&format!("link set veth-{} name last", name(200)));
    lab.expect(&["last 02:00:00:00:00:0a 10.9.0.2/24 older", "veth-z 02:00:00:00:00:0f 10.9.0.3/24"]);
}

fn name(count: u32) -> String {
    if count == 0 { "a".into() } else { format!("a{count}") }
}

#[test]
fn link_local_addresses_are_read() {
    let mut lab = Lab::new();
    lab.start();
    assert_eq!(lab.next(), []);
    lab.pod("a", "02:00:00:00:00:0a", "10.9.0.2/24");
    lab.result("cbr0-a-eth0", "web", "veth-a", "02:00:00:00:00:0a", "10.9.0.2/24");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24 default/web uid-web"]);
    let local: IpAddr = "fe80::ff:fe00:a".parse().expect("an address");
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while !lab.known["veth-a"].addresses.contains(&(local, 64)) {
        assert!(std::time::Instant::now() < end, "{:?}", lab.known);
        for VethChange { veth, .. } in lab.next() {
            let veth = veth.expect("nothing goes");
            lab.known.insert(veth.name.to_string(), veth);
        }
    }
}

/// Whatever packets may leave by is told of, and what is a pod's or has been seen elsewhere is not.
#[test]
fn devices_by_which_packets_leave_and_own_addresses() {
    let mut lab = Lab::new();
    lab.ip("address add 192.0.2.9/24 dev cni0");
    lab.start();
    lab.expect_node("", "127.0.0.1 192.0.2.9 ::1");
    lab.ip("link add dummy7 type bridge");
    lab.expect_node("dummy7", "127.0.0.1 192.0.2.9 ::1");
    lab.ip("address add 10.96.0.10/32 dev dummy7");
    lab.expect_node("dummy7", "10.96.0.10 127.0.0.1 192.0.2.9 ::1");
    lab.ip("link set dummy7 up");
    lab.expect_node("dummy7+", "10.96.0.10 127.0.0.1 192.0.2.9 ::1");
    lab.ip("tuntap add mode tun name tun7");
    lab.expect_node("dummy7+ tun7/raw", "10.96.0.10 127.0.0.1 192.0.2.9 ::1");
    lab.ip("address del 10.96.0.10/32 dev dummy7");
    lab.ip("link add docker0 type bridge");
    lab.namespace("c");
    lab.ip_in("c", "link add eth0 type veth peer name veth-c netns @node");
    lab.expect_node("dummy7+ tun7/raw docker0 veth-c", "127.0.0.1 192.0.2.9 ::1");
    // What it sends was seen by its bridge.
    lab.ip("link set veth-c master docker0");
    lab.expect_node("dummy7+ tun7/raw docker0", "127.0.0.1 192.0.2.9 ::1");
    lab.pod("a", "02:00:00:00:00:0a", "10.9.0.2/24");
    lab.expect(&["veth-a 02:00:00:00:00:0a 10.9.0.2/24"]);
    lab.ip("link del dummy7");
    lab.ip("link add kube-ipvs0 type bridge");
    lab.ip("address add 10.96.0.1/32 dev kube-ipvs0");
    // Told of after that one.
    lab.ip("address add 192.0.2.10/24 dev cni0");
    lab.expect_node("tun7/raw docker0 kube-ipvs0", "127.0.0.1 192.0.2.9 192.0.2.10 ::1");
}
