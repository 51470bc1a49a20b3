//! What was reported lately, one entry for all packets of one kind: the same pod, direction, peer, protocol, port and reason.
//!
//! A refused client tries again and again. The first packet of a kind is told at once; what follows within [`QUIET`] only counts, and is told
//! of with the next line. Of one pod and reason [`LINES_MAX`] kinds are told within that time, so that one that is refused everywhere does not
//! hide the others; and where too many kinds are known, the pod and reason that has most of them loses its oldest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use palisade_common::{Hook, Reason};

use super::events::Report;
use super::record::Names;

const SECOND: u64 = 1_000_000_000;
/// How long the same is not told again (nanoseconds).
pub const QUIET: u64 = 10 * SECOND;
/// How many kinds of packets of one pod, direction and reason are told within [`QUIET`].
pub const LINES_MAX: u32 = 20;
/// How many kinds are known at a time. Each takes some three hundred bytes.
pub const KINDS_MAX: usize = 4096;

/// What a pod is refused, or admitted, for one reason in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct About {
    ifindex: u32,
    hook: Hook,
    reason: Reason,
}

/// The same for every try of one client: without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    peer: Option<IpAddr>,
    protocol: Option<u8>,
    port: u16,
    met: Option<u32>,
    rule: u32,
}

/// Packets of one kind. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug)]
pub struct Entry {
    pub first: u64,
    /// The last packet.
    pub last: Report,
    /// As many as were reported; the kernel reports only some of very many.
    pub packets: u64,
    /// As they were when it was last told of.
    pub names: Arc<Names>,
    told: Option<u64>,
    untold: u64,
}

#[derive(Debug, Default)]
struct Group {
    kinds: HashMap<Kind, Entry>,
    /// Since when lines are counted, and how many there were.
    lines: (u64, u32),
    /// Packets of kinds that were not told of since the last line.
    untold: u64,
}

/// Something to be told now.
#[derive(Clone, Debug)]
pub struct Line {
    pub entry: Entry,
    /// Packets of the same kind that were not told of before.
    pub more: u64,
    /// Packets of other kinds of the same pod, direction and reason that were not told of before.
    pub others: u64,
}

#[derive(Debug, Default)]
pub struct History {
    groups: HashMap<About, Group>,
    kinds: usize,
}

impl History {
    /// Takes a report in. `None`: it is not to be told of now.
    pub fn take(&mut self, report: Report, names: impl FnOnce() -> Names) -> Option<Line> {
        let about = About { ifindex: report.ifindex, hook: report.hook, reason: report.reason };
        let kind = Kind {
            peer: report.peer(),
            protocol: report.protocol,
            port: report.destination_port,
            met: report.met,
            rule: report.rule,
        };
        let is_new = self.groups.get(&about).is_none_or(|group| !group.kinds.contains_key(&kind));
        if is_new && self.kinds >= KINDS_MAX {
            self.make_room();
        }
        self.kinds += usize::from(is_new);
        let group = self.groups.entry(about).or_default();
        let now = report.time;
        if now.saturating_sub(group.lines.0) >= QUIET {
            group.lines = (now, 0);
        }
        let mut names = Some(names);
        let mut resolve = || Arc::new(names.take().expect("asked once")());
        let entry = group.kinds.entry(kind);
        let is_fresh = matches!(entry, std::collections::hash_map::Entry::Vacant(_));
        let entry = entry.or_insert_with(|| Entry {
            first: now,
            last: report,
            packets: 0,
            names: resolve(),
            told: None,
            untold: 0,
        });
        entry.packets += 1;
        entry.last = report;
        if entry.told.is_some_and(|told| now.saturating_sub(told) < QUIET) {
            entry.untold += 1;
            return None;
        }
        if group.lines.1 >= LINES_MAX {
            group.untold += 1;
            return None;
        }
        group.lines.1 += 1;
        if !is_fresh {
            entry.names = resolve();
        }
        entry.told = Some(now);
        let (more, others) = (std::mem::take(&mut entry.untold), std::mem::take(&mut group.untold));
        Some(Line { entry: entry.clone(), more, others })
    }

