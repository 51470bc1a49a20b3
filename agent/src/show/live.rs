//! Asking the agent, and printing what does not end.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::config::Output;
use crate::observe::socket::{ADDRESSES_MAX, Ask, Said, path};

/// What an agent says to one question.
pub struct Conversation(BufReader<UnixStream>);

impl Conversation {
    /// `None`: no agent runs that would answer.
    ///
    /// # Errors
    ///
    /// When one may run and cannot be asked, as by another user than root.
    pub fn begin(pin_dir: &Path, ask: &Ask) -> anyhow::Result<Option<Self>> {
        let path = path(pin_dir);
        let mut stream = match UnixStream::connect(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            connected => connected.with_context(|| format!("asking the agent at {}", path.display()))?,
        };
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        stream.write_all(&line).with_context(|| format!("asking the agent at {}", path.display()))?;
        Ok(Some(Self(BufReader::new(stream))))
    }

    /// `None`: that was all.
    pub fn next(&mut self) -> anyhow::Result<Option<Said>> {
        let mut line = String::new();
        if self.0.read_line(&mut line).context("reading what the agent says")? == 0 {
            return Ok(None);
        }
        match serde_json::from_str(&line).context("the command and the agent are of different versions")? {
            Said::Refused(why) => bail!("the agent refuses: {why}"),
            said => Ok(Some(said)),
        }
    }
}

/// Which pods have these addresses, as far as an agent that runs knows.
pub fn names(pin_dir: &Path, addresses: &[IpAddr]) -> anyhow::Result<BTreeMap<IpAddr, String>> {
    let mut all = BTreeMap::new();
    for addresses in addresses.chunks(ADDRESSES_MAX) {
        let ask = Ask::Names { addresses: addresses.to_vec() };
        let Some(mut conversation) = Conversation::begin(pin_dir, &ask)? else { break };
        if let Some(Said::Names(names)) = conversation.next()? {
            all.extend(names);
        }
    }
    Ok(all)
}

/// Prints one of many values for programs: an object on a line, or a document of YAML. `false`: people are to read it.
///
/// # Errors
///
/// When it cannot be written.
pub fn structured<T: Serialize>(out: &mut dyn Write, output: Output, value: &T) -> anyhow::Result<bool> {
    match output {
        Output::Table | Output::Wide => return Ok(false),
        Output::Json => writeln!(out, "{}", serde_json::to_string(value)?)?,
        Output::Yaml => write!(out, "---\n{}", serde_norway::to_string(value)?)?,
    }
    Ok(true)
}

/// Runs a command that prints line by line. Whoever reads may have had enough, as `head` has: that is no failure.
///
/// # Errors
///
/// Everything else.
pub fn printing(print: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let printed = print(&mut out).and_then(|()| Ok(out.flush()?));
    let has_gone = |error: &anyhow::Error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match printed {
        Err(error) if has_gone(&error) => Ok(()),
        printed => printed,
    }
}
