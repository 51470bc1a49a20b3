//! Pods whose start waits for their enforcement: what the CNI plugin asks.

use palisade_common::layout::endpoint_flag;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Agent;
use crate::cni::protocol::{Refusal, Reply, Told, code};
use crate::cni::server::{ADD_WAIT, Ask, Question};
use crate::explain::names::find;
use crate::facts::Veth;

/// A pod that has been asked about and is not enforced yet.
#[derive(Debug)]
pub(super) struct Waiting {
    told: Told,
    answer: oneshot::Sender<Reply>,
    pub(super) until: Instant,
}

impl Agent {
    pub fn take_ask(&mut self, ask: Ask) {
        let Ask { question, answer } = ask;
        let now = match question {
            Question::Enforced(told) => {
                self.waiting.push(Waiting { told, answer, until: Instant::now() + ADD_WAIT });
                return self.answer_waiting();
            }
            Question::Objects => {
                let ingredients = self.ingredients();
                // They may be many.
                tokio::task::spawn_blocking(move || {
                    let text = serde_json::to_string(&ingredients).map(Value::String);
                    let failed =
                        |error: serde_json::Error| Refusal { code: code::IO_FAILURE, message: error.to_string() };
                    let _ = answer.send(text.map_err(failed));
                });
                return;
            }
            Question::EnforcedNow(told) => {
                self.is_enforced(&told).map(|()| Value::Null).map_err(|why| later(&told, &why))
            }
            Question::Pauses => {
                self.look_at_pauses();
                Ok(Value::Null)
            }
            Question::Available => match self.cannot_start_pods() {
                Some(why) => Err(Refusal { code: code::NOT_AVAILABLE, message: why }),
                None => Ok(Value::Null),
            },
            Question::Find(who) => serde_json::to_value(find(&self.index, &who))
                .map_err(|error| Refusal { code: code::IO_FAILURE, message: error.to_string() }),
        };
        // Whoever asked may be gone.
        let _ = answer.send(now);
    }

    /// Answers those that are enforced by now, and those that have waited long enough.
    pub fn answer_waiting(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.answer.is_closed() {
                continue;
            }
            let answer = match self.is_enforced(&waiting.told) {
                Ok(()) => Ok(Value::Null),
                Err(why) if waiting.until <= now => Err(later(&waiting.told, &why)),
                Err(_) => {
                    self.waiting.push(waiting);
                    continue;
                }
            };
            if let Err(Refusal { message, .. }) = &answer {
                tracing::warn!(message, "a pod is not started");
            }
            let _ = waiting.answer.send(answer);
        }
    }

    fn cannot_start_pods(&self) -> Option<String> {
        if let Some(stuck) = &self.stuck {
            return Some(format!("a change cannot be written to the kernel: {}", stuck.error));
        }
        (!self.synced).then(|| "the API server has not given a complete list of objects yet".to_owned())
    }

    /// Enforced is: its programs are on its interfaces, and the kernel has their records.
    ///
    /// # Errors
    ///
    /// What is missing.
    fn is_enforced(&self, told: &Told) -> Result<(), String> {
        if let Some(why) = self.cannot_start_pods() {
            return Err(why);
        }
        let named = (told.pod.clone(), told.uid.clone());
        let is_made = |veth: &&Veth| match veth.pod_mac {
            Some(mac) if !told.macs.is_empty() => told.macs.contains(&mac),
            _ => told.hosts.contains(&veth.name),
        };
        let mut its = self.index.veths().filter(|veth| veth.pod.as_ref() == Some(&named)).filter(is_made).peekable();
        if its.peek().is_none() {
            return Err("its interface has not been found on the node".to_owned());
        }
        its.try_for_each(|veth| self.is_veth_enforced(veth))
    }

    fn is_veth_enforced(&self, veth: &Veth) -> Result<(), String> {
        if let Some(failed) = self.attachments.failed().get(&veth.ifindex) {
            return Err(format!("the programs cannot be attached to {}: {}", veth.name, failed.error));
        }
        if !self.attachments.has(veth.ifindex) {
            return Err(format!("the programs are not attached to {} yet", veth.name));
        }
        match self.kernel.endpoints().get(&veth.ifindex) {
            Some(record) if record.flags & endpoint_flag::CLOSED == 0 => Ok(()),
            Some(_) | None => {
                Err(self.compiler.closed(veth.ifindex).unwrap_or_else(|| "its tables are not there yet".to_owned()))
            }
        }
    }
}

fn later(told: &Told, why: &str) -> Refusal {
    let message =
        format!("pod {} is not enforced: {why}. It is tried again; `palisade status` on its node says more", told.pod);
    Refusal { code: code::TRY_AGAIN_LATER, message }
}
