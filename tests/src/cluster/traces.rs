//! What Palisade leaves on a node, and what it may not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::ClusterNode;
use super::init::has_version_1;

/// Folders of the node in which an agent makes something.
const FOLDERS: [&str; 5] = ["/etc/cni", "/opt/cni", "/run/palisade", "/sys/fs/bpf", "/var/lib/palisade"];

/// Files and folders there, with their sizes, and our programs on interfaces and cgroups.
pub fn of(node: &ClusterNode) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for folder in FOLDERS {
        collect(node, Path::new(folder), &mut found)?;
    }
    let cgroups = if has_version_1() { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" };
    for asked in [["net", "show"].as_slice(), &["cgroup", "tree", cgroups]] {
        let output = node.command("bpftool")?.args(asked).output().context("cannot run bpftool")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
        let programs = ["from_pod", "to_pod", "exit_link", "exit_raw", "deliver"];
        let ours = said.lines().filter(|line| programs.iter().any(|program| line.contains(program)));
        found.extend(ours.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(found)
}

fn collect(node: &ClusterNode, folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let place = node.path(&folder.to_string_lossy())?;
    let Ok(entries) = fs::read_dir(&place) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.insert(format!("{}/", path.display()));
            collect(node, &path, found)?;
        } else {
            found.insert(format!("{} of {} bytes", path.display(), entry.metadata()?.len()));
        }
    }
    Ok(())
}
