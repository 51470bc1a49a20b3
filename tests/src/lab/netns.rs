//! A network namespace with a name, and doing things inside it: commands, or code on a thread of its own.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::guard::Guard;

/// Cheap to clone; the namespace lives until the lab's guard removes it.
#[derive(Clone)]
pub struct Netns {
    name: Arc<str>,
    handle: Arc<File>,
}

impl Netns {
    pub fn create(guard: &Guard, name: &str) -> Result<Self> {
        guard.netns(name);
        let status = Command::new("ip").args(["netns", "add", name]).status().context("cannot run ip")?;
        ensure!(status.success(), "ip netns add {name}: {status}");
        let netns = Self::open(name)?;
        // Detecting duplicate addresses takes seconds in which an address cannot be used.
        netns.sysctl(&[("net/ipv6/conf/default/accept_dad", "0"), ("net/ipv6/conf/all/accept_dad", "0")])?;
        Ok(netns)
    }

    /// Takes its name away; it ends with the last who is in it.
    pub fn remove(&self) -> Result<()> {
        let status = Command::new("ip").args(["netns", "delete", &self.name]).status().context("cannot run ip")?;
        ensure!(status.success(), "ip netns delete {}: {status}", self.name);
        Ok(())
    }

    /// One that is there.
    pub fn open(name: &str) -> Result<Self> {
        Self::at(name, &PathBuf::from("/run/netns").join(name))
    }

    /// One that somebody else has made, and calls by a file elsewhere. Its `path` is not that file.
    pub fn at(name: &str, path: &Path) -> Result<Self> {
        let handle = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: name.into(), handle: Arc::new(handle) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&*self.name)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Runs code inside the namespace, on a thread that ends with it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().expect("a namespace that is open can be entered by root");
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread for good.
    pub fn enter(&self) -> rustix::io::Result<()> {
        move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network))
    }

    /// A command that will run inside. Unlike `ip netns exec` this leaves the mounts as they are.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let netns = self.clone();
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; setns is one system call on a
        // descriptor that the closure keeps open, and nothing is allocated.
        unsafe { command.pre_exec(move || netns.enter().map_err(Into::into)) };
        command
    }

    /// Runs lines of `ip`'s batch mode.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        self.feed("ip", &["-batch", "-"], &(lines.join("\n") + "\n"))
    }

    /// Loads rules of nftables.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], rules)
    }

    fn feed(&self, program: &str, arguments: &[&str], text: &str) -> Result<()> {
        let mut command = self.command(program);
        let mut child = command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().expect("stdin was asked for above").write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} in {}: {}\nof:\n{text}", self.name, said.trim_end());
        Ok(())
    }

    /// Writes settings below /proc/sys, where those under `net` are the writing thread's namespace's own.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/{name}");
                fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
            }
            Ok(())
        })
    }

    /// A link-local address on an interface of this namespace, from where it is asked for.
    pub fn scoped(&self, address: Ipv6Addr, port: u16, interface: &str) -> Result<SocketAddr> {
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: the pointer is to a live string that ends in zero.
        let index = self.run(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
        ensure!(index != 0, "{} has no {interface}", self.name);
        Ok(SocketAddrV6::new(address, port, 0, index).into())
    }

    /// The MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let said = self.command("ip").args(["-j", "link", "show", "dev", interface]).output()?;
        let links: serde_json::Value = serde_json::from_slice(&said.stdout).context("ip -j prints JSON")?;
        let text = links[0]["address"].as_str().with_context(|| format!("{interface} has no address"))?;
        parse_mac(text)
    }
}

pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("`{text}` is no MAC address"))
}
