//! Packets that somebody captures (`palisade capture`), on their way from the ring buffer to whoever asked. Nobody who is slow is waited for;
//! what he misses is counted.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use palisade_common::layout::{CAPTURED_HEAD, CAPTURED_RAW, Event};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::events::Report;
use super::record::Record;

/// So many may capture at once.
pub const READERS_MAX: usize = 8;
/// Packets that whoever captures may be behind.
const BEHIND_MAX: usize = 512;

/// A refused packet and its first bytes, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    pub report: Report,
    /// Of the whole packet (bytes).
    pub length: u32,
    /// It begins with the IP header, not with one of Ethernet.
    pub raw: bool,
    pub bytes: Vec<u8>,
}

impl Caught {
    /// `None`: not a record of this layout.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let report = Report::decode(bytes.get(..size_of::<Event>())?)?;
        let [length, captured, begins] = [0, 4, 8].map(|at| word(size_of::<Event>() + at));
        // The kernel rounds nothing up, but what it says is what counts.
        let bytes = bytes.get(CAPTURED_HEAD..)?.get(..captured? as usize)?;
        Some(Self { report, length: length?, raw: begins? == CAPTURED_RAW, bytes: bytes.to_owned() })
    }
}

/// The same with names, as whoever captures is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub record: Record,
    /// Nanoseconds since 1970, UTC.
    pub time: u64,
    /// Where it was met.
    pub interface: String,
    pub raw: bool,
    /// Of the whole packet (bytes).
    pub length: u32,
    /// Its first bytes, in base64.
    pub bytes: String,
}

impl Packet {
    pub fn new(caught: &Caught, record: Record, time: u64, interface: String) -> Self {
        let Caught { length, raw, .. } = *caught;
        Self { record, time, interface, raw, length, bytes: STANDARD.encode(&caught.bytes) }
    }

    /// # Errors
    ///
    /// When it is not what an agent says.
    pub fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        STANDARD.decode(&self.bytes).context("a packet's bytes")
    }
}

/// A question that only the agent's loop can answer.
#[derive(Debug)]
pub enum CaptureAsk {
    Begin(Wish),
    /// Answered when no more packets will come.
    End(u64, oneshot::Sender<()>),
}

#[derive(Debug)]
pub struct Wish {
    /// `namespace/name`.
    pub pod: String,
    pub snaplen: u32,
    pub duration: Duration,
    pub packets: mpsc::Sender<Packet>,
    pub lost: Arc<AtomicU64>,
    pub answer: oneshot::Sender<Result<Begun, String>>,
}

#[derive(Debug)]
pub struct Begun {
    pub number: u64,
    /// Of the pod.
    pub interface: String,
}

/// A capture that somebody reads.
#[derive(Debug)]
pub struct Reading {
    number: u64,
    pub interface: String,
    pub packets: mpsc::Receiver<Packet>,
    /// Packets that he was not told of since it was last looked at.
    pub lost: Arc<AtomicU64>,
}

/// Begins a capture, or says why not.
///
/// # Errors
///
/// When the agent is ending.
pub async fn begin(
    agent: &mpsc::Sender<CaptureAsk>,
    pod: String,
    snaplen: u32,
    duration: Duration,
) -> anyhow::Result<Result<Reading, String>> {
    let (sender, packets) = mpsc::channel(BEHIND_MAX);
    let (answer, begun) = oneshot::channel();
    let lost = Arc::new(AtomicU64::new(0));
    let wish = Wish { pod, snaplen, duration, packets: sender, lost: lost.clone(), answer };
    agent.send(CaptureAsk::Begin(wish)).await.context("the agent is ending")?;
    let begun = begun.await.context("the agent is ending")?;
    Ok(begun.map(|Begun { number, interface }| Reading { number, interface, packets, lost }))
}

/// # Errors
///
/// When the agent is ending.
pub async fn end(agent: &mpsc::Sender<CaptureAsk>, reading: &Reading) -> anyhow::Result<()> {
    let (done, ended) = oneshot::channel();
    agent.send(CaptureAsk::End(reading.number, done)).await.context("the agent is ending")?;
    ended.await.context("the agent is ending")
}

#[cfg(test)]
mod tests {
    use palisade_common::Reason;

    use super::*;

    #[test]
    fn a_record_is_as_long_as_what_was_captured() {
        let mut bytes = vec![0; CAPTURED_HEAD + 3];
        bytes[55] = Reason::NoRule as u8;
        let words = [60_u32, 3, CAPTURED_RAW].map(u32::to_ne_bytes).concat();
        bytes[size_of::<Event>()..size_of::<Event>() + 12].copy_from_slice(&words);
        bytes[CAPTURED_HEAD..].copy_from_slice(&[0x45, 0, 60]);
        let caught = Caught::decode(&bytes).expect("a packet");
        assert_eq!((caught.length, caught.raw, &*caught.bytes), (60, true, &[0x45, 0, 60][..]));
        assert_eq!(Caught::decode(&bytes[..CAPTURED_HEAD + 2]), None);
        assert_eq!(Caught::decode(&bytes[..CAPTURED_HEAD - 1]), None);
        let packet = Packet::new(&caught, Record::default(), 1, "veth7".to_owned());
        assert_eq!(packet.bytes().expect("base64"), caught.bytes);
    }
}
