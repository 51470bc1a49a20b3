//! `palisade pause`: for the operator at three in the morning. Nothing of a pod, or of the node, is refused until a certain time.
//!
//! The command writes the kernel's map itself, so that it works whatever has become of the agent, and the programs end the pause by the
//! clock. An agent that runs is told, and tells of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use jiff::{Timestamp, ToSpan as _, Unit};
use palisade_common::layout::PauseKey;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::cni::client;
use crate::cni::protocol::Request;
use crate::cni::socket_path;
use crate::compile::{Catalog, EndpointEntry};
use crate::config::PauseFlags;
use crate::kernel::{self, Maps};
use crate::observe;
use crate::tables::adopted::Found;

/// What `--all` pauses.
pub const EVERY_POD: &str = "every pod of the node";
/// A longer one is no pause.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Something that is paused now. Field names are part of the output of `palisade status -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// `namespace/name` of the pod, `every pod of the node`, or the interface where no pod is known.
    pub what: String,
    /// RFC 3339, UTC.
    pub until: String,
    pub seconds_left: u64,
}

/// Nanoseconds, CLOCK_MONOTONIC, as the programs read it.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `90s`, `15m` or `2h`, up to a day.
///
/// # Errors
///
/// A sentence saying what is meant.
pub fn duration(text: &str) -> Result<Duration, String> {
    let meant = || "a number of seconds, minutes or hours up to a day, as in 90s, 15m or 2h".to_owned();
    let unit = text.chars().last().ok_or_else(meant)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(meant()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| meant())?;
    let duration = number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(meant)?;
    if duration.is_zero() || duration > LONGEST {
        return Err(meant());
    }
    Ok(duration)
}

/// # Errors
///
/// When there is no such pod, or the map cannot be written.
pub fn pause(flags: &PauseFlags) -> anyhow::Result<()> {
    let mut maps = Maps::open_pinned(&flags.pin_dir)?;
    if let Some(folder) = kernel::other_version(&flags.pin_dir)? {
        eprintln!(
            "palisade: WARNING: {} is of an agent of another version, whose programs may still judge pods, as long as this version's agent \
             has not had its first complete list (`palisade status`): what follows does not reach these; use that version's \
             `palisade pause` as well",
            folder.display()
        );
    }
    let keys = match &flags.pod {
        None => vec![PauseKey::NODE],
        Some(pod) => keys_of(pod, &maps.found()?, &observe::read_catalog(&flags.pin_dir)?)?,
    };
    let what = flags.pod.clone().unwrap_or_else(|| EVERY_POD.to_owned());
    let again = flags.pod.clone().unwrap_or_else(|| "--all".to_owned());
    let until = flags.duration.map(|duration| now() + duration.as_nanos() as u64);
    let paused = maps.pauses()?;
    if until.is_none() && !keys.iter().any(|key| paused.contains_key(key)) {
        bail!("{what} is not paused; `palisade status` says what is");
    }
    forget_past(&mut maps)?;
    write(&mut maps, &keys, until)?;
    // Holds already; whoever tells of it may be slow.
    match until {
        Some(until) => {
            let (until, _) = wall_clock(until);
            println!(
                "palisade: PAUSED {what} until {until}: nothing is refused on its account. It ends by itself, and sooner by \
                 `palisade pause --end {again}`"
            );
        }
        None => println!("palisade: {what} is enforced again"),
    }
    if client::ask(&socket_path(&flags.pin_dir), &Request::Pauses).is_err() {
        println!("palisade: no agent answers, so no metric and no Event tell of it");
    }
    // Somebody who removes what is over may have meant the pause that this one replaces.
    let written = maps.pauses()?;
    if until.is_some() && keys.iter().any(|key| written.get(key) != until.as_ref()) {
        write(&mut maps, &keys, until)?;
    }
    Ok(())
}

