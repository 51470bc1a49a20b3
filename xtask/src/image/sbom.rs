//! The bill of materials (CycloneDX 1.5, JSON) of the two programs and the kernel programs inside: what of Cargo.lock is in
//! them, Rust's standard library, and the C libraries that are linked statically.
//!
//! Procedural macros, and what only they use, are listed as `excluded`: they write code and are not in it. What build
//! scripts use is not listed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::contents::{DESCRIPTION, LICENSE, Origin, VERSION};
use crate::build;
use crate::command::output;
use crate::machine::Machine;
use crate::paths;

/// What `cargo metadata` says, as far as it is asked here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None: a crate of this workspace.
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// None: a normal one.
    kind: Option<String>,
}

/// One entry of the bill.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Component {
    name: String,
    version: String,
    /// An SPDX expression.
    license: Option<String>,
    /// Package URL, where it comes from somewhere else.
    purl: Option<String>,
    /// SHA-256 of the crate as the registry has it, in hexadecimal.
    checksum: Option<String>,
    /// In the programs, not only at work while they are built.
    linked: bool,
    depends_on: BTreeSet<String>,
}

/// By reference.
type Components = BTreeMap<String, Component>;

const ROOT: &str = "palisade";
const KERNEL_PROGRAMS: &str = "palisade-ebpf";

/// The bill for a machine, as a file's contents.
pub fn bill(machine: &Machine, origin: &Origin) -> Result<Vec<u8>> {
    let lock = fs::read_to_string(paths::workspace().join("Cargo.lock"))?;
    let mut components = Components::new();
    for (package, triple) in [(ROOT, machine.triple.as_str()), (KERNEL_PROGRAMS, build::TARGET)] {
        let said = output(Command::new("cargo").current_dir(paths::workspace()).args([
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform",
            triple,
        ]))?;
        add_crates(&mut components, &serde_json::from_str(&said)?, &lock, package)?;
    }
    for library in libraries(machine)? {
        components.insert(library.reference(), library);
    }
    let bill = document(&components, &machine.triple, origin)?;
    let mut text = serde_json::to_vec_pretty(&bill)?;
    text.push(b'\n');
    Ok(text)
}

/// Adds a crate of the workspace and its normal dependencies, those of dependencies included.
fn add_crates(components: &mut Components, metadata: &Metadata, lock: &str, root: &str) -> Result<()> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let start = metadata.packages.iter().find(|package| package.name == root && package.source.is_none());
    let start = start.with_context(|| format!("the workspace has no {root}"))?;
    let checksums = checksums(lock);

    let linked = reached(&packages, &nodes, &start.id, false)?;
    for id in reached(&packages, &nodes, &start.id, true)? {
        let package = packages[id];
        let mut component = package.component();
        component.linked = linked.contains(id);
        if component.purl.is_some() {
            let key = (package.name.as_str(), package.version.as_str());
            let checksum =
                checksums.get(&key).with_context(|| format!("Cargo.lock has no checksum of {} {}", key.0, key.1))?;
            component.checksum = Some((*checksum).to_owned());
        }
        component.depends_on = nodes[id].normal().map(|id| packages[id].component().reference()).collect();
        // What is in one of the programs is in the image.
        let known = components.entry(component.reference()).or_insert_with(|| component.clone());
        known.linked |= component.linked;
        known.depends_on.extend(component.depends_on);
    }
    Ok(())
}

/// The identifiers of what normal dependencies lead to.
fn reached<'a>(
    packages: &BTreeMap<&str, &Package>,
    nodes: &BTreeMap<&str, &'a Node>,
    start: &str,
    through_macros: bool,
) -> Result<BTreeSet<&'a str>> {
    let mut reached = BTreeSet::new();
    let mut next = vec![start];
    while let Some(id) = next.pop() {
        let node = nodes.get(id).with_context(|| format!("cargo metadata says nothing of {id}"))?;
        let package = packages.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
        if (package.is_macro() && !through_macros) || !reached.insert(node.id.as_str()) {
            continue;
        }
        next.extend(node.normal());
    }
    Ok(reached)
}

/// By name and version. Cargo.lock is written by cargo alone, one field a line.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    lock.split("[[package]]")
        .filter_map(|package| {
            let field = |name: &str| {
                package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'))
            };
            Some(((field("name")?, field("version")?), field("checksum")?))
        })
        .collect()
}

