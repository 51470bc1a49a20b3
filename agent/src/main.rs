//! The `palisade` command.

use std::process::ExitCode;

use clap::Parser as _;
use palisade::config::{AgentConfig, Cli, Command, LogFormat};
use palisade::{run, show, uninstall};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Agent(flags) => match flags.check() {
            Ok(config) => agent(config),
            Err(error) => {
                eprintln!("palisade: {error:#}");
                return ExitCode::from(2);
            }
        },
        Command::Maps(flags) => show::maps(&flags),
        Command::Endpoints(flags) => show::endpoints(&flags),
        Command::Uninstall(flags) => uninstall::uninstall(&flags.pin_dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("palisade: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn agent(config: AgentConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(config))
}
