//! `palisade explain` against real probes: every pair, every port, both families, and both nodes' word where they are two.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_tests::lab::probe::{Probe, ask_all_within};
use palisade_tests::lab::{Outcome, Transport};
use serde_json::Value;

use crate::world::{PORTS, Place, World};

/// Short, as a repeated SYN would hide that the first was dropped.
const AT_ONCE: Duration = Duration::from_millis(500);

/// By address and port: whether everybody who was asked says that the flow is allowed.
type Said = BTreeMap<(IpAddr, String), bool>;

#[test]
fn explain_says_what_sockets_see() {
    let world = World::new();
    let mut wrong = Vec::new();
    let (mut probes, mut told) = (Vec::new(), Vec::new());
    for (from, to) in pairs(&world) {
        let said = said(&world, from, to);
        assert_eq!(said.len(), 2 * PORTS.len(), "{} -> {}: {said:?}", from.name, to.name);
        for (_, protocol, port) in PORTS {
            for address in to.addresses {
                let transport = if protocol == "TCP" { Transport::Tcp } else { Transport::Udp };
                let text = format!("{}/{port}", protocol.to_lowercase());
                let allowed = said[&(address, text.clone())];
                probes.push((Probe::new(&from.netns, transport, address, port), AT_ONCE));
                told.push((format!("{} -> {} at {address} {text}", from.name, to.name), allowed));
            }
        }
    }
    // Whether all this is worth anything: both answers are there many times.
    for expected in [true, false] {
        let count = told.iter().filter(|(_, allowed)| *allowed == expected).count();
        assert!(count > 20, "{count} of {} are {expected}", told.len());
    }
    for ((flow, allowed), outcome) in told.iter().zip(ask_all_within(&probes)) {
        let reached = matches!(outcome, Outcome::Reached(_));
        if reached != *allowed {
            wrong.push(format!("{flow}: {outcome}, explain says allowed: {allowed}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), told.len(), wrong.join("\n"));
    the_way_is_told(&world);
    names_and_exit_codes(&world);
    crate::policies::rules_are_told_as_they_are_enforced(&world);
    crate::plugin::agents_are_asked_by_kubectl(&world);
    crate::policies::tables_are_as_they_should_be_and_else_it_is_told(&world);
    without_an_agent(world);
}

/// With a pod at one end at least.
fn pairs(world: &World) -> Vec<(&Place, &Place)> {
    let all = world.places.iter().flat_map(|from| world.places.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.name != to.name && to.node.is_some()).collect()
}

fn said(world: &World, from: &Place, to: &Place) -> Said {
    let mut said = Said::new();
    let nodes: std::collections::BTreeSet<usize> = [from.node, to.node].into_iter().flatten().collect();
    for node in nodes {
        for source in names(from) {
            let started = Instant::now();
            let (code, output, error) = world.palisade(node, &["explain", &source, &to.name, "-o", "json"]);
            assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
            let explained: Value = serde_json::from_str(&output).unwrap_or_else(|_| panic!("{code}: {error}"));
            let allowed = explained["verdict"] == "allowed";
            assert_eq!(code, if allowed { 0 } else { 3 }, "{explained}");
            for way in explained["ways"].as_array().expect("a list") {
                let address = way["destination"]["address"].as_str().expect("text").parse().expect("an address");
                let port = way["port"].as_str().expect("text").to_owned();
                let before = said.entry((address, port)).or_insert(true);
                *before &= way["verdict"] == "allowed";
            }
        }
    }
    said
}

/// A machine outside has no name.
fn names(place: &Place) -> Vec<String> {
    match place.node {
        Some(_) => vec![place.name.clone()],
        None => place.addresses.map(|address| address.to_string()).into(),
    }
}

fn the_way_is_told(world: &World) {
    let (code, text, _) = world.palisade(0, &["explain", "shop/api", "shop/db", "tcp/81"]);
    assert_eq!(code, 3, "{text}");
    for said in [
        "shop/api -> shop/db tcp/81: REFUSED",
        "1 leaves shop/api at ",
        "rule    shop/api-to-db egress rule 0",
        "2 reaches shop/db at ",
        "refused, the pod is isolated and no rule admits the flow (no-rule)",
        "asked   ingress of shop/db: table ",
        "pods app=api in namespace shop",
        "RULES has for the class: tcp/80, tcp/8080",
        "no ingress rule of shop/db-from-api admits 10.244.1.3 on tcp/81",
        "the same peer may use tcp/80, tcp/8080",
        "tcp/81 is open to pods in namespaces team=ops",
    ] {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no terminal, no colours: {text}");
    let (code, text, _) = world.palisade(0, &["explain", "shop/api", "shop/db-far", "http"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("2 leaves the node: passes"), "{text}");
    assert!(text.contains("the ingress policies of shop/db-far are known on its own node: ask there (two)"), "{text}");
}

fn names_and_exit_codes(world: &World) {
    let api = world.place("shop/api").addresses[0].to_string();
    for (arguments, code) in [
        (&["explain", "pod/api", "pod/db", "80", "-n", "shop"][..], 0),
        (&["explain", &api, "shop/db", "tcp/http"][..], 0),
        (&["explain", "node", "shop/db", "tcp/1"][..], 0),
        (&["explain", "shop/web", "shop/db", "icmp"][..], 3),
        // Both pods of the Service, one of them on the other node.
        (&["explain", "shop/api", "svc/db", "-n", "shop", "80"][..], 0),
        (&["explain", "shop/web", "svc/shop/db"][..], 3),
        (&["explain", "shop/nobody", "shop/db", "80"][..], 1),
        (&["explain", "ops/prometheus", "shop/db-far", "80"][..], 1),
        (&["explain", "shop/web", "shop/db", "tcp"][..], 2),
    ] {
        let (got, output, error) = world.palisade(0, arguments);
        assert_eq!(got, code, "{arguments:?}: {output}{error}");
    }
    let (_, _, error) = world.palisade(0, &["explain", "ops/prometheus", "shop/db-far", "80"]);
    assert!(error.contains("ask on two"), "{error}");
    let (_, yaml, _) = world.palisade(0, &["explain", "shop/web", "shop/db", "80", "-o", "yaml"]);
    assert!(yaml.starts_with("verdict: refused\n"), "{yaml}");
}

/// The catalog and the maps are enough for pods of the node.
fn without_an_agent(mut world: World) {
    world.agents.remove(0).kill().expect("it ran");
    let (code, output, error) = world.palisade(0, &["explain", "shop/api", "shop/db", "http"]);
    assert_eq!(code, 0, "{output}{error}");
    let (code, _, error) = world.palisade(0, &["explain", "shop/api", "svc/shop/db", "http"]);
    assert_eq!((code, error.contains("no agent answers")), (1, true), "{error}");
}
