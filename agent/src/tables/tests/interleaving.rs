//! The update protocol as a model: one packet and the writes of one or two changes, in every order that can be told apart.
//!
//! A packet's look-ups are asked one by one, each at any point among the writes that is not before the last one's. Of the points at
//! which a look-up is answered alike the earliest stands for all, as it leaves the later look-ups every choice; so all orders are
//! covered by trying each different answer of each look-up in turn. What a look-up in a hash map may answer while its element is
//! replaced and used again for another key is among the answers ([`Flight::element`]), as is a record that is overwritten while it is
//! read.
//!
//! What has to hold: the packet, and one that comes after it when all is done, get the verdicts that they would get if the first had
//! come at one instant (an epoch that was in force while it was judged). A packet that is judged again, as the epoch has moved, may be
//! remembered as if it had been sent twice: at an earlier instant too.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use palisade_common::Hook;
use palisade_common::decide::{Meeting, Tables as _};
use palisade_common::layout::Address;
use palisade_common::parse::V4;
use palisade_common::verdict::Reason;

use self::model::{Flight, Orders, Story};
use super::super::sim::Sim;
use super::flight::datagram;
use super::world::{INTERFACES, probes};
use super::written::judge;
use super::{PORTS, Run};

/// The next choices of answers to try: the last look-up's next one, or of the one before it.
fn advance(choices: &mut Vec<(usize, usize)>) -> bool {
    while let Some((chosen, count)) = choices.pop() {
        if chosen + 1 < count {
            choices.push((chosen + 1, count));
            return true;
        }
    }
    false
}

/// A packet at a hook.
struct Sent {
    bytes: Vec<u8>,
    meeting: Meeting,
}

/// A packet, what was sent before it when nothing had changed yet, and what is sent after it when nothing changes any more.
struct Scenario {
    before: Option<Sent>,
    packet: Sent,
    after: Sent,
}

/// Verdicts of [`Scenario::packet`] and [`Scenario::after`]: whether they pass.
type Outcome = (bool, bool);

/// Judges where nothing moves, by the maps of one state; what is remembered comes back.
fn settled(state: &Sim, flows: Sim, sent: &Sent) -> (bool, Sim) {
    let flight = Flight::still(state, flows);
    let passes = judge(&flight, &sent.bytes, sent.meeting).passes();
    (passes, flight.flows)
}

/// The outcomes that one instant gives, of those between two places of [`Story::complete`], both included.
fn of_one_instant(story: &Story, scenario: &Scenario, flows: &Sim, (from, to): (usize, usize)) -> BTreeSet<Outcome> {
    let state = |place: usize| &story.states[story.complete[place]];
    let last = state(story.complete.len() - 1);
    let mut outcomes = BTreeSet::new();
    for place in from..=to {
        let earlier = (from..place).map(|earlier| settled(state(earlier), flows.clone(), &scenario.packet).1);
        for flows in earlier.chain([flows.clone()]) {
            let (passes, flows) = settled(state(place), flows, &scenario.packet);
            outcomes.insert((passes, settled(last, flows, &scenario.after).0));
        }
    }
    outcomes
}

/// What came of all orders of one scenario.
#[derive(Default)]
struct Tally {
    orders: usize,
    outcomes: BTreeSet<Outcome>,
    wrong: Vec<String>,
    /// Orders in which the packet was given up, which two changes can bring about.
    given_up: usize,
}

/// Tries all orders of a packet and the writes.
fn explore(story: &Story, scenario: &Scenario, flows: &Sim, orders: Orders) -> Tally {
    let before = |sent| settled(&story.states[0], flows.clone(), sent).1;
    let flows = scenario.before.as_ref().map_or_else(|| flows.clone(), before);
    let epochs: Vec<u32> = story.complete.iter().map(|at| story.states[*at].epoch()).collect();
    let place = |epoch: u32| epochs.iter().position(|own| *own == epoch).expect("an epoch of the story");
    let last = story.states.last().expect("there is one before any change");
    let (mut tally, mut choices) = (Tally::default(), Vec::new());
    let mut allowed = BTreeMap::new();
    loop {
        let flight = Flight::new(story, flows.clone(), orders, choices);
        let ruling = judge(&flight, &scenario.packet.bytes, scenario.packet.meeting);
        let (from, to) = flight.epochs.get().expect("the epoch is read first");
        let span = (place(from), place(to));
        tally.orders += 1;
        if ruling.reason() == Reason::Unsettled && span.1 - span.0 >= 2 {
            tally.given_up += 1;
        } else {
            let allowed = allowed.entry(span).or_insert_with(|| of_one_instant(story, scenario, &flows, span));
            let outcome = (ruling.passes(), settled(last, flight.flows.clone(), &scenario.after).0);
            tally.outcomes.insert(outcome);
            if !allowed.contains(&outcome) {
                let choices = flight.choices.borrow();
                tally.wrong.push(format!("{ruling:?}, {outcome:?}, not one of {allowed:?}; answers {choices:?}"));
            }
        }
        choices = flight.choices.into_inner();
        if !advance(&mut choices) {
            return tally;
        }
    }
}

