//! Which veth is which pod, and what a list sweeps.

use super::fixture::{apply, index};
use super::{Identity, Index};

/// What is behind veth 5: `namespace/name#uid`, or why nobody knows.
fn behind(index: &Index) -> String {
    match index.identity(5) {
        Some(Identity::Pod(id)) => format!("{}#{}", index.pod(id).expect("a pod").name, index.uid(id).expect("a pod")),
        Some(Identity::Unknown(unknown)) => format!("{unknown:?}").split('(').next().unwrap_or_default().to_owned(),
        None => "gone".to_owned(),
    }
}

/// In this order and in the reverse, as far as no line replaces another.
fn check(lines: &[&str], expected: &str) {
    let reversed: Vec<&str> = lines.iter().copied().rev().collect();
    for lines in [lines, &reversed[..]] {
        assert_eq!(behind(&index(&lines.join("\n"))), expected, "{lines:#?}");
    }
}

#[test]
fn identity() {
    let uid = "veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#1";
    check(&[uid, "pod a/s#1 node=n"], "a/s#1");
    // Another UID of the name is another pod, even with the address.
    check(&[uid, "pod a/s#2 node=n ip=10.0.0.5"], "Awaited");
    check(&[uid, "pod a/s#2 node=n ip=10.0.0.5", "pod a/s#1 node=n finished"], "a/s#1");
    check(&[uid, "pod a/s#1 node=n host"], "HostNetwork");
    let name = "veth 5 mac=5 ip=10.0.0.5/24,fe80::1/64 pod=a/s";
    check(&[name, "pod a/s#1 node=n ip=10.0.0.5"], "a/s#1");
    check(&[name, "pod a/s#1 node=n"], "a/s#1");
    check(&[name, "pod a/s#1 node=m ip=10.0.0.5"], "Awaited");
    // The address speaks against it: this is a pod of that name which is gone.
    check(&[name, "pod a/s#1 node=n ip=10.0.0.9"], "Awaited");
    check(&[name, "pod a/s#1 node=n ip=10.0.0.9", "pod a/s#2 node=n ip=10.0.0.5"], "a/s#2");
    check(&[name, "pod a/s#1 node=n", "pod a/s#2 node=n"], "Several");
    check(&[name, "pod a/s#1 node=n ip=10.0.0.5 finished"], "a/s#1");
    check(&[name, "pod a/s#1 node=n ip=10.0.0.5 finished", "pod a/s#2 node=n"], "a/s#2");
    check(&[name, "pod a/s#1 node=n finished"], "Awaited");
}

#[test]
fn identity_by_address() {
    let veth = "veth 5 mac=5 ip=10.0.0.5/24,fe80::1/64";
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5"], "a/s#1");
    check(&[veth, "pod a/s#1 node=n ip=fe80::1"], "Nobody");
    check(&[veth, "pod a/s#1 node=m ip=10.0.0.5"], "Nobody");
    check(&[veth, "pod a/s#1 ip=10.0.0.5"], "Nobody");
    // The address may have been another's until now.
    check(&["veth 5 mac=5 ip=10.0.0.5/24 new", "pod a/s#1 node=n ip=10.0.0.5"], "NotNamed");
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5 finished"], "Nobody");
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5 host"], "Nobody");
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5", "pod a/t#2 node=n ip=10.0.0.5"], "Several");
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5", "pod a/t#2 node=m ip=10.0.0.5"], "a/s#1");
    // A veth that the CNI result names has the better claim; two that only join have none.
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5", "veth 6 mac=6 ip=10.0.0.5/24"], "Shared");
    check(&[veth, "pod a/s#1 node=n ip=10.0.0.5", "veth 6 mac=6 pod=a/s#1"], "Shared");
    let mut index = index("veth 5 mac=5 ip=10.0.0.5/24\nveth 6 mac=6 ip=10.0.0.5/24\npod a/s#1 node=n ip=10.0.0.5");
    index.take_dirty();
    apply(&mut index, "-veth 6");
    assert_eq!(behind(&index), "a/s#1");
    assert!(index.take_dirty().veths.contains(&5), "it is known now");
}

