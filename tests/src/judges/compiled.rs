//! The second judge: `common::decide` over compiled tables in userspace.
//!
//! Every plan is written write by write, as the kernel would see it.

use std::collections::BTreeMap;

use palisade::tables::plan::Installed;
use palisade::tables::sim::{FrameBytes, Sim};
use palisade_common::decide::{Meeting, Place, Tables as _};
use palisade_common::{Hook, Reason, Verdict};

use super::early;
use super::pipeline::Pipeline;
use crate::case::{Existing, Judge, Mark, ObjectChange, PacketStep, Services, Setup};

const RECORDS: u32 = 4096;

pub struct Compiled {
    pipeline: Pipeline,
    installed: Installed,
    sim: Sim,
    /// The mark of the last packet that each interface let through.
    marks: BTreeMap<u32, u16>,
    mark: Mark,
}

impl Compiled {
    pub fn new(setup: &Setup) -> Self {
        let mut sim = Sim::default();
        sim.keeps_existing = setup.existing == Existing::Keep;
        sim.midstream_budget = setup.midstream_budget;
        sim.exits_missing = setup.services == Services::NoExits;
        sim.awaited_since = 1;
        let (pipeline, installed) = (Pipeline::of(setup), Installed::new(0, RECORDS));
        Self { pipeline, installed, sim, marks: BTreeMap::new(), mark: Mark::Nobody }
    }
}

impl Judge for Compiled {
    fn apply(&mut self, change: &ObjectChange) {
        match change {
            ObjectChange::Endpoint(endpoint) => {
                match &endpoint.listening {
                    Some(ports) => self.sim.listening.insert(endpoint.ifindex, ports.clone()),
                    None => self.sim.listening.remove(&endpoint.ifindex),
                };
            }
            ObjectChange::EndpointGone(ifindex) => {
                self.sim.listening.remove(ifindex);
            }
            ObjectChange::Put(_) | ObjectChange::Delete(_) | ObjectChange::Own(_) => {}
        }
        self.pipeline.apply(change);
    }

    fn settle(&mut self) {
        let delta = self.pipeline.compile();
        let plan = self.installed.plan(&delta).expect("fewer endpoints than records");
        for write in &plan.writes {
            self.sim.write(write);
        }
        self.installed.commit(&plan);
    }

    fn packet(&mut self, packet: &PacketStep) -> Option<Verdict> {
        self.sim.now.set(packet.time);
        let stamp = packet.by.and_then(|by| self.marks.get(&by)).copied().unwrap_or(0);
        let frame = FrameBytes { bytes: &packet.frame, gso: packet.gso };
        let &PacketStep { hook, place, ifindex, .. } = packet;
        let early = early::may_come_from_outside(packet).then(|| self.sim.judge_early(frame)).flatten();
        let ruling = match place {
            Place::Pod => {
                let from_node = packet.ingress_ifindex == 0;
                self.sim.judge(frame, Meeting { hook, ifindex, from_node, stamp })
            }
            // The programs ask about nothing that bears no mark.
            Place::Device | Place::Process if stamp == 0 => {
                return Some(Verdict { pass: true, reason: Reason::NotIsolated });
            }
            Place::Device | Place::Process => self.sim.judge_leaving(frame, stamp, place),
        };
        if place == Place::Pod && hook == Hook::FromPod && ruling.passes() {
            self.marks.insert(ifindex, ruling.stamp());
            let owner = self.sim.stamp_owner(ruling.stamp()).filter(|_| ruling.stamp() != 0);
            self.mark = owner.map_or(Mark::Nobody, Mark::Pod);
        }
        let verdict = Verdict { pass: ruling.passes(), reason: ruling.reason() };
        early::check(packet, early.map(|(_, ifindex)| ifindex), verdict, &early::COMPILED);
        if early::may_come_from_outside(packet)
            && let Some(frame) = early::untranslated(packet, verdict)
        {
            let refused = self.sim.judge_early(FrameBytes { bytes: &frame, gso: false });
            assert_eq!(refused, None, "an answer before it was translated back: {packet:?}");
        }
        Some(verdict)
    }

    fn mark(&self) -> Option<Mark> {
        Some(self.mark)
    }
}
