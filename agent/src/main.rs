//! The `palisade` command.

use std::process::ExitCode;

use clap::Parser as _;
use palisade::config::{AgentConfig, Cli, CniCommand, Command, LogFormat, MapsCommand, MapsFlags};
use palisade::exit::Exit;
use palisade::{pause, plugin, run, show, uninstall};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if plugin::is_plugin(std::env::args_os().next().as_deref()) {
        return end(plugin::run(std::env::args().skip(1)));
    }
    let result = match Cli::parse().command {
        Command::Agent(flags) => match flags.check() {
            Ok(config) => agent(config),
            Err(error) => {
                eprintln!("palisade: {error:#}");
                return Exit::Usage.into();
            }
        },
        Command::Status(flags) => show::status(&flags),
        Command::Maps(MapsFlags { what: None, show }) => show::maps(&show),
        Command::Maps(MapsFlags { what: Some(MapsCommand::Diff), show }) => return end(show::maps_diff(&show)),
        Command::Endpoints(flags) => show::endpoints(&flags),
        Command::Policies(flags) => show::policies(&flags),
        Command::Check(flags) => return end(show::check(&flags)),
        Command::Find(flags) => show::find(&flags),
        Command::Explain(flags) => return end(show::explain(&flags)),
        Command::Flows(flags) => show::flows(&flags),
        Command::Drops(flags) => show::drops(&flags),
        Command::Capture(flags) => return end(show::capture(&flags)),
        Command::Pause(flags) => pause::pause(&flags),
        Command::Cni(CniCommand::Install(flags)) => uninstall::cni_install(&flags),
        Command::Cni(CniCommand::Uninstall(flags)) => uninstall::cni_uninstall(&flags.folders.places(&flags.pin_dir)),
        Command::Uninstall(flags) => uninstall::uninstall(&flags),
        Command::Completion { shell } => show::completion(shell),
        Command::Man { folder } => show::man(&folder),
        Command::AwaitUninstall(flags) => uninstall::await_everywhere(&flags),
    };
    end(result.map(|()| Exit::Done))
}

fn end(result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("palisade: {error:#}");
            Exit::Failed.into()
        }
    }
}

fn agent(config: AgentConfig) -> anyhow::Result<()> {
    // The loader's debug log is about relocations, hundreds of lines of it; kube's repeats what `api` says better.
    let quiet_loader = format!("{},aya=warn,aya_obj=warn,kube_client=off,kube_runtime=error", config.log_level);
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(quiet_loader))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(config))
}
