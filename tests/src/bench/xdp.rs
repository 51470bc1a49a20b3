//! A flood that policy refuses, on one core: how much of it is absorbed where it comes in, at the pod's interface, and by netfilter; and what
//! is left of a permitted connection meanwhile.
//!
//! The kernel makes frames without skbs (BPF_PROG_TEST_RUN, BPF_F_TEST_XDP_LIVE_FRAMES) and redirects them into the uplink's other end,
//! so that none has an skb before the node has seen it. Making them is part of what is measured, the same for all.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::machine;
use super::table::Table;
use super::test_run::{live_frames, load_xdp};
use crate::frame::{Body, Frame, Ip, Tcp, Upper};
use crate::lab::agent::palisade;
use crate::lab::probe::{Connection, DEADLINE};
use crate::lab::server::Server;
use crate::lab::{Agent, AgentOptions, Lab, Manifests, Netns, Node, Pod, PodSpec, objects};

/// Frames of one call, and for how long they are sent again and again.
const FRAMES: u32 = 16_384;
const TIME: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;
/// Permitted, and refused.
const PORTS: [u16; 2] = [80, 81];
const POLICY: &str = "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}";

struct World {
    lab: Lab,
    node: Node,
    pod: Pod,
    outside: Netns,
    manifests: Manifests,
    flood: Vec<u8>,
    _server: Server,
}

/// What refuses the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Native,
    Generic,
    Tc,
    Netfilter,
}

const WAYS: [Way; 4] = [Way::Native, Way::Generic, Way::Tc, Way::Netfilter];

/// Prints the table.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let world = World::new()?;
    let head = [
        "refused by",
        "packets/s of one core",
        "best",
        "worst",
        "exchanges/s without the flood",
        "exchanges/s during it",
    ];
    let mut table = Table::new(&head);
    for way in WAYS {
        table.row(world.measure(way)?);
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

/// With it a veth takes frames that have no skb, whether or not it has a program.
fn switch_gro_on(device: &str) -> io::Result<()> {
    // linux/sockios.h, linux/ethtool.h
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_SGRO: u32 = 0x2c;
    /// `struct ifreq`.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        data: *mut [u32; 2],
        rest: [u8; 16],
    }
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut value = [ETHTOOL_SGRO, 1];
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut value, rest: [0; 16] };
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    // SAFETY: the request is a whole `struct ifreq`, and `value` the `struct ethtool_value` that it points to; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Native => "xdp, native",
            Self::Generic => "xdp, generic",
            Self::Tc => "to_pod",
            Self::Netfilter => "iptables, DROP in FORWARD behind ESTABLISHED",
        }
    }

    fn arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Native => Some(&["--xdp", "native", "--xdp-devices", "eth0"]),
            Self::Generic => Some(&["--xdp", "generic", "--xdp-devices", "eth0"]),
            Self::Tc => Some(&[]),
            Self::Netfilter => None,
        }
    }
}

impl World {
    fn new() -> Result<Self> {
        let lab = Lab::new("xdp")?;
        let node = lab.node("node", 1)?;
        let pod = node.start_pod(&lab, PodSpec::new("bench", "b", &[]))?;
        let (outside, addresses) = lab.outside("out", 200)?;
        let server = Server::start(lab.guard(), &pod.netns, "b", &PORTS, &[])?;
        let manifests = Manifests::new(&lab.folder.join("manifests"))?;
        for object in [objects::node(&node), objects::namespace("bench", &[]), objects::pod(&pod, &node)] {
            manifests.put(&object)?;
        }
        manifests.put(&objects::policy("bench", "p", POLICY)?)?;
        node.netns.run(|| switch_gro_on("eth0")).context("ETHTOOL_SGRO")?;
        let tcp = Tcp {
            source: 40_000,
            destination: PORTS[1],
            sequence: 1,
            acknowledgement: 0,
            flags: 2,
            data: 0,
            header_words: None,
        };
        let ip = Ip {
            source: addresses[0],
            destination: pod.ipv4(),
            hop_limit: 64,
            options: 0,
            extensions: Vec::new(),
            fragment: None,
            length: None,
            header_words: None,
            version: None,
            payload_max: None,
            upper: Upper::Tcp(tcp),
        };
        let flood = Frame {
            source_mac: lab.underlay.mac("br0")?,
            destination_mac: node.netns.mac("eth0")?,
            tags: Vec::new(),
            body: Body::Ip(ip),
            cut: None,
            padding: 6,
        };
        Ok(Self { lab, node, pod, outside, manifests, flood: flood.bytes(), _server: server })
    }

