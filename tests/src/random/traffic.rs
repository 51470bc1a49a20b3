//! Random steps: mostly whole flows, packets of flows that were opened earlier, changes, and now and then a packet that is not
//! as it should be.

use serde_json::{Value, json};

use super::Dice;
use super::cluster::{Cluster, PORTS, Pod};
use super::services::Translated;

pub const STRANGERS: [&str; 3] = ["192.0.2.7", "192.0.2.200", "10.9.9.9"];
pub const STRANGERS_V6: [&str; 3] = ["2001:db8::7", "2001:db8:1::7", "fd00:99::7"];
/// Source ports that several flows have, so that one is opened where another was.
const SHARED_PORTS: [u16; 3] = [80, 4000, 4001];
/// Below 30 s in all: the oracle knows nothing of how long a silent flow is remembered, and ping's are forgotten first.
const WAIT_MAX: usize = 26;

/// A flow that was named.
pub struct Flow {
    pub name: String,
    pub kind: &'static str,
    /// Source and destination with their ports, as packets name them.
    pub ends: [String; 2],
    /// The same without ports.
    pub hosts: [String; 2],
    pub six: bool,
    /// By whom it is opened with, it may be seen otherwise.
    pub translated: bool,
}

/// One end of a packet: `x/a:80`, `x/a@6:80`, `[2001:db8::7]:80`.
pub fn end(name: &str, six: bool, port: Option<u16>) -> String {
    let host = host(name, six);
    match port {
        Some(port) if host.contains(':') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

/// A name or address in one family.
pub fn host(name: &str, six: bool) -> String {
    if six && !name.contains(':') { format!("{name}@6") } else { name.to_owned() }
}

pub fn stranger(dice: &mut Dice, six: bool) -> &'static str {
    let strangers = if six { STRANGERS_V6 } else { STRANGERS };
    strangers[dice.below(strangers.len())]
}

pub fn steps(cluster: &mut Cluster, dice: &mut Dice) -> Vec<Value> {
    let mut steps = Vec::new();
    let mut flows: Vec<Flow> = Vec::new();
    let mut waited = 0;
    // A program under test can be shown no sockets, so few cases have some.
    let has_listeners = dice.percent(12);
    for _ in 0..24 + dice.below(16) {
        match dice.below(100) {
            0..=14 => steps.extend(cluster.change(dice)),
            15..=19 => {
                // Several at one instant.
                let changes: Vec<Value> = (0..3).filter_map(|_| cluster.change(dice)).flat_map(flat).collect();
                steps.push(Value::Array(changes));
            }
            20..=51 => steps.extend((0..4).filter_map(|_| probe(cluster, dice))),
            52..=61 => steps.extend(open(cluster, dice, &mut flows)),
            62..=82 => steps.extend(follow(cluster, &flows, dice)),
            83..=85 if has_listeners => steps.extend(cluster.listen(dice)),
            83..=96 => steps.extend(super::odd::odd(cluster, dice)),
            97 | 98 => {
                // Sums of these keep away from what lasts two, ten or thirty seconds.
                let seconds = *dice.pick(&[3, 8, 12]);
                if waited + seconds <= WAIT_MAX {
                    waited += seconds;
                    steps.push(json!(format!("wait {seconds}s")));
                }
            }
            _ if dice.percent(30) => steps.push(json!("empty")),
            _ => {}
        }
    }
    steps
}

/// What happens at one instant cannot be nested.
fn flat(step: Value) -> Vec<Value> {
    match step {
        Value::Array(items) => items,
        other => vec![other],
    }
}

/// Two ends of which one at least is on this node, and a family that both have.
fn ends(cluster: &Cluster, dice: &mut Dice) -> Option<(String, String, bool)> {
    let here = cluster.any(dice, true)?;
    let six = here.six && dice.percent(50);
    let far = |pod: Option<Pod>| pod.filter(|pod| !six || pod.six).map(|pod| pod.name);
    let other = match dice.below(12) {
        0..=4 => far(cluster.any(dice, true)).filter(|name| *name != here.name),
        5..=8 => far(cluster.any(dice, false)),
        9 => Some("n2".to_owned()),
        10 => Some("node".to_owned()),
        _ => Some(stranger(dice, six).to_owned()),
    }?;
    Some(if dice.percent(50) { (here.name, other, six) } else { (other, here.name, six) })
}

fn kind(dice: &mut Dice) -> (&'static str, u16) {
    let protocol = *dice.pick(&["tcp", "tcp", "tcp", "udp", "udp", "sctp", "sctp", "icmp", "proto"]);
    let number = match protocol {
        "icmp" => 0,
        "proto" => *dice.pick(&[4, 41, 47, 50, 89, 136, 255]),
        _ if dice.percent(15) => 1 + dice.below(65535) as u16,
        _ => *dice.pick(&PORTS),
    };
    (protocol, number)
}

fn kind_text((protocol, number): (&str, u16)) -> String {
    if protocol == "icmp" { protocol.to_owned() } else { format!("{protocol}/{number}") }
}

fn family(six: bool) -> &'static str {
    if six { "v6" } else { "v4" }
}

