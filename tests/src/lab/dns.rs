//! A real DNS server (CoreDNS), and questions to it by way of the C library, as programs in pods ask them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Guard, Netns};

/// The zone that every server of the lab answers for. Any name in it has the server's two addresses.
pub const ZONE: &str = "lab.test";

/// A running server; dropping it ends it.
pub struct DnsServer {
    child: Child,
    log: PathBuf,
}

impl DnsServer {
    /// `command` is CoreDNS ([`super::programs::dns`]) in its place; it serves UDP and TCP 53 of the addresses `at`. Every name has the addresses
    /// `says`, by which one server is told from another.
    pub fn start(guard: &Guard, mut command: Command, folder: &Path, at: &[IpAddr], says: &[IpAddr]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let zone = folder.join("zone");
        let mut records = format!("$ORIGIN {ZONE}.\n@ 60 IN SOA ns hostmaster 1 3600 600 86400 60\n@ 60 IN NS ns\n");
        for address in says {
            let kind = if address.is_ipv4() { "A" } else { "AAAA" };
            records.push_str(&format!("* 60 IN {kind} {address}\n"));
        }
        fs::write(&zone, records)?;
        let bound = at.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
        let corefile = folder.join("Corefile");
        let log_format = "query {proto} {type} {name}";
        let text =
            format!(".:53 {{\nbind {bound}\nerrors\nlog . \"{log_format}\"\nfile {} {ZONE}\n}}\n", zone.display());
        fs::write(&corefile, text)?;
        let log = folder.join("coredns.log");
        let said = File::create(&log)?;
        let child = command
            .arg("-conf")
            .arg(&corefile)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()
            .context("cannot run CoreDNS")?;
        guard.process(child.id());
        let mut server = Self { child, log };
        server.wait_serving(Duration::from_secs(20))?;
        Ok(server)
    }

    /// It says so once all its sockets are open.
    fn wait_serving(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while !self.log_text().contains("CoreDNS-") {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < end, "CoreDNS does not serve:\n{}", self.log_text());
            // It writes to a file, which nobody can wait for.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// How often it was asked for this name, whatever the type.
    pub fn queries(&self, name: &str) -> usize {
        let asked = format!(" {name}.");
        self.log_text().lines().filter(|line| line.contains("query ") && line.ends_with(&asked)).count()
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What /etc/resolv.conf says to a pod: one server, which is asked once.
pub struct Resolver {
    netns: Netns,
    configuration: PathBuf,
}

impl Resolver {
    pub fn new(folder: &Path, netns: &Netns, server: IpAddr, over_tcp: bool) -> Result<Self> {
        let transport = if over_tcp { "tcp" } else { "udp" };
        // Of its own, as others may read theirs at this moment.
        let name = format!("resolv-{}-{transport}-{server}.conf", netns.name());
        let configuration = folder.join(name.replace(':', "-"));
        let option = if over_tcp { " use-vc" } else { "" };
        fs::write(&configuration, format!("nameserver {server}\noptions attempts:1 timeout:5{option}\n"))?;
        Ok(Self { netns: netns.clone(), configuration })
    }

    /// getaddrinfo(3), which asks for A and AAAA at once from one socket. The empty set where it fails or takes longer.
    pub fn addresses(&self, name: &str, deadline: Duration) -> Result<BTreeSet<IpAddr>> {
        // The C library reads /etc/resolv.conf and no other file. To a server that is silent it connects for minutes.
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec timeout \"$2\" getent ahosts \"$1\"";
        let mut command = self.netns.command("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&self.configuration).arg(format!("{name}."));
        command.arg(deadline.as_secs_f64().to_string());
        let output = command.output().context("cannot run unshare")?;
        // 2: nothing was found; 124: it took too long.
        let understood = output.status.success() || matches!(output.status.code(), Some(2 | 124));
        ensure!(understood, "getent: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().filter_map(|line| line.split_whitespace().next()).map(|word| Ok(word.parse()?)).collect()
    }
}
