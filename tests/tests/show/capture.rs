//! `palisade capture`: what is refused is in the file, byte by byte, with the reason; and when nobody reads, nothing is captured.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, SystemTime};

use aya::maps::{Map, MapData, PerCpuArray, loaded_maps};
use palisade::kernel::Maps;
use palisade_tests::lab::agent::palisade_command;
use palisade_tests::lab::probe::Probe;
use palisade_tests::lab::server::Server;
use palisade_tests::lab::{Agent, AgentOptions, Lab, Manifests, Node, Pod, PodSpec, Transport, objects, raw};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

const AT_ONCE: Duration = Duration::from_millis(300);
/// web admits nobody, and sends to nobody.
const POLICY: &str = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}";

struct Scene {
    web: Pod,
    client: Pod,
    options: AgentOptions,
    _server: Server,
    _manifests: Manifests,
    node: Node,
    lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new("capture").expect("a lab");
        let node = lab.node("one", 1).expect("a node");
        let manifests = Manifests::new(&lab.folder.join("manifests")).expect("a folder");
        let [web, client] = ["web", "client"]
            .map(|name| node.start_pod(&lab, PodSpec::new("shop", name, &[("app", name)])).expect("a pod"));
        let server = Server::start(lab.guard(), &web.netns, "web", &[80], &[53]).expect("a server");
        let policy = objects::policy("shop", "closed", POLICY).expect("YAML");
        for object in [
            objects::node(&node),
            objects::namespace("shop", &[]),
            objects::pod(&web, &node),
            objects::pod(&client, &node),
            policy,
        ] {
            manifests.put(&object).expect("the folder can be written to");
        }
        let options = AgentOptions::manifests(&manifests.folder);
        Self { web, client, options, _server: server, _manifests: manifests, node, lab }
    }

    /// A SYN at port 80 and an echo request to web, and a datagram from web; all are refused.
    fn refused(&self) {
        let probe =
            |from: &Pod, transport, to: IpAddr, port| Probe::new(&from.netns, transport, to, port).ask_within(AT_ONCE);
        assert!(!probe(&self.client, Transport::Tcp, self.web.ipv4(), 80).reached());
        assert!(!probe(&self.web, Transport::Udp, self.client.ipv4(), 5353).reached());
        assert!(!raw::ping(&self.client.netns, self.web.ipv6(), AT_ONCE).expect("a socket"));
    }

    fn captures_until(&self) -> u64 {
        let maps = Maps::open_pinned(&self.node.pin_dir).expect("they are pinned");
        maps.snapshot(false).expect("they can be read").config.captures_until
    }
}

