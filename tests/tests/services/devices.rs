//! Devices that come while agents run: one by which pod traffic leaves is no way out from its first packet on, and one that gives back what
//! it is given is no end of the way.

use std::fs;
use std::time::{Duration, Instant};

use palisade_tests::lab::probe::ask_all_within;
use palisade_tests::lab::{Mode, Outcome};

use crate::connections::{self, SOME, TARGETS};
use crate::question;
use crate::table;
use crate::world::World;

/// Births of the device, each of which is another race.
const BIRTHS: usize = 8;
/// How long after a birth nothing may have got through.
const WATCH: Duration = Duration::from_millis(600);

#[test]
fn a_new_device_is_no_way_out() {
    let mut world = World::new(Mode::Nftables);
    let to_far = |world: &World, text: &str| question::parse(world, &format!("a -> by-tunnel {text}"));
    let asked = to_far(&world, "udp = *");
    assert_eq!(table::check(&world, asked), None, "no agent");
    let but_far = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [$far.v4/32]}}, {ipBlock: {cidr: '::/0', except: [$far.v6/128]}}]}]}";
    let policy = world.policy("web/p", but_far);
    world.put(&policy);
    let agents = world.start_agents(true);
    for birth in 0..BIRTHS {
        world.fill();
        world.dig();
        let (end, mut asked) = (Instant::now() + WATCH, 0);
        while Instant::now() < end {
            let questions = to_far(&world, "udp =");
            let probes: Vec<_> = questions.iter().flat_map(|question| question.probes(&world)).collect();
            let hurried: Vec<_> = probes.into_iter().map(|(probe, _)| (probe, Duration::from_millis(20))).collect();
            let outcomes = ask_all_within(&hurried);
            asked += outcomes.len();
            assert!(!outcomes.iter().any(Outcome::reached), "birth {birth}, after {asked} questions: {outcomes:?}");
        }
    }
    world.change_policies(&agents, &[policy], &[]);
    let open = table::check(&world, to_far(&world, "udp = *"));
    assert_eq!(open, None, "the policy is gone");
}

/// As CNI's bandwidth plugin limits what a pod sends: its packets are on the device before Services are translated.
#[test]
fn what_a_shaped_pod_sends_is_judged_where_it_ends_up() {
    let world = World::new(Mode::Nftables);
    world.wait_for(&TARGETS);
    world.put(&connections::policy(&world, &SOME));
    let agents = world.start_agents(true);
    let node = &world.nodes[0].netns;
    let veth = &world.places["a"].interface;
    node.ip(&["link add bwp0 type ifb".to_owned(), "link set bwp0 up".to_owned()]).expect("a device");
    for arguments in [
        "qdisc add dev bwp0 root tbf rate 1gbit burst 1m latency 25ms".to_owned(),
        format!("qdisc add dev {veth} ingress"),
        format!(
            "filter add dev {veth} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev bwp0"
        ),
    ] {
        let said = node.command("tc").args(arguments.split(' ')).output().expect("tc runs");
        assert!(said.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&said.stderr));
    }
    let counted = || {
        let text = node.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("it can be read");
        text.lines().find(|line| line.contains("bwp0:")).expect("it is there").to_owned()
    };
    let before = counted();
    let asked = question::parse(&world, &format!("a -> {} udp = {}", TARGETS.join(" "), SOME.join(" ")));
    assert_eq!(table::check(&world, asked), None, "{}", agents[0].log_text());
    assert_ne!(counted(), before, "nothing was redirected");
}
