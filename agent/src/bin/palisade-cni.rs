//! The chained CNI plugin: see `palisade::cni`.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use palisade::cni::plugin::{Environment, run};
use palisade::cni::{PLUGIN, client};

fn main() -> ExitCode {
    // A runtime gives no arguments; people do.
    if env::args().nth(1).is_some_and(|argument| argument == "--version") {
        println!("{PLUGIN} {}", palisade::VERSION);
        return ExitCode::SUCCESS;
    }
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let environment = Environment {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        interface: variable("CNI_IFNAME"),
        args: variable("CNI_ARGS"),
    };
    let mut stdin = Vec::new();
    // A configuration that cannot be read is one that cannot be understood.
    let _ = io::stdin().read_to_end(&mut stdin);
    let (output, success) = run(&environment, &stdin, client::ask);
    let written = io::stdout().write_all(output.as_bytes());
    if success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
