//! The policies of `deploy/examples`, each asked about what stands in the table beside it.

use std::fs;
use std::path::{Path, PathBuf};

use super::expect::{self, Expectation};
use super::manifests::Objects;
use super::world::World;

/// Where names in the tables have no namespace: nowhere, as all of them have one.
const NAMESPACE: &str = "default";

fn folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace's folder");
    workspace.join("deploy/examples")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files of a folder, not of those below it, with such a name.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("it can be listed").path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.is_file() && path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

/// Pods, namespaces and Services to try a policy on, and the policy.
fn world(policy: Option<&Path>) -> World {
    let mut objects = Objects::default();
    for path in files(&folder().join("world"), "yaml").iter().map(PathBuf::as_path).chain(policy) {
        objects.read(&path.to_string_lossy(), &text(path));
    }
    assert_eq!(objects.faults, [], "{policy:?}");
    let world = World::new(objects.updates);
    assert_eq!(world.faults, [], "{policy:?}");
    world
}

fn table(policy: &Path) -> Vec<Expectation> {
    let path = policy.with_extension("expect");
    expect::read(&text(&path), NAMESPACE).unwrap_or_else(|errors| panic!("{}: {errors:?}", path.display()))
}

#[test]
fn every_example_does_what_its_table_says() {
    let open = world(None);
    let policies = files(&folder(), "yaml");
    assert!(!policies.is_empty(), "there are examples");
    for policy in policies {
        let (works, not): (Vec<_>, Vec<_>) = table(&policy).into_iter().partition(|expectation| expectation.works);
        let name = policy.display();
        assert!(!works.is_empty() && !not.is_empty(), "{name}: something must work, and something must not");
        // It is the policy that refuses, and nobody who is not there.
        let without = expect::unmet(&open, &not);
        assert_eq!(without.len(), not.len(), "{name}: without it this is refused too: {not:?} but {without:?}");
        for unmet in &without {
            assert!(unmet.found.contains("no policy isolates either end"), "{name}: {unmet:?}");
        }
        assert_eq!(expect::unmet(&open, &works), [], "{name}: without it");
        let world = world(Some(&policy));
        assert_eq!(expect::unmet(&world, &works), [], "{name}");
        assert_eq!(expect::unmet(&world, &not), [], "{name}");
    }
}

#[test]
fn every_table_has_an_example_and_every_example_its_line_in_the_index() {
    let index = text(&folder().join("README.md"));
    for policy in files(&folder(), "yaml") {
        let name = policy.file_name().expect("a file has a name").to_string_lossy();
        assert!(index.contains(&format!("]({name})")), "README.md does not tell of {name}");
        let said = text(&policy);
        assert!(said.starts_with("# "), "{name} does not say what it does");
        assert_eq!(said.matches("kind: NetworkPolicy").count(), 1, "{name} is one policy");
    }
    for expectations in files(&folder(), "expect") {
        let policy = expectations.with_extension("yaml");
        assert!(policy.is_file(), "{} is nobody's", expectations.display());
    }
}
