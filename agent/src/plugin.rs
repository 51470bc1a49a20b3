//! `kubectl palisade …`: the same commands, asked of the agents of a cluster's nodes.
//!
//! A link to this binary named `kubectl-palisade` in the path is all that kubectl needs. It has kubectl itself find the agents' pods and run
//! the commands in them (`pods/exec`), so that who may look is the cluster's RBAC to say, and whatever kubectl logs in by works here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use clap::Parser as _;
use serde::Deserialize;

use crate::config::{self, Cli};
use crate::exit::Exit;
use crate::explain::names::{Known, Reference};

/// What the binary is called where it is kubectl's plugin.
pub const NAME: &str = "kubectl-palisade";
/// Labels of the agents' pods, and the container that has the binary.
const SELECTOR: &str = "app.kubernetes.io/name=palisade";
const CONTAINER: &str = "agent";
const BINARY: &str = "/palisade";

const HELP: &str = "\
Asks the agents of a cluster's nodes: kubectl palisade COMMAND …

Usage: kubectl palisade [--context NAME] [--kubeconfig FILE] [--node NODE]… COMMAND [ARGUMENTS]

COMMAND and its ARGUMENTS are those of `palisade` on a node: status, endpoints, policies, flows, drops, maps, explain and others that show
something. They are run in the agent's pod of each --node. Without --node: `explain` and `capture` ask the nodes of the pods that they are about,
everything else all nodes, one after the other; what does not end (--watch) needs one. Namespaces of names are given to the command, as in
`kubectl palisade explain -n shop deploy/web svc/db`.

What is run is `kubectl exec`: whoever may create pods/exec in the agents' namespace may look.

Exit codes: 0 done, or the answer is yes on every node; 1 failed on one; 2 wrong usage; 3 the answer is no on one.";

/// The command line, ours taken apart from the command's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    /// For kubectl itself.
    cluster: Vec<String>,
    nodes: Vec<String>,
    command: Vec<String>,
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Agent {
    node: String,
    namespace: String,
    pod: String,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
}

/// Whether the process was started as kubectl's plugin.
pub fn is_plugin(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_stem()).is_some_and(|name| name == NAME)
}

/// # Errors
///
/// When kubectl cannot be run, or finds no agent.
pub fn run(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<Exit> {
    let line = match read(arguments) {
        Ok(Some(line)) => line,
        Ok(None) => {
            println!("{HELP}");
            return Ok(Exit::Done);
        }
        Err(error) => {
            eprintln!("{NAME}: {error}\n\n{HELP}");
            return Ok(Exit::Usage);
        }
    };
    if line.command[0] == "capture" && io::stdout().is_terminal() {
        eprintln!(
            "{NAME}: packets are nothing for a terminal: send standard output to a file or to `wireshark -k -i -`"
        );
        return Ok(Exit::Usage);
    }
    let agents = agents(&line.cluster)?;
    let nodes = match (&*line.nodes, line.command[0].as_str()) {
        ([], "explain" | "capture") => nodes_of_ends(&line, &agents)?,
        (nodes, _) => nodes.iter().cloned().collect(),
    };
    let asked: Vec<&Agent> = match nodes.is_empty() {
        true => agents.iter().collect(),
        false => nodes.iter().map(|node| agent_of(&agents, node)).collect::<Result<_, _>>()?,
    };
    if asked.len() > 1 && never_ends(&line.command) {
        eprintln!("{NAME}: this does not end, and nodes are asked one after the other: say --node");
        return Ok(Exit::Usage);
    }
    let mut worst = Exit::Done;
    for agent in &asked {
        if asked.len() > 1 {
            eprintln!("== node {}", agent.node);
        }
        let status = exec(&line.cluster, agent, &line.command).status().context("running kubectl")?;
        worst = match (status.code(), worst) {
            (Some(0), worst) => worst,
            (Some(2), _) => return Ok(Exit::Usage),
            (Some(3), Exit::Done) => Exit::No,
            (Some(3), worst) => worst,
            _ => Exit::Failed,
        };
    }
    Ok(worst)
}

/// `None`: help is wanted.
fn read(arguments: impl IntoIterator<Item = String>) -> Result<Option<Line>, String> {
    let mut line = Line::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let (name, given) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (argument.clone(), None),
        };
        let mut value = || given.clone().or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "-h" | "--help" | "help" => return Ok(None),
            "--node" => line.nodes.push(value()?),
            "--context" | "--kubeconfig" | "--cluster" | "--user" => {
                let value = value()?;
                line.cluster.push(format!("{name}={value}"));
            }
            _ if name.starts_with('-') => return Err(format!("{name} comes after the command, or is unknown")),
            _ => {
                line.command.push(argument);
                line.command.extend(arguments.by_ref());
            }
        }
    }
    if line.command.is_empty() { Err("a command is missing".to_owned()) } else { Ok(Some(line)) }
}

fn kubectl(cluster: &[String]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(cluster);
    command
}

fn agents(cluster: &[String]) -> anyhow::Result<Vec<Agent>> {
    let mut command = kubectl(cluster);
    command.args([
        "get",
        "pods",
        "--all-namespaces",
        "--selector",
        SELECTOR,
        "--field-selector",
        "status.phase=Running",
    ]);
    let output = command.args(["--output", "json"]).stderr(Stdio::inherit()).output().context("running kubectl")?;
    ensure!(output.status.success(), "kubectl cannot list the agents' pods ({})", output.status);
    let list: List = serde_json::from_slice(&output.stdout).context("what kubectl says of the agents' pods")?;
    let agent =
        |item: Item| Agent { node: item.spec.node_name, namespace: item.metadata.namespace, pod: item.metadata.name };
    let mut agents: Vec<Agent> = list.items.into_iter().map(agent).collect();
    ensure!(!agents.is_empty(), "no pod with the label {SELECTOR} is running in the cluster");
    agents.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(agents)
}

