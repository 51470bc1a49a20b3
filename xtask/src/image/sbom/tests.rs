use super::*;

const LOCK: &str = r#"
version = 4

[[package]]
name = "used"
version = "1.0.0"
source = "registry"
checksum = "aa"
dependencies = [
 "deep 0.1.0",
]

[[package]]
name = "deep"
version = "0.1.0"
source = "registry"
checksum = "bb"

[[package]]
name = "deep"
version = "0.2.0"
source = "registry"
checksum = "cc"

[[package]]
name = "derive"
version = "1.0.0"
source = "registry"
checksum = "dd"

[[package]]
name = "syntax"
version = "2.0.0"
source = "registry"
checksum = "ee"
"#;

fn package(name: &str, version: &str, license: &str, kind: &str) -> Value {
    let source = (!name.starts_with("palisade")).then_some("registry");
    json!({"id": format!("{name} {version}"), "name": name, "version": version, "license": license, "source": source,
        "targets": [{"kind": [kind]}]})
}

fn node(id: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
    let dependencies: Vec<Value> =
        dependencies.iter().map(|(id, kind)| json!({"pkg": id, "dep_kinds": [{"kind": kind}]})).collect();
    json!({"id": id, "deps": dependencies})
}

fn metadata() -> Metadata {
    serde_json::from_value(json!({
        "packages": [
            package("palisade", "0.1.0", "Apache-2.0", "bin"),
            package("palisade-ebpf", "0.1.0", "Apache-2.0", "bin"),
            package("used", "1.0.0", "MIT/Apache-2.0", "lib"),
            package("deep", "0.1.0", "MIT", "lib"),
            package("deep", "0.2.0", "MIT", "lib"),
            package("derive", "1.0.0", "MIT", "proc-macro"),
            package("syntax", "2.0.0", "MIT", "lib"),
        ],
        "resolve": {"nodes": [
            node("palisade 0.1.0", &[
                ("used 1.0.0", None), ("derive 1.0.0", None), ("deep 0.2.0", Some("dev")), ("deep 0.2.0", Some("build")),
            ]),
            node("palisade-ebpf 0.1.0", &[("deep 0.1.0", None)]),
            node("used 1.0.0", &[("deep 0.1.0", None)]),
            node("deep 0.1.0", &[]),
            node("deep 0.2.0", &[]),
            node("derive 1.0.0", &[("syntax 2.0.0", None)]),
            node("syntax 2.0.0", &[]),
        ]},
    }))
    .expect("this is how cargo says it")
}

fn components() -> Components {
    let mut components = Components::new();
    for root in [ROOT, KERNEL_PROGRAMS] {
        add_crates(&mut components, &metadata(), LOCK, root).expect("nothing is missing");
    }
    components
}

#[test]
fn normal_dependencies_are_listed_and_no_others() {
    let found: Vec<(String, bool, Option<String>)> = components()
        .into_iter()
        .map(|(reference, component)| (reference, component.linked, component.checksum))
        .collect();
    let expected = [
        ("palisade-ebpf@0.1.0", true, None),
        ("palisade@0.1.0", true, None),
        ("pkg:cargo/deep@0.1.0", true, Some("bb")),
        ("pkg:cargo/derive@1.0.0", false, Some("dd")),
        ("pkg:cargo/syntax@2.0.0", false, Some("ee")),
        ("pkg:cargo/used@1.0.0", true, Some("aa")),
    ];
    assert_eq!(found, expected.map(|(name, linked, sum)| (name.to_owned(), linked, sum.map(str::to_owned))));
}

#[test]
fn a_crate_without_checksum_is_no_bill() {
    let lock = LOCK.replace("checksum = \"bb\"\n", "");
    let error = add_crates(&mut Components::new(), &metadata(), &lock, ROOT).expect_err("deep 0.1.0 has none");
    assert_eq!(error.to_string(), "Cargo.lock has no checksum of deep 0.1.0");
}

#[test]
fn document_says_what_depends_on_what() {
    let origin = Origin { revision: "0123456789ab".into(), source: None, created: 0 };
    let bill = document(&components(), "x86_64-unknown-linux-gnu", &origin).expect("it is whole");
    assert_eq!(bill["metadata"]["component"]["bom-ref"], "palisade@0.1.0");
    assert_eq!(bill["metadata"]["timestamp"], "1970-01-01T00:00:00Z");
    let listed = bill["components"].as_array().expect("a list");
    assert_eq!(listed.len(), 5);
    let used = listed.iter().find(|component| component["name"] == "used").expect("it is listed");
    assert_eq!(used["licenses"], json!([{"expression": "MIT OR Apache-2.0"}]));
    assert_eq!(used["hashes"], json!([{"alg": "SHA-256", "content": "aa"}]));
    let on = |reference: &str| {
        let all = bill["dependencies"].as_array().expect("a list");
        all.iter().find(|dependency| dependency["ref"] == reference).expect("it has dependencies")["dependsOn"].clone()
    };
    assert_eq!(on("palisade@0.1.0"), json!(["palisade-ebpf@0.1.0", "pkg:cargo/derive@1.0.0", "pkg:cargo/used@1.0.0"]));
    assert_eq!(on("pkg:cargo/used@1.0.0"), json!(["pkg:cargo/deep@0.1.0"]));
}

#[test]
fn glibc_says_its_version() {
    let banner = b"\0GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nCopyright";
    assert_eq!(libc_version(banner).as_deref(), Some("2.36"));
    assert_eq!(libc_version(b"stable release version x"), None);
}
