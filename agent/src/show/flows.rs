//! `palisade flows`: what the programs remember of flows, with names on both ends, and what the tables say of each now.

mod row;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use palisade_common::layout::FlowKey;
use serde::Serialize;

use self::row::{FlowEnd, Moment, Row, Scene, Side, address};
use super::filter::End;
use super::live::{names, printing, structured};
use super::page::show;
use super::style;
use super::table::{Cell, Columns};
use crate::config::{FlowsFlags, Output};
use crate::kernel::Maps;
use crate::observe::record;
use crate::{observe, pause};

/// How often the table is read for `--watch`: an LRU map tells nobody of a change.
const INTERVAL: Duration = Duration::from_secs(1);

/// A line of `--watch`. Field names are part of the output of `-o json`.
#[derive(Debug, Serialize)]
struct Told<'a> {
    /// RFC 3339, UTC.
    time: String,
    /// `is`: it was there when this began; `new`, `changed` or `gone`.
    event: &'static str,
    #[serde(flatten)]
    row: &'a Row,
}

/// # Errors
///
/// When there are no tables to read.
pub fn flows(flags: &FlowsFlags) -> anyhow::Result<()> {
    let mut look = Look::new(&flags.show.pin_dir)?;
    if flags.watch {
        return printing(|out| watch(out, &mut look, flags));
    }
    let mut rows: Vec<Row> = look.rows()?.into_values().filter(|row| is_wanted(row, flags)).collect();
    rows.sort_by(|a, b| {
        (a.idle_seconds, &a.protocol, &a.source, &a.destination).cmp(&(
            b.idle_seconds,
            &b.protocol,
            &b.source,
            &b.destination,
        ))
    });
    show(flags.show.output, &rows, |page| {
        let mut columns = Columns::with_wide(
            &["PROTOCOL", "FROM", "TO", "VERDICT", "STATE", "IDLE", "BY"],
            &["FROM ADDRESS", "TO ADDRESS", "EGRESS", "INGRESS"],
        );
        rows.iter().for_each(|row| columns.row(cells(row)));
        page.columns(&columns);
    })
}

fn cells(row: &Row) -> Vec<Cell> {
    let style = if row.verdict == "refused" { style::BAD } else { style::GOOD };
    let address = |end: &FlowEnd| record::end(end.address, end.port).into();
    vec![
        row.protocol.as_str().into(),
        row.source.to_string().into(),
        row.destination.to_string().into(),
        Cell::new(row.verdict, style),
        row.state.into(),
        format!("{} s", row.idle_seconds).into(),
        row.by().into(),
        address(&row.source),
        address(&row.destination),
        side(row.egress.as_ref()).into(),
        side(row.ingress.as_ref()).into(),
    ]
}

/// What one pod's policies say of the flow.
fn side(side: Option<&Side>) -> String {
    let Some(Side { reason, judged, .. }) = side else { return "not asked".to_owned() };
    if *judged { (*reason).to_owned() } else { format!("{reason}, at its next packet") }
}

fn is_wanted(row: &Row, flags: &FlowsFlags) -> bool {
    let ends = [&row.source, &row.destination].map(|end| End { name: end.name.as_deref(), address: Some(end.address) });
    flags.filter.admits(ends, Some(&row.protocol), Some(row.destination.port))
        && flags.verdict.is_none_or(|verdict| verdict.name() == row.verdict)
}

/// Prints what is there, and then what changes, until nobody reads.
fn watch(out: &mut dyn Write, look: &mut Look, flags: &FlowsFlags) -> anyhow::Result<()> {
    let mut known: BTreeMap<Id, Row> = BTreeMap::new();
    let mut first = true;
    loop {
        let now = look.rows()?;
        for told in differences(&known, &now, first) {
            if is_wanted(told.row, flags) {
                print(out, &told, flags.show.output)?;
            }
        }
        out.flush()?;
        (known, first) = (now, false);
        std::thread::sleep(INTERVAL);
    }
}

fn differences<'a>(known: &'a BTreeMap<Id, Row>, now: &'a BTreeMap<Id, Row>, first: bool) -> Vec<Told<'a>> {
    let time = format!("{:.3}", Timestamp::now());
    let mut told = Vec::new();
    let mut tell = |event, row| told.push(Told { time: time.clone(), event, row });
    for (id, row) in now {
        match known.get(id) {
            None => tell(if first { "is" } else { "new" }, row),
            Some(before) if (before.verdict, before.state) != (row.verdict, row.state) => tell("changed", row),
            Some(_) => {}
        }
    }
    for (_, row) in known.iter().filter(|(id, _)| !now.contains_key(id)) {
        tell("gone", row);
    }
    told
}

/// Short, and with all that belongs together on one line.
fn print(out: &mut dyn Write, told: &Told<'_>, output: Output) -> anyhow::Result<()> {
    if structured(out, output, told)? {
        return Ok(());
    }
    let Told { time, event, row } = told;
    let Row { protocol, source, destination, verdict, state, .. } = row;
    let by = row.by();
    let by = if by.is_empty() { by } else { format!(" by {by}") };
    Ok(writeln!(out, "{time} {event} {protocol} {source} > {destination} {verdict}{by} {state}")?)
}

/// A flow, and which end (0: low, 1: high) opened it.
type Id = (FlowKey, usize);

/// What does not change between two looks is read once.
struct Look<'a> {
    pin_dir: &'a Path,
    maps: Maps,
    scene: Option<Scene>,
    /// Of addresses, as the agent knows them; those of none are in it too.
    names: BTreeMap<IpAddr, Option<String>>,
}

impl<'a> Look<'a> {
    fn new(pin_dir: &'a Path) -> anyhow::Result<Self> {
        Ok(Self { pin_dir, maps: Maps::open_pinned(pin_dir)?, scene: None, names: BTreeMap::new() })
    }

    fn rows(&mut self) -> anyhow::Result<BTreeMap<Id, Row>> {
        let epoch = self.maps.config.epoch();
        let scene = match self.scene.take().filter(|scene| scene.epoch() == epoch) {
            Some(scene) => scene,
            None => {
                self.names.clear();
                // Without an agent that ever compiled anything there are no names, and flows all the same.
                let catalog = observe::read_catalog(self.pin_dir).unwrap_or_default();
                Scene::new(self.maps.snapshot(false)?, catalog)
            }
        };
        let scene = self.scene.insert(scene);
        let flows = self.maps.flows()?;
        let ends = flows.keys().flat_map(|key| [&key.low, &key.high].map(|end| address(key.family, end)));
        let strangers: BTreeSet<IpAddr> =
            ends.filter(|end| !scene.knows(*end) && !self.names.contains_key(end)).collect();
        if !strangers.is_empty() {
            let strangers = Vec::from_iter(strangers);
            let mut named = names(self.pin_dir, &strangers).unwrap_or_default();
            self.names.extend(strangers.into_iter().map(|address| (address, named.remove(&address))));
        }
        let pauses = self.maps.pauses()?;
        let moment = Moment { now: pause::now(), names: &self.names, pauses: &pauses };
        let mut rows = BTreeMap::new();
        for (key, value) in &flows {
            for (opener, row) in scene.rows(key, value, &moment) {
                rows.insert((*key, opener), row);
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