    fn measure(&self, way: Way) -> Result<Vec<String>> {
        let agent = match way.arguments() {
            Some(arguments) => {
                let options = AgentOptions::manifests(&self.manifests.folder);
                let options = arguments.iter().fold(options, |options, argument| options.argument(argument));
                Some(Agent::start(&self.lab, &self.node, &options)?)
            }
            None => {
                ensure!(palisade(&self.node, &["uninstall"])?.status.success(), "palisade uninstall");
                self.iptables("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
                self.iptables(&format!("-A FORWARD -d {} -p tcp --dport {} -j DROP", self.pod.ipv4(), PORTS[1]))?;
                None
            }
        };
        let refused = || -> Result<u64> {
            let Some(agent) = &agent else { return self.dropped() };
            let name = match way {
                Way::Native | Way::Generic => "palisade_refused_early_total{hook=\"xdp\"} ",
                Way::Tc | Way::Netfilter => "palisade_packets_total{reason=\"no-rule\"} ",
            };
            let (_, page) = agent.http("/metrics")?;
            page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).with_context(|| format!("no {name}"))
        };
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let before = refused()?;
            let seconds = self.flood(&|begun: Instant| begun.elapsed() < TIME)?.as_secs_f64();
            rates.push((refused()? - before) as f64 / seconds);
        }
        rates.sort_by(f64::total_cmp);
        ensure!(rates[0] > 0.0, "{}: nothing of the flood was refused there", way.name());
        let quiet = self.exchanges()?;
        let stop = AtomicBool::new(false);
        let busy = std::thread::scope(|scope| -> Result<f64> {
            let flood = scope.spawn(|| self.flood(&|_| !stop.load(Ordering::Relaxed)));
            let busy = self.exchanges();
            stop.store(true, Ordering::Relaxed);
            flood.join().expect("flooding does not panic")?;
            busy
        })?;
        if let Some(agent) = agent {
            agent.stop()?;
        }
        let million = |rate: f64| format!("{:.2} million", rate / 1e6);
        let rates = [rates[ROUNDS / 2], rates[ROUNDS - 1], rates[0]].map(million);
        let exchanges = [quiet, busy].map(|rate| format!("{rate:.0}"));
        Ok([vec![way.name().to_owned()], rates.to_vec(), exchanges.to_vec()].concat())
    }

    /// Sends while it is said so; how long it took.
    fn flood(&self, goes_on: &(dyn Fn(Instant) -> bool + Sync)) -> Result<Duration> {
        self.lab.underlay.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let ifindex = rustix::net::netdevice::name_to_index(&socket, "node1")?;
            // r1 = ifindex; r2 = 0; call bpf_redirect; exit
            let program = load_xdp(&[0x1b7 | u64::from(ifindex) << 32, 0x2b7, 0x85 | 23 << 32, 0x95])?;
            let begun = Instant::now();
            while goes_on(begun) {
                live_frames(program.as_fd(), &self.flood, FRAMES)?;
            }
            Ok(begun.elapsed())
        })
    }

    /// Of a permitted connection, a second.
    fn exchanges(&self) -> Result<f64> {
        let mut connection = Connection::open(&self.outside, self.pod.ipv4(), PORTS[0])?;
        let (begun, mut count) = (Instant::now(), 0_u32);
        while begun.elapsed() < TIME {
            ensure!(connection.echoes(DEADLINE), "no echo");
            count += 1;
        }
        Ok(f64::from(count) / begun.elapsed().as_secs_f64())
    }

    fn iptables(&self, arguments: &str) -> Result<String> {
        let mut command = self.node.netns.command("iptables");
        let output = command.arg("-w").args(arguments.split(' ')).output().context("iptables")?;
        ensure!(output.status.success(), "iptables {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// By the rule of [`Way::Netfilter`].
    fn dropped(&self) -> Result<u64> {
        let list = self.iptables("-L FORWARD -v -x -n")?;
        let line = list.lines().find(|line| line.contains("DROP") && line.contains("dpt")).context("no rule")?;
        line.split_whitespace().next().and_then(|count| count.parse().ok()).context("no count")
    }
}
