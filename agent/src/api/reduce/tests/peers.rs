//! Peers of NetworkPolicies, as rows of `policies`.

use super::policies::Row;

pub const PEERS: &[Row] = &[
    ("5.1 podSelector alone", "spec: {ingress: [{from: [{podSelector: {matchLabels: {a: x}}}]}]}", "* in(n/a=x: all)"),
    ("5.2 podSelector empty", "spec: {ingress: [{from: [{podSelector: {}}]}]}", "* in(n/*: all)"),
    (
        "5.3 namespaceSelector alone",
        "spec: {ingress: [{from: [{namespaceSelector: {matchLabels: {t: x}}}]}]}",
        "* in(<t=x>/*: all)",
    ),
    ("5.4 namespaceSelector empty", "spec: {ingress: [{from: [{namespaceSelector: {}}]}]}", "* in(<*>/*: all)"),
    (
        "5.5 both in one",
        "spec: {ingress: [{from: [{namespaceSelector: {matchLabels: {t: x}}, podSelector: {matchLabels: {a: y}}}]}]}",
        "* in(<t=x>/a=y: all)",
    ),
    (
        "5.5 both in two",
        "spec: {ingress: [{from: [{namespaceSelector: {}}, {podSelector: {}}]}]}",
        "* in(<*>/* + n/*: all)",
    ),
    (
        "5.9 podSelector empty beside",
        "spec: {ingress: [{from: [{namespaceSelector: {}, podSelector: {}}]}]}",
        "* in(<*>/*: all)",
    ),
    (
        "5.1 namespaceSelector null",
        "spec: {ingress: [{from: [{namespaceSelector: null, podSelector: {}}]}]}",
        "* in(n/*: all)",
    ),
    (
        "5.7 nothing in it",
        "spec: {ingress: [{from: [{}, {podSelector: {}}]}]}",
        "* in(n/*: all) ! spec.ingress[0].from[0]",
    ),
    (
        "5.7 nothing but null",
        "spec: {ingress: [{from: [{podSelector: null}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0]",
    ),
    ("5.7 null", "spec: {ingress: [{from: [null]}]}", "* in(none: all) ! spec.ingress[0].from[0]"),
    (
        "5.7 ipBlock and podSelector",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0]",
    ),
    (
        "5.7 ipBlock and namespaceSelector",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0]",
    ),
    (
        "15.2 a selector of a peer",
        "spec: {ingress: [{from: [{podSelector: {}}, {namespaceSelector: 1}]}]}",
        "* in(n/*: all) ! spec.ingress[0].from[1].namespaceSelector",
    ),
    (
        "15.2 an unknown peer",
        "spec: {ingress: [{from: [{podSelector: {}, nodes: {}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0]",
    ),
    (
        "egress peers",
        "spec: {policyTypes: [Egress], egress: [{to: [{podSelector: {}}, 7]}]}",
        "* out(n/*: all) ! spec.egress[0].to[1]",
    ),
];

pub const BLOCKS: &[Row] = &[
    ("6.1 a block", "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}", "* in(10.0.0.0/8: all)"),
    (
        "6.1 except null",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: null}}]}]}",
        "* in(10.0.0.0/8: all)",
    ),
    (
        "6.4 sorted, without doubles",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.0/16, 10.2.0.0/16]}}]}]}",
        "* in(10.0.0.0/8 -10.1.0.0/16 -10.2.0.0/16: all)",
    ),
    (
        "6.4 nested excepts",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.2.0/24, 10.1.0.0/16, 10.0.0.0/16]}}]}]}",
        "* in(10.0.0.0/8 -10.0.0.0/16 -10.1.0.0/16: all)",
    ),
    (
        "6.4 an except outside",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}, {podSelector: {}}]}]}",
        "* in(n/*: all) ! spec.ingress[0].from[0].ipBlock.except[1]",
    ),
    (
        "6.4 an except as wide",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "6.4 an except of the other family",
        "spec: {ingress: [{from: [{ipBlock: {cidr: '::/0', except: [10.0.0.0/8]}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "6.4 except no list",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.except",
    ),
    (
        "6.6 all of a family",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]}",
        "* in(0.0.0.0/0 + ::/0: all)",
    ),
    (
        "6.7 host bits",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/24, except: [10.0.0.9/30]}}]}]}",
        "* in(10.0.0.0/24 -10.0.0.8/30: all)",
    ),
    ("6.7 host bits of IPv6", "spec: {ingress: [{from: [{ipBlock: {cidr: 'FD00::1:2/64'}}]}]}", "* in(fd00::/64: all)"),
    ("6.7 leading zeros", "spec: {ingress: [{from: [{ipBlock: {cidr: 010.001.2.0/024}}]}]}", "* in(10.1.2.0/24: all)"),
    (
        "6.8 v4-mapped is IPv6",
        "spec: {ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104', except: ['::ffff:10.1.0.0/112']}}]}]}",
        "* in(::ffff:10.0.0.0/104 -::ffff:10.1.0.0/112: all)",
    ),
    (
        "6.8 v4-mapped is not in IPv4",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['::ffff:10.1.0.0/112']}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "6.8 a zone",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 'fe80::%eth0/64'}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "15.2 no cidr",
        "spec: {ingress: [{from: [{ipBlock: {}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "15.2 an address",
        "spec: {ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.1}}]}]}",
        "* in(n/*: all) ! spec.ingress[0].from[1].ipBlock.cidr",
    ),
    (
        "15.2 too long",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "15.2 a sign",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/+8}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "15.2 five octets",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0.0/8}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "15.2 an octet too big",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.256.0/8}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "15.2 a misspelt except",
        "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, excepts: [10.1.0.0/16]}}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock",
    ),
    (
        "15.2 ipBlock no map",
        "spec: {ingress: [{from: [{ipBlock: 10.0.0.0/8}]}]}",
        "* in(none: all) ! spec.ingress[0].from[0].ipBlock",
    ),
];
