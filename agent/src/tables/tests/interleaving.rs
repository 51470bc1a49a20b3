//! The update protocol as a model: one packet and the writes of one or two changes, in every order that can be told apart.
//!
//! A packet's look-ups are asked one by one, each at any point among the writes that is not before the last one's. Of the points at
//! which a look-up is answered alike the earliest stands for all, as it leaves the later look-ups every choice; so all orders are
//! covered by trying each different answer of each look-up in turn. What a look-up in a hash map may answer while its element is
//! replaced and used again for another key is among the answers ([`Flight::elements`]), as is a record that is overwritten while it is
//! read.
//!
//! What has to hold: the packet, and one that comes after it when all is done, get the verdicts that they would get if the first had
//! come at one instant (an epoch that was in force while it was judged). A packet that is judged again, as the epoch has moved, may be
//! remembered as if it had been sent twice: at an earlier instant too.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use palisade_common::Hook;
use palisade_common::decide::{Meeting, Ruling, Tables, decide};
use palisade_common::layout::{
    Address, EndpointRecord, FlowKey, FlowValue, FragmentKey, FragmentValue, RuleKey, RuleValue, Versioned,
};
use palisade_common::parse::{self, Packet, V4};
use palisade_common::verdict::Reason;

use super::super::plan::Write;
use super::super::sim::{FrameBytes, Sim, SimFlow};
use super::flight::{datagram, film};
use super::world::{INTERFACES, probes};
use super::{PORTS, Run};

/// The maps before, between and after all writes of some changes.
struct Story {
    states: Vec<Sim>,
    /// What leads from each state to the next.
    writes: Vec<Write>,
    /// Where each change is complete; the first: before any.
    complete: Vec<usize>,
    /// By write: a record that is read while it is overwritten, its interface still the old one's.
    overwritten: Vec<Option<EndpointRecord>>,
}

impl Story {
    fn new(run: &mut Run, changes: usize) -> Self {
        let (states, writes, complete) = film(run, changes);
        let halves = writes.iter().zip(&states).map(|(write, state)| match write {
            Write::Record(index, new) => {
                state.record(*index).map(|old| EndpointRecord { ifindex: old.ifindex, ..*new })
            }
            _ => None,
        });
        let overwritten = halves.collect();
        Self { states, writes, complete, overwritten }
    }
}

/// How look-ups and writes are put in order.
#[derive(Clone, Copy, PartialEq)]
enum Orders {
    /// All, also where it makes no difference.
    Every,
    /// One for each difference that it makes.
    Different,
    /// The same, and elements are used again while they are read.
    Reusing,
}

/// One packet on its way.
struct Flight<'a> {
    states: &'a [Sim],
    writes: &'a [Write],
    overwritten: &'a [Option<EndpointRecord>],
    flows: Sim,
    orders: Orders,
    /// Which answer each look-up gets, and how many there are.
    choices: RefCell<Vec<(usize, usize)>>,
    asked: Cell<usize>,
    /// How many writes have been carried out.
    position: Cell<usize>,
    /// The epochs that were read: the first and the last.
    epochs: Cell<Option<(u32, u32)>>,
}

impl<'a> Flight<'a> {
    fn new(story: &'a Story, flows: Sim, orders: Orders, choices: Vec<(usize, usize)>) -> Self {
        Self {
            states: &story.states,
            writes: &story.writes,
            overwritten: &story.overwritten,
            orders,
            choices: RefCell::new(choices),
            ..Self::still(&story.states[0], flows)
        }
    }

    /// Where nothing moves.
    fn still(state: &'a Sim, flows: Sim) -> Self {
        Self {
            states: std::slice::from_ref(state),
            writes: &[],
            overwritten: &[],
            flows,
            orders: Orders::Different,
            choices: RefCell::default(),
            asked: Cell::new(0),
            position: Cell::new(0),
            epochs: Cell::new(None),
        }
    }

    /// One of the answers, each with the point after which the next look-up comes.
    fn choose<A: Copy>(&self, answers: &[(A, usize)]) -> A {
        let asked = self.asked.replace(self.asked.get() + 1);
        let mut choices = self.choices.borrow_mut();
        if asked == choices.len() {
            choices.push((0, answers.len()));
        }
        let (answer, position) = answers[choices[asked].0];
        self.position.set(position);
        answer
    }

