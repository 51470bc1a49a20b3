//! Manifests in, what would be otherwise out.

use super::compare::{Change, compare};
use super::expect;
use super::manifests::Objects;
use super::peers::Who;
use super::world::World;
use crate::facts;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: ops, labels: {team: ops}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: db, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: prometheus, namespace: ops, labels: {app: prometheus}}
spec: {nodeName: some, containers: [{name: p, image: p}]}
status: {podIPs: [{ip: 10.0.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 5000, targetPort: sql}]}
";

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}, {port: 8000, endPort: 8009}]
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
    ports: [{protocol: UDP, port: 53}]
";

fn objects(texts: &[&str]) -> Objects {
    let mut objects = Objects::default();
    texts.iter().for_each(|text| objects.read("objects.yaml", text));
    objects.imply_namespaces(&std::collections::BTreeSet::new());
    objects
}

fn world(texts: &[&str]) -> World {
    World::new(objects(texts).updates)
}

fn lines(changes: &[Change]) -> Vec<String> {
    let who = |who: &Who| match who {
        Who::Pods(pods) => pods.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
        Who::Outside(net) => net.to_string(),
        Who::Elsewhere { v4 } => (if *v4 { "v4" } else { "v6" }).to_owned(),
    };
    let line = |change: &Change| {
        format!("{} -> {} {}: {}", who(&change.from), who(&change.to), change.families, change.ports.join(", "))
    };
    changes.iter().map(line).collect()
}

#[test]
fn what_a_policy_would_refuse() {
    let (before, after) = (world(&[SHOP]), world(&[SHOP, POLICIES]));
    assert_eq!(after.faults, []);
    let comparison = compare(&before, &after);
    assert_eq!(comparison.allowed, []);
    let mut refused = lines(&comparison.refused);
    refused.sort();
    let web = "shop/web-template-00000+shop/web-template-00001";
    let mut expected = vec![
        format!(
            "{web} -> shop/db-0 IPv4 and IPv6: tcp/0-5431, tcp/5433-7999, tcp/8010-65535, udp, sctp, icmp, other protocols"
        ),
        // It is in 10.0.0.0/8.
        "ops/prometheus -> shop/db-0 IPv4: tcp, udp/0-52, udp/54-65535, sctp, icmp, other protocols".to_owned(),
        "10.0.0.0/8 -> shop/db-0 IPv4: tcp, udp/0-52, udp/54-65535, sctp, icmp, other protocols".to_owned(),
        "10.1.0.0/16 -> shop/db-0 IPv4: everything".to_owned(),
        "v4 -> shop/db-0 IPv4: everything".to_owned(),
        "v6 -> shop/db-0 IPv6: everything".to_owned(),
    ];
    expected.sort();
    // ICMP has no port and is another protocol in IPv6: it is merged with neither.
    assert_eq!(
        refused.iter().map(|line| line.replace("icmp, ip-47", "icmp, other protocols")).collect::<Vec<_>>(),
        expected
    );
    let back = compare(&after, &before);
    assert_eq!((back.refused.len(), back.allowed.len()), (0, expected.len()));
    assert!(compare(&after, &after).is_empty());
}

#[test]
fn those_alike_are_asked_about_each_other() {
    let only_db = POLICIES.replace("app: db", "app: web").replace("name: db", "name: web");
    let comparison = compare(
        &world(&[SHOP]),
        &world(&[SHOP, &only_db.replace("matchLabels: {app: web}}}]", "matchLabels: {app: db}}}]")]),
    );
    let web = "shop/web-template-00000+shop/web-template-00001";
    let own = format!("{web} -> {web} IPv4 and IPv6: everything");
    assert!(lines(&comparison.refused).contains(&own), "{:?}", lines(&comparison.refused));
}

#[test]
fn expectations_are_met_or_told() {
    let world = world(&[SHOP, POLICIES]);
    let unmet = |table: &str| {
        let expectations = expect::read(table, "shop").expect("it can be read");
        expect::unmet(&world, &expectations).into_iter().map(|unmet| (unmet.line, unmet.found)).collect::<Vec<_>>()
    };
    let met = "
        # who may reach the database
        must-work      deploy/web      sts/db          sql        # by name
        must-work      deploy/web      svc/db          5000
        must-work      deploy/web      db-0            tcp/8005
        must-work      ops/prometheus  shop/db-0       udp/53
        must-work      10.2.3.4        db-0            udp/53
        must-not-work  10.1.3.4        db-0            udp/53
        must-not-work  192.0.2.1       db-0            tcp/5432
        must-not-work  ops/prometheus  svc/shop/db     5000
        must-work      db-0            deploy/web      icmp
        must-work      db-0            192.0.2.1       tcp/443";
    assert_eq!(unmet(met), []);
    let [(2, refused)] = &unmet("\nmust-work ops/prometheus db-0 tcp/5432")[..] else { panic!() };
    assert!(refused.contains("no ingress rule of shop/db admits it"), "{refused}");
    let [(1, allowed)] = &unmet("must-not-work deploy/web db-0 sql")[..] else { panic!() };
    assert!(allowed.contains("by shop/db ingress rule 0"), "{allowed}");
    let [(1, nobody)] = &unmet("must-not-work nobody db-0 sql")[..] else { panic!() };
    assert!(nobody.contains("nobody is known"), "{nobody}");
    let [(1, outside)] = &unmet("must-work 192.0.2.1 192.0.2.2 tcp/1")[..] else { panic!() };
    assert!(outside.contains("neither"), "{outside}");
    for wrong in ["works a b 80", "must-work a b", "must-work a b tcp/", "must-work a/b/c/d b 80"] {
        let errors = expect::read(wrong, "shop").expect_err("it is wrong");
        assert!(errors[0].starts_with("line 1: "), "{errors:?}");
    }
}

#[test]
fn what_cannot_be_enforced_is_told_with_its_place() {
    let broken =
        objects(&["\n---\napiVersion: networking.k8s.io/v2\nkind: NetworkPolicy\n", "apiVersion: v1\nkind: [\n"]);
    let faults: Vec<&facts::Fault> = broken.faults.iter().collect();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].object.starts_with("objects.yaml:"), "{faults:?}");
    let bad_port = POLICIES.replace("port: sql", "port: 70000");
    let bad = objects(&[SHOP, &bad_port]);
    assert!(
        bad.faults.iter().any(|fault| fault.object == "shop/db" && fault.field.contains("ports")),
        "{:?}",
        bad.faults
    );
}

#[test]
fn pods_without_an_address_and_copies_of_pods_have_their_own() {
    let copy = SHOP.replace("name: prometheus", "name: copy");
    let world = world(&[SHOP, &copy]);
    let addresses = world.catalog.endpoints.iter().flat_map(|entry| entry.addresses.clone());
    let mut all: Vec<_> = addresses.collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
    assert_eq!(world.pods.len(), 5);
    assert!(world.catalog.endpoints.iter().all(|entry| entry.closed.is_none()), "{:?}", world.catalog.endpoints);
}
