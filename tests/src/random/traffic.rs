//! Random steps: mostly whole flows, packets of flows that were opened earlier, changes, and now and then a packet that is not
//! as it should be.

use serde_json::{Value, json};

use super::Dice;
use super::cluster::{Cluster, PORTS, Pod};

const STRANGERS: [&str; 3] = ["192.0.2.7", "192.0.2.200", "10.9.9.9"];
const STRANGERS_V6: [&str; 3] = ["2001:db8::7", "2001:db8:1::7", "fd00:99::7"];

/// A flow that was named.
struct Flow {
    name: String,
    kind: &'static str,
}

pub fn steps(cluster: &mut Cluster, dice: &mut Dice) -> Vec<Value> {
    let mut steps = Vec::new();
    let mut flows: Vec<Flow> = Vec::new();
    for _ in 0..24 + dice.below(16) {
        match dice.below(100) {
            0..=14 => steps.extend(change(cluster, dice)),
            15..=19 => {
                // Several at one instant.
                let changes: Vec<Value> = (0..3).filter_map(|_| change(cluster, dice)).collect();
                steps.push(Value::Array(changes));
            }
            20..=54 => steps.extend((0..4).filter_map(|_| probe(cluster, dice))),
            55..=64 => steps.extend(open(cluster, dice, &mut flows)),
            65..=84 => steps.extend(follow(&flows, dice)),
            _ => steps.extend(odd(cluster, dice)),
        }
    }
    steps
}

fn change(cluster: &mut Cluster, dice: &mut Dice) -> Option<Value> {
    match dice.below(20) {
        0..=5 => Some(cluster.policy(dice)),
        6 | 7 => cluster.delete_policy(dice),
        8..=13 => Some(cluster.relabel(dice)),
        14 | 15 => cluster.delete_pod(dice),
        16..=18 => {
            let local = dice.percent(60);
            Some(cluster.new_pod(dice, local))
        }
        _ => cluster.finish_pod(dice),
    }
}

/// Two ends of which one at least is on this node, a kind, and a family that both have.
fn ends(cluster: &Cluster, dice: &mut Dice) -> Option<(String, String, &'static str)> {
    let here = cluster.any(dice, true)?;
    let six = here.six && dice.percent(50);
    let far = |pod: Option<Pod>| pod.filter(|pod| !six || pod.six).map(|pod| pod.name);
    let other = match dice.below(12) {
        0..=4 => far(cluster.any(dice, true)).filter(|name| *name != here.name),
        5..=8 => far(cluster.any(dice, false)),
        9 => Some("n2".to_owned()),
        10 => Some("node".to_owned()),
        _ => Some((*dice.pick(if six { &STRANGERS_V6 } else { &STRANGERS })).to_owned()),
    }?;
    let family = if six { "v6" } else { "v4" };
    Some(if dice.percent(50) { (here.name, other, family) } else { (other, here.name, family) })
}

fn kind(dice: &mut Dice) -> (&'static str, String) {
    let protocol = *dice.pick(&["tcp", "tcp", "tcp", "udp", "udp", "sctp", "icmp", "proto"]);
    let number = match protocol {
        "icmp" => return (protocol, protocol.to_owned()),
        "proto" => *dice.pick(&[47, 50, 89]),
        _ if dice.percent(15) => 1 + dice.below(65535) as u16,
        _ => *dice.pick(&PORTS),
    };
    (protocol, format!("{protocol}/{number}"))
}

fn probe(cluster: &Cluster, dice: &mut Dice) -> Option<Value> {
    let (source, destination, family) = ends(cluster, dice)?;
    let (_, kind) = kind(dice);
    let key = format!("{source} -> {destination} {kind} {family}");
    Some(json!({key: "any"}))
}

fn open(cluster: &Cluster, dice: &mut Dice, flows: &mut Vec<Flow>) -> Vec<Value> {
    let Some((source, destination, family)) = ends(cluster, dice) else { return Vec::new() };
    let (protocol, kind) = kind(dice);
    let name = format!("f{}", flows.len());
    let mut steps = vec![json!(format!("flow {name} {source} -> {destination} {kind} {family}"))];
    let flow = Flow { name, kind: protocol };
    // Some are met mid-stream.
    if dice.percent(80) {
        let (first, answer) = match protocol {
            "tcp" => ("syn", "synack"),
            "sctp" => ("init", "data"),
            "icmp" => ("echo", "reply"),
            _ => ("data", "data"),
        };
        steps.push(json!({format!("{} > {first}", flow.name): "any"}));
        steps.push(json!({format!("{} < {answer}", flow.name): "any"}));
    }
    flows.push(flow);
    steps
}