/// `palisade capture shop/web …`.
struct Reader {
    child: Child,
    said: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Reader {
    /// Returns when it captures.
    fn start(scene: &Scene, name: &str, arguments: &[&str]) -> Self {
        let file = scene.lab.folder.join(name);
        let mut words = vec!["capture", "shop/web"];
        words.extend(arguments);
        let mut command = palisade_command(&scene.node, &words).expect("a command");
        let stdout = fs::File::create(&file).expect("a file");
        let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("it runs");
        scene.lab.guard().process(child.id());
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it says something");
        let interface = &scene.web.host_interface;
        assert_eq!(line, format!("palisade: capturing what is refused of shop/web at {interface}\n"));
        Self { child, said, file }
    }

    fn interrupt(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Exit code, what it said at the end, and the file.
    fn end(mut self) -> (Option<i32>, String, Vec<Block>) {
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("it is text");
        let status = self.child.wait().expect("it ends");
        assert!(status.signal().is_none_or(|signal| signal == Signal::KILL.as_raw()), "{status}");
        (status.code(), said, blocks(&self.file))
    }
}

/// A block of pcap-ng, read by hand: what wrote it is not asked.
#[derive(Debug)]
struct Block {
    kind: u32,
    body: Vec<u8>,
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn blocks(path: &Path) -> Vec<Block> {
    let bytes = fs::read(path).expect("a file");
    let (mut blocks, mut rest) = (Vec::new(), &bytes[..]);
    while !rest.is_empty() {
        let (kind, length) = (word(rest, 0), word(rest, 4) as usize);
        assert!(length % 4 == 0 && length >= 12 && word(rest, length - 4) as usize == length, "{kind:#x}: {length}");
        blocks.push(Block { kind, body: rest[8..length - 4].to_owned() });
        rest = &rest[length..];
    }
    assert_eq!((blocks[0].kind, word(&blocks[0].body, 0)), (SECTION, 0x1a2b_3c4d));
    blocks
}

/// By code.
fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    while bytes.len() >= 4 {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (code, length) = (half(0), half(2) as usize);
        if code == 0 {
            break;
        }
        options.push((code, bytes[4..4 + length].to_owned()));
        bytes = &bytes[4 + length.next_multiple_of(4)..];
    }
    options
}

fn option(bytes: &[u8], code: u16) -> Vec<u8> {
    options(bytes).into_iter().find(|(its, _)| *its == code).map(|(_, value)| value).expect("the option is there")
}

struct Packet {
    /// Nanoseconds since 1970.
    time: u64,
    original: u32,
    bytes: Vec<u8>,
    comment: String,
    /// 1: inbound, 2: outbound, as the interface sees it.
    direction: u32,
}

fn packets(blocks: &[Block]) -> Vec<Packet> {
    let packet = |Block { body, .. }: &Block| {
        let captured = word(body, 12) as usize;
        let rest = &body[20 + captured.next_multiple_of(4)..];
        assert_eq!(word(body, 0), 0, "there is one interface");
        Packet {
            time: u64::from(word(body, 4)) << 32 | u64::from(word(body, 8)),
            original: word(body, 16),
            bytes: body[20..20 + captured].to_owned(),
            comment: String::from_utf8(option(rest, 1)).expect("UTF-8"),
            direction: word(&option(rest, 2), 0),
        }
    };
    blocks.iter().filter(|block| block.kind == PACKET).map(packet).collect()
}

/// What the programs have counted against the budget of captures, of every agent there is: (second, packets) of each processor.
fn budgets() -> Vec<Vec<[u32; 2]>> {
    let named = loaded_maps().filter_map(Result::ok).filter(|map| map.name_as_str() == Some("CAPTURE_BUDGET"));
    let budget = |id: u32| -> Option<Vec<[u32; 2]>> {
        let map = Map::from_map_data(MapData::from_id(id).ok()?).ok()?;
        let map: PerCpuArray<MapData, [u32; 2]> = map.try_into().ok()?;
        Some(map.get(&0, 0).ok()?.to_vec())
    };
    let budgets: Vec<_> = named.filter_map(|map| budget(map.id())).collect();
    assert!(!budgets.is_empty(), "there is an agent");
    budgets
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_nanos() as u64
}

#[test]
fn what_is_refused_is_in_the_file_with_the_reason() {
    let scene = Scene::new();
    let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent");
    assert_eq!(scene.captures_until(), 0);
    let began = nanos(SystemTime::now());
    let reader = Reader::start(&scene, "all.pcapng", &[]);
    let few = Reader::start(&scene, "few.pcapng", &["--protocol", "udp", "--count", "1", "--snaplen", "20"]);
    scene.refused();
    let (code, said, blocks) = few.end();
    assert_eq!((code, &*said), (Some(0), "palisade: 1 packets captured, 0 lost\n"));
    let datagram = &packets(&blocks)[0];
    assert!(datagram.bytes.len() == 20 && datagram.original > 20, "{} of {}", datagram.bytes.len(), datagram.original);
    reader.interrupt(Signal::INT);
    let (code, said, blocks) = reader.end();
    assert_eq!(code, Some(0), "{said}");
    let interface = &blocks[1];
    assert_eq!((interface.kind, word(&interface.body, 0), word(&interface.body, 4)), (INTERFACE, 1, 256));
    assert_eq!(option(&interface.body[8..], 2), scene.web.host_interface.as_bytes());
    assert_eq!(option(&interface.body[8..], 9), [9], "nanoseconds");
    let last = blocks.last().expect("blocks");
    assert_eq!((last.kind, option(&last.body[12..], 5)), (STATISTICS, vec![0; 8]), "none was lost");
    let packets = packets(&blocks);
    these_are_the_packets(&scene, &packets);
    let end = nanos(SystemTime::now());
    let mut before = began;
    for packet in &packets {
        assert!(before <= packet.time && packet.time <= end, "{} is not within {before} and {end}", packet.time);
        before = packet.time;
    }
    assert_eq!(said, format!("palisade: {} packets captured, 0 lost\n", packets.len()));
    let (code, _, error) = run(&scene, &["capture", "shop/nobody"]);
    assert_eq!((code, error.contains("no pod shop/nobody on this node")), (1, true), "{error}");
    drop(agent);
}

fn these_are_the_packets(scene: &Scene, packets: &[Packet]) {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (web, client) = (&scene.web, &scene.client);
    let of = |protocol: &str, from: &Pod, peer: &str, direction: &str| {
        let comment = format!("refused {direction} of shop/web: no-rule, peer {peer}, isolated by shop/closed");
        let is_it = |packet: &&Packet| match protocol {
            "icmpv6" => packet.bytes[12..14] == [0x86, 0xdd] && packet.bytes[20] == 58,
            "tcp" => packet.bytes[12..14] == [8, 0] && packet.bytes[23] == 6,
            _ => packet.bytes[12..14] == [8, 0] && packet.bytes[23] == 17,
        };
        let packet = packets.iter().find(is_it).unwrap_or_else(|| panic!("no {protocol} among {}", packets.len()));
        assert_eq!(packet.comment, comment);
        assert_eq!(packet.direction, if direction == "egress" { 1 } else { 2 });
        assert_eq!(packet.bytes.len() as u32, packet.original);
        // Whose the frame is.
        assert_eq!(packet.bytes[if direction == "egress" { 6..12 } else { 0..6 }], web.mac, "{protocol}");
        let (at, length) = if protocol == "icmpv6" { (22, 16) } else { (26, 4) };
        let source = if protocol == "icmpv6" { from.ipv6() } else { from.ipv4() };
        assert_eq!(packet.bytes[at..at + length], octets(source));
        packet.bytes[at + 2 * length..].to_owned()
    };
    let tcp = of("tcp", client, "shop/client", "ingress");
    assert_eq!((&tcp[2..4], tcp[13]), (&[0, 80][..], 2), "a SYN at port 80");
    let udp = of("udp", web, "shop/client", "egress");
    assert_eq!(udp[2..4], 5353_u16.to_be_bytes());
    let echo = of("icmpv6", client, "shop/client", "ingress");
    assert_eq!((echo[0], &echo[8..16]), (128, &b"palisade"[..]));
}

/// Exit code, standard output and standard error.
fn run(scene: &Scene, arguments: &[&str]) -> (i32, Vec<u8>, String) {
    let output = palisade_command(&scene.node, arguments).expect("a command").output().expect("it runs");
    (output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn when_nobody_reads_nothing_is_captured() {
    let scene = Scene::new();
    let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("an agent");
    let nothing = |when: &str| {
        let before = budgets();
        scene.refused();
        // An agent's that has ended goes when the kernel gets to it.
        let after = budgets();
        assert!(after.iter().all(|one| before.contains(one)), "captured {when}: {before:?} {after:?}");
    };
    nothing("though nobody ever read");
    let reader = Reader::start(&scene, "first.pcapng", &[]);
    let before = budgets();
    scene.refused();
    assert_ne!(budgets(), before);
    reader.interrupt(Signal::KILL);
    wait("the agent notices", || scene.captures_until() == 0);
    nothing("after the reader was killed");
    drop(reader.end());
    // It ends by itself, and what was refused is there.
    let reader = Reader::start(&scene, "second.pcapng", &["--for", "2s"]);
    scene.refused();
    let (code, _, blocks) = reader.end();
    assert_eq!((code, packets(&blocks).is_empty()), (Some(0), false));
    wait("the agent tells the kernel", || scene.captures_until() == 0);
    nothing("after its time");
    // The agent is killed: the programs go on, and the capture ends by the clock.
    let reader = Reader::start(&scene, "third.pcapng", &[]);
    scene.refused();
    agent.kill().expect("it runs");
    let (code, said, blocks) = reader.end();
    assert_eq!((code, said.contains("the agent has ended")), (Some(1), true), "{said}");
    assert!(!packets(&blocks).is_empty() && blocks.last().is_some_and(|last| last.kind == STATISTICS));
    let until = scene.captures_until();
    assert!(until != 0, "it was killed");
    wait("the lease ends", || palisade::pause::now() > until + 10_000_000);
    nothing("after the agent was killed");
    let agent = Agent::start(&scene.lab, &scene.node, &scene.options).expect("the next agent");
    assert_eq!(scene.captures_until(), 0);
    nothing("by the next agent");
    // One that is asked to stop tells the kernel.
    let reader = Reader::start(&scene, "fourth.pcapng", &[]);
    assert!(agent.stop().expect("it runs").success());
    assert_eq!(scene.captures_until(), 0);
    assert_eq!(reader.end().0, Some(1));
}