fn probe(cluster: &Cluster, dice: &mut Dice) -> Option<Value> {
    if dice.percent(25)
        && let Some(Translated { source, destination, kind, way, .. }) = cluster.to_service(dice)
    {
        return Some(json!({format!("{source} -> {destination} {} {way}", kind_text(kind)): "any"}));
    }
    let (source, destination, six) = ends(cluster, dice)?;
    let key = format!("{source} -> {destination} {} {}", kind_text(kind(dice)), family(six));
    Some(json!({key: "any"}))
}

fn open(cluster: &Cluster, dice: &mut Dice, flows: &mut Vec<Flow>) -> Vec<Value> {
    let translated = if dice.percent(30) { cluster.to_service(dice) } else { None };
    let is_translated = translated.is_some();
    let translated = translated.map(|it| (it.source, it.destination, it.six, it.kind, it.way));
    let plain = |dice: &mut Dice| {
        let (source, destination, six) = ends(cluster, dice)?;
        Some((source, destination, six, kind(dice), family(six).to_owned()))
    };
    let Some((source, destination, six, (protocol, number), way)) = translated.or_else(|| plain(dice)) else {
        return Vec::new();
    };
    let name = format!("f{}", flows.len());
    let port = if dice.percent(40) { *dice.pick(&SHARED_PORTS) } else { 30_000 + flows.len() as u16 };
    let ported = matches!(protocol, "tcp" | "udp" | "sctp");
    // An address names no port in the line of a flow.
    let with_port = if source.contains('/') && ported { format!("{source}:{port}") } else { source.clone() };
    let line = format!("flow {name} {with_port} -> {destination} {} {way}", kind_text((protocol, number)));
    let mut steps = vec![json!(line)];
    let flow = Flow {
        name,
        kind: protocol,
        ends: [end(&source, six, ported.then_some(port)), end(&destination, six, ported.then_some(number))],
        hosts: [source, destination],
        six,
        translated: is_translated,
    };
    // Some are met mid-stream.
    if dice.percent(80) {
        let (first, answer) = match protocol {
            "tcp" => ("syn", "synack"),
            "sctp" => ("init", "chunk=2"),
            "icmp" => ("echo", "reply"),
            _ => ("data", "data"),
        };
        steps.push(json!({format!("{} > {first}", flow.name): "any"}));
        steps.push(json!({format!("{} < {answer}", flow.name): "any"}));
    }
    flows.push(flow);
    steps
}

/// More packets of a flow: data, its end, its pieces, and what others have to say about it.
fn follow(cluster: &Cluster, flows: &[Flow], dice: &mut Dice) -> Vec<Value> {
    if flows.is_empty() {
        return Vec::new();
    }
    let flow = dice.pick(flows);
    let words: Vec<(&str, String)> = match dice.below(20) {
        0 | 1 if flow.kind == "tcp" => closing(dice),
        2 => pieces(dice),
        3 | 4 => return error(cluster, flow, dice),
        _ => vec![(*dice.pick(&[">", "<"]), word(flow, dice))],
    };
    words.into_iter().map(|(way, word)| json!({format!("{} {way} {word}", flow.name): "any"})).collect()
}

