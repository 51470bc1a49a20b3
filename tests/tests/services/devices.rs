//! A device by which pod traffic leaves, and that comes while agents run: from its first packet on it is no way out.

use std::time::{Duration, Instant};

use palisade_tests::lab::probe::ask_all_within;
use palisade_tests::lab::{Mode, Outcome};

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