/// The other end's answer to a datagram.
fn answer(sent: &Sent) -> Sent {
    let mut bytes = sent.bytes.clone();
    let (start, length) = if bytes[12] == 8 { (26, 4) } else { (22, 16) };
    let (source, rest) = bytes[start..].split_at_mut(length);
    source.swap_with_slice(&mut rest[..length]);
    let (source, rest) = rest[length..].split_at_mut(2);
    source.swap_with_slice(&mut rest[..2]);
    let hook = sent.meeting.hook.opposite();
    Sent { bytes, meeting: Meeting { hook, ..sent.meeting } }
}

/// An IPv4 datagram as a fragment: flags and offset as they travel.
fn fragment(sent: &Sent, flags_and_offset: [u8; 2]) -> Sent {
    let mut bytes = sent.bytes.clone();
    bytes[20..22].copy_from_slice(&flags_and_offset);
    Sent { bytes, meeting: sent.meeting }
}

/// New flows, flows that go on, their answers, and fragments.
fn scenarios(ifindex: u32, hook: Hook, (family, peer): (u8, Address), port: u16) -> Vec<Scenario> {
    let meeting = Meeting { hook, ifindex, from_node: false, stamp: 0 };
    let sent = || Sent { bytes: datagram(family, hook, peer, port), meeting };
    let mut all = vec![
        Scenario { before: None, packet: sent(), after: sent() },
        Scenario { before: None, packet: sent(), after: answer(&sent()) },
        Scenario { before: Some(sent()), packet: sent(), after: answer(&sent()) },
        Scenario { before: Some(sent()), packet: answer(&sent()), after: sent() },
    ];
    if family == V4 {
        let (first, later) = (fragment(&sent(), [0x20, 0]), fragment(&sent(), [0, 1]));
        all.push(Scenario { before: None, packet: first, after: later });
    }
    all
}

/// What came of all packets of some stories.
#[derive(Debug, Default)]
struct Sum {
    packets: usize,
    orders: usize,
    /// Packets with more than one outcome.
    turned: usize,
    given_up: usize,
}

fn tell(seeds: std::ops::Range<u64>, changes: usize, keeps_existing: bool) -> Sum {
    let mut sum = Sum::default();
    for seed in seeds {
        let mut run = Run::new(seed);
        for _ in 0..3 {
            let plan = run.next();
            run.finish(&plan);
        }
        let story = Story::new(&mut run, changes);
        let mut flows = Sim::default();
        flows.keeps_existing = keeps_existing;
        for _ in 0..60 {
            let (ifindex, hook, peer, port) = some(&mut run);
            for (kind, scenario) in scenarios(ifindex, hook, peer, port).iter().enumerate() {
                let tally = explore(&story, scenario, &flows, Orders::Reusing);
                let context = format!("seed {seed}, {ifindex}, {hook:?}, {peer:?}, {port}, kind {kind}");
                assert!(tally.wrong.is_empty(), "{context}: {:#?}", tally.wrong);
                sum.packets += 1;
                sum.orders += tally.orders;
                sum.given_up += tally.given_up;
                sum.turned += usize::from(tally.outcomes.len() > 1);
            }
        }
    }
    sum
}

fn some(run: &mut Run) -> (u32, Hook, (u8, Address), u16) {
    let chance = &mut run.chance;
    let hook = if chance.below(2) == 0 { Hook::FromPod } else { Hook::ToPod };
    let all = probes();
    let peer = all[chance.below(all.len() as u64) as usize];
    let port = PORTS[chance.below(PORTS.len() as u64) as usize].1;
    (*INTERFACES.start() + chance.below(6) as u32, hook, peer, port)
}

#[test]
fn one_change_gives_old_or_new() {
    for keeps_existing in [false, true] {
        let sum = tell(7000..7020, 1, keeps_existing);
        println!("{sum:?}");
        assert_eq!(sum.given_up, 0, "a single change settles");
        assert!(sum.turned > 300 && sum.orders > 4 * sum.packets, "{sum:?}");
    }
}

/// Memory that one change frees is used again by the next.
#[test]
fn two_changes_give_one_instant() {
    for keeps_existing in [false, true] {
        let sum = tell(8000..8004, 2, keeps_existing);
        println!("{sum:?}");
        assert!(sum.turned > 100 && sum.given_up > 0, "{sum:?}");
    }
}

/// Orders that are left out would have told nothing new.
#[test]
fn different_orders_stand_for_every_order() {
    let (mut compared, mut every) = (0, 0);
    for seed in 9000..9050 {
        let mut run = Run::new(seed);
        for _ in 0..3 {
            let plan = run.next();
            run.finish(&plan);
        }
        let story = Story::new(&mut run, 1);
        if !(3..=5).contains(&story.writes.len()) {
            continue;
        }
        for _ in 0..4 {
            let (ifindex, hook, peer, port) = some(&mut run);
            for scenario in scenarios(ifindex, hook, peer, port) {
                let all = explore(&story, &scenario, &Sim::default(), Orders::Every);
                let some = explore(&story, &scenario, &Sim::default(), Orders::Different);
                assert_eq!(all.outcomes, some.outcomes, "seed {seed}");
                compared += 1;
                every += all.orders;
            }
        }
    }
    println!("{compared} packets, {every} orders");
    assert!(compared > 50 && every > 100 * compared, "{compared} packets, {every} orders");
}
