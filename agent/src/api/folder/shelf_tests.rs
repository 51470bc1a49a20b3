//! What files amount to, as states: each line of a script is a file's new contents, and what is told.

use super::*;

/// Objects as `name=labels`, with the number of their faults where there are any.
fn told(shelf: &mut Shelf) -> String {
    let mut lines: Vec<String> = shelf.take_updates().iter().map(show).collect();
    lines.sort();
    lines.join(" ")
}

fn show(Update { change, faults, .. }: &Update) -> String {
    let labels = |labels: &BTreeMap<String, String>| {
        let custom = labels.iter().filter(|(key, _value)| *key != "kubernetes.io/metadata.name");
        custom.map(|(_key, value)| value.clone()).collect::<Vec<_>>().join(",")
    };
    let object = match change {
        Change::Namespace(name, None) => format!("-ns:{name}"),
        Change::Namespace(name, Some(facts)) => {
            assert_eq!(facts.labels.get("kubernetes.io/metadata.name").map(String::as_str), Some(&**name));
            format!("ns:{name}={}", labels(&facts.labels))
        }
        Change::Pod { name, uid, facts: None } => format!("-{name}@{uid}"),
        Change::Pod { name, uid, facts: Some(facts) } => format!("{name}@{uid}={}", labels(&facts.labels)),
        Change::Policy(name, None) => format!("-{name}"),
        Change::Policy(name, Some(facts)) => format!("{name}={}", facts.ingress.len()),
        Change::Service(name, facts) => format!("{}service:{name}", if facts.is_some() { "" } else { "-" }),
        Change::Node(name, facts) => format!("{}node:{name}", if facts.is_some() { "" } else { "-" }),
        Change::Relist(_) | Change::Relisted(_) => unreachable!("a shelf tells no lists"),
    };
    let faults: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
    if faults.is_empty() { object } else { format!("{object}!{}", faults.join(",")) }
}

/// `None` removes the file.
fn check(script: &[(&str, Option<&str>, &str)]) {
    let mut shelf = Shelf::default();
    for (step, (file, text, expected)) in script.iter().enumerate() {
        match text {
            Some(text) => shelf.put(file, text.as_bytes()),
            None => shelf.remove(file),
        }
        assert_eq!(told(&mut shelf), *expected, "step {step}: {file} {text:?}");
    }
}

const A: &str = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, uid: u, labels: {v: one}}}";
const A2: &str = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, uid: u, labels: {v: two}}}";
const A_REBORN: &str = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, uid: w, labels: {v: one}}}";
const B: &str = "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: n, uid: u, labels: {v: one}}}";
const N: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: n, labels: {t: x}}}";
const N_BROKEN: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: n, labels: {t: 1}}}";
const P: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: n}}";
const SERVICE: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: s, namespace: other}}";

fn documents(parts: &[&str]) -> String {
    parts.join("\n---\n")
}

/// One that was written out of a cluster says when it was made there, which is no news.
#[test]
fn what_a_file_says_of_its_age_is_not_told() {
    let mut shelf = Shelf::default();
    let old = P.replace("namespace: n", "namespace: n, creationTimestamp: '2026-01-01T00:00:00Z'");
    shelf.put("f.yaml", old.as_bytes());
    let updates = shelf.take_updates();
    let is_policy = |update: &&Update| matches!(update.change, Change::Policy(..));
    assert_eq!(updates.iter().find(is_policy).expect("it is there").written, None);
}

#[test]
fn a_file_is_its_objects() {
    check(&[
        ("f.yaml", Some(A), "n/a@u=one ns:n="),
        ("f.yaml", Some(A), ""),
        ("f.yaml", Some(A2), "n/a@u=two"),
        ("f.yaml", Some(A_REBORN), "-n/a@u n/a@w=one"),
        ("f.yaml", Some(B), "-n/a@w n/b@u=one"),
        ("f.yaml", Some(SERVICE), "-n/b@u -ns:n"),
        ("g.yaml", Some(&documents(&[A, "# nothing", B])), "n/a@u=one n/b@u=one ns:n="),
        ("g.yaml", Some(""), "-n/a@u -n/b@u -ns:n"),
        ("g.yaml", Some(&documents(&["", A, "---", ""])), "n/a@u=one ns:n="),
        ("g.yaml", None, "-n/a@u -ns:n"),
        ("g.yaml", None, ""),
    ]);
}

#[test]
fn lists_are_their_items() {
    let list = format!("{{apiVersion: v1, kind: List, items: [{A}, {B}]}}");
    let pods = "{apiVersion: v1, kind: PodList, items: [{metadata: {name: a, namespace: n, uid: u}}]}";
    let policies =
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: [{metadata: {name: p, namespace: n}}]}";
    let json = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w"}} {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}}"#;
    check(&[
        ("f.yaml", Some(&list), "n/a@u=one n/b@u=one ns:n="),
        ("f.yaml", Some(pods), "-n/b@u n/a@u="),
        ("f.yaml", Some(policies), "-n/a@u n/p=0"),
        ("f.yaml", None, "-n/p -ns:n"),
        ("f.json", Some(json), "node:w node:x"),
    ]);
}