fn write(maps: &mut Maps, keys: &[PauseKey], until: Option<u64>) -> anyhow::Result<()> {
    keys.iter().try_for_each(|key| maps.set_pause(*key, until))
}

/// Removes those that are over.
fn forget_past(maps: &mut Maps) -> anyhow::Result<()> {
    let now = now();
    for (key, _) in maps.pauses()?.into_iter().filter(|(_, until)| *until <= now) {
        maps.set_pause(key, None)?;
    }
    Ok(())
}

fn keys_of(pod: &str, found: &Found, catalog: &Catalog) -> anyhow::Result<Vec<PauseKey>> {
    let is_it = |entry: &&EndpointEntry| name_of(entry).as_deref() == Some(pod);
    let mut keys = Vec::new();
    for entry in catalog.endpoints.iter().filter(is_it) {
        // Another pod may have the interface since the catalog was written.
        keys.extend(key_at(found, entry.ifindex).filter(|key| key.generation == entry.generation));
    }
    if keys.is_empty() {
        bail!(
            "no pod {pod} of this node is in the tables (it is written NAMESPACE/NAME; `palisade endpoints` lists them, and a pod of \
             hostNetwork is not enforced at all); --all pauses whatever there is"
        );
    }
    Ok(keys)
}

/// `namespace/name` of its pod.
pub fn name_of(entry: &EndpointEntry) -> Option<String> {
    Some(format!("{}/{}", entry.namespace.as_ref()?, entry.pod.as_ref()?))
}

/// What is paused now, by what the kernel has.
pub fn paused(pauses: &BTreeMap<PauseKey, u64>, found: &Found, catalog: &Catalog) -> Vec<Paused> {
    let now = now();
    let holding = pauses.iter().filter(|(_, until)| **until > now);
    let described = holding.filter_map(|(key, until)| {
        let what = describe(*key, found, catalog)?;
        let (until, seconds_left) = wall_clock(*until);
        Some(Paused { what, until, seconds_left })
    });
    described.collect()
}

/// `None`: its pod has gone.
fn describe(key: PauseKey, found: &Found, catalog: &Catalog) -> Option<String> {
    if key == PauseKey::NODE {
        return Some(EVERY_POD.to_owned());
    }
    if key_at(found, key.ifindex)? != key {
        return None;
    }
    let is_it = |entry: &&EndpointEntry| entry.ifindex == key.ifindex && entry.generation == key.generation;
    let entry = catalog.endpoints.iter().find(is_it);
    Some(entry.and_then(name_of).unwrap_or_else(|| format!("interface {}", key.ifindex)))
}

/// Of the endpoint that an interface has now.
fn key_at(found: &Found, ifindex: u32) -> Option<PauseKey> {
    let index = found.tables.endpoints.get(&ifindex)?.at(found.epoch);
    let record = found.records.get(&index)?;
    Some(PauseKey { ifindex, generation: record.generation })
}

/// Until when nothing is refused on the account of an interface's pod, as people read it.
pub fn paused_until(pauses: &BTreeMap<PauseKey, u64>, found: &Found, ifindex: u32) -> Option<String> {
    let own = key_at(found, ifindex).and_then(|key| pauses.get(&key));
    let last = own.max(pauses.get(&PauseKey::NODE)).copied();
    last.filter(|until| *until > now()).map(|until| wall_clock(until).0)
}

/// A time of CLOCK_MONOTONIC as people read it, and how many seconds are left until then.
pub fn wall_clock(until: u64) -> (String, u64) {
    let left = until.saturating_sub(now()).div_ceil(1_000_000_000);
    let at = Timestamp::now() + i64::try_from(left).unwrap_or(i64::MAX).seconds();
    (at.round(Unit::Second).unwrap_or(at).to_string(), left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7200), ("24h", 86400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in
            ["", "m", "15", "0m", "-1m", "25h", "1d", "1.5h", "99999999999999999999s", "18446744073709551615h", "é"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
