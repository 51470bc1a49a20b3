//! What a pod with an egress policy gets through to another by way of a Service, with one Service in the cluster and with 5,000, against the
//! same lab without an agent. kube-proxy translates (nftables).

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use serde_json::{Value, json};

use super::load::PORTS;
use super::table::Table;
use super::throughput::{ALTERNATIONS, Bench, CONNECTIONS, KINDS, Kind, Load, TIME};
use super::{machine, traffic};
use crate::lab::objects::{self, Backend};
use crate::lab::{ControlPlane, KubeProxy, Mode};

const SERVICES: [usize; 2] = [1, 5_000];
const GOAL: f64 = 0.95;
/// The server has an ingress policy as well.
const BOTH_ENDS: Kind = Kind { name: "connect and close, both ends isolated", ..CONNECTIONS };
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 96, 200, 1);

/// Prints the table.
pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let head = ["traffic", "unit", "Services", "without agent", "with agent", "ratio", "95 % interval", "goal", ""];
    let mut table = Table::new(&head);
    for count in SERVICES {
        let mut bench = Bench::new()?;
        let plane = ControlPlane::start(&bench.lab)?;
        plane.put(&objects::namespace("bench", &[]))?;
        plane.put(&objects::node(&bench.node))?;
        write_services(&bench, &plane, count)?;
        // What one pod of a bridge answers another has to pass where it was translated.
        bench.node.bridge_netfilter(true)?;
        forget_closed(&bench)?;
        let _proxy = KubeProxy::start(&bench.lab, &bench.node, &plane, Mode::Nftables)?;
        bench.target = IpAddr::V4(TARGET);
        bench.reason = "service";
        bench.manifests.put(&egress_policy())?;
        let mut load = Load::start(&bench, TIME)?;
        let kinds = KINDS.map(|kind| Kind { goal: GOAL, ..kind });
        let mut rows = bench.rows(&mut load, &kinds, ALTERNATIONS, count)?;
        bench.write_policy(1)?;
        rows.extend(bench.rows(&mut load, &[BOTH_ENDS], ALTERNATIONS, count)?);
        rows.into_iter().for_each(|row| table.row(row));
    }
    println!("{table}");
    println!("Load at the end: {}", machine::load());
    Ok(())
}

/// Of so many connections conntrack would be full after some seconds, and then drop what is new, with an agent and without.
fn forget_closed(bench: &Bench) -> Result<()> {
    let timeouts = ["time_wait", "close", "close_wait", "last_ack", "fin_wait"];
    let names: Vec<String> =
        timeouts.iter().map(|name| format!("net/netfilter/nf_conntrack_tcp_timeout_{name}")).collect();
    let values: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    bench.node.netns.sysctl(&values)
}

/// The client may reach the server, which only its Service leads to.
fn egress_policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "bench", "name": "egress"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "client"}},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{"podSelector": {"matchLabels": {"app": "server"}}}],
                "ports": [{"port": traffic::PORT, "endPort": PORTS.end - 1}],
            }],
        },
    })
}

fn write_services(bench: &Bench, plane: &ControlPlane, count: usize) -> Result<()> {
    let ports = traffic::PORT..PORTS.end;
    let target = service("target", TARGET, ports.clone().map(port).collect());
    let backend = [Backend { address: bench.server.ipv4(), node: Some(bench.node.name.clone()) }];
    plane.put(&target)?;
    plane.put(&objects::endpoint_slice(&target, 1, &backend, &json!(ports.map(port).collect::<Vec<_>>())))?;
    let (mut objects, mut text) = (Vec::new(), serde_json::to_string(&target)?);
    for number in 1..count {
        let [high, low] = u16::try_from(number)?.to_be_bytes();
        let other = service(&format!("other-{number}"), Ipv4Addr::new(10, 96, high, low), vec![port(80)]);
        text += "\n---\n";
        text += &serde_json::to_string(&other)?;
        objects.push(objects::endpoint_slice(&other, 1, &backend, &json!([port(80)])));
        objects.push(other);
    }
    plane.create_all(&objects)?;
    bench.manifests.put_text("services.yaml", &text)
}

fn port(port: u16) -> Value {
    json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"})
}

fn service(name: &str, address: Ipv4Addr, ports: Vec<Value>) -> Value {
    objects::service("bench", name, &json!({"clusterIP": address, "clusterIPs": [address], "ports": ports}))
}
