//! Which rules admit the flows that are remembered.

use std::collections::BTreeMap;

use palisade_common::decide::{self, EGRESS, INGRESS, OPEN_INGRESS, Question, REACH_EGRESS, Tables};
use palisade_common::layout::{EndpointRecord, FlowKey, FlowValue, flow_flag};

use crate::tables::sim::Sim;

/// One judgement of a remembered flow, as the tables are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The interface of the pod whose policies were asked.
    pub ifindex: u32,
    pub ingress: bool,
    pub allowed: bool,
    /// The kernel's number of the rule that admits; `None`: none is needed, or none does.
    pub rule: Option<u32>,
}

/// The loaded tables, and whose generation is whose.
#[derive(Debug)]
pub struct Judge<'t> {
    tables: &'t Sim,
    records: BTreeMap<u32, &'t EndpointRecord>,
}

impl<'t> Judge<'t> {
    pub fn new(tables: &'t Sim) -> Self {
        let found = tables.found();
        let records = found.tables.endpoints.values().filter_map(|index| found.records.get(&index.at(found.epoch)));
        Self { tables, records: records.map(|record| (record.generation, record)).collect() }
    }

    /// What each pod of the node that has admitted the flow says of it now. What was let go on as a Service's was not admitted.
    pub fn judge(&self, key: &FlowKey, value: &FlowValue) -> Vec<Judged> {
        let mut all = Vec::new();
        for opener in [0, 1] {
            if value.flags & (flow_flag::OPENED << opener) == 0 {
                continue;
            }
            let (source, destination, port) =
                if opener == 0 { (&key.low, &key.high, key.high_port) } else { (&key.high, &key.low, key.low_port) };
            for role in [EGRESS, INGRESS] {
                let ingress = role == INGRESS;
                let deferred = !ingress && value.flags & (flow_flag::DEFERRED << opener) != 0;
                let node = ingress && value.flags & flow_flag::NODE != 0;
                let generation = value.judged[opener][role].generation;
                let Some(record) = self.records.get(&generation).filter(|_| generation != 0 && !deferred && !node)
                else {
                    continue;
                };
                let question = Question {
                    peer: if ingress { source } else { destination },
                    client: if ingress { (value.client, value.client_generation) } else { (0, 0) },
                    epoch: self.tables.epoch(),
                    what: if ingress { OPEN_INGRESS } else { REACH_EGRESS },
                    port,
                    protocol: key.protocol,
                    family: key.family,
                };
                let answer = decide::ask(self.tables, record, &question);
                let rule = answer.rule().filter(|rule| *rule != 0);
                all.push(Judged { ifindex: record.ifindex, ingress, allowed: answer.is_allowed(), rule });
            }
        }
        all
    }
}
