//! Whose address a masqueraded packet hides (SEMANTICS 13.4): its mark names a pod of this node.

use std::net::IpAddr;

use palisade_common::Hook;

use super::Oracle;
use super::cluster::addresses;
use super::flow::{Client, Flow, Passage};
use super::guard::Own;
use super::leaving::Mark;
use super::packet::{self, Body};
use super::verdict::Scene;
use crate::case::PacketStep;

impl Oracle {
    /// The pod that is behind the packet's source, as its mark says, which is not its own address or is the receiving pod's.
    pub(super) fn client_of(&self, step: &PacketStep) -> Option<Client> {
        let by = step.by.filter(|_| step.hook == Hook::ToPod && step.ingress_ifindex != 0)?;
        let marked = self.mark_of(step) == Mark::Own;
        let endpoint = self.endpoints.get(&by).filter(|_| marked)?;
        let subject = self.subject(endpoint)?;
        let Body::Ip(Some(packet)) = packet::frame(&step.frame, step.gso).body else { return None };
        let is_own = Own::new(endpoint, addresses(subject.pod)).has(packet.source);
        let identity = format!("{} behind {by}", subject.uid);
        (by == step.ifindex || !is_own).then_some(Client { ifindex: by, identity })
    }

    /// Whether a packet that was sent to the endpoint comes from who sent the flow's earlier ones.
    pub(super) fn is_same_client(scene: &Scene, flow: &Flow, sender: usize) -> bool {
        // What a process of the node has opened, nobody else goes on with.
        scene.hook == Hook::FromPod || (flow.clients[sender] == scene.client && !flow.by_node[sender])
    }

    /// The pod of this node that is known to be behind the address of the peer that opened, or may have opened, the flow.
    pub(super) fn behind_address(
        &self,
        scene: &Scene,
        (source, destination, protocol, ports): (IpAddr, IpAddr, u8, Option<(u16, u16)>),
        reverse: bool,
    ) -> Option<Client> {
        if !reverse {
            return scene.client.clone();
        }
        let (from, to) = ports?;
        let passage = Passage::new((source, from), (destination, to), protocol);
        let client = self.flow(scene, &passage)?.clients[passage.receiver()].clone()?;
        self.still_there(client)
    }

    /// The client, unless another has taken its place.
    pub(super) fn still_there(&self, client: Client) -> Option<Client> {
        let endpoint = self.endpoints.get(&client.ifindex)?;
        // Its object may be gone, and its veth there still.
        let uid = self.subject(endpoint).map(|subject| subject.uid).or_else(|| endpoint.uid.clone())?;
        (format!("{uid} behind {}", client.ifindex) == client.identity).then_some(client)
    }

    /// The address by which a pod is known, where it was masqueraded as another (SEMANTICS 13.4).
    pub(super) fn true_source(&self, client: &Client, seen: IpAddr) -> Option<IpAddr> {
        let endpoint = self.endpoints.get(&client.ifindex)?;
        let of_pod = self.subject(endpoint).map(|subject| addresses(subject.pod)).unwrap_or_default();
        if self.cluster.trusted(&endpoint.namespace) || Own::new(endpoint, of_pod.clone()).has(seen) {
            return None;
        }
        let of_veth = endpoint.addresses.iter().map(|(own, _)| *own);
        let first = of_pod.into_iter().chain(of_veth).filter(|own| own.is_ipv4() == seen.is_ipv4()).min();
        // A pod without address of the family is nobody: nothing of it can bear the mark.
        Some(first.unwrap_or(if seen.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }))
    }
}