#[test]
fn the_later_file_wins_and_gives_back() {
    check(&[
        ("b.yaml", Some(A2), "n/a@u=two ns:n="),
        ("a.yaml", Some(A), "n/a@u=two!"),
        ("c.yaml", Some(A_REBORN), "-n/a@u n/a@w=one!,"),
        ("b.yaml", None, "n/a@w=one!"),
        ("c.yaml", None, "-n/a@w n/a@u=one"),
        ("a.yaml", Some(&documents(&[A, A2])), "n/a@u=two!"),
        ("a.yaml", Some(&documents(&[A2, A])), "n/a@u=one!"),
        ("a.yaml", Some(A), "n/a@u=one"),
        ("a.yaml", None, "-n/a@u -ns:n"),
    ]);
}

#[test]
fn what_does_not_parse_stays_as_it_was() {
    let broken = "{apiVersion: v1,\n kind: ]\n";
    check(&[
        ("f.yaml", Some(&documents(&[A, B])), "n/a@u=one n/b@u=one ns:n="),
        ("f.yaml", Some(broken), "-/f.yaml!line 2"),
        ("f.yaml", Some(&documents(&[A2, broken])), "-/f.yaml!line 4 n/a@u=two"),
        ("f.yaml", Some(&documents(&[broken, P, "{kind: Pod}"])), "-/f.yaml!line 2,line 6: apiVersion n/p=0"),
        ("f.yaml", Some(B), "-/f.yaml -n/a@u -n/p"),
        ("f.yaml", Some("a: 1\n\tb: 2"), "-/f.yaml!line 2"),
        ("f.yaml", None, "-/f.yaml -n/b@u -ns:n"),
        ("new.yaml", Some(broken), "-/new.yaml!line 2"),
        ("new.yaml", None, "-/new.yaml"),
        ("f.json", Some("{\n\"a\": }"), "-/f.json!line 2"),
    ]);
}

#[test]
fn a_file_that_cannot_be_read_stays_as_it_was() {
    let mut shelf = Shelf::default();
    shelf.put("f.yaml", A.as_bytes());
    assert_eq!(told(&mut shelf), "n/a@u=one ns:n=");
    shelf.unreadable("f.yaml", "permission denied");
    assert_eq!(told(&mut shelf), "-/f.yaml!");
    shelf.put("f.yaml", b"a: 1\n\xff");
    assert_eq!(told(&mut shelf), "-/f.yaml!line 2");
    shelf.put("f.yaml", A.as_bytes());
    assert_eq!(told(&mut shelf), "-/f.yaml");
}

#[test]
fn namespaces_are_implied() {
    check(&[
        ("p.yaml", Some(P), "n/p=0 ns:n="),
        ("n.yaml", Some(N), "ns:n=x"),
        ("p.yaml", None, "-n/p"),
        ("p.yaml", Some(P), "n/p=0"),
        ("n.yaml", Some(N_BROKEN), "-ns:n!metadata.labels[t]"),
        ("n.yaml", None, "ns:n="),
        ("a.yaml", Some(A), "n/a@u=one"),
        ("p.yaml", None, "-n/p"),
        ("a.yaml", None, "-n/a@u -ns:n"),
    ]);
}

#[test]
fn yaml_as_it_is_written() {
    let anchored = "x: &labels {v: one}\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n, uid: u, labels: {<<: *labels}}\n";
    let directive = format!("%YAML 1.2\n---\n{A}\n...\n# done\n");
    let marked = format!("\u{feff}--- # first\r\n{A}\r\n---\r\n{B}\r\n");
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: n\n  uid: u\n  annotations:\n    x: |\n      ---\n      not: {a marker\n";
    check(&[
        ("f.yaml", Some(anchored), "n/a@u=one ns:n="),
        ("f.yaml", Some(&directive), ""),
        ("f.yaml", Some(&marked), "n/b@u=one"),
        ("f.yaml", Some(text), "-n/b@u n/a@u="),
        ("f.yaml", Some("{a: 1, a: 2}"), "-/f.yaml!line 1"),
        ("f.yaml", Some("a: .nan"), "-/f.yaml!line 1"),
        ("f.yaml", Some("# first\n---\na: !tag x"), "-/f.yaml!line 2"),
        ("f.yaml", Some("5"), "-/f.yaml!line 1: "),
    ]);
}

/// Files that once kept the reader busy for minutes, or took all memory there was.
#[test]
fn hostile_files_are_told_in_time() {
    let aliases = format!("a: &a [{}]\nb: [{}]", "x,".repeat(20_000), "*a,".repeat(20_000));
    let files = [
        ("many that do not parse", "---\n}\n".repeat(10_000), 10_000),
        ("deep", format!("x: {}", "[".repeat(100_000)), 1),
        ("aliases", aliases, 1),
    ];
    for (name, text, faults) in files {
        let start = std::time::Instant::now();
        let mut shelf = Shelf::default();
        shelf.put("a.yaml", text.as_bytes());
        let told: usize = shelf.take_updates().iter().map(|update| update.faults.len()).sum();
        assert_eq!(told, faults, "{name}");
        assert!(start.elapsed().as_secs() < 10, "{name}: it took {:?}", start.elapsed());
    }
}
