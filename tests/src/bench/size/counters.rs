//! What the agent's metrics say.

use anyhow::{Context, Result};

use crate::lab::Agent;

/// Sums over the labels that are not told apart here.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Answers of the API server, watches included.
    pub requests: u64,
    pub watches: u64,
    /// Bytes of lists and watches.
    pub received: f64,
    pub received_by_watches: f64,
    /// Changes of objects that were taken in.
    pub updates: u64,
    /// Of the loop since the start; seconds.
    pub longest_turn: f64,
    /// By upper bound (seconds): turns of the loop that took no longer.
    turns: Vec<(f64, u64)>,
}

// === impl Counters ===

impl Counters {
    pub fn of(agent: &Agent) -> Result<Self> {
        let (_, page) = agent.http("/metrics")?;
        Self::read(&page)
    }

    fn read(page: &str) -> Result<Self> {
        let mut counters = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').context("a metric has a value")?;
            let value: f64 = value.parse()?;
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let is_watch = labels.contains("verb=\"watch\"");
            match name {
                "palisade_api_requests_total" => {
                    counters.requests += value as u64;
                    counters.watches += if is_watch { value as u64 } else { 0 };
                }
                "palisade_api_received_bytes_total" => {
                    counters.received += value;
                    counters.received_by_watches += if is_watch { value } else { 0.0 };
                }
                "palisade_updates_total" => counters.updates += value as u64,
                "palisade_longest_turn_seconds" if labels.contains("\"loop\"") => counters.longest_turn = value,
                "palisade_turn_seconds_bucket" if labels.contains("\"loop\"") => {
                    let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
                    let bound = bound.context("a bucket has its bound")?;
                    let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse()? };
                    counters.turns.push((bound, value as u64));
                }
                _ => {}
            }
        }
        Ok(counters)
    }

    /// How many turns of the loop took longer since then, and the least bound that none has exceeded (seconds).
    pub fn turns_since(&self, before: &Self, longer: f64) -> (u64, f64) {
        let counted: Vec<(f64, u64)> = self
            .turns
            .iter()
            .map(|(bound, now)| {
                let then = before.turns.iter().find(|(other, _)| other == bound).map_or(0, |(_, count)| *count);
                (*bound, now - then)
            })
            .collect();
        let all = counted.last().map_or(0, |(_, count)| *count);
        let within = counted.iter().find(|(bound, _)| *bound >= longer).map_or(all, |(_, count)| *count);
        let least = counted.iter().find(|(_, count)| *count == all).map_or(f64::INFINITY, |(bound, _)| *bound);
        (all - within, least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_says() {
        let page = "# HELP x\npalisade_api_requests_total{resource=\"pods\",verb=\"watch\",code=\"200\"} 2\n\
                    palisade_api_requests_total{resource=\"pods\",verb=\"list\",code=\"200\"} 3\n\
                    palisade_api_received_bytes_total{resource=\"pods\",verb=\"watch\"} 100\n\
                    palisade_longest_turn_seconds{task=\"loop\"} 0.5\n\
                    palisade_turn_seconds_bucket{le=\"0.1\",task=\"loop\"} 5\n\
                    palisade_turn_seconds_bucket{le=\"0.25\",task=\"loop\"} 7\n\
                    palisade_turn_seconds_bucket{le=\"+Inf\",task=\"loop\"} 7\n";
        let counters = Counters::read(page).expect("a page");
        assert_eq!((counters.requests, counters.watches, counters.longest_turn), (5, 2, 0.5));
        assert_eq!(counters.turns_since(&Counters::default(), 0.1), (2, 0.25));
        assert_eq!(counters.turns_since(&counters, 0.1), (0, 0.1));
    }
}
