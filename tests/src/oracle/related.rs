//! Packets that live by another packet's verdict: ICMP errors and later fragments.

use std::net::IpAddr;

use palisade_common::{Hook, Reason};

use super::cluster::addresses;
use super::flow::Passage;
use super::guard::Own;
use super::meaning::has_ports;
use super::packet::{self, Icmp, Packet};
use super::policy::Direction;
use super::verdict::Scene;
use super::{FirstFragment, Opinion, Oracle};

impl Oracle {
    /// SEMANTICS 14.2: an error about a flow that would pass, told to who sent the quoted packet.
    pub(super) fn related(&self, scene: &Scene, error: &Packet, icmp: &Icmp) -> Opinion {
        let refused = Opinion::of([Reason::UnrelatedError]);
        let Some(quoted) = packet::quoted(&icmp.content, error.source) else { return refused };
        if quoted.source != error.destination {
            return refused;
        }
        // A pod tells of what was sent to it.
        if scene.hook == Hook::FromPod && !self.may_be(scene.ifindex, quoted.destination) {
            return refused;
        }
        let ports = (quoted.source_port, quoted.destination_port);
        let flow = (quoted.source, quoted.destination, quoted.protocol, has_ports(quoted.protocol).then_some(ports));
        let passage = Passage::new((quoted.source, ports.0), (quoted.destination, ports.1), quoted.protocol);
        // The quoted packet went the other way.
        let hook = match scene.hook {
            Hook::FromPod => Hook::ToPod,
            Hook::ToPod => Hook::FromPod,
        };
        let Some(known) = self.flow(scene, &passage) else { return refused };
        let client = known.clients[passage.sender].clone().filter(|_| hook == Hook::ToPod);
        let client = client.and_then(|client| self.still_there(client));
        let there = Scene { hook, identity: scene.identity.clone(), client, ..*scene };
        if self.undecided.contains(&passage.tuple) {
            return Opinion::either();
        }
        // A pod tells nothing of a Service that has not answered it (SEMANTICS 13.1): nobody judges whom it is told.
        let deferred = known.deferred.iter().any(|admission| admission.opener == passage.receiver());
        if scene.hook == Hook::FromPod && deferred {
            match (known.seen[passage.sender] != 0, known.opened[passage.sender]) {
                (false, _) => return refused,
                (true, true) => return Opinion::either(),
                (true, false) => {}
            }
        }
        for (opener, direction, reverse) in
            [(passage.sender, there.direction(), false), (passage.receiver(), there.opposite(), true)]
        {
            if !known.opened[opener] {
                continue;
            }
            let by_node = known.by_node[opener] && direction == Direction::Ingress;
            let kept = self.kept(&there, known, opener, direction);
            if self.ask(&there, flow, reverse).passes() || kept || by_node {
                return Opinion::of([Reason::RelatedError]);
            }
        }
        refused
    }

    /// The address is the endpoint's own, or it is trusted with every one.
    fn may_be(&self, ifindex: u32, address: IpAddr) -> bool {
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return false };
        self.cluster.trusted(&endpoint.namespace) || self.is_own_address(ifindex, address)
    }

    pub(super) fn is_own_address(&self, ifindex: u32, address: IpAddr) -> bool {
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return false };
        let of_pod = self.subject(endpoint).map(|subject| addresses(subject.pod)).unwrap_or_default();
        Own::new(endpoint, of_pod).has(address)
    }

    /// SEMANTICS 14.3: follows its first fragment.
    pub(super) fn later_fragment(&self, scene: &Scene, packet: &Packet, leaving: bool) -> Opinion {
        let wanted = first_fragment(scene, packet, self.epoch, leaving);
        let first = self.fragments.iter().find(|first| same_datagram(first, &wanted));
        match first {
            None => Opinion::of([Reason::FragmentAlone]),
            Some(first) if first.epoch == self.epoch => {
                Opinion { marked: first.marked, ..Opinion::of([Reason::Fragment]) }
            }
            // Whether a change reached the first fragment's judgement is the judge's business: it may ask for a new one.
            Some(_) => Opinion::either(),
        }
    }
}

pub(super) fn first_fragment(scene: &Scene, packet: &Packet, epoch: u64, leaving: bool) -> FirstFragment {
    FirstFragment {
        hook: scene.hook,
        leaving,
        ifindex: scene.ifindex,
        source: packet.source,
        destination: packet.destination,
        id: packet.fragment.map_or(0, |fragment| fragment.id),
        epoch,
        time: scene.time,
        marked: None,
    }
}

pub(super) fn same_datagram(one: &FirstFragment, other: &FirstFragment) -> bool {
    let name = |it: &FirstFragment| (it.hook, it.leaving, it.ifindex, it.source, it.destination, it.id);
    name(one) == name(other)
}
