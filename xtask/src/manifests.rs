//! The plain manifests, which the Helm chart renders: the chart is the source, and what is in git may not differ from it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{output, run};
use crate::{paths, setup};

/// Files in deploy/, and the chart's values that make them.
const FILES: [(&str, &[&str]); 2] = [("palisade.yaml", &[]), ("uninstall.yaml", &["--set", "uninstall.enabled=true"])];

/// Pod Security: the host's network, hostPath volumes and capabilities need the level `privileged`.
const NAMESPACE: &str = "\
# Made from deploy/helm/palisade by `cargo xtask manifests`.
apiVersion: v1
kind: Namespace
metadata:
  name: palisade
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

/// Writes them anew.
pub fn write() -> Result<()> {
    for (name, contents) in rendered()? {
        let path = folder().join(name);
        fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The chart is well-formed, and the files in git are what it renders.
pub fn check() -> Result<()> {
    run(Command::new(setup::helm()?).args(["lint", "--strict"]).arg(chart()))?;
    for (name, contents) in rendered()? {
        let path = folder().join(name);
        let found = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(found == contents, "deploy/{name} is not what the chart renders: run `cargo xtask manifests`");
    }
    Ok(())
}

fn rendered() -> Result<Vec<(&'static str, String)>> {
    let helm = setup::helm()?;
    FILES
        .iter()
        .map(|&(name, values)| {
            let mut command = Command::new(&helm);
            command
                .args(["template", "palisade"])
                .arg(chart())
                .args(["--namespace", "palisade", "--no-hooks"])
                .args(values);
            // The oldest release that the chart admits; without a cluster helm takes an older one for given.
            command.args(["--kube-version", "1.29.0"]);
            Ok((name, format!("{NAMESPACE}{}", output(&mut command)?)))
        })
        .collect()
}

fn folder() -> PathBuf {
    paths::workspace().join("deploy")
}

fn chart() -> PathBuf {
    folder().join("helm/palisade")
}
