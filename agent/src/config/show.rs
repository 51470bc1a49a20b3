//! Flags of the commands that show something.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use palisade_common::Reason;
use palisade_common::layout::CAPTURE_BYTES_MAX;

use super::PIN_DIR;
use crate::explain::port::PortSpec;
use crate::show::filter::{FilterFlags, OtherFlags, pod_name};

#[derive(Debug, Args)]
pub struct ShowFlags {
    /// The agent's --pin-dir.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct EndpointsFlags {
    /// Only this pod.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub pod: Option<String>,
    #[command(flatten)]
    pub show: ShowFlags,
}

#[derive(Debug, Args)]
pub struct MapsFlags {
    /// Compare them with what a compilation from nothing would make.
    #[arg(value_enum, value_name = "diff")]
    pub what: Option<MapsCommand>,
    #[command(flatten)]
    pub show: ShowFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MapsCommand {
    /// What is not as it should be.
    Diff,
}

#[derive(Debug, Args)]
pub struct PoliciesFlags {
    /// The policy: NAMESPACE/NAME, or NAME with -n.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Namespace of a name that says none.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    #[command(flatten)]
    pub show: ShowFlags,
}

#[derive(Debug, Args)]
pub struct FindFlags {
    /// As for `palisade explain`.
    pub who: String,
    /// Namespace of a name that says none.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// The agent's --pin-dir.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct CheckFlags {
    /// Manifests that would be applied: a file, a folder with all below it, or `-` for standard input. May be given several times.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What is there: a folder of manifests, or `live` for what this node's agent knows. Unless given, what -f has besides policies.
    #[arg(long, value_name = "live|DIR")]
    pub against: Option<String>,
    /// Table of what must work and what must not.
    #[arg(long, value_name = "FILE")]
    pub expect: Option<PathBuf>,
    /// Fail if anything is newly refused.
    #[arg(long)]
    pub strict: bool,
    /// Namespace of names in --expect that say none.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    #[command(flatten)]
    pub show: ShowFlags,
}

#[derive(Debug, Args)]
pub struct ExplainFlags {
    /// Who opens the flow.
    pub source: String,
    /// With whom.
    pub destination: String,
    /// tcp/80, udp/53, sctp/NAME, 80 (of TCP), NAME, icmp or ip-47; unless given, every port that the destination names.
    #[arg(value_name = "PORT")]
    pub port: Option<PortSpec>,
    /// Namespace of names that say none.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    #[command(flatten)]
    pub show: ShowFlags,
}

#[derive(Debug, Args)]
pub struct FlowsFlags {
    #[command(flatten)]
    pub show: ShowFlags,
    #[command(flatten)]
    pub filter: FilterFlags,
    /// What the flow's next packet is to expect.
    #[arg(long, value_enum)]
    pub verdict: Option<FlowVerdict>,
    /// Go on with what changes, until interrupted.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowVerdict {
    /// Policies admit it.
    Admitted,
    /// They do not any longer: it is cut.
    Refused,
    /// They do not any longer, and it goes on (--existing-flows keep).
    Kept,
    /// They do not any longer, and it goes on while enforcement is paused (palisade pause).
    Paused,
    /// To a Service: judged where it ends up.
    Service,
    /// Opened by the node itself.
    Node,
}

impl FlowVerdict {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::Kept => "kept",
            Self::Paused => "paused",
            Self::Service => "service",
            Self::Node => "node",
        }
    }
}

#[derive(Debug, Args)]
pub struct DropsFlags {
    #[command(flatten)]
    pub show: ShowFlags,
    #[command(flatten)]
    pub filter: FilterFlags,
    /// For this reason, such as no-rule.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.name())), hide_possible_values = true)]
    pub reason: Option<String>,
    /// Those that were refused most often first, N of them (20 unless given).
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20", conflicts_with = "watch")]
    pub top: Option<u32>,
    /// What was admitted instead; the agent tells of that with --admitted-events.
    #[arg(long)]
    pub admitted: bool,
    /// What is refused from now on, until interrupted.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct CaptureFlags {
    /// The pod, of this node.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = pod_name)]
    pub pod: String,
    /// Write to this file; unless given, or where it is `-`, to standard output.
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, up to a day: 90s, 15m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = crate::pause::duration, default_value = "15m")]
    pub duration: Duration,
    /// So many bytes of each packet, its headers included.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=CAPTURE_BYTES_MAX as i64), default_value = "256")]
    pub snaplen: u32,
    #[command(flatten)]
    pub other: OtherFlags,
    /// Refused for this reason, such as no-rule.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Reason::ALL.iter().filter(|reason| !reason.passes()).map(|reason| reason.name())), hide_possible_values = true)]
    pub reason: Option<String>,
    /// The agent's --pin-dir.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people: columns, coloured on a terminal unless NO_COLOR is set.
    Table,
    /// The same with more columns.
    Wide,
    /// For programs. Names of fields stay.
    Json,
    /// The same as json.
    Yaml,
}
