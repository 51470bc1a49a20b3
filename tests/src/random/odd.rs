//! Packets that lie, quote, come in pieces, or are not for everybody.

use serde_json::{Value, json};

use super::Dice;
use super::cluster::{Cluster, PORTS};
use super::traffic::{end, host, stranger};

/// Names that the lines of one step are made of.
struct Scene {
    /// A pod of this node, and another or the same.
    a: String,
    b: String,
    /// A pod of another node or a stranger, in the family of the step.
    peer: String,
    six: bool,
    port: u16,
    id: usize,
}

impl Scene {
    fn own(&self, port: u16) -> String {
        end(&self.a, self.six, Some(port))
    }

    fn peer(&self, port: u16) -> String {
        end(&self.peer, self.six, Some(port))
    }

    /// Addresses without ports.
    fn hosts(&self) -> (String, String) {
        (host(&self.a, self.six), host(&self.peer, self.six))
    }
}

pub fn odd(cluster: &Cluster, dice: &mut Dice) -> Vec<Value> {
    let (Some(here), Some(other)) = (cluster.any(dice, true), cluster.any(dice, true)) else { return Vec::new() };
    let six = here.six && dice.percent(40);
    let far = cluster.any(dice, false).filter(|pod| !pod.finished && (!six || pod.six)).map(|pod| pod.name);
    let peer = far.filter(|_| dice.percent(70)).unwrap_or_else(|| stranger(dice, six).to_owned());
    let (port, id) = (*dice.pick(&PORTS), 1 + dice.below(1000));
    let scene = Scene { a: here.name, b: other.name, peer, six, port, id };
    let lines = match dice.below(48) {
        40..=47 => cluster.marks(dice),
        0..=14 => link(&scene, dice),
        15..=24 => pieces(&scene, dice),
        25..=29 => errors(&scene, dice),
        30..=35 => strange(&scene, dice),
        // Connections that nobody saw being opened, by the end that was connected to.
        _ => (0..4)
            .map(|more| {
                format!("from {} tcp {} > {} flags=A data=5", scene.a, scene.own(port), scene.peer((id + more) as u16))
            })
            .collect(),
    };
    lines.into_iter().map(|line| json!({line: "any"})).collect()
}

/// Who sends, who is meant, and how neighbours find each other.
fn link(Scene { a, b, port, id, .. }: &Scene, dice: &mut Dice) -> Vec<String> {
    let stranger = stranger(dice, false);
    match dice.below(19) {
        0 => vec![format!("from {a} tcp {stranger}:4000 > {b}:{port} flags=S smac={a}")],
        1 => vec![format!("from {a} udp {a}:4000 > {stranger}:{port} smac=02:99:00:00:00:01")],
        2 => vec![format!("from {a} arp op=2 spa=10.244.0.1 sha={a} smac={a} tpa={b} tha={b}")],
        3 => vec![format!("from {a} arp op=1 spa={a} tpa=10.244.0.1"), format!("to {a} arp op=1 spa={b} tpa={a}")],
        4 => vec![format!("from {a} icmp {a}@ll > ff02::1 type=134 data=8")],
        5 => vec![format!("from {a} icmp {a} > {stranger} type=5 data=28")],
        6 => vec![format!("to {a} tcp {stranger}:4000 > 10.244.0.250:{port} flags=S dmac={a}")],
        7 => vec![format!("to {a} ethertype=0x88cc"), format!("from {a} ethertype=0x88cc smac={a}")],
        8 => vec![format!("to if99 tcp {stranger}:4000 > {a}:{port} flags=S")],
        9 => vec![format!("to {a} tcp [{b}@ll]:{id} > [{a}@ll]:{port} flags=S by={b}")],
        10 => vec![format!("from {a} tcp [{a}@ll]:{id} > [{b}@ll]:{port} flags=S")],
        11 => vec![format!("to {a} udp {stranger}:{id} > 224.0.0.251:{port}")],
        12 => vec![format!("from {a} icmp {a}@ll > ff02::1 type=136 target={a}@ll link={a}")],
        13 => vec![format!("from {a} icmp {a}@ll > ff02::1 type=136 target={b}@ll link={a}")],
        14 => vec![format!("to {a} icmp {b}@ll > {a}@ll type=135 target={a}@ll link={b} by={b}")],
        15 => vec![format!("from {a} udp {a}:{id} > 255.255.255.255:{port}")],
        16 => vec![format!("to {a} udp {stranger}:{id} > 10.244.0.255:{port} dmac=broadcast")],
        // A process of the node, whatever it sends.
        17 => vec![
            format!("to {a} udp 10.244.0.1:{port} > {a}:{id} by=node"),
            format!("from {a} udp {a}:{id} > 10.244.0.1:{port}"),
        ],
        _ => vec![format!("to {a} tcp 10.244.0.1:{port} > {a}:{id} flags=R by=node")],
    }
}

