//! Many connections between two pods that stay open: more than one process may have descriptors for, so they are shared out.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::lab::{Guard, Pod, programs};

/// Connections of one process, which has both ends of each.
const SHARE: usize = 8000;

/// How many, and how often something is asked on each. TCP repeats what is lost after 0.2, 0.6, 1.4, 3 seconds and on: who is not answered
/// for twice the period is cut.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub connections: usize,
    pub period: Duration,
}

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct HeldCounts {
    pub exchanges: u64,
    /// Answered after more than 190 ms.
    pub late: u64,
    /// Ended by a reset, or in another way by the other end.
    pub resets: u64,
    /// Not answered for twice the period.
    pub cut: u64,
}

pub struct Held {
    shares: Vec<Share>,
    period: Duration,
}

struct Share {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

// === impl Held ===

impl Held {
    /// Opens them from the client to the server, at ports from `first` on; returns once all are open.
    pub fn open(guard: &Guard, client: &Pod, server: &Pod, first: u16, extent: Extent) -> Result<Self> {
        let mut shares = Vec::new();
        let (mut port, mut left) = (first, extent.connections);
        while left > 0 {
            let connections = left.min(SHARE);
            shares.push(Share::start(guard, client, server, port, Extent { connections, ..extent })?);
            left -= connections;
            port += 1;
        }
        for share in &mut shares {
            ensure!(share.line()? == "open", "the connections were not opened");
        }
        Ok(Self { shares, period: extent.period })
    }

    /// So long after the last packet that was refused, it is known what became of it.
    pub fn known_after(&self) -> Duration {
        3 * self.period
    }

    pub fn counts(&mut self) -> Result<HeldCounts> {
        let mut all = HeldCounts::default();
        for share in &mut self.shares {
            writeln!(share.stdin)?;
            let HeldCounts { exchanges, late, resets, cut } = serde_json::from_str(&share.line()?)?;
            all.exchanges += exchanges;
            all.late += late;
            all.resets += resets;
            all.cut += cut;
        }
        Ok(all)
    }
}

// === impl Share ===

impl Share {
    fn start(guard: &Guard, client: &Pod, server: &Pod, port: u16, extent: Extent) -> Result<Self> {
        let addresses: Vec<String> = server.addresses.iter().map(ToString::to_string).collect();
        let mut child = Command::new(programs::helper()?)
            .args(["hold", client.netns.name(), server.netns.name(), &addresses.join(",")])
            .args(
                [u64::from(port), extent.connections as u64, extent.period.as_millis() as u64].map(|it| it.to_string()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start a process that holds connections")?;
        guard.process(child.id());
        let stdin = child.stdin.take().expect("stdin was asked for above");
        let stdout = BufReader::new(child.stdout.take().expect("stdout was asked for above"));
        Ok(Self { child, stdin, stdout })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a process that holds connections has ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl HeldCounts ===

impl HeldCounts {
    pub fn since(self, before: Self) -> Self {
        Self {
            exchanges: self.exchanges - before.exchanges,
            late: self.late - before.late,
            resets: self.resets - before.resets,
            cut: self.cut - before.cut,
        }
    }
}
