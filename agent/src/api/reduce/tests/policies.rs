//! NetworkPolicies: each row is (the point of SEMANTICS and what it is about, `spec` as flow YAML, facts and faults).

use super::super::object;
use super::check;
use super::peers::{BLOCKS, PEERS};

#[test]
fn policies() {
    for (what, spec, expected) in OBJECT.iter().chain(RULES).chain(SELECTORS).chain(PEERS).chain(BLOCKS).chain(PORTS) {
        let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: n}\n";
        check(what, &format!("{head}{spec}\n"), &format!("n/p: {expected}"));
    }
}

#[test]
fn when_a_policy_was_written() {
    const MADE: &str = "creationTimestamp: '2026-01-01T00:00:00Z'";
    let rows: [(&str, Option<i64>); 5] = [
        ("", None),
        (MADE, Some(1_767_225_600)),
        (
            "creationTimestamp: null, managedFields: [{time: '2026-01-01T00:00:07Z'}, {}, {time: '2026-01-01T00:00:03Z'}]",
            Some(1_767_225_607),
        ),
        ("creationTimestamp: yesterday, managedFields: nobody", None),
        ("creationTimestamp: '2026-01-01T00:00:00Z', managedFields: [{time: soon}]", Some(1_767_225_600)),
    ];
    for (metadata, expected) in rows {
        let yaml = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: n, {metadata}}}, spec: {{}}}}"
        );
        let update = object(serde_norway::from_str(&yaml).expect("YAML"));
        assert_eq!(update.ok().flatten().expect("it has a name").written, expected, "{metadata}");
    }
}

