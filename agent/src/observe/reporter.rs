//! From reports to lines: kept as recent history, logged, and handed to whoever else wants them. Nobody who is slow is waited for; what he
//! misses is counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::broadcast;

use super::events::Report;
use super::history::History;
use super::record::{Names, Record, WallClock};
use super::sinks::file::FileSink;
use super::sinks::otlp::OtlpSink;
use crate::compile::Catalog;
use crate::index::Index;

/// Lines that whoever watches may be behind.
const WATCH_MAX: usize = 1024;

/// Lines that were not taken, by who did not take them.
pub type LostLines = Family<[(&'static str, &'static str); 1], Counter>;

/// The history, for whoever asks at the socket.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<History>>);

impl Recent {
    fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest first.
    pub fn records(&self) -> Vec<Record> {
        let clock = WallClock::now();
        self.lock().entries().into_iter().map(|entry| Record::of(entry, clock)).collect()
    }
}

#[derive(Debug)]
pub struct Reporter {
    recent: Recent,
    watchers: broadcast::Sender<Arc<Record>>,
    file: Option<FileSink>,
    otlp: Option<OtlpSink>,
    lost: LostLines,
}

impl Reporter {
    pub fn new(registry: &mut Registry) -> Self {
        let lost = LostLines::default();
        // They are there from the start, so that a rate can be taken over the first loss too.
        for sink in ["file", "otlp", "watch"] {
            drop(lost.get_or_create(&[("sink", sink)]));
        }
        registry.register(
            "event_lines_lost",
            "Lines about refused or admitted flows that a sink did not take: the file of --events-file, the collector of --otlp-endpoint, or \
             one who watches. Rising: the disk is full or slow, the collector is not there, or it is too slow; the log says which",
            lost.clone(),
        );
        Self { recent: Recent::default(), watchers: broadcast::channel(WATCH_MAX).0, file: None, otlp: None, lost }
    }

    /// `start` is given the counter of lines that are lost there.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn set_file(&mut self, start: impl FnOnce(Counter) -> anyhow::Result<FileSink>) -> anyhow::Result<()> {
        self.file = Some(start(self.lost_at("file"))?);
        Ok(())
    }

    pub fn set_otlp(&mut self, start: impl FnOnce(Counter) -> OtlpSink) {
        self.otlp = Some(start(self.lost_at("otlp")));
    }

    fn lost_at(&self, sink: &'static str) -> Counter {
        self.lost.get_or_create(&[("sink", sink)]).clone()
    }

    pub fn lost(&self) -> LostLines {
        self.lost.clone()
    }

    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }

    pub fn watchers(&self) -> broadcast::Sender<Arc<Record>> {
        self.watchers.clone()
    }

    pub fn take(&self, reports: &[Report], index: &Index, catalog: &Catalog) {
        let clock = WallClock::now();
        let mut history = self.recent.lock();
        for report in reports {
            let Some(line) = history.take(*report, || Names::of(report, index, catalog)) else { continue };
            let record = Arc::new(Record::of_line(&line, clock));
            record.log(report.reason.text());
            self.hand_on(&record);
        }
    }

    fn hand_on(&self, record: &Arc<Record>) {
        if self.file.as_ref().is_some_and(|file| !file.take(record.clone())) {
            self.lost_at("file").inc();
        }
        if self.otlp.as_ref().is_some_and(|otlp| !otlp.take(record.clone())) {
            self.lost_at("otlp").inc();
        }
        // Nobody may be watching.
        let _ = self.watchers.send(record.clone());
    }
}
