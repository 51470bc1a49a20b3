//! Pods, namespaces, nodes, and what is none of ours.

use std::sync::Arc;

use super::check;
use crate::api::reduce::Reducer;
use crate::facts::Change;

#[test]
fn pods() {
    for (what, body, expected) in PODS {
        check(what, &format!("apiVersion: v1\nkind: Pod\n{body}"), expected);
    }
}

#[test]
fn namespaces() {
    for (what, body, expected) in NAMESPACES {
        check(what, &format!("apiVersion: v1\nkind: Namespace\n{body}"), expected);
    }
}

#[test]
fn nodes() {
    for (what, body, expected) in NODES {
        check(what, &format!("apiVersion: v1\nkind: Node\n{body}"), expected);
    }
}

#[test]
fn others() {
    for (what, yaml, expected) in OTHERS {
        check(what, yaml, expected);
    }
}

#[test]
fn pods_of_a_workload_share_labels_and_ports() {
    let mut reducer = Reducer::default();
    let mut facts = |name: &str| {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\n\
             spec: {{containers: [{{ports: [{{name: http, containerPort: 80}}]}}]}}"
        );
        let value = serde_norway::from_str(&yaml).expect("YAML");
        match reducer.object(value).expect("a pod").expect("of a known kind").change {
            Change::Pod { facts: Some(facts), .. } => facts,
            other => panic!("{other:?}"),
        }
    };
    let (one, other) = (facts("a"), facts("b"));
    assert!(Arc::ptr_eq(&one.labels, &other.labels));
    assert!(Arc::ptr_eq(&one.ports, &other.ports));
}

