//! Connections through Services that are already open: older than the agents, across a new agent, and under a policy that
//! changes.

use std::time::{Duration, Instant};

use palisade_tests::lab::probe::{Connection, DEADLINE};
use palisade_tests::lab::{Agent, Mode};
use serde_json::Value;

use crate::question;
use crate::world::World;

/// One target for each way that a packet may take.
pub const TARGETS: [&str; 10] = [
    "same-node",
    "vxlan",
    "host-gw",
    "outside",
    "by-tunnel",
    "on-node",
    "on-other-node",
    "external@external",
    "port@one",
    "mapped@one",
];
/// Their backends.
pub const ALL: [&str; 7] = ["b", "c", "d", "out", "far", "one", "two"];
/// What the stricter policy admits.
pub const SOME: [&str; 4] = ["b", "d", "far", "one"];
/// For what is cut: an echo that does not come within it.
const CUT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);

struct Open {
    text: String,
    connection: Connection,
}

#[test]
fn connections_by_iptables() {
    play(Mode::Iptables);
}

#[test]
fn connections_by_nftables() {
    play(Mode::Nftables);
}

fn play(mode: Mode) {
    let world = World::new(mode);
    world.wait_for(&TARGETS);
    let all = policy(&world, &ALL);
    let some = policy(&world, &SOME);
    let mut before = open(&world);
    expect(&mut before, |_| true, "no agent");
    world.put(&some);
    let agents = world.start_agents(true);
    expect(&mut before, |name| SOME.contains(&name), "older than the agents, of which the policy admits some");

    world.change_policies(&agents, std::slice::from_ref(&some), std::slice::from_ref(&all));
    let mut connections = open(&world);
    expect(&mut connections, |_| true, "admitted");
    for agent in agents {
        agent.stop().expect("it runs");
    }
    expect(&mut connections, |_| true, "no agent runs");
    let agents: Vec<Agent> = world.start_agents(true);
    expect(&mut connections, |_| true, "a new agent");

    world.change_policies(&agents, std::slice::from_ref(&all), std::slice::from_ref(&some));
    expect(&mut connections, |name| SOME.contains(&name), "the policy admits some");
    world.change_policies(&agents, std::slice::from_ref(&some), &[]);
}

/// Egress of `a` to these places, by their addresses.
pub fn policy(world: &World, places: &[&str]) -> Value {
    let blocks: Vec<String> = places
        .iter()
        .flat_map(|name| ["v4/32", "v6/128"].map(|suffix| format!("{{ipBlock: {{cidr: ${name}.{suffix}}}}}")))
        .collect();
    let to = blocks.join(", ");
    world.policy(
        "web/p",
        &format!("{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Egress], egress: [{{to: [{to}]}}]}}"),
    )
}

/// From `a`, in both families.
fn open(world: &World) -> Vec<Open> {
    let from = &world.places["a"].netns;
    let ways = TARGETS.iter().flat_map(|target| world.addresses(target).into_iter().map(move |(to, _)| (target, to)));
    ways.map(|(target, to)| Open {
        text: format!("{target} {to}"),
        connection: Connection::open(from, to.ip(), to.port()).expect("it is admitted"),
    })
    .collect()
}

/// Which connections live, by the names of their backends; those that do not have a moment to be cut.
fn expect(connections: &mut Vec<Open>, lives: impl Fn(&str) -> bool, when: &str) {
    let end = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    connections.retain_mut(|Open { text, connection }| {
        let wanted = lives(&connection.name);
        let mut echoes = connection.echoes(if wanted { DEADLINE } else { CUT });
        while echoes && !wanted && Instant::now() < end {
            echoes = connection.echoes(CUT);
        }
        if echoes != wanted {
            wrong.push(format!("{text} to {}: {}", connection.name, if wanted { "cut" } else { "lives" }));
        }
        wanted
    });
    assert!(wrong.is_empty(), "{when}:\n    {}", wrong.join("\n    "));
}

// === impl World ===

impl World {
    /// Until kube-proxy sends `a` on to these targets.
    pub fn wait_for(&self, targets: &[&str]) {
        let questions = question::parse(self, &format!("a -> {} = *", targets.join(" ")));
        assert_eq!(crate::table::check(self, questions), None, "no agent");
    }
}
