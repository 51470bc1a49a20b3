//! Written cases: each point of SEMANTICS that concerns selection, classes, named ports and blocks.

use super::check;

/// A subject a/s behind veth 5 and some peers.
const CLUSTER: &str = "
    ns a team=x
    ns b team=y
    pod a/s ip=10.0.0.5,fd00::5 node=n app=s port=http/TCP/8080
    pod a/web ip=10.0.1.1,fd00::11 app=web port=http/TCP/80 port=dns/UDP/53
    pod a/db ip=10.0.1.2 app=db tier=
    pod b/web ip=10.0.2.1 app=web port=http/TCP/81
    veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#a/s
    complete
";

fn case(policies: &str, questions: &str) {
    check(&format!("{CLUSTER}{policies}"), questions);
}

#[test]
fn isolation() {
    // SEMANTICS 1.1, 1.2: the other direction is left alone; another namespace's policies do not count.
    case("", "5 in 9.9.9.9 TCP/1 allow\n5 out 9.9.9.9 ICMP/0 allow");
    case("policy b/p . in() out()", "5 in 9.9.9.9 TCP/1 allow\n5 out 9.9.9.9 TCP/1 allow");
    case("policy a/p app=other in()", "5 in 9.9.9.9 TCP/1 allow");
    case("policy a/p app=s in()", "5 in 10.0.1.1 TCP/1 deny\n5 in 10.0.1.1 ICMP/0 deny\n5 out 10.0.1.1 TCP/1 allow");
    case("policy a/p . out()", "5 in 10.0.1.1 TCP/1 allow\n5 out 10.0.1.1 TCP/1 deny");
    // 1.3: the union of all that apply.
    let two = "policy a/p . in(app=web|TCP/1)\npolicy a/q . in(app=db|TCP/2)\npolicy a/r . in()";
    case(
        two,
        "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.1.1 TCP/2 deny\n5 in 10.0.1.2 TCP/2 allow\n5 in 10.0.1.2 TCP/1 deny",
    );
}

#[test]
fn rules() {
    // SEMANTICS 3.2, 3.3, 2.5: missing peers are everybody, missing ports every protocol.
    case("policy a/p . in(*|*)", "5 in 9.9.9.9 TCP/1 allow\n5 in fd00::9 ICMP/0 allow");
    case("policy a/p . in(*|TCP/80)", "5 in 9.9.9.9 TCP/80 allow\n5 in 9.9.9.9 UDP/80 deny\n5 in 9.9.9.9 ICMP/0 deny");
    // 3.4, 3.5: emptied lists allow nothing.
    case("policy a/p . in(-|*) in(*|-)", "5 in 10.0.1.1 TCP/80 deny");
    case("policy a/p . in(*|TCP/nowhere)", "5 in 10.0.1.1 TCP/80 deny\n5 in 10.0.1.1 TCP/8080 deny");
    // 3.1: peers of one rule never combine with the ports of another.
    let crossed = "policy a/p . in(app=web|TCP/1) in(app=db|TCP/2-9)";
    case(
        crossed,
        "5 in 10.0.1.1 TCP/2 deny\n5 in 10.0.1.2 TCP/1 deny\n5 in 10.0.1.2 TCP/9 allow\n5 in 10.0.1.2 TCP/10 deny",
    );
    // What everybody may use stays with those who may use more.
    case(
        "policy a/p . in(*|TCP/1) in(app=web|TCP/2)",
        "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.1.1 TCP/2 allow\n5 in 10.0.1.2 TCP/2 deny",
    );
}

#[test]
fn selectors() {
    // SEMANTICS 4.2, 4.3: NotIn matches an absent key; the empty value is a value.
    case(
        "policy a/p . in(app!=web|*)",
        "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.1.1 TCP/1 deny\n5 in 10.0.2.1 TCP/1 deny",
    );
    case("policy a/p . in(tier!=x|*)", "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.1.2 TCP/1 allow");
    case("policy a/p . in(tier=|*)", "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.1.1 TCP/1 deny");
    case("policy a/p . in(tier|*)", "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.1.1 TCP/1 deny");
    case("policy a/p . in(!tier|*)", "5 in 10.0.1.2 TCP/1 deny\n5 in 10.0.1.1 TCP/1 allow");
    case("policy a/p . in(app=web^db,tier|*)", "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.1.1 TCP/1 deny");
}

