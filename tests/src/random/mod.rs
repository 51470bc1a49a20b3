//! Random clusters, changes and packets, from a seed; and how a case about which judges disagree is made small.
//!
//! A random case is a [`Case`] like a written one, so that what is left of it after shrinking can be read, and put among the written.

mod cluster;
mod life;
mod odd;
mod policy;
mod services;
mod traffic;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use serde_json::Value;

use crate::case::{Case, Factory, run};

/// SplitMix64: the same numbers for the same seed, for ever.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

/// The case of a seed.
pub fn case(seed: u64) -> Case {
    let mut dice = Dice::new(seed);
    let mut cluster = cluster::Cluster::new();
    let objects = cluster.objects(&mut dice);
    let steps = traffic::steps(&mut cluster, &mut dice);
    Case {
        case: format!("seed {seed}"),
        text: String::new(),
        world: "none".to_owned(),
        existing: if dice.percent(20) { "keep" } else { "cut" }.to_owned(),
        budget: if dice.percent(25) { 1 } else { 1000 },
        services: match dice.below(12) {
            0 => "no-exits",
            1 => "no-marks",
            _ => "judged",
        }
        .to_owned(),
        collapsed: false,
        objects,
        steps,
    }
}

/// The case with everything taken away that the disagreement does not need.
pub fn shrink(case: &Case, judges: Factory<'_>) -> Case {
    let disagrees = |case: &Case| {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(case, judges)));
        // A case that cannot be played says nothing; a judge that panics does.
        outcome.map_or(true, |outcome| outcome.is_ok_and(|outcome| !outcome.disagreements.is_empty()))
    };
    let mut small = case.whole().unwrap_or_else(|_| case.clone());
    loop {
        let before = size(&small);
        small = shorter(small, |case| &mut case.steps, &disagrees);
        small = shorter(small, |case| &mut case.objects, &disagrees);
        small = thinner(small, &disagrees);
        if size(&small) == before {
            return small;
        }
    }
}

/// What a judge said when it panicked.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    format!("a judge panicked: {}", text.unwrap_or("without a word"))
}

fn size(case: &Case) -> usize {
    serde_json::to_string(case).map_or(0, |text| text.len())
}

/// Takes items out of a list, many at once first.
fn shorter(mut case: Case, list: fn(&mut Case) -> &mut Vec<Value>, disagrees: &dyn Fn(&Case) -> bool) -> Case {
    let mut chunk = list(&mut case).len().max(1);
    while chunk > 0 {
        let mut start = 0;
        while start < list(&mut case).len() {
            let mut smaller = case.clone();
            let items = list(&mut smaller);
            let end = (start + chunk).min(items.len());
            items.drain(start..end);
            if disagrees(&smaller) {
                case = smaller;
            } else {
                start = end;
            }
        }
        chunk /= 2;
    }
    case
}

/// Takes rules, peers, ports, values and words out of the items.
fn thinner(mut case: Case, disagrees: &dyn Fn(&Case) -> bool) -> Case {
    let count = case.objects.len() + case.steps.len();
    for index in 0..count {
        let mut attempt = 0;
        loop {
            let mut smaller = case.clone();
            let objects = smaller.objects.len();
            let value = if index < objects { &mut smaller.objects[index] } else { &mut smaller.steps[index - objects] };
            let mut left = attempt;
            if !take_one(value, &mut left) {
                break;
            }
            if disagrees(&smaller) {
                case = smaller;
            } else {
                attempt += 1;
            }
        }
    }
    case
}

