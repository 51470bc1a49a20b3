//! Two namespaces joined by TUN devices, which have no link header, as WireGuard's and Flannel's own tunnels have none.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Guard, Netns, programs};

/// A process that hands packets over. The devices are there as long as it runs; dropping ends it.
pub struct Tunnel {
    child: Child,
}

impl Tunnel {
    /// A device of this name on both sides, still down and without addresses.
    pub fn start(guard: &Guard, [one, other]: [&Netns; 2], name: &str) -> Result<Self> {
        let mut child = Command::new(programs::helper()?)
            .arg("relay")
            .args([one.path(), other.path()])
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start a relay")?;
        guard.process(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout was asked for above")).read_line(&mut line)?;
        ensure!(line == "ready\n", "the relay did not start");
        Ok(Self { child })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The relay's own process: ends only by an error.
pub fn relay(one: &Path, other: &Path, name: &str) -> Result<()> {
    let (one, other) = (open(one, name)?, open(other, name)?);
    println!("ready");
    std::io::stdout().flush()?;
    std::thread::scope(|scope| {
        let back = scope.spawn(|| copy(&other, &one));
        copy(&one, &other)?;
        back.join().expect("copying does not panic")
    })
}

fn copy(mut from: &File, mut to: &File) -> Result<()> {
    let mut packet = vec![0; 65536];
    loop {
        let length = from.read(&mut packet).context("a device is gone")?;
        // One that is down takes nothing, and a packet may be lost.
        let _ = to.write(&packet[..length]);
    }
}

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Made in the namespace at this path.
fn open(netns: &Path, name: &str) -> Result<File> {
    let name = CString::new(name)?.into_bytes_with_nul();
    ensure!(name.len() <= libc::IFNAMSIZ, "a name of an interface has up to 15 letters");
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(&name);
    let namespace = fs::File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let device = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
            // SAFETY: the request is a whole `struct ifreq`, which the call reads and writes and does not keep.
            let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
            ensure!(made == 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
            Ok(device)
        });
        work.join().expect("opening does not panic")
    })
}
