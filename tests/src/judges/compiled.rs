//! The second judge: `common::decide` over compiled tables in userspace.
//!
//! Every plan is written write by write, as the kernel would see it.

use palisade::tables::plan::Installed;
use palisade::tables::sim::{FrameBytes, Sim};
use palisade_common::Verdict;
use palisade_common::decide::Meeting;

use super::pipeline::Pipeline;
use crate::case::{Existing, Judge, ObjectChange, PacketStep, Setup};

const RECORDS: u32 = 4096;

pub struct Compiled {
    pipeline: Pipeline,
    installed: Installed,
    sim: Sim,
}

impl Compiled {
    pub fn new(setup: &Setup) -> Self {
        let mut sim = Sim::default();
        sim.keeps_existing = setup.existing == Existing::Keep;
        sim.midstream_budget = setup.midstream_budget;
        Self { pipeline: Pipeline::new(&setup.node), installed: Installed::new(0, RECORDS), sim }
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
            ObjectChange::Put(_) | ObjectChange::Delete(_) => {}
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
        let meeting =
            Meeting { hook: packet.hook, ifindex: packet.ifindex, from_node: packet.ingress_ifindex == 0, stamp: 0 };
        let ruling = self.sim.judge(FrameBytes { bytes: &packet.frame, gso: packet.gso }, meeting);
        Some(Verdict { pass: ruling.passes(), reason: ruling.reason() })
    }
}
