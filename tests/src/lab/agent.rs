//! An agent in a node's namespace: started, waited for, asked over its HTTP endpoint, stopped or killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use palisade::observe::state_dir;
use rustix::process::{Pid, Signal, kill_process};

use super::{Lab, Node, programs};

/// Where its objects come from.
#[derive(Clone)]
pub enum Source {
    Manifests(PathBuf),
    Kubeconfig(PathBuf),
}

impl Source {
    /// An API server that does not answer. `folder`: where to put the file that names it.
    pub fn silent(folder: &Path) -> Result<Self> {
        let kubeconfig = folder.join("kubeconfig");
        let text =
            "{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: x, user: x}}],
            clusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: x, user: {}}]}";
        fs::write(&kubeconfig, text).context("writing a kubeconfig")?;
        Ok(Self::Kubeconfig(kubeconfig))
    }
}

#[derive(Clone)]
pub struct AgentOptions {
    pub source: Source,
    /// Further arguments.
    pub extra: Vec<String>,
    /// `RUST_LOG` of the agent.
    pub log_level: Option<String>,
    /// Another agent than the one that was built.
    pub program: Option<PathBuf>,
}

impl AgentOptions {
    pub fn new(source: Source) -> Self {
        Self { source, extra: Vec::new(), log_level: None, program: None }
    }

    pub fn manifests(folder: &Path) -> Self {
        Self::new(Source::Manifests(folder.to_owned()))
    }

    pub fn argument(mut self, argument: &str) -> Self {
        self.extra.push(argument.to_owned());
        self
    }
}

/// A running agent. Dropping it kills it and leaves what it has loaded.
pub struct Agent {
    child: Option<Child>,
    node: super::Netns,
    /// What it says on stderr; a later agent of the node appends.
    pub log: PathBuf,
    metrics: SocketAddr,
}

impl Agent {
    /// Its own port on the loopback of the node's namespace.
    const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9731);

    /// Starts it and does not wait for anything.
    pub fn spawn(lab: &Lab, node: &Node, options: &AgentOptions) -> Result<Self> {
        let log = node.folder.join("agent.log");
        let stderr = File::options().create(true).append(true).open(&log)?;
        let program = options.program.clone().map_or_else(programs::agent, Ok)?;
        let mut command = node.netns.command(program);
        command.arg("agent");
        match &options.source {
            Source::Manifests(folder) => command.arg("--manifests").arg(folder),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        if !options.extra.iter().any(|argument| argument == "--node-name") {
            command.args(["--node-name", &node.name]);
        }
        command.arg("--pin-dir").arg(&node.pin_dir);
        lab.guard().folder(&state_dir(&node.pin_dir));
        command.arg("--cni-cache-dir").arg(node.cni_cache());
        if !options.extra.iter().any(|argument| argument == "--cgroup") {
            command.arg("--cgroup").arg(&node.cgroup.path);
        }
        command.args(["--metrics-addr", &Self::METRICS.to_string()]).args(&options.extra);
        if let Some(level) = &options.log_level {
            command.env("RUST_LOG", level);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .context("cannot start the agent")?;
        lab.guard().process(child.id());
        Ok(Self { child: Some(child), node: node.netns.clone(), log, metrics: Self::METRICS })
    }

    /// Starts it and waits until it enforces.
    pub fn start(lab: &Lab, node: &Node, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(lab, node, options)?;
        agent.wait_ready(Duration::from_secs(20))?;
        Ok(agent)
    }

    /// Ready means enforced: every pod of the node is judged by what the source says.
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            if self.http("/readyz").is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().context("the agent was stopped")?.try_wait()? {
                bail!("the agent ended with {status}:\n{}", self.log_tail());
            }
            ensure!(Instant::now() < end, "the agent is not ready after {deadline:?}:\n{}", self.log_tail());
            // There is no event to wait for from outside.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Status and body of a GET.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let address = self.metrics;
        let answer = self.node.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: palisade\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split_whitespace().nth(1).context("no HTTP status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// How many changes of objects it has taken in.
    pub fn updates(&self) -> Result<u64> {
        let (_, page) = self.http("/metrics")?;
        let counters = page.lines().filter(|line| line.starts_with("palisade_updates_total"));
        Ok(counters.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }

    /// Waits until it has taken in that many in all.
    pub fn wait_updates(&self, count: u64, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let seen = self.updates()?;
            if seen >= count {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the agent has taken in {seen} changes of {count}:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended by itself, if it does in time.
    pub fn wait_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + deadline;
        let child = self.child.as_mut().context("the agent was stopped")?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "the agent still runs after {deadline:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.end(Signal::TERM)
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.end(Signal::KILL)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the agent was stopped before")?;
        kill_process(Pid::from_child(&child), signal)?;
        Ok(child.wait()?)
    }

    /// Leaves the process to the guard.
    pub fn keep(mut self) {
        self.child = None;
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.end(Signal::KILL);
        }
    }
}

/// `palisade SUBCOMMAND …` on a node, with its pins.
pub fn palisade(node: &Node, arguments: &[&str]) -> Result<Output> {
    palisade_command(node, arguments)?.output().context("cannot run palisade")
}

pub fn palisade_command(node: &Node, arguments: &[&str]) -> Result<Command> {
    let mut command = node.netns.command(programs::agent()?);
    command.args(arguments).arg("--pin-dir").arg(&node.pin_dir);
    Ok(command)
}