type Row = (&'static str, &'static str, &'static str);

const PODS: &[Row] = &[
    (
        "host ports",
        "metadata: {name: h, namespace: a, uid: u}\nspec: {nodeName: n, containers: [{ports: [{containerPort: 80, hostPort: 8080}, \
         {containerPort: 53, hostPort: 53, protocol: UDP, hostIP: 192.0.2.1}, {containerPort: 1, hostPort: 1, hostIP: 0.0.0.0}, \
         {containerPort: 2, hostPort: 0}, {containerPort: 3, hostPort: 3, hostIP: x}]}]}",
        "a/h u: [] [] [] host ports TCP/1,TCP/8080,UDP/53/192.0.2.1 on n ! spec.containers[0].ports[4].hostPort",
    ),
    (
        "ports of the node itself are not translated",
        "metadata: {name: h, namespace: a, uid: u}\nspec: {nodeName: n, hostNetwork: true, containers: [{ports: [{containerPort: 80, hostPort: 80}]}]}",
        "a/h u: [] [] [] on n host",
    ),
    ("the least", "metadata: {name: a}", "default/a folder:default/a: [] [] []"),
    ("namespace empty", "metadata: {name: a, namespace: ''}", "default/a folder:default/a: [] [] []"),
    ("identity", "metadata: {name: a, namespace: n, uid: u-1}", "n/a u-1: [] [] []"),
    ("labels", "metadata: {name: a, uid: u, labels: {b: '', a: x, c: '007'}}", "default/a u: [a=x,b=,c=007] [] []"),
    (
        "5.8 both families",
        "metadata: {name: a, uid: u}\nstatus: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}",
        "default/a u: [] [10.0.0.1,fd00::1] []",
    ),
    ("5.8 podIP alone", "metadata: {name: a, uid: u}\nstatus: {podIP: 'fd00::1'}", "default/a u: [] [fd00::1] []"),
    ("9.1 no address yet", "metadata: {name: a, uid: u}\nstatus: {podIP: '', podIPs: []}", "default/a u: [] [] []"),
    (
        "an address that is none",
        "metadata: {name: a, uid: u}\nstatus: {podIP: x, podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.256}, 7]}",
        "default/a u: [] [10.0.0.1] [] ! status.podIPs[1].ip ! status.podIPs[2].ip ! status.podIP",
    ),
    (
        "9.2 terminating",
        "metadata: {name: a, uid: u, deletionTimestamp: '2026-01-01T00:00:00Z'}\nstatus: {phase: Running, podIP: 10.0.0.1}",
        "default/a u: [] [10.0.0.1] []",
    ),
    (
        "9.3 succeeded",
        "metadata: {name: a, uid: u}\nstatus: {phase: Succeeded, podIP: 10.0.0.1}",
        "default/a u: [] [10.0.0.1] [] finished",
    ),
    ("9.3 failed", "metadata: {name: a, uid: u}\nstatus: {phase: Failed}", "default/a u: [] [] [] finished"),
    ("9.3 pending", "metadata: {name: a, uid: u}\nstatus: {phase: Pending}", "default/a u: [] [] []"),
    (
        "10.1 host network",
        "metadata: {name: a, uid: u}\nspec: {hostNetwork: true, nodeName: w1}",
        "default/a u: [] [] [] on w1 host",
    ),
    ("not on a node yet", "metadata: {name: a, uid: u}\nspec: {nodeName: ''}", "default/a u: [] [] []"),
    (
        "7.6 named ports",
        "metadata: {name: a, uid: u}\nspec: {containers: [{ports: [{name: http, containerPort: 80}, {containerPort: 81}, {name: dns, protocol: UDP, containerPort: 53}]}]}",
        "default/a u: [] [] [dns=UDP/53,http=TCP/80]",
    ),
    (
        "7.10 a name twice",
        "metadata: {name: a, uid: u}\nspec: {containers: [{ports: [{name: p, containerPort: 80}]}, {ports: [{name: p, containerPort: 81}]}]}",
        "default/a u: [] [] [p=TCP/80,p=TCP/81]",
    ),
    (
        "7.11 sidecars",
        "metadata: {name: a, uid: u}\nspec: {initContainers: [{restartPolicy: Always, ports: [{name: s, containerPort: 1}]}, {ports: [{name: i, containerPort: 2}]}, {restartPolicy: OnFailure, ports: [{name: o, containerPort: 3}]}]}",
        "default/a u: [] [] [s=TCP/1]",
    ),
    (
        "ports that are none",
        "metadata: {name: a, uid: u}\nspec: {containers: [{ports: [{name: z, containerPort: 0}, {name: x, protocol: X, containerPort: 1}, {name: 7, containerPort: 1}, {name: ok, protocol: SCTP, containerPort: 65535}]}]}",
        "default/a u: [] [] [ok=SCTP/65535] ! spec.containers[0].ports[0] ! spec.containers[0].ports[1] ! spec.containers[0].ports[2]",
    ),
    (
        "ports no list",
        "metadata: {name: a, uid: u}\nspec: {containers: [{ports: 80}], initContainers: 1}",
        "default/a u: [] [] [] ! spec.containers[0].ports ! spec.initContainers",
    ),
    (
        "4.6 a label that is a number",
        "metadata: {name: a, uid: u, labels: {v: 1, w: x}}",
        "default/a u: closed ! metadata.labels[v]",
    ),
    ("labels no map", "metadata: {name: a, uid: u, labels: [x]}", "default/a u: closed ! metadata.labels"),
    (
        "hostNetwork no flag",
        "metadata: {name: a, uid: u}\nspec: {hostNetwork: 'true'}",
        "default/a u: closed ! spec.hostNetwork",
    ),
    ("nodeName no text", "metadata: {name: a, uid: u}\nspec: {nodeName: 1}", "default/a u: closed ! spec.nodeName"),
    (
        "spec and status no maps",
        "metadata: {name: a, uid: u}\nspec: 1\nstatus: [1]",
        "default/a u: closed ! spec ! status",
    ),
    ("phase no text", "metadata: {name: a, uid: u}\nstatus: {phase: {}}", "default/a u: closed ! status.phase"),
    (
        "null everywhere",
        "metadata: {name: a, uid: null, labels: null, namespace: null}\nspec: {nodeName: null, hostNetwork: null, containers: null}\nstatus: null",
        "default/a folder:default/a: [] [] []",
    ),
    ("no name", "metadata: {namespace: n}", "refused ! metadata.name"),
    ("namespace no text", "metadata: {name: a, namespace: 7}", "refused ! metadata.namespace"),
];

const NAMESPACES: &[Row] = &[
    ("5.6 the label of the name", "metadata: {name: a}", "a: kubernetes.io/metadata.name=a"),
    (
        "5.6 immutable",
        "metadata: {name: a, labels: {kubernetes.io/metadata.name: b, t: x}}",
        "a: kubernetes.io/metadata.name=a,t=x",
    ),
    (
        "trusted",
        "metadata: {name: a, annotations: {palisade.dev/trusted-addresses: 'true', other: x}}",
        "a: kubernetes.io/metadata.name=a trusted",
    ),
    (
        "not trusted",
        "metadata: {name: a, annotations: {palisade.dev/trusted-addresses: 'false'}}",
        "a: kubernetes.io/metadata.name=a",
    ),
    (
        "trust no flag",
        "metadata: {name: a, annotations: {palisade.dev/trusted-addresses: 'yes'}}",
        "a: kubernetes.io/metadata.name=a ! metadata.annotations[palisade.dev/trusted-addresses]",
    ),
    (
        "trust no text",
        "metadata: {name: a, annotations: {palisade.dev/trusted-addresses: true}}",
        "a: kubernetes.io/metadata.name=a ! metadata.annotations[palisade.dev/trusted-addresses]",
    ),
    ("a label that is a number", "metadata: {name: a, labels: {t: 1}}", "a: closed ! metadata.labels[t]"),
    ("no name", "metadata: {}", "refused ! metadata.name"),
];

const NODES: &[Row] = &[
    (
        "addresses and CIDRs",
        "metadata: {name: w1}\nspec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: w1}, {type: ExternalIP, address: '2001:db8::1'}]}",
        "w1: [192.0.2.1,2001:db8::1] [10.1.0.0/24,fd00:1::/64]",
    ),
    ("podCIDR alone", "metadata: {name: w1}\nspec: {podCIDR: 10.1.0.0/24}", "w1: [] [10.1.0.0/24]"),
    ("nothing known", "metadata: {name: w1}", "w1: [] []"),
    (
        "what is none",
        "metadata: {name: w1}\nspec: {podCIDRs: [x, 10.1.0.0/24]}\nstatus: {addresses: [{type: InternalIP, address: x}]}",
        "w1: [] [10.1.0.0/24] ! status.addresses[0].address ! spec.podCIDRs[0]",
    ),
];

#[test]
fn services() {
    for (what, body, expected) in SERVICES {
        check(what, &format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\n{body}"), expected);
    }
}

const SERVICES: &[Row] = &[
    (
        "of both families, with every kind of target",
        "spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00:96::1'], selector: {app: web}, ports: [{port: 80}, \
         {port: 81, targetPort: 8081}, {port: 82, targetPort: http, nodePort: 30082}, {port: 53, protocol: UDP, targetPort: 0}]}",
        "a/s: [10.96.0.1,fd00:96::1] [TCP/80 to 80,TCP/81 to 8081,TCP/82 node 30082 to http,UDP/53 to 53] [app=web]",
    ),
    (
        "headless",
        "spec: {clusterIP: None, externalIPs: [192.0.2.1], ports: [{port: 80, nodePort: 30080}]}",
        "a/s: [] [] []",
    ),
    ("an alias", "spec: {type: ExternalName, clusterIP: '', externalName: example.org}", "a/s: [] [] []"),
    (
        "from outside",
        "spec: {clusterIP: 10.96.0.1, externalIPs: [192.0.2.1], ports: [{port: 80}]}\n\
         status: {loadBalancer: {ingress: [{ip: 192.0.2.2}, {ip: 192.0.2.3, ipMode: VIP}, {ip: 192.0.2.4, ipMode: Proxy}, {hostname: x}]}}",
        "a/s: [10.96.0.1,192.0.2.1,192.0.2.2,192.0.2.3] [TCP/80 to 80] []",
    ),
    (
        "what is none",
        "spec: {clusterIP: x, clusterIPs: [1], selector: {app: 1}, ports: [{port: 0}, {port: 80}, {port: 81, nodePort: 99999}, \
         {port: 82, protocol: ICMP}, {port: 83, targetPort: []}]}",
        "a/s: [] [TCP/80 to 80] [] ! spec.clusterIP ! spec.clusterIPs[0] ! spec.ports[0] ! spec.ports[2] ! spec.ports[3] \
         ! spec.ports[4] ! spec.selector",
    ),
    (
        "nothing in its places",
        "spec: {externalIPs: x, ports: 1, selector: []}",
        "a/s: [] [] [] ! spec.externalIPs ! spec.ports ! spec.selector",
    ),
];

const OTHERS: &[Row] = &[
    ("a ConfigMap", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}", "nothing"),
    ("a Deployment", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}", "nothing"),
    (
        "another vendor's policy",
        "{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {name: a}}",
        "nothing",
    ),
    ("another vendor's pod", "{apiVersion: example.org/v1, kind: Pod, metadata: {name: a}}", "nothing"),
    ("a policy of no group", "{apiVersion: v1, kind: NetworkPolicy, metadata: {name: a}}", "refused ! apiVersion"),
    (
        "a policy of an old group",
        "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}",
        "refused ! apiVersion",
    ),
    (
        "a policy without a name",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, spec: {}}",
        "refused ! metadata.name",
    ),
    ("no apiVersion", "{kind: Pod, metadata: {name: a}}", "refused ! apiVersion"),
    ("no kind", "{apiVersion: v1, metadata: {name: a}}", "refused ! kind"),
    ("no object", "[1]", "refused !"),
];
