//! From an agent with another layout of the tables to this one: what it has put on the node judges by its tables until ours are in force.

use std::time::Instant as Clock;

use palisade_common::layout::{EndpointRecord, endpoint_flag};

use super::Agent;
use crate::compile::{Compiler, Limits, Numbers};
use crate::facts::Veth;
use crate::kernel::{Copied, Kernel};

/// One that goes on where earlier agents of any version ended.
pub(super) fn compiler(limits: Limits, kernel: &Kernel) -> Compiler {
    let earlier = kernel.earlier();
    let numbers = [Some(kernel.tables()), earlier.services.as_ref()].into_iter().flatten().map(Numbers::highest);
    // Of rules that are in no table any more there may be counts.
    let counted = kernel.maps().rule_hits().unwrap_or_default().into_keys().max().unwrap_or(0);
    let earliest = Numbers { generation: earlier.generation, rule: counted, ..Numbers::default() };
    let numbers = numbers.chain([earliest]);
    let mut compiler = numbers.fold(Compiler::new(limits), Compiler::start_above);
    let records = earlier.endpoints.values();
    if kernel.has_predecessors() {
        compiler.adopt(records.map(newly_isolated));
    } else {
        compiler.adopt(records.copied());
    }
    compiler.adopt_services(match &earlier.services {
        Some(services) if kernel.tables().services.is_empty() => services,
        _ => kernel.tables(),
    });
    compiler
}

/// What opens while flows are taken over may be unknown, as what was opened before a pod was isolated is: the same is done about it.
fn newly_isolated(record: &EndpointRecord) -> EndpointRecord {
    const ISOLATED: u32 = endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS;
    EndpointRecord { flags: record.flags & !ISOLATED, ..*record }
}

/// Flows of another version that were taken over after programs were replaced: each is taken once, as every time begins a moment of doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Taken {
    #[default]
    None,
    Most,
    All,
}

impl Agent {
    /// The interface is judged by another version's tables, by ours as they were in its time, or by maps that were lost, and stays so until the
    /// first complete list.
    pub(super) fn is_anothers(&self, veth: &Veth) -> bool {
        let others = self.kernel.has_predecessors() || self.kernel.is_remade();
        !self.is_in_force() && others && self.kernel.is_judged(veth.ifindex)
    }

    /// Our tables may judge: those of the first complete list, or of an agent's that was killed while it replaced another version's programs.
    fn is_in_force(&self) -> bool {
        self.synced || self.kernel.resumes()
    }

    /// Before programs are replaced, which then know all flows but those of this moment.
    pub(super) fn begin_handover(&mut self) {
        if !self.synced && self.kernel.has_predecessors() {
            if let Err(error) = self.kernel.take_late_pauses() {
                tracing::warn!(error = format!("{error:#}"), "taking over what is paused");
            }
            if let Err(error) = self.kernel.begin_replacing() {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "what an agent has begun that is killed now waits for a complete list"
                );
            }
            self.take_flows();
            if let Err(error) = self.kernel.doubt_predecessors() {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "telling programs of another version that they are being replaced"
                );
            }
        }
    }

    /// Once all programs are replaced: takes what was opened meanwhile, and removes what is left of the other version.
    pub(super) fn end_handover(&mut self) {
        if !self.is_in_force() || !self.node_known || !self.kernel.has_predecessors() {
            return;
        }
        let whole = self.attachments.failed().is_empty() && self.exits.attachments.failed().is_empty();
        // What is judged by the other version's programs yet, as ours cannot be attached, is taken when they can be.
        let taken = if whole { Taken::All } else { Taken::Most };
        if self.flows_taken < taken {
            self.take_flows();
            self.flows_taken = taken;
        }
        if !whole {
            return;
        }
        match self.kernel.sweep_predecessors() {
            Ok(()) => {
                tracing::info!("what an agent of another version had put on the node goes on with this one's programs")
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "removing what an agent of another version left")
            }
        }
    }

    fn take_flows(&mut self) {
        let started = Clock::now();
        let copied = self.kernel.copy_flows();
        match &copied {
            Ok(Copied { found, taken }) => {
                let ms = started.elapsed().as_millis();
                tracing::info!(found, taken, ms, "flows of another version taken over");
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "flows of another version cannot be taken over: connections are met mid-stream"
            ),
        }
        self.flows.doubt(self.kernel.maps(), copied.ok().map(|copied| copied.found));
    }
}