#[test]
fn a_death_of_the_old_leaves_the_new() {
    let mut index = index("pod a/s#1 node=n ip=10.0.0.5\nveth 5 mac=5 ip=10.0.0.5/24");
    apply(&mut index, "pod a/s#2 node=n ip=10.0.0.5");
    assert_eq!(behind(&index), "Several");
    apply(&mut index, "-pod a/s#1");
    assert_eq!(behind(&index), "a/s#2");
    assert_eq!(index.claims("10.0.0.5".parse().expect("an address")).len(), 1);
}

/// Whose an address is, by UID.
fn owners(index: &Index, address: &str) -> String {
    let ids = index.claims(address.parse().expect("an address"));
    let mut uids: Vec<&str> = ids.iter().map(|&id| &**index.uid(id).expect("a pod")).collect();
    uids.sort_unstable();
    uids.join(" ")
}

#[test]
fn what_a_cni_result_gives_is_the_pods_before_its_status_says_so() {
    let veth = "veth 5 mac=5 ip=10.0.0.5/24,fe80::1/64 pod=a/s#1";
    let cases = [
        (vec![veth, "pod a/s#1 node=n"], "1"),
        // The status of others is old, wherever they are said to be.
        (vec![veth, "pod a/s#1 node=n", "pod a/t#2 node=n ip=10.0.0.5"], "1"),
        (vec![veth, "pod a/s#1 node=n ip=10.0.0.9", "pod a/t#2 node=m ip=10.0.0.5"], "1"),
        // Not known, not here, or over.
        (vec![veth, "pod a/t#2 node=n ip=10.0.0.5"], "2"),
        (vec![veth, "pod a/s#1 node=m", "pod a/t#2 node=n ip=10.0.0.5"], "2"),
        (vec![veth, "pod a/s#1 node=n finished", "pod a/t#2 node=n ip=10.0.0.5"], "2"),
        (vec![veth, "pod a/s#1 node=n host"], ""),
        // Two that were given it: an error of the CNI's, which neither may profit from.
        (vec![veth, "pod a/s#1 node=n", "veth 6 mac=6 ip=10.0.0.5/24 pod=a/t#2", "pod a/t#2 node=n"], "1 2"),
        (vec![veth, "pod a/s#1 node=n", "veth 6 mac=6 ip=10.0.0.5/24 pod=a/s#1"], "1"),
    ];
    for (lines, expected) in cases {
        let reversed: Vec<&str> = lines.iter().copied().rev().collect();
        for lines in [&lines, &reversed] {
            let index = index(&lines.join("\n"));
            assert_eq!(owners(&index, "10.0.0.5"), expected, "{lines:#?}");
            assert_eq!(owners(&index, "fe80::1"), "", "{lines:#?}");
        }
    }
}

#[test]
fn what_a_cni_result_gave_goes_with_the_veth() {
    let both = "pod a/s#1 node=n\npod a/t#2 node=n ip=10.0.0.5\nveth 6 mac=6 ip=10.0.0.5/24";
    let mut index = index(&format!("{both}\nveth 5 mac=5 ip=10.0.0.5/24 pod=a/s#1"));
    for (line, owner) in [
        ("-veth 5", "2"),
        ("veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#1", "1"),
        ("veth 5 mac=5 ip=10.0.0.6/24 pod=a/s#1", "2"),
        ("veth 5 mac=5 ip=10.0.0.5/24 pod=a/s#1", "1"),
        ("-pod a/s#1", "2"),
    ] {
        index.take_dirty();
        apply(&mut index, line);
        assert_eq!(owners(&index, "10.0.0.5"), owner, "{line}");
        let dirty = index.take_dirty();
        assert!(dirty.addresses.contains(&"10.0.0.5".parse().expect("an address")), "{line}: {dirty:?}");
        // The one that no result names is known by whose the address is.
        assert!(dirty.veths.contains(&6), "{line}: {dirty:?}");
    }
}