/// Takes the `left`-th thing out of a value that can be taken out; `false`: there are fewer.
fn take_one(value: &mut Value, left: &mut usize) -> bool {
    match value {
        Value::Array(items) => {
            if *left < items.len() {
                items.remove(*left);
                return true;
            }
            *left -= items.len();
            items.iter_mut().any(|item| take_one(item, left))
        }
        Value::Object(members) => members.iter_mut().any(|(_, member)| take_one(member, left)),
        // Words of a pod, namespace or node behind its name.
        Value::String(line) if line.starts_with("pod ") || line.starts_with("ns ") || line.starts_with("node ") => {
            let words: Vec<&str> = line.split(' ').collect();
            let extra = words.len().saturating_sub(2);
            if *left < extra {
                let skip = 2 + *left;
                let kept: Vec<&str> =
                    words.iter().enumerate().filter(|(at, _)| *at != skip).map(|(_, word)| *word).collect();
                *line = kept.join(" ");
                return true;
            }
            *left -= extra;
            false
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The case as it would be written.
pub fn print(case: &Case) -> Result<String> {
    Ok(serde_norway::to_string(&[case])?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use palisade_common::{Reason, Verdict};

    use super::*;
    use crate::case::{Judge, ObjectChange, Outcome, PacketStep};
    use crate::oracle::Oracle;

    /// Right, except that it takes SCTP for TCP and lets it pass.
    struct Mistaken(Oracle);

    impl Judge for Mistaken {
        fn apply(&mut self, change: &ObjectChange) {
            self.0.apply(change);
        }

        fn settle(&mut self) {
            self.0.settle();
        }

        fn packet(&mut self, packet: &PacketStep) -> Option<Verdict> {
            let opinion = self.0.packet(packet);
            let reason = opinion.reasons.first().copied().unwrap_or(Reason::Allowed);
            if packet.words.starts_with("sctp") && reason == Reason::NoRule {
                return Some(Verdict { pass: true, reason: Reason::Allowed });
            }
            Some(Verdict { pass: reason.passes(), reason })
        }
    }

    /// A mistake is found, and what is left of the case says what it is about and can be read back.
    #[test]
    fn mistakes_are_found_and_shrunk() {
        let judges: Factory<'_> = &|setup| vec![("mistaken", Box::new(Mistaken(Oracle::new(setup))) as Box<dyn Judge>)];
        let wrong = |case: &Case| run(case, judges).is_ok_and(|outcome| !outcome.disagreements.is_empty());
        let found = (0..50).map(case).find(wrong).expect("SCTP is refused somewhere in 50 cases");
        let small = shrink(&found, judges);
        let printed = print(&small).expect("a case can be written");
        let read: Vec<Case> = serde_norway::from_str(&printed).expect("what is written can be read");
        assert!(wrong(&read[0]), "{printed}");
        assert!(printed.contains("sctp"), "{printed}");
        assert!(small.steps.len() <= 2 && small.objects.len() <= 4, "{printed}");
    }

    /// Flows enough of either fate, and every reason that random cases can meet.
    #[test]
    fn random_cases_are_balanced() {
        let mut total = Outcome::default();
        for seed in 0..400 {
            let case = case(seed);
            let outcome = run(&case, &|_| Vec::new()).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
            total.add(outcome);
        }
        let flows = total.flows_admitted + total.flows_refused;
        assert!(total.flows_admitted * 3 >= flows, "{} of {flows} flows admitted", total.flows_admitted);
        assert!(total.flows_refused * 3 >= flows, "{} of {flows} flows refused", total.flows_refused);
        assert!(total.open * 50 < total.packets, "{} of {} packets left open", total.open, total.packets);
        let hit: BTreeSet<Reason> = total.reasons.keys().copied().collect();
        // Tables do not change while the oracle thinks, its memory is never full, and these others it does not tell from NoRule,
        // Reply and Allowed.
        let not_here = [Reason::Unsettled, Reason::Unremembered, Reason::Revoked, Reason::Kept, Reason::Established];
        // A pod that has just sent to a Service is seldom gone, and an operator's pause is no matter of policies.
        let not_here: Vec<Reason> = not_here.into_iter().chain([Reason::UnknownStamp, Reason::Paused]).collect();
        let missing: Vec<&Reason> =
            Reason::ALL.iter().filter(|reason| !hit.contains(reason) && !not_here.contains(reason)).collect();
        assert!(missing.is_empty(), "not hit: {missing:?}");
    }
}
