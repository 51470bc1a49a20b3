//! CNI calls through libcni, by the Go program tests/go/cni, in a node's namespace.

use std::io::{BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::{Guard, Netns, programs};

pub struct Call {
    pub command: &'static str,
    /// A file, or a folder of which the first is taken.
    pub conflist: PathBuf,
    pub cache: PathBuf,
    pub interface: &'static str,
    pub container_id: String,
    pub netns: PathBuf,
    pub args: Vec<[String; 2]>,
    /// What the runtime knows and plugins may want: `portMappings`.
    pub capability: Value,
    /// For GC: whose attachments stay, by container.
    pub valid: Vec<String>,
}

pub struct Runner {
    guard: Guard,
    netns: Netns,
    plugins: PathBuf,
    folder: PathBuf,
}

impl Runner {
    pub fn new(guard: &Guard, netns: &Netns, folder: &Path) -> Result<Self> {
        Ok(Self { guard: guard.clone(), netns: netns.clone(), plugins: programs::cni()?, folder: folder.to_owned() })
    }

    /// Where plugins are looked for beside the lab's own.
    pub fn further_plugins(folder: &Path) -> PathBuf {
        folder.join("cni-bin")
    }

    /// The results in the order of the calls.
    pub fn call(&self, calls: &[Call]) -> Result<Vec<Result<Value>>> {
        let mut results = Vec::new();
        self.call_each(calls, |result| results.push(result))?;
        Ok(results)
    }

    /// Each result as soon as it is there.
    pub fn call_each(&self, calls: &[Call], mut take: impl FnMut(Result<Value>)) -> Result<()> {
        let mut requests = String::new();
        for call in calls {
            requests.push_str(&self.request(call).to_string());
            requests.push('\n');
        }
        let mut child = self
            .netns
            .command(self.plugins.join("palisade-cni-runner"))
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot run palisade-cni-runner")?;
        self.guard.process(child.id());
        let mut stdin = child.stdin.take().expect("stdin was asked for above");
        let stdout = child.stdout.take().expect("stdout was asked for above");
        // On a thread of its own: with many calls both pipes fill.
        let writer = std::thread::spawn(move || stdin.write_all(requests.as_bytes()));
        let mut count = 0;
        for answer in serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Value>() {
            let mut answer = answer?;
            count += 1;
            take(match answer.get("error").and_then(Value::as_str) {
                Some(error) => Err(anyhow!("{error}")),
                None => Ok(answer["result"].take()),
            });
        }
        let status = child.wait()?;
        writer.join().expect("writing does not panic")?;
        ensure!(status.success(), "palisade-cni-runner: {status}");
        ensure!(count == calls.len(), "{} calls, {count} answers", calls.len());
        Ok(())
    }

    fn request(&self, call: &Call) -> Value {
        json!({
            "command": call.command,
            "conflist": call.conflist,
            "plugins": [&self.plugins, &Self::further_plugins(&self.folder)],
            "cache": call.cache,
            "containerId": call.container_id,
            "netns": call.netns,
            "ifName": call.interface,
            "args": call.args,
            "capabilityArgs": call.capability,
            "valid": call.valid,
        })
    }
}
