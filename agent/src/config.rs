//! The command line, and what it becomes: flags as typed, then a [`AgentConfig`] that can be trusted everywhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cni::BIN_DIR;
use crate::cni::install::{Places, plugin_beside};
use crate::kernel::{AttachMode, Settings, Sizes, StampMask, XdpWish};
use crate::observe::sinks::file::FileOptions;
use crate::observe::sinks::otlp::OtlpEndpoint;

mod change;
mod show;

pub use change::{AwaitFlags, CniCommand, CniFolders, CniInstallFlags, CniUninstallFlags, PauseFlags, UninstallFlags};
pub use show::{
    CaptureFlags, CheckFlags, DropsFlags, EndpointsFlags, ExplainFlags, FindFlags, FlowVerdict, FlowsFlags,
    MapsCommand, MapsFlags, Output, PoliciesFlags, ShowFlags,
};

/// Where cgroup v2 is mounted unless told otherwise.
pub const CGROUP_DIR: &str = "/sys/fs/cgroup";

/// Where pins go unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/palisade";

/// Enforces Kubernetes NetworkPolicy in the kernel, on clusters whose network plugin does not.
///
/// One agent runs on each node. It watches NetworkPolicies, Pods, Namespaces and Nodes, and has two small programs at the host's side of
/// each pod's veth judge every packet. It leaves the network plugin and kube-proxy alone.
#[derive(Debug, Parser)]
#[command(name = "palisade", version = crate::VERSION, propagate_version = true, after_help = crate::exit::CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node: watch, compile, enforce
    ///
    /// Objects come from a folder (--manifests), from an API server named by a kubeconfig (--kubeconfig),
    /// or, without either, from the API server of the cluster that this process is a pod of.
    ///
    /// The agent acts on the network namespace that it is started in; several agents may run on one machine,
    /// each in its node's namespace with its own --pin-dir. It logs to standard error, one line per event;
    /// RUST_LOG overrides --log-level.
    ///
    /// On SIGTERM or SIGINT it ends and leaves enforcement in place; `palisade uninstall` takes it away.
    ///
    /// Exit codes: 0 asked to stop, 1 failed, 2 wrong usage.
    #[command(verbatim_doc_comment)]
    Agent(Box<AgentFlags>),
    /// Print whether this node is enforced, how many of its pods are, whether what they send to Services can be judged, and what is wrong.
    Status(ShowFlags),
    /// Print every table as it is in the kernel, decoded; `diff`: what is not as a compilation from nothing would make it
    ///
    /// `palisade maps diff` asks the agent for all that it knows, compiles that, and compares the result with the loaded tables by what
    /// numbers stand for. The agent does the same every --drift-every and tells of it by the metric palisade_drift_entries.
    ///
    /// Exit codes: 0 done, of diff: no difference; 1 failed, 2 wrong usage, 3 there are differences.
    #[command(verbatim_doc_comment)]
    Maps(MapsFlags),
    /// Print who is enforced on this node and by which policies, and who is not, and why.
    Endpoints(EndpointsFlags),
    /// Print the policies that isolate pods of this node, as they are enforced
    ///
    /// With a NAME, or with -o wide, rule by rule: the peers as written, the classes that stand for them and how many addresses have these,
    /// the ports as written, the ports that rows of the loaded tables give by the rule once names are resolved (what an earlier rule gives
    /// as well is told there), how many of the flows that are remembered the rule admits, and how many new ones it has admitted so far.
    #[command(verbatim_doc_comment)]
    Policies(PoliciesFlags),
    /// Say why a flow is allowed or refused: at every hook of this node that its first packet passes, by the loaded tables
    ///
    /// SOURCE and DESTINATION are pods (NAMESPACE/NAME, NAME or pod/NAME with -n), what makes pods (deploy/NAME, sts/NAME, ds/NAME,
    /// rs/NAME, job/NAME), IP addresses, `node` as a source, and svc/NAME as a destination; TYPE/NAMESPACE/NAME is the same as
    /// TYPE/NAME -n NAMESPACE. At least one end has to be a pod of this node. What only the other end's node knows is named.
    ///
    /// The very function that judges packets in the kernel is asked, over the very maps, as for a new flow. Names of pods of other nodes,
    /// of Services and of what makes pods are the running agent's; without an agent, pods of this node and addresses can be told.
    ///
    /// Exit codes: 0 allowed as far as this node knows, 1 nothing can be said, 2 wrong usage, 3 refused.
    #[command(verbatim_doc_comment)]
    Explain(ExplainFlags),
    /// Say what policies would do, before they are applied: what they would newly refuse and allow
    ///
    /// Compares the same pods with and without the policies of -f: every pair of pods, and every pod with those outside that ipBlocks
    /// tell apart, over every port. Nothing is changed, and unless --against is `live` neither a cluster nor root is needed.
    ///
    /// What makes pods (Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob) stands for the pods that it would make. Pods without
    /// an address get one for the occasion. Whether pods are on one node or on several makes no difference to the answer.
    ///
    /// A table of --expect has a line for each flow that must work or must not, written as for `palisade explain`:
    ///
    ///     must-work      shop/web        svc/shop/api     http
    ///     must-not-work  deploy/ops/ci   shop/db          tcp/5432   # why
    ///
    /// Exit codes: 0 as expected, 1 a file cannot be read or not be enforced as written, 2 wrong usage, 3 an expectation is not met, or
    /// with --strict something is newly refused.
    #[command(verbatim_doc_comment)]
    Check(CheckFlags),
    /// Print, as JSON, what the agent knows of somebody: pods with their nodes, addresses and ports. For `kubectl palisade`.
    #[command(hide = true)]
    Find(FindFlags),
    /// Print the flows that the programs remember: who talks to whom, and what policies say of it now
    ///
    /// Read from the kernel's table, with or without an agent; one that runs adds the names of pods on other nodes. Flows of pods that
    /// no policy isolates are not remembered. What was refused is not there: see `palisade drops`.
    ///
    /// With --watch: one line for each flow that is there, and then for each that comes, changes or goes (the table is read once a second).
    /// With -o json each of these is one object on a line.
    #[command(verbatim_doc_comment)]
    Flows(FlowsFlags),
    /// Print what was refused lately, with the pods on both ends, the policies, and the reason
    ///
    /// Asks the agent that runs, which keeps the last few thousand kinds of refused packets: the same pod, direction, peer, port and
    /// reason. Only root may ask. Fields of -o json are those of docs/events.md; with --watch each is one object on a line. Fails where no agent
    /// runs.
    #[command(verbatim_doc_comment)]
    Drops(DropsFlags),
    /// Write the packets of a pod that are refused from now on to a file that Wireshark opens, each with the reason
    ///
    /// Asks the agent that runs; only root may ask. The format is pcap-ng: each packet has the direction, the reason and the policies as a
    /// comment (frame.comment), times are in nanoseconds, and packets of a pod that are refused only where they leave the node have that device as
    /// their interface. As long as nobody captures, the programs do nothing for it; up to 1,000 packets per processor and second are taken,
    /// and those that are not are counted and told of at the end.
    ///
    ///     palisade capture shop/web -w refused.pcapng
    ///     palisade capture shop/web --peer 10.0.0.0/8 --count 20 | tcpdump -nr -
    ///     kubectl palisade capture shop/web | wireshark -k -i -
    ///
    /// Ends after --count packets, after --for, when interrupted, or when nobody reads it any longer.
    #[command(verbatim_doc_comment)]
    Capture(CaptureFlags),
    /// Stop enforcing for a while: nothing of a pod, or of the whole node, is refused until then
    ///
    /// Takes effect at once and ends by itself, whatever becomes of the agent. What policies allow is judged and remembered as ever, so
    /// that such connections outlive the end; others are then cut. Told of by the log, `palisade status`, metrics, and an Event.
    #[command(verbatim_doc_comment)]
    Pause(PauseFlags),
    /// Put the CNI plugin into the way of new pods, or take it out.
    #[command(subcommand)]
    Cni(CniCommand),
    /// Take the CNI plugin, programs, maps, pins and state away. Enforcement ends. Refuses while an agent runs.
    Uninstall(UninstallFlags),
    /// Print what a shell needs to complete these commands, as in `palisade completion bash > /etc/bash_completion.d/palisade`.
    Completion { shell: clap_complete::Shell },
    /// Write a manual page for each command into a folder, as in `palisade man /usr/local/share/man/man1`.
    Man {
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Wait until a DaemonSet that runs `palisade uninstall --stay` has cleaned every node: what the Helm chart's removal waits for
    ///
    /// For a pod whose account may get, list and watch that DaemonSet. Exit codes: 0 every node is clean, 1 not in time.
    #[command(verbatim_doc_comment)]
    AwaitUninstall(AwaitFlags),
}

