//! Connections that nobody saw being opened (SEMANTICS 11.3).

use palisade_common::{Hook, Reason};

use super::flow::Passage;
use super::meaning::tuple_of;
use super::packet::Packet;
use super::verdict::Scene;
use super::{Opinion, Oracle};

impl Oracle {
    /// A segment of a connection nobody saw being opened.
    pub(super) fn judge_midstream(&mut self, scene: &Scene, packet: &Packet, passage: &Passage) -> Opinion {
        let (source_port, destination_port) = tuple_of(packet).3.expect("TCP and SCTP have ports");
        let local = if scene.hook == Hook::FromPod { source_port } else { destination_port };
        let listening = self.endpoints.get(&scene.ifindex).and_then(|endpoint| endpoint.listening.as_ref());
        let listening = listening.filter(|_| packet.protocol == 6);
        let opened_by_sender = listening.map(|ports| ports.contains(&local) == (scene.hook == Hook::ToPod));
        if opened_by_sender != Some(false) {
            let opinion = self.own_direction(scene, packet, passage, &[]);
            if opinion.pass != Some(false) || opened_by_sender == Some(true) {
                return opinion;
            }
        }
        self.take_up(scene, packet, passage)
    }

    /// As an answer to an opening that nobody saw.
    fn take_up(&mut self, scene: &Scene, packet: &Packet, passage: &Passage) -> Opinion {
        let answer = self.ask(scene, tuple_of(packet), true);
        if !answer.passes() {
            return self.refused_opening(scene, packet, true);
        }
        let second = (scene.ifindex, scene.time / 1_000_000_000);
        let taken = self.midstream.iter().filter(|other| **other == second).count();
        if taken >= self.setup.midstream_budget as usize {
            return Opinion::of([Reason::MidstreamBudget]);
        }
        let gone = |(ifindex, time): &(u32, u64)| *time == second.1 && !self.endpoints.contains_key(ifindex);
        if taken + self.midstream.iter().filter(|other| gone(other)).count() >= self.setup.midstream_budget as usize {
            // Whether the second's budget is shared with who had the same place before is the judge's business.
            return self.undecided(passage);
        }
        self.midstream.push(second);
        self.admit(scene, passage, passage.receiver(), scene.opposite(), &answer);
        self.flow_entry(scene, passage).unconfirmed = Some(scene.time);
        self.note(scene, packet, passage);
        Opinion::of([Reason::Midstream])
    }
}