fn agent_of<'a>(agents: &'a [Agent], node: &str) -> anyhow::Result<&'a Agent> {
    agents.iter().find(|agent| agent.node == node).with_context(|| format!("no agent's pod is running on node {node}"))
}

/// The command as it is run in the agent's pod.
fn exec(cluster: &[String], agent: &Agent, arguments: &[String]) -> Command {
    let mut command = kubectl(cluster);
    command.args(["exec", "--namespace", &agent.namespace, &agent.pod, "--container", CONTAINER, "--", BINARY]);
    command.args(arguments);
    command
}

fn never_ends(command: &[String]) -> bool {
    command[0] == "capture" || command.iter().any(|argument| matches!(argument.as_str(), "-w" | "--watch"))
}

/// The nodes of the pods that an explanation is about, as any agent knows them.
fn nodes_of_ends(line: &Line, agents: &[Agent]) -> anyhow::Result<BTreeSet<String>> {
    let (namespace, ends) = match captured(&line.command) {
        Some(pod) => ("default".to_owned(), vec![pod]),
        None => ends(&line.command[1..]),
    };
    let mut nodes = BTreeSet::new();
    for end in ends {
        let reference = Reference::parse(&end, &namespace).map_err(anyhow::Error::msg)?;
        if reference == Reference::Node {
            bail!("`node` is a process of which node? Say --node");
        }
        let question = ["find".to_owned(), end, "--namespace".to_owned(), namespace.clone()];
        let output =
            exec(&line.cluster, &agents[0], &question).stderr(Stdio::inherit()).output().context("running kubectl")?;
        ensure!(output.status.success(), "the agent on {} does not say who {reference} is", agents[0].node);
        let known: Known = serde_json::from_slice(&output.stdout).context("the agent is of another version")?;
        let backends = known.services.into_iter().flat_map(|service| service.backends.unwrap_or_default());
        nodes.extend(known.pods.into_iter().chain(backends).filter(|pod| !pod.host_network).filter_map(|pod| pod.node));
    }
    ensure!(!nodes.is_empty(), "neither end is a pod on a node that is known");
    Ok(nodes)
}

/// The pod whose packets are to be captured.
fn captured(command: &[String]) -> Option<String> {
    let words = std::iter::once("palisade").chain(command.iter().map(String::as_str));
    match Cli::try_parse_from(words).ok()?.command {
        config::Command::Capture(flags) => Some(flags.pod),
        _ => None,
    }
}

/// The namespace that names are of, and the two that come first.
fn ends(arguments: &[String]) -> (String, Vec<String>) {
    let mut namespace = "default".to_owned();
    let mut ends = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-n" | "--namespace" => namespace = arguments.next().cloned().unwrap_or(namespace),
            "-o" | "--output" | "--pin-dir" => {
                arguments.next();
            }
            other => match other.strip_prefix("--namespace=") {
                Some(value) => value.clone_into(&mut namespace),
                None if other.starts_with('-') => {}
                None => ends.push(other.to_owned()),
            },
        }
    }
    ends.truncate(2);
    (namespace, ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn ours_comes_before_the_command() {
        let line = |text: &str| read(words(text));
        let expected = Line {
            cluster: words("--context=prod --kubeconfig=f"),
            nodes: words("one two"),
            command: words("explain -n shop web db --output=json"),
        };
        let text = "--context prod --kubeconfig=f --node one --node=two explain -n shop web db --output=json";
        assert_eq!(line(text), Ok(Some(expected)));
        assert_eq!(line("status --help").map(|line| line.map(|line| line.command)), Ok(Some(words("status --help"))));
        assert_eq!(line("--help"), Ok(None));
        for wrong in ["", "--node", "--node one", "-o json status"] {
            assert!(line(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn whom_an_explanation_is_about() {
        let of = |text: &str| ends(&words(text));
        assert_eq!(of("-n shop deploy/web svc/db tcp/80"), ("shop".to_owned(), words("deploy/web svc/db")));
        assert_eq!(of("a/b -o json c/d 80 --namespace=x"), ("x".to_owned(), words("a/b c/d")));
    }

    #[test]
    fn what_does_not_end_is_for_one_node() {
        assert!(never_ends(&words("drops -w")) && never_ends(&words("flows --watch --pod shop/web")));
        assert!(!never_ends(&words("drops --top 3")));
        assert!(never_ends(&words("capture shop/web")));
    }

    #[test]
    fn whose_packets_are_captured() {
        let of = |text: &str| captured(&words(text));
        assert_eq!(of("capture --count 5 shop/web --peer 10.0.0.0/8").as_deref(), Some("shop/web"));
        assert_eq!((of("capture web"), of("drops --pod shop/web")), (None, None));
    }

    #[test]
    fn it_is_known_by_its_name() {
        assert!(is_plugin(Some(OsStr::new("/usr/local/bin/kubectl-palisade"))));
        assert!(!is_plugin(Some(OsStr::new("/palisade"))) && !is_plugin(None));
    }
}