    /// Of the pod and reason with the most kinds, the older half goes.
    fn make_room(&mut self) {
        let Some(about) = self.groups.iter().max_by_key(|(about, group)| (group.kinds.len(), **about)).map(|it| *it.0)
        else {
            return;
        };
        let Some(group) = self.groups.get_mut(&about) else { return };
        let before = group.kinds.len();
        let mut times: Vec<u64> = group.kinds.values().map(|entry| entry.last.time).collect();
        let middle = times.len() / 2;
        let newest_to_go = *times.select_nth_unstable(middle).1;
        let mut left = middle + 1;
        group.kinds.retain(|_, entry| {
            let goes = left > 0 && entry.last.time <= newest_to_go;
            left -= usize::from(goes);
            !goes
        });
        self.kinds -= before - group.kinds.len();
        if group.kinds.is_empty() {
            self.groups.remove(&about);
        }
    }

    /// The latest first.
    pub fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.groups.values().flat_map(|group| group.kinds.values()).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.last.time));
        entries
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn refused(time: u64, ifindex: u32, port: u16) -> Report {
        Report {
            time,
            ifindex,
            hook: Hook::ToPod,
            reason: Reason::NoRule,
            source: Some(Ipv4Addr::new(10, 0, 0, 1).into()),
            destination: Some(Ipv4Addr::new(10, 0, 0, 2).into()),
            source_port: time as u16,
            destination_port: port,
            protocol: Some(6),
            met: None,
            rule: 0,
        }
    }

    fn told(history: &mut History, report: Report) -> Option<(u64, u64)> {
        history.take(report, Names::default).map(|line| (line.more, line.others))
    }

    #[test]
    fn the_same_is_told_once_and_then_counted() {
        let mut history = History::default();
        assert_eq!(told(&mut history, refused(1, 3, 80)), Some((0, 0)));
        assert_eq!(told(&mut history, refused(2, 3, 80)), None);
        assert_eq!(told(&mut history, refused(QUIET / 2, 3, 80)), None);
        assert_eq!(told(&mut history, refused(QUIET + 1, 3, 80)), Some((2, 0)));
        assert_eq!(told(&mut history, refused(QUIET + 1, 3, 81)), Some((0, 0)));
        let all: Vec<_> = history.entries().iter().map(|entry| (entry.last.destination_port, entry.packets)).collect();
        assert_eq!(all.len(), 2);
        assert!(all.contains(&(80, 4)) && all.contains(&(81, 1)), "{all:?}");
    }

    #[test]
    fn a_pod_that_is_refused_everywhere_does_not_hide_another() {
        let mut history = History::default();
        let scan = (0..2 * KINDS_MAX as u64).filter(|n| told(&mut history, refused(*n, 3, *n as u16)).is_some());
        assert_eq!(scan.count(), LINES_MAX as usize);
        assert_eq!(told(&mut history, refused(9000, 4, 80)), Some((0, 0)), "another pod");
        let other = Report { reason: Reason::Closed, ..refused(9000, 3, 80) };
        assert_eq!(told(&mut history, other), Some((0, 0)), "another reason");
        // What was not told is told of with the next line.
        let untold = 2 * KINDS_MAX as u64 - u64::from(LINES_MAX);
        assert_eq!(told(&mut history, refused(QUIET, 3, 9)), Some((0, untold)));
    }

    #[test]
    fn what_is_known_is_bounded_and_the_noisy_one_pays() {
        let mut history = History::default();
        told(&mut history, refused(0, 4, 80));
        for n in 1..3 * KINDS_MAX as u64 {
            told(&mut history, refused(n, 3, n as u16));
            assert!(history.kinds <= KINDS_MAX);
        }
        let entries = history.entries();
        assert_eq!(entries.len(), history.kinds);
        assert!(entries.len() >= KINDS_MAX / 2, "{}", entries.len());
        assert!(entries.iter().any(|entry| entry.last.ifindex == 4), "the quiet pod's is still there");
        assert_eq!(entries[0].last.time, 3 * KINDS_MAX as u64 - 1, "the latest first");
    }

    /// Packets of one moment, as the coarse clock gives many.
    #[test]
    fn room_is_made_where_all_are_of_one_moment() {
        let mut history = History::default();
        for n in 0..2 * KINDS_MAX as u64 {
            told(&mut history, refused(7, 3, n as u16));
        }
        assert!((KINDS_MAX / 2..=KINDS_MAX).contains(&history.kinds), "{}", history.kinds);
    }
}
