//! Events of what cannot be enforced as written, on the objects that are at fault.

use std::collections::BTreeSet;

use super::Agent;
use crate::api::events::{Notice, Regarding};
use crate::facts::{Fault, Kind, ObjectName};
use crate::index::PodId;

const REASON: &str = "NotEnforcedAsWritten";

/// What Events were told of.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    pub objects: BTreeSet<Fault>,
    pub node: BTreeSet<Fault>,
}

impl Agent {
    /// Of each object that is at fault in another way than was told (`noticed`), all that is wrong with it. An object that has to do with no
    /// pod of this node is left to the nodes with which it has, until it has. Returns what was told now.
    pub(super) fn tell_events_of(&self, faults: &BTreeSet<Fault>, mut noticed: BTreeSet<Fault>) -> BTreeSet<Fault> {
        noticed.retain(|fault| faults.contains(fault));
        let new = faults.difference(&noticed);
        let objects: BTreeSet<(Kind, String)> = new.map(|fault| (fault.kind, fault.object.clone())).collect();
        for (kind, object) in objects {
            let Some(regarding) = self.regarding(kind, &object) else { continue };
            let own: Vec<&Fault> = faults.iter().filter(|fault| fault.kind == kind && fault.object == object).collect();
            // What the object says is the same on every node, what this node makes of it is not.
            let known = self.faults.get(&(kind, object));
            let everywhere = known.is_some_and(|known| own.iter().all(|fault| known.contains(fault)));
            let place = if everywhere { String::new() } else { format!("on node {}: ", self.node_name) };
            let notice = Notice { regarding, warning: true, reason: REASON, note: place + &note(&own), everywhere };
            self.signals.events.tell(notice);
            noticed.extend(own.into_iter().cloned());
        }
        noticed
    }

    /// Of the node, what lasts: called now and then.
    pub(super) fn tell_events_of_node(&mut self) {
        if self.synced {
            let faults = self.own_faults().collect();
            let noticed = std::mem::take(&mut self.noticed.node);
            self.noticed.node = self.tell_events_of(&faults, noticed);
        }
    }

    /// `None`: nobody would look for it there, or other nodes see to it.
    fn regarding(&self, kind: Kind, object: &str) -> Option<Regarding> {
        let (namespace, name) = match object.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, object),
        };
        let full = || Some(ObjectName::new(namespace?, name));
        let mut uid = None;
        let concerned = match kind {
            Kind::Node => {
                // As the kubelet names nodes in its Events.
                uid = Some(object.to_owned());
                object == self.node_name
            }
            Kind::Namespace => self.compiler.has_endpoints_in(name),
            Kind::Service => self.compiler.has_endpoints_in(namespace?),
            Kind::Policy => self.compiler.has_subjects_of(&full()?),
            Kind::Pod => {
                let full = full()?;
                let mut ids = self.index.pods_named(&full);
                let is_here = |id: &PodId| {
                    self.index
                        .pod(*id)
                        .is_some_and(|pod| pod.node.as_deref() == Some(&*self.node_name) && !pod.finished)
                };
                uid = ids.find(is_here).and_then(|id| self.index.uid(id)).map(ToString::to_string);
                uid.is_some()
            }
        };
        let (namespace, name) = (namespace.map(str::to_owned), name.to_owned());
        concerned.then(|| Regarding { kind: kind.name(), namespace, name, uid })
    }
}

fn note(faults: &[&Fault]) -> String {
    let one = |Fault { field, message, .. }: &&Fault| match field.is_empty() {
        true => message.clone(),
        false => format!("{field}: {message}"),
    };
    faults.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_each_field() {
        let fault = |field: &str, message: &str| Fault {
            kind: Kind::Policy,
            object: "a/p".to_owned(),
            field: field.to_owned(),
            message: message.to_owned(),
        };
        let faults = [fault("spec.ingress[0].from[1]", "no block"), fault("", "no room")];
        assert_eq!(note(&faults.iter().collect::<Vec<_>>()), "spec.ingress[0].from[1]: no block; no room");
    }
}