/// See [`Command::Agent`].
#[derive(Debug, Args)]
pub struct AgentFlags {
    /// Folder of manifests (*.yaml, *.yml, *.json; one or more objects per file: Namespace, Pod with status, NetworkPolicy, Node,
    /// Service), watched: a new, replaced or deleted file is a new, replaced or deleted object.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,

    /// Kubeconfig file of the API server to watch.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Name of this node, as in spec.nodeName of its pods.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,

    /// Folder on a bpffs for programs' links and maps; made, and a bpffs mounted, if missing.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,

    /// Folder in which libcni caches results (they are in its subfolder `results`): tells which veth is which pod's.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cni_cache_dir: PathBuf,

    /// Root of the cgroup v2 hierarchy whose sockets are this node's: what pods send to Services may be delivered to them.
    #[arg(long, value_name = "DIR", default_value = CGROUP_DIR)]
    cgroup: PathBuf,

    /// Bits of packets' marks (skb->mark) that say which pod opened a flow: 4 to 16 of them, side by side, that nobody else on the node
    /// uses. kube-proxy uses 0xc000, Tailscale 0x00ff0000, Istio the low 16, Calico 0xffff0000 unless told otherwise. As many pods can
    /// have an egress policy as there are numbers; the others are refused what they send to Services. Run `palisade uninstall` before
    /// changing it.
    #[arg(long, value_name = "HEX", default_value_t = StampMask::default())]
    stamp_mask: StampMask,

