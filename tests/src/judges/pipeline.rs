//! From object changes to the writes of a plan.

use std::sync::Arc;

use palisade::api::reduce;
use palisade::compile::{Compiled, Compiler, Limits};
use palisade::facts::{Change, Kind, ObjectName, Veth, VethChange};
use palisade::index::Index;
use palisade::tables::Delta;
use serde_json::Value;

use crate::case::{Endpoint, ObjectChange, Services, Setup};

/// Index and compiler of one case.
pub struct Pipeline {
    index: Index,
    compiler: Compiler,
    reducer: reduce::Reducer,
}

impl Pipeline {
    pub fn new(node: &str) -> Self {
        Self::with_limits(node, Limits::default())
    }

    pub fn of(setup: &Setup) -> Self {
        let mut limits = Limits::default();
        if setup.services == Services::NoMarks {
            limits.stamps_max = 0;
        }
        Self::with_limits(&setup.node, limits)
    }

    pub fn with_limits(node: &str, limits: Limits) -> Self {
        let mut index = Index::new(node);
        for kind in Kind::ALL {
            index.apply(Change::Relist(kind));
            index.apply(Change::Relisted(kind));
        }
        Self { index, compiler: Compiler::new(limits), reducer: reduce::Reducer::default() }
    }

    pub fn apply(&mut self, change: &ObjectChange) {
        match change {
            ObjectChange::Put(object) => {
                if let Some(change) = self.reduce(object) {
                    self.index.apply(change);
                }
            }
            ObjectChange::Delete(object) => {
                if let Some(change) = self.reduce(object) {
                    self.index.apply(deletion(change));
                }
            }
            ObjectChange::Endpoint(endpoint) => {
                let change = VethChange { ifindex: endpoint.ifindex, veth: Some(veth(endpoint)) };
                self.index.apply_veth(change);
            }
            ObjectChange::EndpointGone(ifindex) => {
                self.index.apply_veth(VethChange { ifindex: *ifindex, veth: None });
            }
            ObjectChange::Own(addresses) => self.index.apply_addresses(addresses.clone()),
        }
    }

    fn reduce(&mut self, object: &Value) -> Option<Change> {
        match self.reducer.object(object.clone()) {
            Ok(update) => update.map(|update| update.change),
            Err(fault) => panic!("{object} cannot be reduced: {fault:?}"),
        }
    }

    pub fn compile(&mut self) -> Delta {
        self.update().delta
    }

    /// The change that was compiled last could not be written.
    pub fn hold(&mut self) {
        self.compiler.hold();
    }

    pub fn update(&mut self) -> Compiled {
        self.compiler.update(&mut self.index, 0)
    }
}

/// The change that takes an object away: it is known by what names it.
fn deletion(change: Change) -> Change {
    match change {
        Change::Namespace(name, _) => Change::Namespace(name, None),
        Change::Node(name, _) => Change::Node(name, None),
        Change::Service(name, _) => Change::Service(name, None),
        Change::Policy(name, _) => Change::Policy(name, None),
        Change::Pod { name, uid, facts: _ } => Change::Pod { name, uid, facts: None },
        Change::Relist(_) | Change::Relisted(_) => panic!("an object reduces to a change of itself"),
    }
}

fn veth(endpoint: &Endpoint) -> Veth {
    Veth {
        ifindex: endpoint.ifindex,
        name: format!("veth{}", endpoint.ifindex).into(),
        pod_mac: Some(endpoint.mac),
        netns_id: None,
        addresses: endpoint.addresses.clone(),
        pod: Some((ObjectName::new(&endpoint.namespace, &endpoint.pod), endpoint.uid.as_deref().map(Arc::from))),
        older: endpoint.older,
        awaits_result: false,
    }
}
