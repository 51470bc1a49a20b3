//! What the compiler could not do as written: limits, and addresses that more than one pod claims.

use super::{Closed, Compiler, Direction};
use crate::facts::{Fault, Kind};
use crate::index::Index;

impl Compiler {
    pub(super) fn faults(&self, index: &Index) -> Vec<Fault> {
        let mut faults = self.peers.faults(index, self.limits.exact_max);
        if self.blocks.refused_count() > 0 {
            for (policy, field, message) in self.refused_blocks() {
                faults.push(Fault { kind: Kind::Policy, object: policy, field, message });
            }
        }
        faults.extend(self.services.fault(self.limits.services_max));
        for (&ifindex, endpoint) in &self.endpoints.all {
            faults.extend(endpoint.faults.iter().cloned());
            let interface = || index.veth(ifindex).map_or(String::new(), |veth| veth.name.to_string());
            let object = endpoint.name.as_ref().map_or_else(interface, ToString::to_string);
            let fault = |field: &str, message: String| {
                let field = field.to_owned();
                Fault { kind: Kind::Pod, object: object.clone(), field, message }
            };
            if self.cut.is_some_and(|cut| ifindex >= cut) {
                let limit = self.limits.endpoints_max;
                faults.push(fault("", format!("there is no room for it among {limit} endpoints: it is closed")));
                continue;
            }
            if self.stamps.wanting().contains(&ifindex) && endpoint.is_isolated(Direction::Egress) {
                let limit = self.limits.stamps_max;
                let message = format!(
                    "none of the {limit} numbers of --stamp-mask is left to mark its packets with: what it sends to Services is refused"
                );
                faults.push(fault("", message));
            }
            match &endpoint.closed {
                Some(closed @ Closed::Addresses { .. }) => {
                    faults.push(fault("status.podIPs", format!("{closed}: it is closed")));
                }
                Some(closed @ Closed::Table) => faults.push(fault("", format!("{closed}: it is closed"))),
                Some(Closed::Incomplete | Closed::Unknown(_) | Closed::MacUnknown) | None => {}
            }
        }
        faults.sort_unstable();
        faults.dedup();
        faults
    }

    /// The places where policies name a block that did not fit.
    fn refused_blocks(&self) -> Vec<(String, String, String)> {
        let mut places = Vec::new();
        let limit = self.limits.prefixes_max;
        for (name, sides) in self.policies.sides() {
            for side in sides.iter().flatten() {
                for place in self.blocks.refused_in(side) {
                    let direction = side.direction.name();
                    let message = format!("an ipBlock does not fit the limit of {limit} prefixes: it matches nothing");
                    places.push((name.to_string(), format!("spec.{direction}[{place}]"), message));
                }
            }
        }
        places
    }
}