    /// Folder of the container runtime's CNI configurations. Given, the agent puts palisade-cni last into the chain of the first of them,
    /// by a file of its own that comes before it, and follows when the network plugin rewrites its own: pods then start once they are
    /// enforced, and do not start while no agent runs. The usual folder is /etc/cni/net.d.
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,

    /// Folder of the container runtime's CNI plugins.
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    cni_bin_dir: PathBuf,

    /// Folder on the node's disk, such as /var/lib/palisade, for the objects that were last known (mode 0600, no secrets): enforced after a
    /// boot without an API server, until its first complete lists. Not given: pods then stay closed until these come.
    #[arg(long, value_name = "DIR", conflicts_with = "manifests")]
    state_dir: Option<PathBuf>,

    /// The CNI's bridge; unless given it is learnt from CNI results, and is cni0 until then.
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,

    /// Address to serve /metrics, /livez and /readyz on, such as 127.0.0.1:9469.
    #[arg(long, value_name = "ADDR")]
    metrics_addr: Option<SocketAddr>,

    /// What becomes of established flows that a change of policy, label or peer no longer allows. `keep` holds for flows that were
    /// admitted while a policy isolated the pod; what is older than the pod's first policy is judged by that one either way.
    #[arg(long, value_enum, default_value = "cut")]
    existing_flows: ExistingFlows,

    /// How the programs are attached.
    #[arg(long, value_enum, default_value = "auto")]
    attach: Attach,

    /// Whether the node's uplinks have a program that refuses, before the kernel has built an skb, what is certain to be refused at the
    /// pod's interface: new flows from outside to pods of this node. It admits nothing and changes no verdict (docs/xdp.md). It is not put on
    /// a device that has an XDP program of somebody else.
    #[arg(long, value_enum, default_value = "off")]
    xdp: Xdp,

    /// The devices of --xdp: names, or patterns with `*`, separated by commas. Not given: those of the node's routes by way of a router or
    /// of another node, but for veths.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    xdp_devices: Vec<String>,

