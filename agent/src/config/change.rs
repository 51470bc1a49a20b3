//! Flags of the commands that change something.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::PIN_DIR;
use crate::cni::install::Places;
use crate::cni::{BIN_DIR, CONF_DIR};

#[derive(Debug, Args)]
pub struct PauseFlags {
    /// The pod, of this node.
    #[arg(value_name = "NAMESPACE/NAME", required_unless_present = "all")]
    pub pod: Option<String>,
    /// Every pod of the node, those that are closed or not known included.
    #[arg(long, conflicts_with = "pod")]
    pub all: bool,
    /// For how long, up to a day: 90s, 15m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = crate::pause::duration, required_unless_present = "end")]
    pub duration: Option<Duration>,
    /// End it now.
    #[arg(long, conflicts_with = "duration")]
    pub end: bool,
    /// The agent's --pin-dir.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct UninstallFlags {
    /// The agent's --pin-dir.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// The agent's --state-dir; unless given, the last agent's.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Stay when all is done, until SIGTERM or SIGINT: the container of a DaemonSet that ends is started again.
    #[arg(long)]
    pub stay: bool,
    /// Wait so long for an agent that runs to end, instead of refusing at once: 90s, 15m, 2h. It has to be asked to end by somebody else.
    #[arg(long, value_name = "TIME", value_parser = crate::pause::duration)]
    pub wait: Option<Duration>,
    #[command(flatten)]
    pub folders: CniFolders,
}

#[derive(Debug, Args)]
pub struct AwaitFlags {
    /// Namespace of the DaemonSet.
    #[arg(long, value_name = "NAME")]
    pub namespace: String,
    /// Its name.
    #[arg(long, value_name = "NAME")]
    pub daemon_set: String,
    /// How long all nodes may take: 90s, 15m, 2h.
    #[arg(long, value_name = "TIME", value_parser = crate::pause::duration, default_value = "10m")]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Put palisade-cni last into the chain of the network's configuration
    ///
    /// The network plugin's own file stays as it is: a copy of it with palisade-cni at its end, 00-palisade.conflist, comes before it by
    /// name, and container runtimes take the first. So it stays in the chain when the network plugin rewrites its file. An agent with
    /// --cni-conf-dir does the same when it starts, and follows what the network plugin changes.
    #[command(verbatim_doc_comment)]
    Install(CniInstallFlags),
    /// Take palisade-cni out again. Pods are then started without waiting for their enforcement.
    Uninstall(CniUninstallFlags),
}

/// Where the container runtime looks.
#[derive(Debug, Args)]
pub struct CniFolders {
    /// Folder of the container runtime's CNI configurations; unless given, the last agent's, and /etc/cni/net.d where that had none.
    #[arg(long = "cni-conf-dir", visible_alias = "conf-dir", value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// Folder of the container runtime's CNI plugins; unless given, the last agent's, and /opt/cni/bin where that had none.
    #[arg(long = "cni-bin-dir", visible_alias = "bin-dir", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CniInstallFlags {
    #[command(flatten)]
    pub folders: CniFolders,
    /// The agent's --pin-dir, which tells where its socket is.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// The plugin's binary; unless given it is palisade-cni beside this program.
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CniUninstallFlags {
    #[command(flatten)]
    pub folders: CniFolders,
    /// The agent's --pin-dir, which tells where its socket is.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
}

impl CniFolders {
    pub fn places(&self, pin_dir: &Path) -> Places {
        // Without a catalog no agent has run here.
        let told = crate::observe::read_catalog(pin_dir).ok().and_then(|catalog| catalog.agent.cni);
        let [conf_dir, bin_dir] = told.unwrap_or_else(|| [CONF_DIR.into(), BIN_DIR.into()]);
        let conf_dir = self.conf_dir.as_ref().unwrap_or(&conf_dir);
        Places::new(conf_dir, self.bin_dir.as_ref().unwrap_or(&bin_dir), pin_dir)
    }
}
