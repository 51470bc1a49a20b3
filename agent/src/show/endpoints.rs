//! `palisade endpoints`.

use std::collections::BTreeMap;

use anyhow::bail;
use palisade_common::layout::{EndpointRecord, EndpointStats, endpoint_flag};
use serde::Serialize;

use super::page::{Page, show};
use super::style;
use super::table::{Cell, Columns};
use crate::compile::{Catalog, EndpointEntry, FaultEntry, TableEntry};
use crate::config::EndpointsFlags;
use crate::kernel::{self, Maps};
use crate::observe;
use crate::pause::{name_of, paused_until};
use crate::tables::adopted::Found;

/// One endpoint: the catalog's names for what the kernel's record says.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) entry: EndpointEntry,
    /// `enforced`, `closed`, `not attached`, or `not in the tables`.
    pub(super) state: &'static str,
    /// RFC 3339, UTC: until then nothing is refused on its account, by `palisade pause`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) paused_until: Option<String>,
    /// None: there is no record of it.
    counts: Option<Counts>,
}

/// What the programs have counted on the pod's account, as long as it is the same pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// New flows that were let through, of a pod that a policy isolates.
    admitted_ingress: u64,
    admitted_egress: u64,
    /// Packets, wherever they were met.
    refused_ingress: u64,
    refused_egress: u64,
}

impl Counts {
    /// What the number was another pod's for does not count.
    fn of(stats: EndpointStats, generation: u32) -> Self {
        if stats.generation != generation {
            return Self::default();
        }
        let [[admitted_egress, admitted_ingress], [refused_egress, refused_ingress]] = [stats.admitted, stats.refused];
        Self { admitted_ingress, admitted_egress, refused_ingress, refused_egress }
    }
}

/// # Errors
///
/// When there is no agent's state to read, or no such pod.
pub fn endpoints(flags: &EndpointsFlags) -> anyhow::Result<()> {
    let EndpointsFlags { pod, show: flags } = flags;
    let maps = Maps::open_pinned(&flags.pin_dir)?;
    let (found, pauses) = (maps.found()?, maps.pauses()?);
    let runs = kernel::is_in_use(&flags.pin_dir)?;
    if !runs {
        eprintln!(
            "palisade: no agent runs with --pin-dir {}: what follows stays enforced, and nothing that changes is taken in",
            flags.pin_dir.display()
        );
    }
    let Catalog { endpoints, tables, faults, .. } = observe::read_catalog(&flags.pin_dir)?;
    let mut rows = rows(endpoints, &found, &tables);
    if let Some(pod) = pod {
        rows.retain(|row| name_of(&row.entry).as_ref() == Some(pod));
        if rows.is_empty() {
            bail!(
                "no pod {pod} of this node is known (it is written NAMESPACE/NAME; a pod of hostNetwork is not enforced at all)"
            );
        }
    }
    for row in &mut rows {
        row.paused_until = paused_until(&pauses, &found, row.entry.ifindex);
        if let Some(number) = row.entry.number {
            row.counts = Some(Counts::of(maps.endpoint_stats(number)?, row.entry.generation));
        }
    }
    let agent = if runs { "running" } else { "not running" };
    let all = serde_json::json!({ "agent": agent, "endpoints": rows, "faults": faults });
    show(flags.output, &all, |page| {
        let mut columns = Columns::with_wide(
            &["POD", "INTERFACE", "ADDRESSES", "STATE", "INGRESS", "EGRESS", "NOTE"],
            &[
                "GENERATION",
                "INGRESS TABLE",
                "EGRESS TABLE",
                "ADMITTED IN",
                "ADMITTED OUT",
                "REFUSED IN",
                "REFUSED OUT",
            ],
        );
        for row in rows {
            columns.row(cells(row));
        }
        page.columns(&columns);
        tell_faults(page, &faults);
    })
}

/// Each endpoint as the kernel's tables have it.
pub(super) fn rows(endpoints: Vec<EndpointEntry>, found: &Found, tables: &BTreeMap<u32, TableEntry>) -> Vec<Row> {
    let row = |entry: EndpointEntry| {
        let index = found.tables.endpoints.get(&entry.ifindex);
        row(entry, index.and_then(|index| found.records.get(&index.at(found.epoch))), tables)
    };
    endpoints.into_iter().map(row).collect()
}

pub(super) fn tell_faults(page: &mut Page, faults: &[FaultEntry]) {
    if !faults.is_empty() {
        page.line("\nCannot be enforced as written:");
    }
    for FaultEntry { kind, object, field, message } in faults {
        let field = if field.is_empty() { String::new() } else { format!(" {field}") };
        page.line(format_args!("  {kind} {object}{field}: {message}"));
    }
}