    /// Tell of new flows that are admitted, too: in the log, the file, the collector and `palisade drops --admitted`. Costs nothing for
    /// what belongs to a known flow.
    #[arg(long)]
    admitted_events: bool,

    /// File for one line of JSON for each refused (or admitted) flow that is told of (docs/events.md); mode 0600.
    #[arg(long, value_name = "FILE")]
    events_file: Option<PathBuf>,

    /// Megabytes of --events-file after which it is begun anew.
    #[arg(long, value_name = "MB", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events_file_size: u32,

    /// How many full ones are kept, as FILE.1 and so on.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    events_files_kept: u32,

    /// An OpenTelemetry collector that takes the same lines as logs, by OTLP over HTTP, such as http://127.0.0.1:4318.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<OtlpEndpoint>,

    /// Format of the log on standard error.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,

    /// Least severe level that is logged: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,

    /// How often the loaded tables are compared with what a compilation from nothing makes of the objects (the metric
    /// palisade_drift_entries): 90s, 15m, 2h. It takes a thread as long as a first start takes to compile.
    #[arg(long, value_name = "TIME", value_parser = crate::pause::duration, default_value = "10m")]
    drift_every: Duration,

    /// Have the kernel programs report oddities too, at debug level.
    #[arg(long)]
    debug_programs: bool,

    #[command(flatten)]
    limits: LimitFlags,
}

