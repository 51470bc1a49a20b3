//! Who captures refused packets of which pod (`palisade capture`): the kernel is told as long as somebody does, and no longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_common::layout::MET_PROCESS;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::Agent;
use crate::compile::EndpointEntry;
use crate::observe::capture::{Begun, CaptureAsk, Caught, Packet, READERS_MAX, Wish};
use crate::observe::record::{Names, PROCESS, Record, WallClock};
use crate::pause::name_of;

/// How often the programs are told that somebody still captures, and which interface his pod has.
const RENEW: Duration = Duration::from_secs(1);
/// Nobody captures for longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default)]
pub(super) struct Captures {
    readers: BTreeMap<u64, Reader>,
    /// Interfaces that the kernel was told of, and how many bytes are wanted.
    wanted: BTreeMap<u32, u32>,
    last: u64,
    pub(super) renew_at: Option<Instant>,
}

#[derive(Debug)]
struct Reader {
    pod: String,
    /// `None`: no such pod is there now; it may come back.
    ifindex: Option<u32>,
    snaplen: u32,
    until: Instant,
    packets: mpsc::Sender<Packet>,
    lost: Arc<AtomicU64>,
    /// What the kernel had lost of the interface's pod when it was last told of.
    lost_before: u64,
}

impl Agent {
    pub fn take_capture_ask(&mut self, ask: CaptureAsk) {
        match ask {
            CaptureAsk::Begin(wish) => self.begin_capture(wish),
            CaptureAsk::End(number, done) => {
                self.tell_lost_captures();
                self.captures.readers.remove(&number);
                self.renew_captures();
                // Whoever asked may be gone.
                let _ = done.send(());
            }
        }
    }

    fn begin_capture(&mut self, wish: Wish) {
        let Wish { pod, snaplen, duration, packets, lost, answer } = wish;
        self.write_catalog();
        let entry = self.endpoint_named(&pod).map(|entry| (entry.ifindex, entry.interface.clone()));
        let Some((ifindex, interface)) = entry else {
            let why = format!("no pod {pod} on this node; `palisade endpoints` lists those that there are");
            return drop(answer.send(Err(why)));
        };
        if self.captures.readers.len() >= READERS_MAX {
            return drop(answer.send(Err(format!("{READERS_MAX} are capturing already"))));
        }
        self.captures.last += 1;
        let number = self.captures.last;
        let until = Instant::now() + duration.min(LONGEST);
        let lost_before = self.kernel.lost_captures(ifindex).unwrap_or_default();
        let reader = Reader { pod, ifindex: Some(ifindex), snaplen, until, packets, lost, lost_before };
        self.captures.readers.insert(number, reader);
        let answered = match self.want_captures() {
            Ok(()) => answer.send(Ok(Begun { number, interface })),
            Err(error) => {
                self.captures.readers.remove(&number);
                answer.send(Err(format!("{error:#}")))
            }
        };
        if answered.is_err() {
            // Nobody waits for it.
            self.captures.readers.remove(&number);
        }
        self.renew_captures();
    }

    fn endpoint_named(&self, pod: &str) -> Option<&EndpointEntry> {
        self.catalog.endpoints.iter().find(|entry| name_of(entry).as_deref() == Some(pod))
    }

    /// Those whose time is over go, pods that have another interface by now are followed, and the kernel is told.
    pub(super) fn renew_captures(&mut self) {
        let now = Instant::now();
        self.tell_lost_captures();
        self.captures.readers.retain(|_, reader| reader.until > now && !reader.packets.is_closed());
        if let Err(error) = self.want_captures() {
            tracing::warn!(error = format!("{error:#}"), "telling the kernel what is to be captured");
        }
        let any = !self.captures.readers.is_empty();
        self.kernel.renew_captures(any);
        let ends = self.captures.readers.values().map(|reader| reader.until).min();
        self.captures.renew_at = ends.map(|end| end.min(now + RENEW));
    }

    /// Brings CAPTURES to what is wanted now.
    fn want_captures(&mut self) -> anyhow::Result<()> {
        let mut readers = std::mem::take(&mut self.captures.readers);
        let mut wanted = BTreeMap::new();
        for reader in readers.values_mut() {
            let ifindex = self.endpoint_named(&reader.pod).map(|entry| entry.ifindex);
            if reader.ifindex != ifindex {
                (reader.ifindex, reader.lost_before) = (ifindex, 0);
            }
            if let Some(ifindex) = ifindex {
                let most: &mut u32 = wanted.entry(ifindex).or_default();
                *most = reader.snaplen.max(*most);
            }
        }
        self.captures.readers = readers;
        let before = std::mem::take(&mut self.captures.wanted);
        for (ifindex, snaplen) in &wanted {
            if before.get(ifindex) != Some(snaplen) {
                self.kernel.begin_capture(*ifindex, *snaplen)?;
            }
        }
        for ifindex in before.into_keys().filter(|ifindex| !wanted.contains_key(ifindex)) {
            self.kernel.end_capture(ifindex)?;
        }
        self.captures.wanted = wanted;
        Ok(())
    }

    /// What the kernel could not hand over.
    fn tell_lost_captures(&mut self) {
        for reader in self.captures.readers.values_mut() {
            let Some(lost) = reader.ifindex.and_then(|ifindex| self.kernel.lost_captures(ifindex).ok()) else {
                continue;
            };
            reader.lost.fetch_add(lost.saturating_sub(reader.lost_before), Ordering::Relaxed);
            reader.lost_before = lost;
        }
    }

    /// Hands packets to those who capture them.
    pub fn take_caught(&mut self, packets: &[Caught]) {
        if packets.is_empty() {
            return;
        }
        self.write_catalog();
        let clock = WallClock::now();
        for caught in packets {
            let is_wanted = |reader: &&Reader| reader.ifindex == Some(caught.report.ifindex);
            if !self.captures.readers.values().any(|reader| is_wanted(&reader)) {
                continue;
            }
            let names = Names::of(&caught.report, &self.index, &self.catalog);
            let interface = self.interface_of(caught);
            let record = Record::of_packet(&caught.report, &names, clock);
            for reader in self.captures.readers.values().filter(is_wanted) {
                let bytes = caught.bytes.len().min(reader.snaplen as usize);
                let caught = Caught { bytes: caught.bytes[..bytes].to_owned(), ..*caught };
                let time = clock.unix_nanos(caught.report.time);
                let packet = Packet::new(&caught, record.clone(), time, interface.clone());
                if let Err(TrySendError::Full(_)) = reader.packets.try_send(packet) {
                    reader.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Where it was met: the pod's own interface, or the one by which it leaves the node.
    fn interface_of(&self, caught: &Caught) -> String {
        let name = match caught.report.met {
            None => self
                .catalog
                .endpoints
                .iter()
                .find(|entry| entry.ifindex == caught.report.ifindex)
                .map(|entry| entry.interface.clone()),
            Some(MET_PROCESS) => Some(PROCESS.to_owned()),
            Some(met) => self.exits.name(met).map(str::to_owned),
        };
        name.unwrap_or_else(|| format!("interface {}", caught.report.met.unwrap_or(caught.report.ifindex)))
    }

    /// The agent ends.
    pub fn end_captures(&mut self) {
        self.captures.readers.clear();
        self.renew_captures();
    }
}
