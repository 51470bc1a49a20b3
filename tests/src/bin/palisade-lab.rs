//! The lab's helper: the processes that live in a lab's namespaces, and probes by hand in a lab that was kept.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use palisade_tests::bench::restart::{Extent, ends};
use palisade_tests::lab::{Netns, Transport, guard, probe, server, tunnel};

const USAGE: &str = "\
usage: palisade-lab connect tcp|udp ADDRESS:PORT      who answers, from the namespace it is run in
       palisade-lab serve NAME TCP-PORTS UDP-PORTS ADDRESSES    servers that answer with NAME; lists are separated by commas
       palisade-lab clean FOLDER                      removes a lab that was left standing
       palisade-lab relay NETNS NETNS NAME            joins two namespaces by TUN devices of this name
       palisade-lab hold NETNS NETNS ADDRESSES PORT COUNT MS    (used by a benchmark) connections from one to the other
       palisade-lab guard FOLDER                      (used by the lab) removes it when stdin ends
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("palisade-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<ExitCode> {
    match arguments {
        ["serve", name, tcp, udp, at] => server::serve(name, &list(tcp)?, &list(udp)?, &list(at)?)?,
        ["relay", one, other, name] => tunnel::relay(Path::new(one), Path::new(other), name)?,
        ["hold", client, server, at, port, count, period] => {
            let (client, server) = (Netns::open(client)?, Netns::open(server)?);
            let period = Duration::from_millis(period.parse()?);
            ends::hold(&client, (&server, &list(at)?), port.parse()?, Extent { connections: count.parse()?, period })?;
        }
        ["guard", folder] => guard::watch(Path::new(folder))?,
        ["clean", folder] => guard::clean(Path::new(folder))?,
        ["connect", transport, to] => {
            let transport = match *transport {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                other => bail!("`{other}` is neither tcp nor udp"),
            };
            let outcome = probe::ask(transport, to.parse::<SocketAddr>()?, probe::DEADLINE);
            println!("{outcome}");
            return Ok(if outcome.reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        _ => {
            eprint!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list<T: FromStr>(text: &str) -> Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.split(',').filter(|part| !part.is_empty()).map(|part| Ok(part.parse()?)).collect()
}