    /// What a look-up may answer from here on.
    fn answers<A: Copy + PartialEq>(&self, look: impl Fn(&'a Sim) -> A) -> Vec<(A, usize)> {
        let mut answers: Vec<(A, usize)> = Vec::new();
        for position in self.position.get()..self.states.len() {
            let answer = look(&self.states[position]);
            if self.orders == Orders::Every || answers.iter().all(|(other, _)| *other != answer) {
                answers.push((answer, position));
            }
        }
        answers
    }

    fn read<A: Copy + PartialEq>(&self, look: impl Fn(&'a Sim) -> A) -> A {
        self.choose(&self.answers(look))
    }

    /// A look-up in a hash map: an element that was found and is replaced or removed before it is read may by then be that of any key
    /// put later. `put` says of a write which key of this map it puts, and what.
    fn element<K: PartialEq, V: Copy + PartialEq>(
        &self,
        key: &K,
        look: impl Fn(&'a Sim) -> Option<V>,
        put: impl Fn(&Write) -> Option<(K, Option<V>)>,
    ) -> Option<V> {
        let mut answers = self.answers(&look);
        if self.orders != Orders::Reusing {
            return self.choose(&answers);
        }
        let start = self.position.get();
        let (mut found, mut replaced) = (look(&self.states[start]).is_some(), false);
        for (at, write) in self.writes.iter().enumerate().skip(start) {
            if let Some((own, value)) = put(write) {
                if let Some(value) = value.filter(|_| replaced)
                    && answers.iter().all(|(other, _)| *other != Some(value))
                {
                    answers.push((Some(value), at + 1));
                }
                replaced |= found && own == *key;
            }
            found |= look(&self.states[at + 1]).is_some();
        }
        self.choose(&answers)
    }

    fn judge(&self, bytes: &[u8], meeting: Meeting) -> Ruling {
        let frame = FrameBytes { bytes, gso: false };
        let mut packet = Packet::default();
        parse::frame(&frame, &mut packet);
        decide(&frame, || &packet, self, meeting)
    }
}

impl Tables for Flight<'_> {
    type Flow<'b>
        = SimFlow<'b>
    where
        Self: 'b;

    fn epoch(&self) -> u32 {
        let epoch = self.read(Sim::epoch);
        self.epochs.set(Some((self.epochs.get().map_or(epoch, |(first, _)| first), epoch)));
        epoch
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        let put = |write: &Write| if let Write::Endpoint(key, value) = write { Some((*key, *value)) } else { None };
        self.element(&ifindex, |sim| sim.endpoint(ifindex), put)
    }

    fn hint(&self, ifindex: u32, epoch: u32) -> Option<u32> {
        self.flows.hint(ifindex, epoch)
    }

    fn put_hint(&self, ifindex: u32, epoch: u32, index: u32) {
        self.flows.put_hint(ifindex, epoch, index);
    }

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        let mut answers = self.answers(|sim| sim.record(index));
        for (at, write) in self.writes.iter().enumerate().skip(self.position.get()) {
            if matches!(write, Write::Record(own, _) if *own == index) && self.orders == Orders::Reusing {
                answers.extend(self.overwritten[at].as_ref().map(|record| (Some(record), at + 1)));
            }
        }
        self.choose(&answers)
    }

    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        let put = |write: &Write| match write {
            Write::ExactV4(key, value) if family == V4 => Some((Address::v4(*key), *value)),
            Write::ExactV6(key, value) if family != V4 => Some((*key, *value)),
            _ => None,
        };
        self.element(address, |sim| sim.class_exact(family, address), put)
    }

    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        self.read(|sim| sim.class_cidr(family, address))
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        let put = |write: &Write| if let Write::Rule(key, value) = write { Some((*key, *value)) } else { None };
        self.element(key, |sim| sim.rule(key), put)
    }

    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        self.read(|sim| sim.port(ports, protocol, port))
    }

    fn flow(&self, key: &FlowKey) -> Option<SimFlow<'_>> {
        self.flows.flow(key)
    }

    fn put_flow(&self, key: &FlowKey, value: &FlowValue, new: bool) -> bool {
        self.flows.put_flow(key, value, new)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        self.flows.fragment(key)
    }

    fn put_fragment(&self, key: &FragmentKey, value: &FragmentValue) -> bool {
        self.flows.put_fragment(key, value)
    }

    fn now(&self) -> u64 {
        self.flows.now.get()
    }

    fn pressure(&self, _now: u64) -> bool {
        false
    }

    fn keeps_existing(&self) -> bool {
        self.flows.keeps_existing
    }

    fn listens(&self, _: &EndpointRecord, _: &Packet, _: Hook) -> Option<bool> {
        None
    }

    fn is_connected(&self, _: &EndpointRecord, _: &Packet, _: Hook) -> Option<bool> {
        None
    }

    fn take_midstream(&self, _number: u32, _now: u64) -> bool {
        false
    }
}

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
    let passes = flight.judge(&sent.bytes, sent.meeting).passes();
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
        let ruling = flight.judge(&scenario.packet.bytes, scenario.packet.meeting);
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
    let meeting = Meeting { hook, ifindex, from_node: false };
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
