//! Packets in flight, as data: the tables change between one look-up of a packet and the next.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};

use palisade_common::Hook;
use palisade_common::decide::{Meeting, OPEN_EGRESS, OPEN_INGRESS, Question, Tables, ask};
use palisade_common::layout::{Address, EndpointRecord, RuleKey, RuleValue, Versioned};
use palisade_common::parse::{V4, protocol};
use palisade_common::verdict::Reason;

use super::super::plan::Write;
use super::super::sim::{Sim, bytes_of};
use super::world::{Chance, INTERFACES, probes};
use super::written::{self, Written, judge};
use super::{PORTS, Run};

/// The maps after each write of several changes, of which each look-up sees a later one; and one flow table.
struct Moving<'a> {
    states: &'a [Sim],
    /// What leads from each state to the next.
    writes: &'a [Write],
    flows: &'a Sim,
    /// How many writes are carried out before each look-up, from the first on.
    steps: &'a [usize],
    asked: Cell<usize>,
    position: Cell<usize>,
}

impl Moving<'_> {
    fn now_at(&self) -> &Sim {
        let asked = self.asked.replace(self.asked.get() + 1);
        let step = self.steps.get(asked).copied().unwrap_or(0);
        self.position.set((self.position.get() + step).min(self.states.len() - 1));
        &self.states[self.position.get()]
    }

    /// What is read of an entry while writes go on: once it is replaced, its memory is given to the next entry that is put.
    fn read<K: PartialEq>(
        &self,
        key: &K,
        look: impl Fn(&Sim) -> Option<Versioned>,
        put: impl Fn(&Write) -> Option<(K, Option<Versioned>)>,
    ) -> Option<Versioned> {
        let found = look(self.now_at())?;
        let from = self.position.get();
        self.now_at();
        let mut meanwhile = self.writes[from..self.position.get()].iter().filter_map(put);
        meanwhile.find(|(own, _)| own == key);
        Some(meanwhile.find_map(|(_, value)| value).unwrap_or(found))
    }
}

impl Written for Moving<'_> {
    fn epoch(&self) -> u32 {
        self.now_at().epoch()
    }

    fn endpoint(&self, ifindex: u32) -> Option<Versioned> {
        self.read(&ifindex, |sim| sim.endpoint(ifindex), written::endpoint)
    }

    fn record(&self, index: u32) -> Option<&EndpointRecord> {
        self.now_at().record(index)
    }

    fn class_exact(&self, family: u8, address: &Address) -> Option<Versioned> {
        self.read(address, |sim| sim.class_exact(family, address), |write| written::exact(write, family))
    }

    fn class_cidr(&self, family: u8, address: &Address) -> Option<Versioned> {
        self.now_at().class_cidr(family, address)
    }

    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        self.now_at().rule(key)
    }

    fn port(&self, ports: u32, protocol: u8, port: u16) -> Option<u32> {
        self.now_at().port(ports, protocol, port)
    }

    fn flows(&self) -> &Sim {
        self.flows
    }
}

/// A datagram from or to an address of the probes. The endpoints are trusted, so that their own address does not matter.
pub(super) fn datagram(family: u8, hook: Hook, peer: Address, port: u16) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    let (own_v4, own_v6) = (Ipv4Addr::new(10, 200, 0, 1).octets(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).octets());
    let order = |own: &[u8], peer: &[u8]| match hook {
        Hook::FromPod => [own, peer].concat(),
        Hook::ToPod => [peer, own].concat(),
    };
    if family == V4 {
        bytes.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol::UDP, 0, 0]);
        bytes.extend(order(&own_v4, &bytes_of(&peer)[12..]));
    } else {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, protocol::UDP, 64]);
        bytes.extend(order(&own_v6, &bytes_of(&peer)));
    }
    bytes.extend(4000_u16.to_be_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    bytes
}

