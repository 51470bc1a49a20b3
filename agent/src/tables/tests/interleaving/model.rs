//! One packet on its way, and everything that each of its look-ups may answer.

use std::cell::{Cell, RefCell};

use palisade_common::decide::Tables as _;
use palisade_common::layout::{Address, EndpointRecord, RuleKey, RuleValue, Versioned};

use crate::tables::plan::Write;
use crate::tables::sim::Sim;
use crate::tables::tests::Run;
use crate::tables::tests::flight::film;
use crate::tables::tests::written::{self, Written};

/// The maps before, between and after all writes of some changes.
pub(super) struct Story {
    pub(super) states: Vec<Sim>,
    /// What leads from each state to the next.
    pub(super) writes: Vec<Write>,
    /// Where each change is complete; the first: before any.
    pub(super) complete: Vec<usize>,
    /// By write: a record that is read while it is overwritten, its interface still the old one's.
    overwritten: Vec<Option<EndpointRecord>>,
}

impl Story {
    pub(super) fn new(run: &mut Run, changes: usize) -> Self {
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
pub(super) enum Orders {
    /// All, also where it makes no difference.
    Every,
    /// One for each difference that it makes.
    Different,
    /// The same, and elements are used again while they are read.
    Reusing,
}

/// One packet on its way.
pub(super) struct Flight<'a> {
    states: &'a [Sim],
    writes: &'a [Write],
    overwritten: &'a [Option<EndpointRecord>],
    pub(super) flows: Sim,
    orders: Orders,
    /// Which answer each look-up gets, and how many there are.
    pub(super) choices: RefCell<Vec<(usize, usize)>>,
    asked: Cell<usize>,
    /// How many writes have been carried out.
    position: Cell<usize>,
    /// The epochs that were read: the first and the last.
    pub(super) epochs: Cell<Option<(u32, u32)>>,
}

impl<'a> Flight<'a> {
    pub(super) fn new(story: &'a Story, flows: Sim, orders: Orders, choices: Vec<(usize, usize)>) -> Self {
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
    pub(super) fn still(state: &'a Sim, flows: Sim) -> Self {
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
}

impl Written for Flight<'_> {
    fn epoch(&self) -> u32 {
        let epoch = self.read(Sim::epoch);
        self.epochs.set(Some((self.epochs.get().map_or(epoch, |(first, _)| first), epoch)));
        epoch
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        self.element(&ifindex, |sim| sim.endpoint(ifindex), written::endpoint)
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
        self.element(address, |sim| sim.class_exact(family, address), |write| written::exact(write, family))
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

    fn flows(&self) -> &Sim {
        &self.flows
    }
}
