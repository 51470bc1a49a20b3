//! Small servers in pods that say who they are: on TCP first a line with the name and then an echo, on UDP the name
//! before whatever was sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Guard, Netns, Node, programs};

/// A process with servers on some ports of a namespace; ends when dropped, unless its lab is kept.
pub struct Server {
    child: Option<Child>,
}

impl Server {
    /// Returns when all ports are open. The ports are served on every address of both families.
    pub fn start(guard: &Guard, netns: &Netns, name: &str, tcp: &[u16], udp: &[u16]) -> Result<Self> {
        Self::spawn(guard, netns.command(programs::helper()?), name, tcp, udp, &[Ipv6Addr::UNSPECIFIED.into()])
    }

    /// A process of the node itself, on the node's addresses: from the wildcard it would answer datagrams of pods under
    /// the bridge's address.
    pub fn start_on(guard: &Guard, node: &Node, name: &str, tcp: &[u16], udp: &[u16]) -> Result<Self> {
        Self::spawn(guard, node.command(programs::helper()?), name, tcp, udp, &node.addresses)
    }

    fn spawn(guard: &Guard, mut command: Command, name: &str, tcp: &[u16], udp: &[u16], at: &[IpAddr]) -> Result<Self> {
        let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let at = at.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        let mut child = command
            .args(["serve", name, &list(tcp), &list(udp), &at])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start a server")?;
        guard.process(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout was asked for above")).read_line(&mut line)?;
        ensure!(line == "ready\n", "the server {name} did not start");
        Ok(Self { child: Some(child) })
    }

    /// Leaves the process to the guard.
    pub fn keep(mut self) {
        self.child = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The server's own process: never returns. The wildcard of IPv6 takes IPv4 too.
pub fn serve(name: &str, tcp: &[u16], udp: &[u16], at: &[IpAddr]) -> Result<()> {
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    for address in at {
        for port in tcp {
            let listener = TcpListener::bind((*address, *port)).with_context(|| format!("TCP {port} of {address}"))?;
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || echo(name, stream));
                }
            });
        }
        for port in udp {
            let socket = UdpSocket::bind((*address, *port)).with_context(|| format!("UDP {port} of {address}"))?;
            std::thread::spawn(move || answer(name, &socket));
        }
    }
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}

/// A connection's end, in whatever way, is the end of its thread only.
fn echo(name: &str, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn answer(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; 65536];
    loop {
        // An ICMP error for an earlier answer is reported here and concerns nobody.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut reply = format!("{name}\n").into_bytes();
            reply.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&reply, from);
        }
    }
}
