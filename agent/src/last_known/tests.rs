use super::*;
use crate::compile::{Compiler, Limits};
use crate::index::fixture::{NODE, apply, index};

const OBJECTS: &str = "
    ns a team=x
    ns b
    ns elsewhere
    node n
    node other
    pod a/web#u1 ip=10.0.0.1,fd00::1 node=n port=http/TCP/80 app=web
    pod a/bare#u2 ip=10.0.0.2 node=n
    pod a/away#u3 ip=10.0.1.1 node=other app=client
    pod b/peer#u4 ip=10.0.1.2,fd00::12 node=other app=client
    pod b/stranger#u5 ip=10.0.1.3 node=other app=none
    pod elsewhere/stranger#u6 ip=10.0.1.4 node=other app=none
    policy a/p app=web in(app=client//.+./app=client+.//app=client+@192.0.2.0/24!192.0.2.1/32|TCP/http) out(*|TCP/80-90)
    policy b/q . in(-|*)
    service a/web ip=10.96.0.1,fd00:96::1 port=TCP/80/30080/8080 app=web
    complete";
const VETHS: &str = "
    veth 5 mac=5 ip=10.0.0.1/24 pod=a/web#u1
    veth 6 mac=6 ip=10.0.0.2/24 pod=a/bare#u2
    own 10.0.0.254";

fn tables(index: &mut Index) -> Tables {
    let mut compiler = Compiler::new(Limits::default());
    drop(compiler.update(index, 0));
    compiler.tables().clone()
}

fn fault(kind: Kind, object: &str) -> Fault {
    Fault { kind, object: object.to_owned(), field: "spec".to_owned(), message: "no".to_owned() }
}

fn known() -> (LastKnown, Tables) {
    let mut index = index(OBJECTS);
    apply(&mut index, VETHS);
    let tables = tables(&mut index);
    let faults = [fault(Kind::Policy, "a/p"), fault(Kind::Policy, "b/q")];
    (LastKnown::of(NODE, "2026-01-01T00:00:00Z".to_owned(), &index, &tables, faults.iter()), tables)
}

#[test]
fn the_same_tables_are_made_of_it() {
    let (known, expected) = known();
    let read = LastKnown::decode(&known.encode().expect("it can be written")).expect("it can be read");
    assert_eq!(read, known);
    let mut index = Index::new(NODE);
    let updates = read.into_updates();
    let told: Vec<&Fault> = updates.iter().flat_map(|update| &update.faults).collect();
    assert_eq!(told, [&fault(Kind::Policy, "a/p")]);
    updates.into_iter().for_each(|update| index.apply(update.change));
    apply(&mut index, VETHS);
    assert!(index.complete());
    assert_eq!(tables(&mut index), expected);
}

#[test]
fn what_the_node_does_not_need_is_not_kept() {
    let (known, _) = known();
    let names: Vec<String> = known.pods.iter().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["a/away", "a/bare", "a/web", "b/peer"]);
    assert_eq!(known.policies.len(), 1);
    assert_eq!(known.nodes.len(), 1);
    let namespaces: Vec<&str> = known.namespaces.iter().map(|namespace| &*namespace.name).collect();
    assert_eq!(namespaces, ["a", "b"]);
}

#[test]
fn what_is_not_whole_is_not_read() {
    let bytes = known().0.encode().expect("it can be written");
    let text = String::from_utf8(bytes.clone()).expect("it is text");
    let cases = [
        ("", "it has no first line"),
        (&text[..text.len() - 1], "it should have"),
        (&text.replacen("-known 1 ", "-known 2 ", 1), "it is of version 2"),
        (&text.replacen("palisade-last-known", "palisade-last-week", 1), "another file's"),
        (&text.replacen("10.0.0.1", "10.0.0.9", 1), "its checksum is another"),
        (&format!("{MAGIC} {VERSION} {:08x} 2\n[]", crc32fast::hash(b"[]")), "not what it should be"),
    ];
    for (file, expected) in cases {
        let error = format!("{:#}", LastKnown::decode(file.as_bytes()).expect_err(expected));
        assert!(error.contains(expected), "{error}");
    }
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x10;
        assert!(LastKnown::decode(&damaged).is_err(), "byte {place}");
    }
}

#[test]
fn another_node_s_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = super::path(folder.path(), Path::new("/sys/fs/bpf/palisade"));
    assert!(path.ends_with("sys-fs-bpf-palisade/last-known"));
    assert_eq!(read(&path, NODE).expect("there is none"), None);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
    std::fs::write(&path, known().0.encode().expect("it can be written")).expect("it can be written");
    assert_eq!(read(&path, NODE).expect("it is ours"), Some(known().0));
    let error = read(&path, "another").expect_err("it is another's").to_string();
    assert!(error.contains("of the node \"n\", and this one is \"another\""), "{error}");
}