/// Everything that is there, by name.
fn names(index: &Index) -> String {
    let mut names: Vec<String> =
        index.pods().map(|(id, pod)| format!("{}#{}", pod.name, index.uid(id).expect("a pod"))).collect();
    for (name, entry) in index.namespaces() {
        names.extend(entry.facts.iter().map(|_| name.to_string()));
        names.extend(entry.policies.keys().map(|policy| format!("{name}:{policy}")));
    }
    names.extend(index.nodes().map(|node| node.name.to_string()));
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn a_list_sweeps_what_it_does_not_name_and_only_at_its_end() {
    let all = "ns a\nns b\npod a/s#1\npod a/s#2\npolicy a/p . in()\npolicy b/p . in()\nnode n1\nnode n2";
    for (list, after) in [
        ("Namespace\nns b", "a/s#1 a/s#2 a:p b b:p n1 n2"),
        ("Pod\npod a/s#2", "a a/s#2 a:p b b:p n1 n2"),
        ("NetworkPolicy\npolicy a/p . in()", "a a/s#1 a/s#2 a:p b n1 n2"),
        ("Node\nnode n2", "a a/s#1 a/s#2 a:p b b:p n2"),
        // A list that begins again.
        ("Pod\npod a/s#1\nrelist Pod\npod a/s#2", "a a/s#2 a:p b b:p n1 n2"),
    ] {
        let mut index = index(&format!("{all}\nrelist {list}"));
        assert_eq!(names(&index), "a a/s#1 a/s#2 a:p b b:p n1 n2", "before the end of {list}");
        apply(&mut index, &format!("relisted {}", list.lines().next().expect("a kind")));
        assert_eq!(names(&index), after, "after {list}");
    }
}

#[test]
fn complete_once_every_kind_was_listed() {
    let mut index = index("veth 5 mac=5");
    for kind in ["Namespace", "Pod", "NetworkPolicy", "Pod"] {
        apply(&mut index, &format!("relist {kind}\nrelisted {kind}"));
        assert!(!index.complete(), "{kind}");
    }
    index.take_dirty();
    apply(&mut index, "relisted Node");
    assert!(index.complete());
    assert!(index.take_dirty().veths.contains(&5), "it was closed for that");
    apply(&mut index, "relist Pod");
    assert!(index.complete(), "a list anew takes nothing back");
}

#[test]
fn the_same_again_is_no_change() {
    let all = "ns a x=1\npod a/s#1 ip=10.0.0.5 node=n\npolicy a/p . in()\nveth 5 mac=5 ip=10.0.0.5/24\nown 10.96.0.1
        service a/s ip=10.96.0.1 port=TCP/80/0/80";
    let mut index = index(all);
    index.take_dirty();
    apply(&mut index, all);
    assert_eq!(format!("{:?}", index.take_dirty()), format!("{:?}", super::Dirty::default()));
    index.touch_all();
    let dirty = index.take_dirty();
    assert_eq!(
        [dirty.namespaces.len(), dirty.pods.len(), dirty.policies.len(), dirty.veths.len(), dirty.addresses.len()],
        [1; 5]
    );
    assert_eq!(dirty.fronts.len(), 1);
}

fn fronts(index: &Index) -> String {
    let text = |front: super::Front| {
        let address = front.address.map_or("any".to_owned(), |address| address.to_string());
        let backends = index.local_backends(&front).into_iter().map(|(address, port)| format!("{address}:{port}"));
        let backends: Vec<String> = backends.collect();
        let stands = if backends.is_empty() { String::new() } else { format!("={}", backends.join("+")) };
        format!("{address}:{}/{}{stands}", front.protocol.name(), front.port)
    };
    index.services.all_fronts().map(text).collect::<Vec<_>>().join(" ")
}

/// Whatever the order in which objects arrive.
#[test]
fn what_the_node_may_translate() {
    let own = "own 10.96.0.10 fd00:96::10";
    let dns = "service kube/dns ip=10.96.0.10,fd00:96::10 port=UDP/53/0/dns app=dns";
    let pods = [
        "pod kube/dns-1 ip=10.0.0.1,fd00::1 node=m port=dns/UDP/1053 app=dns",
        "pod kube/dns-2 ip=10.0.0.2 node=m port=dns/UDP/53 app=dns",
    ];
    let one = "10.96.0.10:UDP/53=10.0.0.1:1053+10.0.0.2:53 fd00:96::10:UDP/53=fd00::1:1053";
    for (lines, expected) in [
        (vec!["service a/s ip=10.96.0.1 port=TCP/80/30080/8080"], "any:TCP/30080 10.96.0.1:TCP/80"),
        // Of an address that is not the node's nobody has to know who stands for it.
        (vec![dns, pods[0]], "10.96.0.10:UDP/53 fd00:96::10:UDP/53"),
        (vec![own, dns, pods[0], pods[1]], one),
        (vec![own, dns, pods[0], pods[1], "pod kube/other ip=10.0.0.3 app=web", "pod b/dns ip=10.0.0.4 app=dns"], one),
        (vec![own, "service a/s ip=10.96.0.10 port=TCP/80/0/80"], "10.96.0.10:TCP/80"),
        (vec!["pod a/p node=n hostport=TCP/80", "pod a/q node=m hostport=TCP/81"], "any:TCP/80"),
        // A pod with the node's address stands behind a Service with that one.
        (
            vec![own, dns, "pod kube/host ip=192.168.0.9 node=n app=dns port=dns/UDP/53 host"],
            "10.96.0.10:UDP/53=192.168.0.9:53 fd00:96::10:UDP/53",
        ),
        (vec!["pod a/p node=n hostport=TCP/80/10.0.0.9", "pod a/q node=n hostport=UDP/1 finished"], "10.0.0.9:TCP/80"),
    ] {
        let reversed: Vec<&str> = lines.iter().copied().rev().collect();
        for lines in [&lines, &reversed] {
            assert_eq!(fronts(&index(&lines.join("\n"))), expected, "{lines:#?}");
        }
    }
}

#[test]
fn a_front_stays_while_anybody_has_it_and_every_change_is_told() {
    let mut index = index("service a/s ip=10.96.0.1 port=TCP/80/0/80\nservice a/t ip=10.96.0.1 port=TCP/80/0/81");
    let told = |index: &mut Index| index.take_dirty().fronts.len();
    assert_eq!((told(&mut index), told(&mut index)), (1, 0));
    apply(&mut index, "-service a/s");
    assert_eq!((fronts(&index), told(&mut index)), ("10.96.0.1:TCP/80".to_owned(), 1));
    apply(&mut index, "-service a/t");
    assert_eq!((fronts(&index), told(&mut index)), (String::new(), 1));
    let dns = "service kube/dns ip=10.96.0.10 port=UDP/53/0/53 app=dns\nown 10.96.0.10";
    apply(&mut index, dns);
    assert_eq!(told(&mut index), 1);
    for (line, count, expected) in [
        ("pod kube/d ip=10.0.0.1 app=dns", 1, "10.96.0.10:UDP/53=10.0.0.1:53"),
        ("pod kube/e ip=10.0.0.2 app=web", 0, "10.96.0.10:UDP/53=10.0.0.1:53"),
        ("pod kube/d ip=10.0.0.1 app=dns finished", 1, "10.96.0.10:UDP/53"),
        ("pod kube/d ip=10.0.0.3 app=dns", 1, "10.96.0.10:UDP/53=10.0.0.3:53"),
        ("own", 1, "10.96.0.10:UDP/53"),
        ("pod kube/d ip=10.0.0.4 app=dns", 0, "10.96.0.10:UDP/53"),
        ("own 10.96.0.10", 1, "10.96.0.10:UDP/53=10.0.0.4:53"),
        ("-pod kube/d", 1, "10.96.0.10:UDP/53"),
        // A host port goes where its pod goes.
        ("pod a/h#1 ip=10.0.0.7 node=n hostport=TCP/80", 1, "any:TCP/80 10.96.0.10:UDP/53"),
        ("pod a/h#1 ip=10.0.0.7 node=n hostport=TCP/81", 2, "any:TCP/81 10.96.0.10:UDP/53"),
        ("pod a/h#2 ip=10.0.0.8 node=m hostport=TCP/81", 0, "any:TCP/81 10.96.0.10:UDP/53"),
        ("-pod a/h#1", 1, "10.96.0.10:UDP/53"),
    ] {
        apply(&mut index, line);
        assert_eq!((fronts(&index), told(&mut index)), (expected.to_owned(), count), "{line}");
    }
}

/// Services are swept as everything else is, and nothing waits for them.
#[test]
fn a_list_of_services_is_not_needed() {
    let mut index = index("service a/s ip=10.96.0.1 port=TCP/80/0/80");
    apply(&mut index, "relisted Namespace\nrelisted Pod\nrelisted NetworkPolicy\nrelisted Node");
    assert_eq!((index.complete(), index.services_complete()), (true, false));
    apply(&mut index, "relist Service\nservice a/t ip=10.96.0.2 port=TCP/80/0/80\nrelisted Service");
    assert_eq!((fronts(&index).as_str(), index.services_complete()), ("10.96.0.2:TCP/80", true));
}