#[test]
fn peers() {
    // SEMANTICS 5.1, 5.3, 5.4, 5.5.
    case("policy a/p . in(app=web|*)", "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.2.1 TCP/1 deny");
    case("policy a/p . in(.|*)", "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.2.1 TCP/1 deny\n5 in 9.9.9.9 TCP/1 deny");
    case("policy a/p . in(.//.|*)", "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.2.1 TCP/1 allow\n5 in 9.9.9.9 TCP/1 deny");
    case("policy a/p . in(team=y//.|*)", "5 in 10.0.1.1 TCP/1 deny\n5 in 10.0.2.1 TCP/1 allow");
    case("policy a/p . in(team=y//app=db|*)", "5 in 10.0.1.2 TCP/1 deny\n5 in 10.0.2.1 TCP/1 deny");
    case(
        "policy a/p . in(team=y//.+app=db|*)",
        "5 in 10.0.1.2 TCP/1 allow\n5 in 10.0.2.1 TCP/1 allow\n5 in 10.0.1.1 TCP/1 deny",
    );
    // 5.8: all addresses of a pod.
    case("policy a/p . in(app=web|*)", "5 in fd00::11 TCP/1 allow\n5 in fd00::12 TCP/1 deny");
    // A namespace whose object is not known matches no selector, not even the empty one.
    let unknown = "pod c/w ip=10.0.3.1\npolicy a/p . in(.//.|*)";
    case(unknown, "5 in 10.0.3.1 TCP/1 deny");
}

#[test]
fn pods_that_are_no_peers() {
    // SEMANTICS 9.1, 9.3, 10: finished and hostNetwork pods match no selector; blocks still match their addresses.
    case("pod a/web ip=10.0.1.1 app=web finished\npolicy a/p . in(app=web|*)", "5 in 10.0.1.1 TCP/1 deny");
    case(
        "pod a/web ip=10.0.1.1 app=web host\npolicy a/p . in(app=web+@10.0.1.0/24|TCP/1)",
        "5 in 10.0.1.1 TCP/1 allow",
    );
    case("pod a/web ip=10.0.1.1 app=web host\npolicy a/p . in(app=web|*)", "5 in 10.0.1.1 TCP/1 deny");
    // A finished subject is not isolated.
    case("pod a/s ip=10.0.0.5 node=n app=s finished\npolicy a/p . in()", "5 in 10.0.1.1 TCP/1 allow");
    // 9.3: the address of a finished pod is another's already.
    let reused = "pod a/old ip=10.0.1.1 app=old finished\npolicy a/p . in(app=web|*)";
    case(reused, "5 in 10.0.1.1 TCP/1 allow");
    // 9.4: a pod of the same name and another UID, before the old one's end is told.
    let recreated = "pod a/web#2 ip=10.0.1.9 app=web\n-pod a/web#a/web\npolicy a/p . in(app=web|*)";
    case(recreated, "5 in 10.0.1.9 TCP/1 allow\n5 in 10.0.1.1 TCP/1 deny");
    // Two live pods with one address: neither's permissions hold, a block's do.
    let claimed =
        "pod a/thief ip=10.0.1.1 app=web\npolicy a/p . in(app=web|TCP/1) in(@10.0.1.1/32|TCP/2) in(app!=web|TCP/3)";
    case(claimed, "5 in 10.0.1.1 TCP/1 deny\n5 in 10.0.1.1 TCP/2 allow\n5 in 10.0.1.1 TCP/3 deny");
}

#[test]
fn blocks() {
    // SEMANTICS 6.1, 6.2: pods' addresses too.
    case("policy a/p . in(@10.0.1.0/24|*)", "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.2.1 TCP/1 deny");
    // 6.3: an except narrows only its own block.
    let other = "policy a/p . in(@10.0.0.0/8!10.0.1.0/24|TCP/1)\npolicy a/q . in(@10.0.1.0/30|TCP/2)";
    case(
        other,
        "5 in 10.0.1.1 TCP/1 deny\n5 in 10.0.1.1 TCP/2 allow\n5 in 10.0.2.1 TCP/1 allow\n5 in 10.0.1.200 TCP/1 deny",
    );
    case("policy a/p . in(@10.0.0.0/8!10.0.1.0/24+app=web|*)", "5 in 10.0.1.1 TCP/1 allow\n5 in 10.0.1.2 TCP/1 deny");
    // 6.4: nested and adjacent excepts are a union.
    let nested = "policy a/p . in(@10.0.0.0/8!10.1.0.0/16!10.1.2.0/24!10.2.0.0/16|*)";
    case(
        nested,
        "5 in 10.1.2.3 TCP/1 deny\n5 in 10.1.9.9 TCP/1 deny\n5 in 10.2.0.1 TCP/1 deny\n5 in 10.3.0.1 TCP/1 allow",
    );
    // 6.5: every block that covers counts, not the longest alone.
    let over = "policy a/p . in(@10.0.0.0/8|TCP/1) in(@10.1.0.0/16|TCP/2) in(@10.1.2.0/24!10.1.2.128/25|TCP/3)";
    case(
        over,
        "5 in 10.1.2.3 TCP/1 allow\n5 in 10.1.2.3 TCP/2 allow\n5 in 10.1.2.3 TCP/3 allow\n5 in 10.1.2.200 TCP/2 allow\n5 in 10.1.2.200 TCP/3 deny",
    );
    // 6.6: each is of one family.
    case("policy a/p . in(@0.0.0.0/0|*)", "5 in 9.9.9.9 TCP/1 allow\n5 in fd00::9 TCP/1 deny");
    case(
        "policy a/p . in(@::/0!fd00::/64|*)",
        "5 in 9.9.9.9 TCP/1 deny\n5 in fd01::9 TCP/1 allow\n5 in fd00::9 TCP/1 deny",
    );
}

