//! Agents whose account may not read Services, as with a role that is older than they are: no way round an egress policy,
//! and all right as soon as the account may.

use std::time::{Duration, Instant};

use palisade_tests::lab::{Mode, Source};

use crate::question::{self, Question};
use crate::table;
use crate::world::World;

const ACCOUNT: &str = "reader";
const OTHERS: [(&str, &str); 4] =
    [("", "namespaces"), ("", "nodes"), ("", "pods"), ("networking.k8s.io", "networkpolicies")];
const SERVICES: [(&str, &str); 2] = [("", "services"), ("discovery.k8s.io", "endpointslices")];
/// For an agent to try again what it was forbidden.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn services_that_the_account_may_not_read() {
    let world = World::new(Mode::Nftables);
    let only_b = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: $b.v4/32}}, {ipBlock: {cidr: $b.v6/128}}]}]}";
    let policy = world.policy("web/p", only_b);
    let questions = || {
        let lines = ["a -> same-node spread external@external port@one udp = b", "a -> vxlan outside on-node udp ="];
        lines.iter().flat_map(|line| question::parse(&world, line)).collect::<Vec<Question>>()
    };
    let mut control = questions();
    control.iter_mut().for_each(Question::expect_all);
    assert_eq!(table::check(&world, control), None, "no agent");

    world.put(&policy);
    let forbidden = world.plane.reader(ACCOUNT, &OTHERS).expect("an account");
    let agents = world.spawn_agents(Source::Kubeconfig(forbidden));
    let direct = question::parse(&world, "a -> b udp = b").into_iter().chain(question::parse(&world, "a -> c udp ="));
    let in_force = table::check(&world, direct.collect());
    assert_eq!(in_force, None, "the policy is in force without Services:\n{}", agents[0].log_text());
    let too_much = table::check(&world, questions().into_iter().map(Question::not_more).collect());
    assert_eq!(too_much, None, "Services are not known");

    world.plane.reader(ACCOUNT, &[&OTHERS[..], &SERVICES[..]].concat()).expect("it may read more");
    let end = Instant::now() + PATIENCE;
    while let Some(wrong) = table::check(&world, questions()) {
        assert!(Instant::now() < end, "Services may be read now:\n{wrong}");
    }
}