/// How much the tables hold. What does not fit fails closed and is named.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitFlags {
    /// Pods on this node.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().endpoints)]
    endpoints_max: u32,
    /// Addresses of pods that policies of this node name as peers, per family. Room that these leave is for ipBlocks of one host, which are
    /// quicker to find so.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().exact)]
    addresses_max: u32,
    /// Prefixes of ipBlocks, excepts included, per family.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().prefixes)]
    prefixes_max: u32,
    /// Rows of decision tables.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().rules)]
    rules_max: u32,
    /// Port prefixes (a range of ports takes up to 30).
    #[arg(long, value_name = "N", default_value_t = Sizes::default().ports)]
    ports_max: u32,
    /// Addresses and ports of Services, node ports and host ports.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().services)]
    services_max: u32,
    /// Flows that are remembered.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().flows)]
    flows_max: u32,
    /// Fragmented datagrams that are under way.
    #[arg(long, value_name = "N", default_value_t = Sizes::default().fragments)]
    fragments_max: u32,
    /// Connections of one pod per second that are taken up mid-stream because nothing is known of their opening.
    #[arg(long, value_name = "N", default_value_t = Settings::default().midstream_budget)]
    midstream_max: u32,
    /// Refused packets per CPU and second that are reported one by one; the rest is counted.
    #[arg(long, value_name = "N", default_value_t = Settings::default().events_budget)]
    events_max: u32,
    /// Of these, those of one pod, direction and reason, so that none hides the others.
    #[arg(long, value_name = "N", default_value_t = Settings::default().events_group_budget)]
    events_per_pod_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExistingFlows {
    /// They end within a second.
    Cut,
    /// They go on until they end by themselves; new ones are refused.
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attach {
    /// TCX where the kernel has it (6.6 and later), clsact elsewhere.
    Auto,
    Tcx,
    Clsact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Xdp {
    Off,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's own receive path, which spares less.
    Generic,
    /// Native where the driver can, generic elsewhere, and on a veth.
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Folder(PathBuf),
    /// `None`: the account of the pod that this process runs in.
    Cluster(Option<PathBuf>),
}

/// The agent's configuration, checked.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub source: Source,
    pub node_name: String,
    pub pin_dir: PathBuf,
    pub cni_cache_dir: PathBuf,
    pub cgroup: PathBuf,
    pub bridge: Option<String>,
    /// Where the CNI plugin is kept in the chain, and its binary.
    pub cni: Option<(Places, PathBuf)>,
    /// Where the objects that were last known are kept.
    pub state_dir: Option<PathBuf>,
    pub metrics_addr: Option<SocketAddr>,
    pub events_file: Option<FileOptions>,
    pub otlp_endpoint: Option<OtlpEndpoint>,
    pub attach: AttachMode,
    /// Names and patterns; empty: those of routes.
    pub xdp_devices: Vec<String>,
    pub sizes: Sizes,
    pub settings: Settings,
    /// Between two comparisons of the tables with what they should be.
    pub drift_every: Duration,
    pub log_format: LogFormat,
    pub log_level: String,
}

impl AgentFlags {
    /// # Errors
    ///
    /// A sentence naming the flag that makes no sense.
    pub fn check(self) -> anyhow::Result<AgentConfig> {
        let Self { manifests, kubeconfig, node_name, pin_dir, cni_cache_dir, cgroup, bridge, metrics_addr, .. } = self;
        if node_name.is_empty() {
            bail!("--node-name is empty");
        }
        if !pin_dir.is_absolute() {
            bail!("--pin-dir {} is not an absolute path", pin_dir.display());
        }
        if self.xdp == Xdp::Off && !self.xdp_devices.is_empty() {
            bail!("--xdp-devices says where, and --xdp is off");
        }
        let limits = self.limits;
        let sizes = Sizes {
            endpoints: limits.endpoints_max,
            exact: limits.addresses_max,
            prefixes: limits.prefixes_max,
            rules: limits.rules_max,
            ports: limits.ports_max,
            services: limits.services_max,
            flows: limits.flows_max,
            fragments: limits.fragments_max,
        };
        let Sizes { endpoints, exact, prefixes, rules, ports, services, flows, fragments } = sizes;
        if [endpoints, exact, prefixes, rules, ports, services, flows, fragments].contains(&0) || endpoints > 1 << 20 {
            bail!("a limit is 0, or --endpoints-max is over 1048576");
        }
        let places = self.cni_conf_dir.map(|folder| Places::new(&folder, &self.cni_bin_dir, &pin_dir));
        let cni = match places {
            Some(places) => Some((places, plugin_beside()?)),
            None => None,
        };
        Ok(AgentConfig {
            source: match manifests {
                Some(folder) => Source::Folder(folder),
                None => Source::Cluster(kubeconfig),
            },
            node_name,
            pin_dir,
            cni_cache_dir,
            cgroup,
            bridge,
            cni,
            state_dir: self.state_dir,
            metrics_addr,
            events_file: self.events_file.map(|path| FileOptions {
                path,
                size_max: u64::from(self.events_file_size) << 20,
                kept: self.events_files_kept,
            }),
            otlp_endpoint: self.otlp_endpoint,
            attach: match self.attach {
                Attach::Auto => AttachMode::Auto,
                Attach::Tcx => AttachMode::Tcx,
                Attach::Clsact => AttachMode::Clsact,
            },
            xdp_devices: self.xdp_devices,
            sizes,
            settings: Settings {
                keep_existing: self.existing_flows == ExistingFlows::Keep,
                midstream_budget: limits.midstream_max,
                events_budget: limits.events_max,
                events_group_budget: limits.events_per_pod_max,
                events_admitted: self.admitted_events,
                debug_programs: self.debug_programs,
                stamp_mask: self.stamp_mask,
                xdp: match self.xdp {
                    Xdp::Off => XdpWish::Off,
                    Xdp::Native => XdpWish::Native,
                    Xdp::Generic => XdpWish::Generic,
                    Xdp::Auto => XdpWish::Auto,
                },
            },
            drift_every: self.drift_every,
            log_format: self.log_format,
            log_level: self.log_level,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// What a person has to know before starting it.
    #[test]
    fn help_of_the_agent_is_a_manual() {
        let mut command = Cli::command();
        let agent = command.find_subcommand_mut("agent").expect("it is a subcommand");
        let help = agent.render_long_help().to_string();
        for said in ["Exit codes: 0", "SIGTERM", "several agents", "(--kubeconfig)", "--node-name", "first policy"] {
            assert!(help.contains(said), "{said:?} is missing in:\n{help}");
        }
        let short = command.render_help().to_string();
        assert!(short.contains("Run the agent of this node: watch, compile, enforce\n"), "{short}");
    }
}
