//! What is told of a run: how far it is, and what it came to.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::Tally;

const INTERVAL: Duration = Duration::from_secs(5);

/// Tells on stderr how far a run is, every few seconds.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    told: Instant,
    wanted: u64,
    quiet: bool,
}

impl Progress {
    pub fn new(wanted: u64) -> Self {
        Self { start: Instant::now(), told: Instant::now(), wanted, quiet: false }
    }

    pub fn quiet() -> Self {
        Self { quiet: true, ..Self::new(0) }
    }

    pub fn tell(&mut self, tally: &Tally) {
        if self.quiet || self.told.elapsed() < INTERVAL {
            return;
        }
        self.told = Instant::now();
        let cases = tally.outcome.cases;
        let rate = cases as f64 / self.elapsed().as_secs_f64();
        eprintln!("  {cases} of {} cases, {rate:.0} per second, {} worlds disagree", self.wanted, tally.found.len());
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Counts of a run, the reasons of every judge among them.
pub fn summary(tally: &Tally, elapsed: Duration) -> String {
    let outcome = &tally.outcome;
    let seconds = elapsed.as_secs_f64();
    let rate = outcome.cases as f64 / seconds;
    let mut text = format!(
        "  {} cases in {seconds:.0} s, {rate:.0} per second: {} flows admitted, {} refused; {} worlds, {} changes, {} packets, {} left open by the text\n",
        outcome.cases,
        outcome.flows_admitted,
        outcome.flows_refused,
        tally.worlds,
        outcome.changes,
        outcome.packets,
        outcome.open,
    );
    for (judge, reasons) in &outcome.given {
        let total: u64 = reasons.values().sum();
        let list: Vec<String> = reasons.iter().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
        let _ = writeln!(text, "  {judge}: {total} packets: {}", list.join(", "));
    }
    text
}