/// What a settled state says to a new flow. `None`: the endpoint is not there.
fn settled(sim: &Sim, ifindex: u32, hook: Hook, (family, peer): (u8, Address), port: u16) -> Option<bool> {
    let epoch = sim.epoch();
    let record = sim.record(sim.endpoint(ifindex)?.at(epoch)).filter(|record| record.ifindex == ifindex)?;
    let what = if hook == Hook::FromPod { OPEN_EGRESS } else { OPEN_INGRESS };
    let question = Question { peer: &peer, client: (0, 0), epoch, what, port, protocol: protocol::UDP, family };
    Some(ask(sim, record, &question).is_allowed())
}

/// The maps before, between and after all writes of some changes; and the places among them where a change is complete.
pub(super) fn film(run: &mut Run, changes: usize) -> (Vec<Sim>, Vec<Write>, Vec<usize>) {
    let (mut states, mut writes) = (vec![run.sim.clone()], Vec::new());
    let mut complete = vec![0];
    for _ in 0..changes {
        let plan = run.next();
        for write in &plan.writes {
            run.sim.write(write);
            states.push(run.sim.clone());
            writes.push(*write);
        }
        run.installed.commit(&plan);
        complete.push(states.len() - 1);
    }
    (states, writes, complete)
}

/// A packet that is held up once, for a few writes; or now and then, for many.
fn steps(chance: &mut Chance, writes: usize) -> Vec<usize> {
    let mut steps = vec![0; 20];
    if chance.below(2) == 0 {
        steps[chance.below(8) as usize] = 1 + chance.below(6) as usize;
        return steps;
    }
    for step in &mut steps {
        if chance.below(3) == 0 {
            *step = chance.below(writes as u64 + 1) as usize;
        }
    }
    steps
}

fn fly(keep_existing: bool) {
    let (mut packets, mut given_up, mut crossed) = (0, 0, 0);
    for seed in 5000..5060 {
        let mut run = Run::new(seed);
        for _ in 0..3 {
            let plan = run.next();
            run.finish(&plan);
        }
        let (states, writes, complete) = film(&mut run, 3);
        for _ in 0..700 {
            let chance = &mut run.chance;
            let ifindex = *INTERFACES.start() + chance.below(6) as u32;
            let hook = if chance.below(2) == 0 { Hook::FromPod } else { Hook::ToPod };
            let all = probes();
            let peer = all[chance.below(all.len() as u64) as usize];
            let port = PORTS[chance.below(PORTS.len() as u64) as usize].1;
            let verdicts: Vec<_> = complete.iter().map(|at| settled(&states[*at], ifindex, hook, peer, port)).collect();
            let Some(wanted) = verdicts[0].filter(|_| verdicts.iter().all(|other| *other == verdicts[0])) else {
                continue;
            };
            let mut flows = Sim::default();
            flows.keeps_existing = keep_existing;
            let bytes = datagram(peer.0, hook, peer.1, port);
            let meeting = Meeting { hook, ifindex, from_node: false, stamp: 0 };
            let steps = steps(chance, states.len());
            let tables = Moving {
                states: &states,
                writes: &writes,
                flows: &flows,
                steps: &steps,
                asked: Cell::new(0),
                position: Cell::new(chance.below(states.len() as u64) as usize),
            };
            let start = states[tables.position.get()].epoch();
            // The second packet finds what the first has left; nothing changes any more.
            for round in ["in flight", "afterwards"] {
                let ruling = judge(&tables, &bytes, meeting);
                packets += 1;
                if ruling.reason() == Reason::Unsettled {
                    given_up += 1;
                    continue;
                }
                let context = format!("seed {seed}, {ifindex}, {hook:?}, {peer:?}, {port}, steps {steps:?}");
                assert_eq!(ruling.passes(), wanted, "{round}: {ruling:?}, {context}");
                crossed += usize::from(tables.now_at().epoch() != start);
                tables.asked.set(steps.len());
            }
        }
    }
    assert!(
        packets > 5_000 && crossed > 1_000 && given_up * 4 < packets,
        "{packets}, {crossed} crossed, {given_up} given up"
    );
}

#[test]
fn packets_in_flight_get_old_or_new() {
    fly(false);
}

/// With flows kept, a verdict that no state has must not be remembered either.
#[test]
fn what_no_state_says_is_not_kept() {
    fly(true);
}