pub type Row = (&'static str, &'static str, &'static str);

const OBJECT: &[Row] = &[
    ("2.1 no podSelector", "spec: {}", "* in()"),
    ("2.1 podSelector null", "spec: {podSelector: null}", "* in()"),
    ("2.1 podSelector empty", "spec: {podSelector: {}}", "* in()"),
    ("2.1 no spec", "", "* in()"),
    ("2.1 spec null", "spec: null", "* in()"),
    ("2.2 egress empty does not isolate", "spec: {egress: []}", "* in()"),
    ("2.2 egress null", "spec: {egress: null}", "* in()"),
    ("2.2 an egress rule isolates for both", "spec: {egress: [{}]}", "* in() out(all: all)"),
    ("2.2 policyTypes empty", "spec: {policyTypes: [], egress: [{}]}", "* in() out(all: all)"),
    ("2.2 policyTypes null", "spec: {policyTypes: null, ingress: [{}]}", "* in(all: all)"),
    ("2.2 policyTypes Egress", "spec: {policyTypes: [Egress]}", "* out()"),
    ("2.2 both", "spec: {policyTypes: [Egress, Ingress]}", "* in() out()"),
    ("2.3 ingress rules of an egress policy", "spec: {policyTypes: [Egress], ingress: [{}]}", "* out()"),
    ("2.3 egress rules of an ingress policy", "spec: {policyTypes: [Ingress], egress: [{}]}", "* in()"),
    ("2.3 faults of ignored rules are told", "spec: {policyTypes: [Ingress], egress: [7]}", "* in() ! spec.egress[0]"),
    ("2.4 ingress null", "spec: {ingress: null}", "* in()"),
    ("2.4 ingress empty", "spec: {ingress: []}", "* in()"),
    ("2.5 the empty rule", "spec: {ingress: [{}]}", "* in(all: all)"),
    ("2.6 other metadata and status", "spec: {}\nstatus: {conditions: []}", "* in()"),
    ("15.2 policyTypes no list", "spec: {policyTypes: Ingress}", "* in() out() ! spec.policyTypes"),
    ("15.2 unknown policy type", "spec: {policyTypes: [Ingress, egress]}", "* in() out() ! spec.policyTypes[1]"),
    ("15.2 policy type null", "spec: {policyTypes: [null]}", "* in() out() ! spec.policyTypes[0]"),
    ("15.2 spec no map", "spec: [1]", "* in() out() ! spec"),
    ("15.2 ingress no list", "spec: {ingress: {}}", "* in() ! spec.ingress"),
    ("15.2 egress no list isolates", "spec: {egress: {to: []}}", "* in() out() ! spec.egress"),
    ("15.2 a misspelt selector", "spec: {podselector: {}, policyTypes: [Ingress]}", "* in() ! spec"),
    ("15.2 a misspelt direction", "spec: {egres: [{}]}", "* in() out() ! spec"),
    ("15.2 subject unreadable", "spec: {podSelector: {matchLabels: [a]}}", "* in() ! spec.podSelector.matchLabels"),
    ("15.2 subject no map", "spec: {podSelector: web}", "* in() ! spec.podSelector"),
];

const RULES: &[Row] = &[
    (
        "3.1 rules stay apart",
        "spec: {ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {}}]}]}",
        "* in(all: TCP/1 | n/*: all)",
    ),
    ("3.2 from null", "spec: {ingress: [{from: null}]}", "* in(all: all)"),
    ("3.2 from empty", "spec: {ingress: [{from: []}]}", "* in(all: all)"),
    ("3.2 to empty", "spec: {policyTypes: [Egress], egress: [{to: []}]}", "* out(all: all)"),
    ("3.3 ports null", "spec: {ingress: [{ports: null}]}", "* in(all: all)"),
    ("3.3 ports empty", "spec: {ingress: [{ports: []}]}", "* in(all: all)"),
    ("3.4 peers that are nobody", "spec: {ingress: [{from: [{}]}]}", "* in(none: all) ! spec.ingress[0].from[0]"),
    (
        "3.5 ports that are none",
        "spec: {ingress: [{ports: [{port: 0}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    ("15.2 from no list", "spec: {ingress: [{from: {podSelector: {}}}]}", "* in(none: all) ! spec.ingress[0].from"),
    ("15.2 ports no list", "spec: {ingress: [{ports: 80}]}", "* in(all: none) ! spec.ingress[0].ports"),
    ("15.2 a rule null", "spec: {ingress: [null, {}]}", "* in(none: none | all: all) ! spec.ingress[0]"),
    ("15.2 to in ingress", "spec: {ingress: [{to: [{podSelector: {}}]}]}", "* in(none: none) ! spec.ingress[0]"),
    (
        "15.2 from in egress",
        "spec: {policyTypes: [Egress], egress: [{from: []}]}",
        "* out(none: none) ! spec.egress[0]",
    ),
    ("15.2 a misspelt from", "spec: {ingress: [{form: [{podSelector: {}}]}]}", "* in(none: none) ! spec.ingress[0]"),
];

const SELECTORS: &[Row] = &[
    (
        "4.1 all requirements",
        "spec: {podSelector: {matchLabels: {b: x, a: y}, matchExpressions: [{key: c, operator: Exists}]}}",
        "a=y&b=x&c in()",
    ),
    ("4.1 members null", "spec: {podSelector: {matchLabels: null, matchExpressions: null}}", "* in()"),
    ("4.1 members empty", "spec: {podSelector: {matchLabels: {}, matchExpressions: []}}", "* in()"),
    (
        "4.1 the same twice",
        "spec: {podSelector: {matchLabels: {a: x}, matchExpressions: [{key: a, operator: In, values: [x]}]}}",
        "a=x in()",
    ),
    (
        "4.2 NotIn",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [y, x, y]}]}}",
        "a!=x|y in()",
    ),
    (
        "4.2 DoesNotExist",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: []}]}}",
        "!a in()",
    ),
    ("4.3 the empty value", "spec: {podSelector: {matchLabels: {a: ''}}}", "a= in()"),
    (
        "4.3 the empty value in In",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: In, values: ['']}]}}",
        "a= in()",
    ),
    (
        "4.4 In without values",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].values",
    ),
    (
        "4.4 NotIn without values",
        "spec: {ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].podSelector.matchExpressions[0].values",
    ),
    (
        "4.4 Exists with values",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: Exists, values: [x]}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].values",
    ),
    (
        "4.4 DoesNotExist with values",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [x]}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].values",
    ),
    (
        "4.4 unknown operator",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].operator",
    ),
    (
        "4.4 operator of another case",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: exists}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].operator",
    ),
    (
        "4.4 a contradiction is valid",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: Exists}, {key: a, operator: DoesNotExist}]}}",
        "a&!a in()",
    ),
    (
        "4.5 keys as they are",
        "spec: {podSelector: {matchLabels: {app.kubernetes.io/Name: x, host: Y z}}}",
        "app.kubernetes.io/Name=x&host=Y z in()",
    ),
    (
        "4.5 a key is needed",
        "spec: {podSelector: {matchExpressions: [{operator: Exists}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].key",
    ),
    (
        "4.6 texts that look otherwise",
        "spec: {podSelector: {matchLabels: {a: '007', b: 'true', c: '1.0'}}}",
        "a=007&b=true&c=1.0 in()",
    ),
    (
        "4.6 a number is no text",
        "spec: {podSelector: {matchLabels: {a: 7}}}",
        "* in() ! spec.podSelector.matchLabels[a]",
    ),
    (
        "4.6 a number among values",
        "spec: {podSelector: {matchExpressions: [{key: a, operator: In, values: [x, 1]}]}}",
        "* in() ! spec.podSelector.matchExpressions[0].values[1]",
    ),
    ("15.2 a misspelt member", "spec: {podSelector: {matchlabels: {a: x}}}", "* in() ! spec.podSelector"),
];