#[test]
fn named_ports() {
    // SEMANTICS 7.6: ingress asks the subject, not the peer.
    case("policy a/p . in(app=web|TCP/http)", "5 in 10.0.1.1 TCP/8080 allow\n5 in 10.0.1.1 TCP/80 deny");
    // 7.9: the name alone is not the port, nor is the protocol.
    case(
        "pod a/s ip=10.0.0.5,fd00::5 node=n app=s port=http/TCP/8080 port=http/UDP/99 port=admin/TCP/7\npolicy a/p . in(*|TCP/http)",
        "5 in 9.9.9.9 TCP/8080 allow\n5 in 9.9.9.9 TCP/99 deny\n5 in 9.9.9.9 TCP/7 deny\n5 in 9.9.9.9 UDP/99 deny",
    );
    // Each rule its own names.
    let two = "pod a/s ip=10.0.0.5,fd00::5 node=n app=s port=http/TCP/8080 port=admin/TCP/7\npolicy a/p . in(app=web|TCP/http) in(app=db|TCP/admin)";
    case(two, "5 in 10.0.1.1 TCP/8080 allow\n5 in 10.0.1.1 TCP/7 deny\n5 in 10.0.1.2 TCP/7 allow");
    // 7.7, 7.8: egress asks each destination; with everybody as peer, every pod that has the name.
    let out = "5 out 10.0.1.1 TCP/80 allow\n5 out 10.0.1.1 TCP/81 deny\n5 out 10.0.2.1 TCP/81 allow\n5 out 10.0.2.1 TCP/80 deny";
    case("policy a/p . out(*|TCP/http)", &format!("{out}\n5 out 9.9.9.9 TCP/80 deny\n5 out 10.0.1.2 TCP/80 deny"));
    case("policy a/p . out(.//.|TCP/http)", out);
    case("policy a/p . out(app=web|TCP/http)", "5 out 10.0.1.1 TCP/80 allow\n5 out 10.0.2.1 TCP/81 deny");
    // 7.9: the protocol counts.
    case("policy a/p . out(*|UDP/http;TCP/dns)", "5 out 10.0.1.1 TCP/80 deny\n5 out 10.0.1.1 UDP/53 deny");
    case("policy a/p . out(*|UDP/dns)", "5 out 10.0.1.1 UDP/53 allow\n5 out 10.0.1.1 TCP/53 deny");
    // 7.10: all numbers of a name.
    let twice = "pod a/web ip=10.0.1.1 port=http/TCP/80 port=http/TCP/90\npolicy a/p . out(*|TCP/http)";
    case(twice, "5 out 10.0.1.1 TCP/80 allow\n5 out 10.0.1.1 TCP/90 allow");
    // 7.12: through a block, where the address is a pod's.
    let block = "policy a/p . out(@10.0.1.0/24|TCP/http)";
    case(block, "5 out 10.0.1.1 TCP/80 allow\n5 out 10.0.1.9 TCP/80 deny\n5 out 10.0.2.1 TCP/81 deny");
    // Pods under one policy with other numbers for a name do not share.
    let shared = "pod a/t ip=10.0.0.6 node=n port=http/TCP/9\nveth 6 mac=6 ip=10.0.0.6/24\npolicy a/p . in(*|TCP/http)";
    case(
        shared,
        "5 in 9.9.9.9 TCP/8080 allow\n6 in 9.9.9.9 TCP/9 allow\n6 in 9.9.9.9 TCP/8080 deny\n5 in 9.9.9.9 TCP/9 deny",
    );
}

#[test]
fn ports() {
    // SEMANTICS 7.2, 7.4, 7.5, 7.14.
    case(
        "policy a/p . in(*|SCTP)",
        "5 in 9.9.9.9 SCTP/1 allow\n5 in 9.9.9.9 TCP/1 deny\n5 in 9.9.9.9 SCTP/65535 allow",
    );
    let ranges = "policy a/p . in(*|TCP/10-20;TCP/15-30;TCP/31;UDP/7)";
    case(
        ranges,
        "5 in 9.9.9.9 TCP/9 deny\n5 in 9.9.9.9 TCP/10 allow\n5 in 9.9.9.9 TCP/31 allow\n5 in 9.9.9.9 TCP/32 deny\n5 in 9.9.9.9 UDP/7 allow\n5 in 9.9.9.9 UDP/10 deny",
    );
    case("policy a/p . in(*|TCP/65535)", "5 in 9.9.9.9 TCP/65535 allow\n5 in 9.9.9.9 TCP/65534 deny");
}
