//! What a shell and `man` are told of the commands, made from the command line's own definition.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::page::print;
use crate::config::Cli;

/// Prints the shell's completion script.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "palisade", &mut script);
    print(&String::from_utf8(script).context("the script is no text")?)
}

/// Writes a manual page for each command into a folder.
///
/// # Errors
///
/// When the folder cannot be made or written to.
pub fn man(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder)
        .with_context(|| format!("writing manual pages into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_for_each_command() {
        let folder = tempfile::tempdir().expect("a folder");
        man(folder.path()).expect("pages are written");
        let page = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = format!("palisade-{}.1", command.get_name());
            assert!(page(&name).contains(".SH SYNOPSIS"), "{name}");
        }
        assert!(page("palisade.1").contains("Exit codes: 0"), "{}", page("palisade.1"));
        assert!(page("palisade-endpoints.1").contains("yaml"));
    }

    #[test]
    fn shells_know_the_commands() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "palisade", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("endpoints") && script.contains("pin-dir"), "{shell}");
        }
    }
}
