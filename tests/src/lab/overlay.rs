//! Joining nodes by VXLAN as Flannel does: one device per family, a route, a neighbour and a forwarding entry per peer.

use std::net::IpAddr;

use anyhow::Result;

use super::Node;

const VNI: u32 = 1;
const PORT: u16 = 8472;

/// Joins these nodes in pairs, all of them. Called once, with every node.
pub fn join(nodes: &[&Node]) -> Result<()> {
    for node in nodes {
        let [v4, v6] = node.addresses;
        let number = node.number;
        node.netns.ip(&[
            format!("link add flannel.1 mtu 1450 type vxlan id {VNI} local {v4} dev eth0 dstport {PORT} nolearning"),
            format!("addr add 10.244.{number}.0/32 dev flannel.1"),
            "link set flannel.1 up".into(),
            // The IPv6 header is longer by 20 bytes.
            format!("link add flannel-v6.1 mtu 1430 type vxlan id {VNI} local {v6} dev eth0 dstport {PORT} nolearning"),
            format!("addr add fd00:244:{number}::/128 dev flannel-v6.1 nodad"),
            "link set flannel-v6.1 up".into(),
        ])?;
    }
    for node in nodes {
        for peer in nodes.iter().filter(|peer| peer.number != node.number) {
            reach(node, peer)?;
        }
    }
    Ok(())
}

fn reach(node: &Node, peer: &Node) -> Result<()> {
    let number = peer.number;
    let families = [
        ("flannel.1", format!("10.244.{number}.0"), format!("10.244.{number}.0/24"), peer.addresses[0]),
        ("flannel-v6.1", format!("fd00:244:{number}::"), format!("fd00:244:{number}::/64"), peer.addresses[1]),
    ];
    for (device, gateway, pods, underlay) in families {
        let mac = peer.netns.mac(device)?.map(|byte| format!("{byte:02x}")).join(":");
        node.netns.ip(&[
            format!("neigh add {gateway} lladdr {mac} dev {device} nud permanent"),
            format!("route add {pods} via {gateway} dev {device} onlink"),
        ])?;
        forward(node, device, &mac, underlay)?;
    }
    Ok(())
}

fn forward(node: &Node, device: &str, mac: &str, underlay: IpAddr) -> Result<()> {
    let status = node
        .netns
        .command("bridge")
        .args(["fdb", "add", mac, "dev", device, "dst", &underlay.to_string(), "self", "permanent"])
        .status()?;
    anyhow::ensure!(status.success(), "bridge fdb add: {status}");
    Ok(())
}
