//! Flows of protocols without connections, which either end may open at any time.

use palisade_common::{Hook, Reason};

use super::asking::Answer;
use super::flow::{Admission, Flow, Passage};
use super::meaning::tuple_of;
use super::packet::Packet;
use super::policy::Direction;
use super::verdict::Scene;
use super::{Opinion, Oracle};

impl Oracle {
    /// A packet of a known flow of a protocol that either end may open at any time: an answer if it can be one, else an opening of
    /// its own. What the sender's own pod let out as an opening is no answer at the receiver's; and while the flow that it could
    /// answer was cut a moment ago, it opens nothing.
    pub(super) fn judge_connectionless(&mut self, scene: &Scene, packet: &Packet, passage: &Passage) -> Opinion {
        let (sender, receiver) = (passage.sender, passage.receiver());
        let flow = self.flow(scene, passage).expect("it is known").clone();
        let from_node = flow.by_node[receiver] && scene.hook == Hook::FromPod;
        let same = Self::is_same_client(scene, &flow, sender);
        let forward_kept = same && self.kept(scene, &flow, sender, scene.direction());
        let reply_kept = self.kept(scene, &flow, receiver, scene.opposite());
        let own = flow.admitted_at(sender, Direction::Egress);
        let answered = flow.admitted_at(receiver, Direction::Ingress);
        let apart = scene.hook == Hook::ToPod && answered != Some(self.epoch);
        let now = self.epoch;
        let older = |epoch: Option<u64>| epoch.is_some_and(|epoch| epoch != now);
        let unsure = apart && (older(own) || own.is_some() && older(answered));
        let either_way = scene.hook == Hook::ToPod && flow.either_way == Some(self.epoch);
        if (unsure || either_way) && flow.opened[receiver] {
            // Whether a change reached that judgement is the judge's business: the verdict counts where both ways give the same.
            let (reply, own) = (self.ask(scene, tuple_of(packet), true), self.ask(scene, tuple_of(packet), false));
            return match (reply.passes(), own.passes()) {
                (true, true) => {
                    self.admit(scene, passage, receiver, scene.opposite(), &reply);
                    self.note(scene, packet, passage);
                    let kept = (reply_kept || forward_kept).then_some(Reason::Kept);
                    Opinion::of([Reason::Reply, Reason::Established, own.reason()].into_iter().chain(kept))
                }
                (false, false) if !reply_kept && !forward_kept => self.refusal(scene, packet),
                (true | false, true | false) => self.undecided(passage),
            };
        }
        let ours = Admission { opener: sender, direction: scene.direction(), endpoint: scene.identity.clone() };
        if same && flow.admissions.get(&ours) == Some(&self.epoch) {
            self.note(scene, packet, passage);
            let reasons = [Reason::Established].into_iter().chain(flow.opened[receiver].then_some(Reason::Reply));
            return Opinion::of(reasons.chain(forward_kept.then_some(Reason::Kept)));
        }
        let mut cut = false;
        if flow.opened[receiver] && !(apart && own.is_some()) {
            let answer = if from_node { Answer::Admitted } else { self.ask(scene, tuple_of(packet), true) };
            if answer.passes() || reply_kept {
                if !from_node {
                    let noted = if reply_kept { &Answer::Refused } else { &answer };
                    self.admit(scene, passage, receiver, scene.opposite(), noted);
                }
                self.note(scene, packet, passage);
                if scene.hook == Hook::FromPod && older(own) {
                    self.flow_entry(scene, passage).either_way = Some(self.epoch);
                }
                let mut reasons = vec![Reason::Reply];
                reasons.extend((reply_kept || forward_kept).then_some(Reason::Kept));
                // Both ends may have opened it, and then it is its own as well.
                reasons.extend(flow.opened[sender].then_some(Reason::Established));
                return Opinion::of(reasons);
            }
            cut = self.admitted(scene, &flow, receiver, scene.opposite());
        }
        let known = same && self.admitted(scene, &flow, sender, scene.direction());
        if cut && !known {
            let second = scene.time / 1_000_000_000;
            if !self.flow_entry(scene, passage).cut(receiver, scene.opposite(), second) {
                return self.refusal(scene, packet);
            }
        }
        if !known && self.is_from_service(scene, packet) {
            return self.refusal(scene, packet);
        }
        if forward_kept {
            self.admit(scene, passage, sender, scene.direction(), &Answer::Refused);
            self.note(scene, packet, passage);
            return Opinion::of([Reason::Kept, Reason::Established]);
        }
        self.own_direction(scene, packet, passage, &[Reason::Established])
    }

    /// The endpoint's policies admitted this once.
    fn admitted(&self, scene: &Scene, flow: &Flow, opener: usize, direction: Direction) -> bool {
        flow.admissions.contains_key(&Admission { opener, direction, endpoint: scene.identity.clone() })
    }
}