const PORTS: &[Row] = &[
    ("7.1 the empty entry", "spec: {ingress: [{ports: [{}]}]}", "* in(all: TCP/0-65535)"),
    ("7.1 protocol missing", "spec: {ingress: [{ports: [{port: 80}]}]}", "* in(all: TCP/80)"),
    ("7.1 protocol null", "spec: {ingress: [{ports: [{port: 80, protocol: null}]}]}", "* in(all: TCP/80)"),
    (
        "7.1 per entry",
        "spec: {ingress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}]}",
        "* in(all: UDP/53,TCP/53)",
    ),
    (
        "7.1 of a name",
        "spec: {ingress: [{ports: [{port: http}, {port: http, protocol: SCTP}]}]}",
        "* in(all: TCP/http,SCTP/http)",
    ),
    ("7.2 port missing", "spec: {ingress: [{ports: [{protocol: UDP}]}]}", "* in(all: UDP/0-65535)"),
    ("7.2 port null", "spec: {ingress: [{ports: [{protocol: SCTP, port: null}]}]}", "* in(all: SCTP/0-65535)"),
    ("7.4 a range", "spec: {ingress: [{ports: [{port: 80, endPort: 90}]}]}", "* in(all: TCP/80-90)"),
    ("7.4 a range of one", "spec: {ingress: [{ports: [{port: 80, endPort: 80}]}]}", "* in(all: TCP/80)"),
    ("7.4 endPort null", "spec: {ingress: [{ports: [{port: 80, endPort: null}]}]}", "* in(all: TCP/80)"),
    ("7.4 to the last", "spec: {ingress: [{ports: [{port: 1, endPort: 65535}]}]}", "* in(all: TCP/1-65535)"),
    (
        "7.4 backwards",
        "spec: {ingress: [{ports: [{port: 80, endPort: 79}, {port: 1}]}]}",
        "* in(all: TCP/1) ! spec.ingress[0].ports[0].endPort",
    ),
    (
        "7.4 from a name",
        "spec: {ingress: [{ports: [{port: http, endPort: 90}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].endPort",
    ),
    (
        "7.4 from nothing",
        "spec: {ingress: [{ports: [{endPort: 90}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].endPort",
    ),
    (
        "7.4 beyond the last",
        "spec: {ingress: [{ports: [{port: 80, endPort: 65536}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].endPort",
    ),
    (
        "7.4 to a name",
        "spec: {ingress: [{ports: [{port: 80, endPort: http}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].endPort",
    ),
    (
        "7.14 every protocol",
        "spec: {ingress: [{ports: [{protocol: SCTP, port: 7}, {protocol: TCP, port: 7}]}]}",
        "* in(all: SCTP/7,TCP/7)",
    ),
    (
        "15.1 an unknown protocol",
        "spec: {ingress: [{ports: [{protocol: ICMP}, {port: 1}]}]}",
        "* in(all: TCP/1) ! spec.ingress[0].ports[0].protocol",
    ),
    (
        "15.1 protocol of another case",
        "spec: {ingress: [{ports: [{protocol: tcp, port: 1}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].protocol",
    ),
    (
        "15.1 protocol empty",
        "spec: {ingress: [{ports: [{protocol: '', port: 1}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].protocol",
    ),
    (
        "15.1 port too big",
        "spec: {ingress: [{ports: [{port: 65536}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 port negative",
        "spec: {ingress: [{ports: [{port: -1}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 port with a fraction",
        "spec: {ingress: [{ports: [{port: 80.5}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 a number in quotes is a name without a letter",
        "spec: {ingress: [{ports: [{port: '80'}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 a name in capitals",
        "spec: {ingress: [{ports: [{port: HTTP}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 a name too long",
        "spec: {ingress: [{ports: [{port: abcdefghijklmnop}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 the longest name",
        "spec: {ingress: [{ports: [{port: abcdefghijklmn0}]}]}",
        "* in(all: TCP/abcdefghijklmn0)",
    ),
    (
        "15.1 two hyphens",
        "spec: {ingress: [{ports: [{port: a--b}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    (
        "15.1 hyphens outside",
        "spec: {ingress: [{ports: [{port: -a}, {port: a-}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port ! spec.ingress[0].ports[1].port",
    ),
    (
        "15.1 the empty name",
        "spec: {ingress: [{ports: [{port: ''}]}]}",
        "* in(all: none) ! spec.ingress[0].ports[0].port",
    ),
    ("15.2 no entry", "spec: {ingress: [{ports: [80, {port: 1}]}]}", "* in(all: TCP/1) ! spec.ingress[0].ports[0]"),
    ("15.2 an entry null", "spec: {ingress: [{ports: [null]}]}", "* in(all: none) ! spec.ingress[0].ports[0]"),
    ("15.2 a misspelt port", "spec: {ingress: [{ports: [{ports: 80}]}]}", "* in(all: none) ! spec.ingress[0].ports[0]"),
];
