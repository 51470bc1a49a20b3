//! A cluster of whole nodes on this machine, Palisade installed in it, and what is tried there. `cargo xtask cluster` builds everything
//! and runs this. Ctrl-C at any moment removes what was made.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use palisade_tests::cluster::trial::{self, Trials};
use palisade_tests::cluster::{Backend, Cluster, Install, Places, Proxy, Settings, down, init, told};

/// Kubernetes nodes on this machine, Palisade installed in them, and what is tried there
///
/// Without a cluster that was left standing, one is started, used, and removed. What is asked for is done in the order of the flags below;
/// the first that fails ends the run.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask cluster", verbatim_doc_comment, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    up: Up,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove the cluster that was left standing.
    Down,
    /// The first process of a node.
    #[command(hide = true)]
    Node { spec: PathBuf },
}

#[derive(Debug, Args)]
struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// How flannel's packets get from node to node: vxlan or host-gw.
    #[arg(long, default_value = "vxlan")]
    backend: Backend,
    /// kube-proxy's mode: iptables or nftables.
    #[arg(long, default_value = "iptables")]
    proxy: Proxy,
    /// What Palisade is installed by.
    #[arg(long, value_enum, default_value = "manifest")]
    install: By,
    /// Before Palisade is installed another enforcer runs; Palisade takes over from it, and it from Palisade, under traffic.
    #[arg(long, value_enum)]
    move_from: Option<Other>,
    /// So many short-lived Jobs that try what a default deny forbids.
    #[arg(long, value_name = "N")]
    jobs: Option<u32>,
    /// The DaemonSet goes to an image of another version and back under traffic.
    #[arg(long)]
    roll: bool,
    /// The last node loses its power and comes back.
    #[arg(long)]
    restart_node: bool,
    /// Upstream's end-to-end tests of NetworkPolicy.
    #[arg(long)]
    e2e: bool,
    /// Which of them, by a regular expression.
    #[arg(long, value_name = "REGEX", default_value = "Netpol")]
    focus: String,
    /// How many of them at once.
    #[arg(long, value_name = "N", default_value_t = 4)]
    procs: u8,
    /// Palisade is removed as docs/install.md says, and looked for.
    #[arg(long)]
    uninstall: bool,
    /// Leave the cluster standing; `cargo xtask cluster` uses it from then on, until `cargo xtask cluster down`.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// deploy/palisade.yaml
    Manifest,
    /// deploy/kustomization.yaml
    Kustomize,
    /// deploy/helm/palisade
    Chart,
    /// Not at all.
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Other {
    KubeRouter,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Node { spec }) => node(&spec),
        Some(Command::Down) => places().and_then(|places| {
            let was = down(&places.folder)?;
            println!("{}", if was { "removed" } else { "there is no cluster that was left standing" });
            Ok(())
        }),
        None => up(&cli.up),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn node(spec: &std::path::Path) -> Result<()> {
    init::run(&serde_json::from_slice(&std::fs::read(spec)?)?)
}

fn places() -> Result<Places> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).context("run by `cargo xtask cluster`");
    let (all, deploy) = (folder("PALISADE_CLUSTER")?, folder("PALISADE_DEPLOY")?);
    Ok(Places { images: all.join("images"), folder: all, deploy })
}

fn up(asked: &Up) -> Result<()> {
    let start = Instant::now();
    let settings = Settings { nodes: asked.nodes, backend: asked.backend, proxy: asked.proxy };
    let places = places()?;
    let standing = Cluster::standing(&places)?;
    let keep = asked.keep || standing.is_some();
    let mut cluster = match standing {
        Some(cluster) => {
            ensure!(cluster.settings == settings, "a cluster of other settings is standing: {:?}", cluster.settings);
            cluster
        }
        None => Cluster::start(settings, places)?,
    };
    told(start, "the cluster is up");
    let trials = Trials {
        install: match asked.install {
            By::Manifest => Some(Install::Manifest),
            By::Kustomize => Some(Install::Kustomize),
            By::Chart => Some(Install::Chart),
            By::None => None,
        },
        move_from_kube_router: asked.move_from.is_some(),
        jobs: asked.jobs,
        roll: asked.roll,
        restart_node: asked.restart_node,
        e2e: asked.e2e.then(|| (asked.focus.clone(), asked.procs)),
        uninstall: asked.uninstall,
    };
    let done = trial::run(&mut cluster, &trials, start);
    if keep {
        cluster.keep_with_hint()?;
    }
    done
}
