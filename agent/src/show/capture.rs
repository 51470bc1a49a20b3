//! `palisade capture`: a file of the packets of a pod that are refused from now on.

use std::error::Error;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};

use super::filter::{End, FilterFlags};
use super::pcap::PacketFile;
use crate::config::CaptureFlags;
use crate::exit::Exit;
use crate::observe::capture::Packet;
use crate::observe::socket::{Ask, Said, path};

/// How often it is looked whether anybody still reads standard output; a pipe does not tell before it is written to.
const LOOK: Duration = Duration::from_secs(1);

/// # Errors
///
/// When no agent runs, it cannot be asked, or the file cannot be written.
pub fn capture(flags: &CaptureFlags) -> anyhow::Result<Exit> {
    let to_stdout = flags.write.as_ref().is_none_or(|path| path == Path::new("-"));
    if to_stdout && io::stdout().is_terminal() {
        eprintln!("palisade: packets are nothing for a terminal: name a file with -w, or send standard output to one");
        return Ok(Exit::Usage);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let captured = runtime.block_on(async {
        let conversation = Conversation::begin(flags).await?;
        match flags.write.as_ref().filter(|_| !to_stdout) {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
                conversation.read(io::BufWriter::new(file), flags, || false).await
            }
            None => conversation.read(io::BufWriter::new(io::stdout()), flags, nobody_reads).await,
        }
    });
    let has_gone = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    match captured {
        // Whoever read has had enough.
        Err(error) if error.chain().any(has_gone) => Ok(Exit::Done),
        captured => captured.map(|()| Exit::Done),
    }
}

/// Standard output is a pipe whose other end is closed.
fn nobody_reads() -> bool {
    let stdout = io::stdout();
    let mut ends = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
    let polled = poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && ends[0].revents().contains(PollFlags::ERR)
}

/// With the agent. Our half is closed once no more is wanted, and what there still is follows.
struct Conversation {
    read: Lines<BufReader<OwnedReadHalf>>,
    write: Option<OwnedWriteHalf>,
    interface: String,
}

impl Conversation {
    async fn begin(flags: &CaptureFlags) -> anyhow::Result<Self> {
        let path = path(&flags.pin_dir);
        let context = || format!("asking the agent at {}", path.display());
        let stream = match UnixStream::connect(&path).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => bail!(
                "no agent runs with --pin-dir {}, and only an agent hands packets over; `palisade endpoints` has counts by pod",
                flags.pin_dir.display()
            ),
            connected => connected.with_context(context)?,
        };
        let (read, mut write) = stream.into_split();
        let (pod, snaplen, seconds) = (flags.pod.clone(), flags.snaplen, flags.duration.as_secs());
        let mut line = serde_json::to_vec(&Ask::Capture { pod, snaplen, seconds })?;
        line.push(b'\n');
        write.write_all(&line).await.with_context(context)?;
        let read = BufReader::new(read).lines();
        let mut begun = Self { read, write: Some(write), interface: String::new() };
        match begun.next().await? {
            Some(Said::Capturing { interface }) => Ok(Self { interface, ..begun }),
            said => bail!("the agent says something else: {said:?}"),
        }
    }

    async fn next(&mut self) -> anyhow::Result<Option<Said>> {
        let Some(line) = self.read.next_line().await.context("reading what the agent says")? else { return Ok(None) };
        match serde_json::from_str(&line).context("the command and the agent are of different versions")? {
            Said::Refused(why) => bail!("the agent refuses: {why}"),
            said => Ok(Some(said)),
        }
    }

    /// Until its time is over, so many packets were written, or somebody has had enough.
    async fn read<W: Write>(mut self, out: W, flags: &CaptureFlags, gone: impl Fn() -> bool) -> anyhow::Result<()> {
        let mut file = PacketFile::begin(out, &flags.pod, &self.interface, flags.snaplen)?;
        eprintln!("palisade: capturing what is refused of {} at {}", flags.pod, self.interface);
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval(LOOK);
        let filter = FilterFlags { pod: Some(flags.pod.clone()), namespace: None, other: flags.other.clone() };
        let is_full = |file: &PacketFile<W>| flags.count.is_some_and(|count| file.written() >= count);
        let (mut lost, mut ended) = (0, false);
        loop {
            tokio::select! {
                said = self.next() => match said? {
                    Some(Said::Packet(packet)) => if !is_full(&file) && is_wanted(&packet, flags, &filter) {
                        file.packet(&packet)?;
                    },
                    Some(Said::LostPackets(more)) => lost += more,
                    Some(Said::Over) => break,
                    Some(_) => {}
                    None => {
                        ended = true;
                        break;
                    }
                },
                _ = terminate.recv() => self.write = None,
                _ = interrupt.recv() => self.write = None,
                _ = hangup.recv() => self.write = None,
                _ = look.tick() => if gone() {
                    return Ok(());
                },
            }
            if is_full(&file) {
                self.write = None;
            }
        }
        file.end(lost)?;
        eprintln!("palisade: {} packets captured, {lost} lost", file.written());
        if ended {
            bail!("the agent has ended; what is in the tables stays enforced");
        }
        Ok(())
    }
}

fn is_wanted(packet: &Packet, flags: &CaptureFlags, filter: &FilterFlags) -> bool {
    let record = &packet.record;
    let ends = [
        End { name: Some(&record.pod), address: None },
        End { name: record.peer.as_deref(), address: record.peer_address },
    ];
    flags.reason.as_ref().is_none_or(|reason| *reason == record.reason)
        && filter.admits(ends, record.protocol.as_deref(), record.port)
}
