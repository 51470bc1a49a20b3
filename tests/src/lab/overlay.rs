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

/// Joins nodes of one network by plain routes, as Flannel's host-gw backend does: all pairs of the one and the other list.
pub fn route(nodes: &[&Node], others: &[&Node]) -> Result<()> {
    let to = |from: &Node, peer: &Node| {
        let ([v4, v6], [via_v4, via_v6]) = (peer.pod_cidrs(), peer.addresses);
        from.netns.ip(&[format!("route add {v4} via {via_v4}"), format!("route add {v6} via {via_v6}")])
    };
    for (node, other) in nodes.iter().flat_map(|node| others.iter().map(move |other| (node, other))) {
        to(node, other)?;
        to(other, node)?;
    }
    Ok(())
}

/// Pods reach what is outside of the cluster under their node's address, as with Flannel's `--ip-masq`.
pub fn masquerade(node: &Node) -> Result<()> {
    let family = |family: &str, pods: &str, own: &str, multicast: &str| {
        format!(
            "table {family} flannel {{ chain postrtg {{ type nat hook postrouting priority srcnat;\n\
             meta mark & 0x4000 == 0x4000 return\n\
             {family} saddr {pods} {family} daddr {pods} return\n\
             {family} saddr {pods} {family} daddr != {multicast} masquerade fully-random\n\
             {family} saddr != {pods} {family} daddr {own} return\n\
             {family} saddr != {pods} {family} daddr {pods} masquerade fully-random\n}}\n}}\n"
        )
    };
    let [own_v4, own_v6] = node.pod_cidrs();
    let rules =
        family("ip", "10.244.0.0/16", &own_v4, "224.0.0.0/4") + &family("ip6", "fd00:244::/32", &own_v6, "ff00::/8");
    node.netns.nft(&rules)
}