/// What is enforced is what the record says, whatever the agent wanted last.
fn row(mut entry: EndpointEntry, record: Option<&EndpointRecord>, tables: &BTreeMap<u32, TableEntry>) -> Row {
    let state = match record {
        _ if entry.not_attached.is_some() => "not attached",
        None => "not in the tables",
        Some(record) if record.flags & endpoint_flag::CLOSED != 0 => "closed",
        Some(_) => "enforced",
    };
    if let (Some(record), "enforced") = (record, state) {
        let policies = |flag: u32, table: u32| match record.flags & flag {
            0 => (false, None, Vec::new()),
            _ => {
                let unknown = || vec![format!("table {table}")];
                (true, Some(table), tables.get(&table).map_or_else(unknown, |table| table.policies.clone()))
            }
        };
        (entry.isolated_ingress, entry.ingress_table, entry.ingress_policies) =
            policies(endpoint_flag::ISOLATED_INGRESS, record.ingress.table);
        (entry.isolated_egress, entry.egress_table, entry.egress_policies) =
            policies(endpoint_flag::ISOLATED_EGRESS, record.egress.table);
    }
    Row { entry, state, paused_until: None, counts: None }
}

fn cells(row: Row) -> Vec<Cell> {
    let Row { entry, state, paused_until, counts } = row;
    let pod = match (&entry.namespace, &entry.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => "-".to_owned(),
    };
    let addresses: Vec<String> = entry.addresses.iter().map(ToString::to_string).collect();
    let isolation = |isolated: bool, policies: &[String]| match (state, isolated) {
        ("enforced", true) => policies.join(","),
        ("enforced", false) => "open".to_owned(),
        ("not attached", _) => "not enforced".to_owned(),
        _ => "closed".to_owned(),
    };
    let note = match (&entry.not_attached, &entry.closed, entry.trusted) {
        (Some(reason), ..) | (None, Some(reason), _) => reason.clone(),
        (None, None, true) => "trusted with every address".to_owned(),
        (None, None, false) => String::new(),
    };
    let note = match paused_until {
        Some(until) => Cell::new(format!("PAUSED until {until}. {note}").trim_end(), style::WARN),
        None => note.into(),
    };
    let state_style = if state == "enforced" { style::GOOD } else { style::BAD };
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let count = |count: fn(&Counts) -> u64| counts.as_ref().map_or_else(|| "-".to_owned(), |it| count(it).to_string());
    vec![
        pod.into(),
        format!("{} ({})", entry.interface, entry.ifindex).into(),
        addresses.join(",").into(),
        Cell::new(state, state_style),
        isolation(entry.isolated_ingress, &entry.ingress_policies).into(),
        isolation(entry.isolated_egress, &entry.egress_policies).into(),
        note,
        entry.generation.to_string().into(),
        number(entry.ingress_table).into(),
        number(entry.egress_table).into(),
        count(|counts| counts.admitted_ingress).into(),
        count(|counts| counts.admitted_egress).into(),
        count(|counts| counts.refused_ingress).into(),
        count(|counts| counts.refused_egress).into(),
    ]
}

#[cfg(test)]
mod tests {
    use palisade_common::layout::TableRef;

    use super::*;

    fn shown(entry: EndpointEntry, record: Option<EndpointRecord>) -> [String; 3] {
        let table = |name: &str| TableEntry {
            direction: "ingress".to_owned(),
            policies: vec![name.to_owned()],
            ports: Vec::new(),
        };
        let tables = BTreeMap::from([(1, table("web/old")), (2, table("web/new"))]);
        let cells = cells(row(entry, record.as_ref(), &tables));
        [3, 4, 5].map(|column: usize| cells[column].text.clone())
    }

    #[test]
    fn counts_of_another_pod_are_not_shown() {
        let stats = EndpointStats { generation: 3, admitted: [1, 2], refused: [4, 5], ..EndpointStats::default() };
        let counts = Counts { admitted_ingress: 2, admitted_egress: 1, refused_ingress: 5, refused_egress: 4 };
        assert_eq!(Counts::of(stats, 3), counts);
        assert_eq!(Counts::of(stats, 4), Counts::default());
    }

    #[test]
    fn the_record_counts_and_not_what_is_wanted() {
        let isolated = |table| EndpointRecord {
            flags: endpoint_flag::ISOLATED_INGRESS,
            ingress: TableRef { table, ..TableRef::default() },
            ..EndpointRecord::default()
        };
        let wanted = EndpointEntry {
            isolated_ingress: true,
            ingress_policies: vec!["web/new".to_owned()],
            isolated_egress: true,
            egress_policies: vec!["web/new".to_owned()],
            ..EndpointEntry::default()
        };
        assert_eq!(shown(wanted.clone(), Some(isolated(1))), ["enforced", "web/old", "open"]);
        assert_eq!(shown(wanted.clone(), Some(isolated(7))), ["enforced", "table 7", "open"]);
        assert_eq!(shown(wanted.clone(), Some(EndpointRecord::default())), ["enforced", "open", "open"]);
        let closed = EndpointRecord { flags: endpoint_flag::CLOSED, ..EndpointRecord::default() };
        assert_eq!(shown(EndpointEntry::default(), Some(closed)), ["closed"; 3]);
        assert_eq!(shown(EndpointEntry::default(), None), ["not in the tables", "closed", "closed"]);
        let not_attached = EndpointEntry { not_attached: Some("no room".to_owned()), ..wanted };
        assert_eq!(shown(not_attached, Some(isolated(1))), ["not attached", "not enforced", "not enforced"]);
    }
}