/// Fragments: in order, out of it, alone, too small, and of a datagram that was refused.
fn pieces(scene: &Scene, dice: &mut Dice) -> Vec<String> {
    let Scene { a, port, id, .. } = scene;
    let protocol = *dice.pick(&["udp", "udp", "tcp", "sctp"]);
    let sends = dice.percent(50);
    let (way, from, to) =
        if sends { ("from", scene.own(4000), scene.peer(*port)) } else { ("to", scene.peer(4000), scene.own(*port)) };
    let first = format!("{way} {a} {protocol} {from} > {to} data=1472 frag=0+ fid={id}");
    let middle = format!("{way} {a} {protocol} {from} > {to} data=1472 frag=1480+ fid={id}");
    let last = format!("{way} {a} {protocol} {from} > {to} data=80 frag=2960 fid={id}");
    match dice.below(10) {
        0 => vec![last],
        1 => vec![last.clone(), first, last],
        2 => vec![first.replace(&format!("fid={id}"), "fid=77"), last],
        3 => vec![first, format!("{way} {a} {protocol} {from} > {to} frag={} fid={id}", dice.pick(&[8, 16]))],
        4 => vec![format!("{way} {a} {protocol} {from} > {to} frag=0+ payload={}", dice.pick(&[4, 8, 16, 24]))],
        5 if scene.six => vec![
            format!("{way} {a} {protocol} {from} > {to} data=1472 frag=0+ fid={id} ext=dst"),
            format!("{way} {a} {protocol} {from} > {to} data=80 frag=1480 fid={id}"),
        ],
        6 => vec![format!("from {a} tcp [{a}@ll]:4000 > [ff02::1]:{port} frag=0+ payload=24")],
        _ => vec![first, middle, last],
    }
}

/// ICMP errors about what was sent and about what was not.
fn errors(scene: &Scene, dice: &mut Dice) -> Vec<String> {
    let Scene { a, port, id, six, .. } = scene;
    let (own, peer) = scene.hosts();
    let (router, unreachable, echo, exceeded) = if *six {
        ("2001:db8:ffff::1", "type=1 code=4", "type=128", "type=3")
    } else {
        ("198.51.100.1", "type=3 code=4", "type=8", "type=11")
    };
    let (from, to) = (scene.own(4001), scene.peer(*port));
    match dice.below(6) {
        0 | 1 => vec![
            format!("from {a} udp {from} > {to}"),
            format!("to {a} icmp {router} > {own} {unreachable} quoting udp {from} > {to}"),
        ],
        2 => vec![format!("to {a} icmp {router} > {own} {exceeded} quoting tcp {} > {to}", scene.own(*id as u16))],
        3 => vec![
            format!("from {a} icmp {own} > {peer} {echo} id={id}"),
            format!("to {a} icmp {router} > {own} {exceeded} quoting icmp {own} > {peer} {echo} id={id}"),
        ],
        // To another than who sent what is quoted.
        4 => vec![format!("to {a} icmp {router} > {own} {unreachable} quoting udp {to} > {from}")],
        _ => vec![
            format!("to {a} udp {to} > {from}"),
            format!("from {a} icmp {own} > {peer} {unreachable} quoting udp {to} > {from}"),
            format!("from {a} icmp {own} > {peer} {unreachable} quote=20 quoting udp {to} > {from}"),
        ],
    }
}

/// Headers that are long, lie, or are cut short.
fn strange(scene: &Scene, dice: &mut Dice) -> Vec<String> {
    let Scene { a, port, id, six, .. } = scene;
    let (from, to) = (scene.peer(*id as u16), scene.own(*port));
    let words = match dice.below(12) {
        0 => "flags=S doff=4",
        1 => "flags=S vlan=3",
        2 => "flags=S cut=30",
        3 => "flags=S version=5",
        4 => "flags=S length=10",
        5 if *six => "flags=S ext=hbh,dst,routing,ah",
        6 if *six => "flags=S ext=mobility,hip,shim6",
        7 if *six => "flags=S ext=dst,dst,dst,dst,dst,dst,dst,dst,dst",
        5..=7 => "flags=S options=40",
        8 => "flags=S vlan=3 svlan=4",
        9 => {
            return vec![
                format!("to {a} udp {from} > {to} udplen=4"),
                format!("to {a} udp {from} > {to} data=9 udplen=12"),
            ];
        }
        10 => return vec![format!("to {a} tcp {} > {to} flags=A data=5", scene.peer(*port))],
        _ => "flags=S hop=1 pad=6",
    };
    vec![format!("to {a} tcp {from} > {to} {words}")]
}