/// What the linker adds that no crate names.
fn libraries(machine: &Machine) -> Result<Vec<Component>> {
    let library = |name: &str, version: &str, license: &str| Component {
        name: name.into(),
        version: version.into(),
        license: Some(license.into()),
        purl: Some(format!("pkg:generic/{name}@{version}")),
        checksum: None,
        linked: true,
        depends_on: BTreeSet::new(),
    };
    let mut libraries = vec![library("rust-std", &machine.toolchain.compiler.release, "MIT OR Apache-2.0")];
    if machine.triple.ends_with("-gnu") {
        let compiler = machine.cross.as_ref().map_or("cc".as_ref(), |cross| cross.compiler.as_os_str());
        let archive = output(Command::new(compiler).arg("-print-file-name=libc.a"))?;
        let archive = fs::read(archive.trim()).with_context(|| format!("cannot read {}", archive.trim()))?;
        let version = libc_version(&archive).context("libc.a does not say which glibc it is")?;
        libraries.push(library("glibc", &version, "LGPL-2.1-or-later"));
        let version = output(Command::new(compiler).arg("-dumpfullversion"))?;
        libraries.push(library("libgcc", version.trim(), "GPL-3.0-or-later WITH GCC-exception-3.1"));
    }
    Ok(libraries)
}

/// Every glibc has `GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.` in it.
fn libc_version(archive: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b" release version ";
    let start = archive.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    let version: Vec<u8> =
        archive[start..].iter().copied().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').collect();
    let version = String::from_utf8(version).ok()?.trim_end_matches('.').to_owned();
    (!version.is_empty()).then_some(version)
}

fn document(components: &Components, triple: &str, origin: &Origin) -> Result<Value> {
    let root = components.values().find(|component| component.name == ROOT).context("the bill lacks its subject")?;
    let mut subject = root.json();
    subject["type"] = json!("application");
    subject["description"] = json!(DESCRIPTION);
    let property = |name: &str, value: &str| json!({"name": format!("palisade:{name}"), "value": value});
    let mut dependencies = Vec::new();
    for (reference, component) in components {
        let mut depends_on = component.depends_on.clone();
        let missing = depends_on.iter().find(|on| !components.contains_key(*on));
        ensure!(missing.is_none(), "{reference} depends on {missing:?}, which is not in the bill");
        if component == root {
            // Inside of the program as bytes; no dependency of the crate. Likewise what the linker added.
            depends_on.extend(components.iter().filter(|(_, inside)| inside.is_added()).map(|(on, _)| on.clone()));
        }
        dependencies.push(json!({"ref": reference, "dependsOn": depends_on}));
    }
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": jiff::Timestamp::from_second(origin.created).context("the time of creation")?.to_string(),
            "tools": {"components": [
                {"type": "application", "name": "cargo xtask sbom", "version": VERSION, "licenses": [{"expression": LICENSE}]},
            ]},
            "component": subject,
            "properties": [property("commit", &origin.revision), property("target", triple)],
        },
        "components":
            components.values().filter(|component| *component != root).map(Component::json).collect::<Vec<_>>(),
        "dependencies": dependencies,
    }))
}

// === impl Package ===

impl Package {
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }

    fn component(&self) -> Component {
        let Self { id: _, name, version, license, source, targets: _ } = self;
        Component {
            name: name.clone(),
            version: version.clone(),
            // Older crates write a slash where SPDX has an operator.
            license: license.as_ref().map(|license| license.replace('/', " OR ")),
            purl: source.as_ref().map(|_| format!("pkg:cargo/{name}@{version}")),
            checksum: None,
            linked: true,
            depends_on: BTreeSet::new(),
        }
    }
}

// === impl Node ===

impl Node {
    /// Identifiers of its normal dependencies.
    fn normal(&self) -> impl Iterator<Item = &str> {
        let normal =
            |dependency: &&Dependency| dependency.dep_kinds.iter().any(|DependencyKind { kind }| kind.is_none());
        self.deps.iter().filter(normal).map(|dependency| dependency.pkg.as_str())
    }
}

// === impl Component ===

impl Component {
    fn reference(&self) -> String {
        self.purl.clone().unwrap_or_else(|| format!("{}@{}", self.name, self.version))
    }

    /// In the program, though its crate does not depend on it.
    fn is_added(&self) -> bool {
        self.name == KERNEL_PROGRAMS || self.purl.as_ref().is_some_and(|purl| purl.starts_with("pkg:generic/"))
    }

    fn json(&self) -> Value {
        let Self { name, version, license, purl, checksum, linked, depends_on: _ } = self;
        let mut json = json!({
            "type": "library",
            "bom-ref": self.reference(),
            "name": name,
            "version": version,
            "scope": if *linked { "required" } else { "excluded" },
        });
        if let Some(license) = license {
            json["licenses"] = json!([{"expression": license}]);
        }
        if let Some(purl) = purl {
            json["purl"] = json!(purl);
        }
        if let Some(checksum) = checksum {
            json["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        json
    }
}

#[cfg(test)]
mod tests;
