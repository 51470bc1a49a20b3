//! kubectl in the control plane's network, as an operator has it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::{Netns, programs};

/// How long the cluster may take for anything that is asked of it.
pub const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Clone)]
pub struct Kubectl {
    netns: Netns,
    pub(super) program: PathBuf,
    pub kubeconfig: PathBuf,
}

impl Kubectl {
    pub fn new(netns: &Netns, kubeconfig: &Path) -> Result<Self> {
        let program = programs::of_cluster("kubernetes", "kubectl")?;
        Ok(Self { netns: netns.clone(), program, kubeconfig: kubeconfig.to_owned() })
    }

    /// Not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.tool(&self.program);
        command.args(arguments);
        command
    }

    /// Another program that finds the cluster by KUBECONFIG.
    pub fn tool(&self, program: &Path) -> Command {
        let mut command = self.netns.command(program);
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// What it says on stdout.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().context("cannot run kubectl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), said.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.run(&[&["get", "--output", "json"], arguments].concat())?;
        serde_json::from_str(&said).context("kubectl prints JSON")
    }

    /// `apply --filename -` of some objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut command = self.command(&["apply", "--filename", "-"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("kubectl")?;
        child.stdin.take().expect("stdin was asked for above").write_all(list.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl apply: {}", said.trim_end());
        Ok(())
    }

    /// Asks until the answer is as it should be, or there is none in time.
    pub fn until(&self, arguments: &[&str], holds: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.run(arguments);
            match said {
                Ok(said) if holds(&said) => return Ok(said),
                said => ensure!(
                    Instant::now() < end,
                    "kubectl {} is not as it should be after {PATIENCE:?}: {said:?}",
                    arguments.join(" ")
                ),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// `rollout status`, which says what it waits for when it does not come.
    pub fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let waited = self.run(&["--namespace", namespace, "rollout", "status", what, &timeout]);
        waited.map(drop).with_context(|| {
            let pods = self.run(&["--namespace", namespace, "describe", "pods"]);
            let logs = self.run(&["--namespace", namespace, "logs", what, "--all-containers", "--tail=20"]);
            [pods, logs].map(|said| said.unwrap_or_else(|error| format!("{error:#}"))).join("\n")
        })
    }
}