fn follow(flows: &[Flow], dice: &mut Dice) -> Option<Value> {
    if flows.is_empty() {
        return None;
    }
    let flow = dice.pick(flows);
    let way = *dice.pick(&[">", "<"]);
    let word = match flow.kind {
        "tcp" => *dice.pick(&["data", "data", "data", "ack", "ack", "syn", "synack", "flags=SF", "fin", "rst"]),
        "sctp" => *dice.pick(&["data", "data", "init"]),
        "icmp" => *dice.pick(&["echo", "reply"]),
        _ => "data",
    };
    let word = if dice.percent(5) { format!("{word} frag=0+ fid=5 payload=1200") } else { word.to_owned() };
    Some(json!({format!("{} {way} {word}", flow.name): "any"}))
}

/// Packets that lie, quote, come in pieces, or are not for everybody.
fn odd(cluster: &Cluster, dice: &mut Dice) -> Vec<Value> {
    let (Some(here), Some(other)) = (cluster.any(dice, true), cluster.any(dice, true)) else { return Vec::new() };
    let (a, b) = (here.name, other.name);
    let port = *dice.pick(&PORTS);
    let id = 1 + dice.below(1000);
    let stranger = *dice.pick(&STRANGERS);
    let far = cluster.any(dice, false).filter(|pod| !pod.finished).map(|pod| pod.name);
    let peer = far.filter(|_| dice.percent(70)).unwrap_or_else(|| stranger.to_owned());
    let lines: Vec<String> = match dice.below(28) {
        0 => vec![format!("from {a} tcp {stranger}:4000 > {b}:{port} flags=S smac={a}")],
        1 => vec![format!("from {a} udp {a}:4000 > {stranger}:{port} smac=02:99:00:00:00:01")],
        2 => vec![format!("from {a} arp op=2 spa=10.244.0.1 sha={a} smac={a} tpa={b} tha={b}")],
        3 => vec![format!("from {a} arp op=1 spa={a} tpa=10.244.0.1"), format!("to {a} arp op=1 spa={b} tpa={a}")],
        4 => vec![format!("from {a} icmp {a}@ll > ff02::1 type=134 data=8")],
        5 => vec![format!("from {a} icmp {a} > {stranger} type=5 data=28")],
        6 => vec![format!("to {a} tcp {stranger}:4000 > 10.244.0.250:{port} flags=S dmac={a}")],
        7 => vec![format!("to {a} tcp {stranger}:4000 > {a}:{port} flags=S doff=4")],
        8 => vec![format!("to {a} ethertype=0x88cc"), format!("from {a} ethertype=0x88cc smac={a}")],
        9 => vec![format!("to {a} udp {stranger}:4000 > {a}:{port} data=80 frag=1480 fid={id}")],
        10 => vec![
            format!("to {a} udp {stranger}:4000 > {a}:{port} data=1472 frag=0+ fid={id}"),
            format!("to {a} udp {stranger}:4000 > {a}:{port} data=80 frag=1480 fid={id}"),
        ],
        11 => vec![
            format!("from {a} udp {a}:4000 > {stranger}:{port} data=1472 frag=0+ fid={id}"),
            format!("from {a} udp {a}:4000 > {stranger}:{port} data=80 frag=1480 fid={id}"),
        ],
        12 => vec![
            format!("from {a} udp {a}:4001 > {stranger}:{port}"),
            format!("to {a} icmp 198.51.100.1 > {a} type=3 code=4 quoting udp {a}:4001 > {stranger}:{port}"),
        ],
        13 => vec![format!("to {a} icmp 198.51.100.1 > {a} type=11 quoting tcp {a}:{id} > {stranger}:{port}")],
        14 => vec![format!("from {a} tcp [{a}@ll]:4000 > [ff02::1]:{port} frag=0+ payload=24")],
        15 => vec![format!("to if99 tcp {stranger}:4000 > {a}:{port} flags=S")],
        16 => vec![format!("to {a} tcp [{b}@ll]:{id} > [{a}@ll]:{port} flags=S by={b}")],
        17 => vec![format!("from {a} tcp [{a}@ll]:{id} > [{b}@ll]:{port} flags=S")],
        18 => vec![format!("to {a} udp {stranger}:{id} > 224.0.0.251:{port}")],
        19 => vec![format!("to {a} tcp {stranger}:{id} > {a}:{port} flags=S options=8 vlan=3")],
        20 => vec![format!("to {a} tcp {stranger}:{port} > {a}:{id} flags=A data=5")],
        // Connections that nobody saw being opened, by the end that was connected to.
        _ => (0..4).map(|more| format!("from {a} tcp {a}:{port} > {peer}:{} flags=A data=5", id + more)).collect(),
    };
    lines.into_iter().map(|line| json!({line: "any"})).collect()
}
