//! From an agent to one with another layout of its tables and back, under traffic: no verdict is wrong, and no connection ends.
#![cfg(feature = "live")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use palisade::kernel::Maps;
use palisade_common::layout::{Address, FlowKey, FlowValue, Judgement};
use palisade_tests::judges::Memory;

use palisade_tests::lab::agent::{Source, palisade};
use palisade_tests::lab::traffic::Tally;
use palisade_tests::lab::versions::{Scene, Version};
use palisade_tests::lab::{Agent, AgentOptions};
use rustix::time::{ClockId, clock_gettime};

/// Until something happens that an agent does at its start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Traffic goes on with an agent for so long.
const A_WHILE: Duration = Duration::from_secs(1);

fn assert_right(tally: &Tally, agent: &Agent) {
    assert!(tally.is_right() && tally.is_telling(), "{tally:#?}\n{}", agent.log_text());
}

/// Connections that the agent's programs have met without knowing them, all pods together.
fn met_mid_stream(agent: &Agent) -> u64 {
    let (_, page) = agent.http("/metrics").expect("it answers");
    let line = page.lines().find(|line| line.starts_with("palisade_midstream_total"));
    line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).expect("the metric is there")
}

/// The lines of the log that say so, of all agents so far.
fn count(agent: &Agent, text: &str) -> usize {
    agent.log_text().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn agents_of_two_layouts_take_over_from_each_other() {
    for mode in ["tcx", "clsact"] {
        let scene = Scene::new("versions", 2).expect("a scene");
        let start = |version: Version| -> Agent {
            let options = scene.options(version).expect("built").argument("--attach").argument(mode);
            Agent::start(&scene.lab, &scene.node, &options).expect("an agent")
        };
        let mut version = Version::Ours;
        let mut agent = start(version);
        let traffic = scene.traffic(40).expect("traffic");
        for round in 0..6 {
            version = version.other();
            if round % 2 == 0 {
                assert!(agent.stop().expect("it runs").success());
            } else {
                agent.kill().expect("it runs");
            }
            agent = start(version);
            assert_eq!(scene.pinned().expect("a folder"), [version], "{}", agent.log_text());
            // Every connection is used with every agent, and all but those of the moment are known.
            std::thread::sleep(A_WHILE);
            assert!(met_mid_stream(&agent) < 40, "{} are met mid-stream", met_mid_stream(&agent));
        }
        assert_right(&traffic.stop(), &agent);
        assert_eq!(count(&agent, "flows of another version taken over"), 12, "{}", agent.log_text());
        let said = palisade(&scene.node, &["uninstall"]).expect("it runs");
        assert!(!said.status.success(), "an agent runs");
        agent.stop().expect("it runs");
        let said = palisade(&scene.node, &["uninstall"]).expect("it runs");
        assert!(said.status.success() && !scene.node.pin_dir.exists(), "{said:?}");
    }
}

/// The next agent goes on wherever one was killed, and whichever of the two it is: before anything was replaced, and when a part of the
/// interfaces was, so that the two ends of a flow are judged by different tables.
#[test]
fn an_agent_that_is_killed_in_between_is_followed_by_either() {
    const OTHERS: usize = 20;
    let scene = Scene::new("between", OTHERS).expect("a scene");
    let mut version = Version::Ours;
    let mut agent = scene.start(version).expect("an agent");
    let traffic = scene.traffic(4).expect("traffic");
    let mut half = 0;
    for (enough, same) in
        [(0, true), (4, true), (4, false), (12, false), (0, false), (8, true), (16, false), (20, true)]
    {
        agent.kill().expect("it runs");
        let options = scene.options(version.other()).expect("built");
        let next = Agent::spawn(&scene.lab, &scene.node, &options).expect("it starts");
        let begun = Instant::now();
        // There is no event to wait for from outside, and a moment is all there is.
        while scene.links(version.other()).is_none_or(|links| links < enough) && begun.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
        next.kill().expect("it runs");
        let links = [version, version.other()].map(|version| scene.links(version).unwrap_or_default());
        half += usize::from(links.iter().all(|count| *count > 2));
        if !same {
            version = version.other();
        }
        agent = scene.start(version).expect("the next agent");
        assert_eq!(scene.pinned().expect("a folder"), [version], "after {links:?}: {}", agent.log_text());
    }
    assert!(half > 0, "no agent was killed in between");
    assert_right(&traffic.stop(), &agent);
}

/// What an agent had put in force when it was killed is as good as what any agent finds at its start: the pod that has one program of either,
/// and the pods that have none of ours yet, do not wait for a list that may not come.
#[test]
fn what_an_agent_had_begun_is_finished_without_a_list() {
    const OTHERS: usize = 20;
    let scene = Scene::new("begun", OTHERS).expect("a scene");
    let mut agent = scene.start(Version::Ours).expect("an agent");
    let traffic = scene.traffic(4).expect("traffic");
    let mut options = scene.options(Version::Other).expect("built");
    let listing = options.clone();
    options.source = Source::silent(&scene.node.folder).expect("a file");
    // Some links are ours by now, and the other version's folder is not gone yet.
    let begun = || {
        let links = scene.links(Version::Other).unwrap_or_default();
        links > 2 && scene.pinned().is_ok_and(|pinned| pinned.len() == 2)
    };
    for attempt in 0.. {
        assert!(attempt < 10, "no agent was killed in between");
        agent.kill().expect("it runs");
        let next = Agent::spawn(&scene.lab, &scene.node, &listing).expect("it starts");
        let end = Instant::now() + PATIENCE;
        while !begun() && Instant::now() < end {
            std::hint::spin_loop();
        }
        next.kill().expect("it runs");
        let was_begun = begun();
        agent = Agent::spawn(&scene.lab, &scene.node, &options).expect("it starts");
        let finished = || scene.pinned().is_ok_and(|pinned| pinned == [Version::Other]);
        let end = Instant::now() + PATIENCE;
        while !finished() && was_begun {
            assert!(Instant::now() < end, "{:?}: {}", scene.pinned(), agent.log_text());
            std::thread::sleep(Duration::from_millis(10));
        }
        if was_begun {
            break;
        }
        agent.kill().expect("it runs");
        agent = scene.start(Version::Ours).expect("an agent");
    }
    std::thread::sleep(A_WHILE);
    assert_right(&traffic.stop(), &agent);
}

/// As a busy node may have; they are what they were after a change there and back.
#[test]
fn fifty_thousand_flows_are_taken_over_in_a_moment() {
    const FLOWS: u32 = 50_000;
    let scene = Scene::new("many", 0).expect("a scene");
    scene.start(Version::Ours).expect("an agent").stop().expect("it runs");
    let mut memory = Memory::open(&scene.node.pin_dir).expect("its maps are pinned");
    let now = clock_gettime(ClockId::Monotonic);
    let seen = now.tv_sec as u64 * 1_000_000_000;
    let flows: BTreeMap<FlowKey, FlowValue> = (0..FLOWS)
        .map(|n| {
            let (low, high) = (Address::v4(n), Address::v6([n, 1, !n, 2]));
            let key =
                FlowKey { low, high, low_port: 7, high_port: n as u16, protocol: 6, family: 4, ..FlowKey::default() };
            let judged = [[Judgement { epoch: 1, generation: n }, Judgement { epoch: n, generation: 2 }]; 2];
            let (fin_next, client, client_generation) = ([n, !n], n ^ 1, n ^ 2);
            let value =
                FlowValue { judged, seen, flags: 1, fin_next, client, client_generation, ..FlowValue::default() };
            (key, value)
        })
        .collect();
    for (key, value) in &flows {
        memory.put_flow(*key, *value).expect("there is room");
    }
    scene.start(Version::Other).expect("the next agent").stop().expect("it runs");
    let agent = scene.start(Version::Ours).expect("and back");
    let text = agent.log_text();
    for line in text.lines().filter(|line| line.contains("flows of another version taken over")) {
        let field = |name: &str| -> Option<u64> { line.split_once(name)?.1.split(' ').next()?.parse().ok() };
        let (found, ms) = field(" found=").zip(field(" ms=")).expect("both are told");
        assert!(found >= FLOWS.into(), "{line}");
        println!("{found} flows in {ms} ms");
    }
    let there =
        Maps::open_pinned(&scene.node.pin_dir).and_then(|maps| maps.snapshot(true)).expect("they can be read").flows;
    let lost = flows.iter().filter(|(key, value)| there.get(key) != Some(value)).count();
    assert_eq!(lost, 0);
}

/// As if nothing told what is in its maps: pods and connections go on nevertheless.
#[test]
fn flows_that_cannot_be_taken_over_are_met_mid_stream() {
    let scene = Scene::new("unknown", 0).expect("a scene");
    let agent = scene.start(Version::Other).expect("an agent");
    let traffic = scene.traffic(6).expect("traffic");
    agent.stop().expect("it runs");
    scene.forget_flows(Version::Other).expect("they are pinned");
    let agent = scene.start(Version::Ours).expect("the next agent");
    assert_eq!(count(&agent, "flows of another version cannot be taken over"), 2, "{}", agent.log_text());
    std::thread::sleep(A_WHILE);
    assert_right(&traffic.stop(), &agent);
}

/// What another version has pinned is not misread.
#[test]
fn commands_say_that_an_agent_has_another_layout() {
    let scene = Scene::new("commands", 0).expect("a scene");
    let options: AgentOptions = scene.options(Version::Other).expect("built");
    let agent = Agent::start(&scene.lab, &scene.node, &options).expect("an agent");
    for command in ["status", "endpoints", "maps"] {
        let said = palisade(&scene.node, &[command]).expect("it runs");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(1) && text.contains("has another layout"), "{command}: {text}");
    }
    agent.stop().expect("it runs");
    let said = palisade(&scene.node, &["uninstall"]).expect("it runs");
    assert!(said.status.success() && !scene.node.pin_dir.exists(), "{said:?}");
}
