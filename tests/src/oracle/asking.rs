//! What one end's policies say of an opening, and why it is refused.

use std::net::IpAddr;

use palisade_common::{Hook, Reason};

use super::flow::{Admission, Flow};
use super::meaning::tuple_of;
use super::packet::Packet;
use super::policy::{Direction, Question, admits};
use super::services::Destination;
use super::verdict::Scene;
use super::{Opinion, Oracle};
use crate::case::{Existing, Services};

/// What an answer of the policies was, and about which end's opening.
pub(super) enum Answer {
    Admitted,
    /// To a Service: judged where it ends up.
    Deferred,
    /// From the pod to itself, by way of a Service (SEMANTICS 13.5).
    Hairpin,
    Refused,
}

impl Answer {
    pub(super) const fn passes(&self) -> bool {
        !matches!(self, Self::Refused)
    }

    /// Why a new flow passes.
    pub(super) const fn reason(&self) -> Reason {
        match self {
            Self::Admitted => Reason::Allowed,
            Self::Deferred => Reason::Service,
            Self::Hairpin => Reason::Hairpin,
            Self::Refused => Reason::NoRule,
        }
    }
}

impl Oracle {
    /// Asks the endpoint's policies whether the packet's sender (its receiver, where `reverse`) may open the flow.
    pub(super) fn ask(&self, scene: &Scene, flow: (IpAddr, IpAddr, u8, Option<(u16, u16)>), reverse: bool) -> Answer {
        let (source, destination, protocol, ports) = flow;
        let subject = self.endpoints.get(&scene.ifindex).and_then(|endpoint| self.subject(endpoint));
        let Some(subject) = subject else { return Answer::Refused };
        let direction = if reverse { scene.opposite() } else { scene.direction() };
        let mut peer = if scene.hook == Hook::FromPod { destination } else { source };
        let port = ports.map(|(source, destination)| if reverse { source } else { destination });
        if direction == Direction::Ingress && subject.ingress {
            let client = self.behind_address(scene, flow, reverse);
            if client.as_ref().is_some_and(|client| client.ifindex == scene.ifindex) {
                return Answer::Hairpin;
            }
            peer = client.and_then(|client| self.true_source(&client, peer)).unwrap_or(peer);
        }
        let question = Question { subject: subject.pod, direction, peer, protocol, port };
        let admitted = admits(&self.cluster, question);
        if direction == Direction::Egress && subject.egress && self.is_front(peer, protocol, port) {
            return match (admitted, self.setup.services) {
                (_, Services::NoExits | Services::NoMarks) => Answer::Refused,
                (true, Services::Judged) => Answer::Admitted,
                (false, Services::Judged) => Answer::Deferred,
            };
        }
        if admitted { Answer::Admitted } else { Answer::Refused }
    }

    pub(super) fn is_front(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        port.is_some_and(|port| self.cluster.is_front(&self.setup.node, Destination { address, protocol, port }))
    }

    /// Why the packet is refused, after the policies of one end or both were asked.
    pub(super) fn refusal(&self, scene: &Scene, packet: &Packet) -> Opinion {
        let lacking = self.lacking(scene, packet);
        Opinion::of([Reason::NoRule, Reason::Revoked].into_iter().chain(lacking))
    }

    /// Why a new flow is refused, that of the packet or of one that it answers.
    pub(super) fn refused_opening(&self, scene: &Scene, packet: &Packet, reverse: bool) -> Opinion {
        let egress = reverse == (scene.hook == Hook::ToPod);
        let lacking = self.lacking(scene, packet).filter(|_| egress);
        Opinion::of([lacking.unwrap_or(Reason::NoRule)])
    }

    /// What keeps the endpoint's packets to a Service from being judged where they end up.
    fn lacking(&self, scene: &Scene, packet: &Packet) -> Option<Reason> {
        let (source, destination, protocol, ports) = tuple_of(packet);
        let (address, port) = match scene.hook {
            Hook::FromPod => (destination, ports.map(|(_, port)| port)),
            Hook::ToPod => (source, ports.map(|(port, _)| port)),
        };
        let lacking = match self.setup.services {
            Services::Judged => None,
            Services::NoExits => Some(Reason::NoExit),
            Services::NoMarks => Some(Reason::NoStamp),
        };
        lacking.filter(|_| self.is_front(address, protocol, port))
    }

    pub(super) fn kept(&self, scene: &Scene, flow: &Flow, opener: usize, direction: Direction) -> bool {
        let admission = Admission { opener, direction, endpoint: scene.identity.clone() };
        self.setup.existing == Existing::Keep && flow.admissions.contains_key(&admission)
    }

    /// Sent by a Service's address, which opens nothing (SEMANTICS 13.6). Node ports and host ports are nobody's address.
    pub(super) fn is_from_service(&self, scene: &Scene, packet: &Packet) -> bool {
        let (address, _, protocol, ports) = tuple_of(packet);
        let source = ports.map(|(port, _)| Destination { address, protocol, port });
        scene.hook == Hook::ToPod && source.is_some_and(|source| self.cluster.is_service(&self.setup.node, source))
    }
}