fn word(flow: &Flow, dice: &mut Dice) -> String {
    let word = match flow.kind {
        "tcp" => *dice.pick(&[
            "data",
            "data",
            "data",
            "ack",
            "ack",
            "syn",
            "synack",
            "flags=SF",
            "fin",
            "rst",
            "flags=RA",
            "flags=FPU",
            "flags=",
            "flags=SR",
        ]),
        "sctp" => *dice.pick(&["data", "data", "init", "chunk=2", "chunk=6", "chunk=14", "chunk=10"]),
        "icmp" => *dice.pick(&["echo", "reply"]),
        _ => "data",
    };
    let more = match dice.below(24) {
        0 => " frag=0+ fid=5 payload=1200",
        1 => " frag=0 fid=9",
        2 if !flow.six => " options=8",
        2 => " ext=hbh,dst",
        3 if flow.six => " ext=dst,routing",
        4 => " vlan=3",
        5 => " gso",
        6 => " pad=6",
        _ => "",
    };
    format!("{word}{more}")
}

/// A TCP connection ends, from either side, in order or cut short.
fn closing(dice: &mut Dice) -> Vec<(&'static str, String)> {
    let (one, other) = if dice.percent(50) { (">", "<") } else { ("<", ">") };
    let all = vec![
        (one, "flags=FA seq=5000 ack=9000".to_owned()),
        (other, "flags=A seq=9000 ack=5001".to_owned()),
        (other, "flags=FA seq=9000 ack=5001".to_owned()),
        (one, "flags=A seq=5001 ack=9001".to_owned()),
        (*dice.pick(&[">", "<"]), (*dice.pick(&["ack", "data", "syn", "flags=A seq=5001 ack=9001"])).to_owned()),
    ];
    let kept = if dice.percent(60) { 5 } else { 1 + dice.below(4) };
    all.into_iter().take(kept).collect()
}

/// A datagram in pieces, not always in order and not always all of them.
fn pieces(dice: &mut Dice) -> Vec<(&'static str, String)> {
    let id = 1 + dice.below(3);
    let way = *dice.pick(&[">", "<"]);
    let mut all = vec![
        (way, format!("data data=1472 frag=0+ fid={id}")),
        (way, format!("data data=1472 frag=1480+ fid={id}")),
        (way, format!("data data=80 frag=2960 fid={id}")),
    ];
    if dice.percent(20) {
        all.push((way, format!("data frag={} fid={id}", dice.pick(&[8, 16, 24]))));
    }
    if dice.percent(40) {
        dice.shuffle(&mut all);
    }
    all.truncate(1 + dice.below(all.len()));
    all
}

/// Somebody tells one end of a flow that a packet of it did not arrive.
fn error(cluster: &Cluster, flow: &Flow, dice: &mut Dice) -> Vec<Value> {
    // What is told to whom a translated flow was opened with names other ends.
    let sender = if flow.translated { 0 } else { dice.below(2) };
    let (told, other) = (&flow.hosts[sender], &flow.hosts[1 - sender]);
    let quoted = match flow.kind {
        "tcp" | "udp" | "sctp" => format!("{} {} > {}", flow.kind, flow.ends[sender], flow.ends[1 - sender]),
        _ => return Vec::new(),
    };
    let six = flow.six;
    let kind = if six {
        *dice.pick(&["type=1 code=4", "type=2", "type=3"])
    } else {
        *dice.pick(&["type=3 code=4", "type=11"])
    };
    let told_ip = host(told, six);
    let far = |name: &str| !name.contains('/');
    let known = |name: &str| far(name) || cluster.reachable(name, six);
    if !known(told) || !known(other) {
        return Vec::new();
    }
    let mut steps = Vec::new();
    if !flow.translated && cluster.reachable(other, six) && dice.percent(50) {
        steps.push(format!("from {other} icmp {} > {told_ip} {kind} quoting {quoted}", host(other, six)));
    }
    if cluster.reachable(told, six) {
        let router = stranger(dice, six);
        steps.push(format!("to {told} icmp {router} > {told_ip} {kind} quoting {quoted}"));
    }
    steps.into_iter().map(|line| json!({line: "any"})).collect()
}
