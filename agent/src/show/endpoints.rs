//! `palisade endpoints`.

use palisade_common::layout::endpoint_flag;
use serde::Serialize;

use super::table::Columns;
use crate::compile::EndpointEntry;
use crate::config::{Output, ShowFlags};
use crate::kernel::Maps;
use crate::observe;

/// One endpoint: what the catalog says of it, and whether the kernel's record agrees.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    entry: EndpointEntry,
    /// `enforced`, `closed`, or `not in the tables`.
    state: &'static str,
}

/// # Errors
///
/// When there is no agent's state to read.
pub fn endpoints(flags: &ShowFlags) -> anyhow::Result<()> {
    let maps = Maps::open_pinned(&flags.pin_dir)?;
    let found = maps.found()?;
    let catalog = observe::read_catalog(&flags.pin_dir)?;
    let rows: Vec<Row> = catalog
        .endpoints
        .into_iter()
        .map(|entry| {
            let index = found.tables.endpoints.get(&entry.ifindex);
            let record = index.and_then(|index| found.records.get(&index.at(found.epoch)));
            let state = match record {
                None => "not in the tables",
                Some(record) if record.flags & endpoint_flag::CLOSED != 0 => "closed",
                Some(_) => "enforced",
            };
            Row { entry, state }
        })
        .collect();
    match flags.output {
        Output::Json => {
            let faults = catalog.faults;
            println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "endpoints": rows, "faults": faults }))?);
        }
        Output::Table => {
            let mut columns = Columns::new(&["POD", "INTERFACE", "ADDRESSES", "STATE", "INGRESS", "EGRESS", "NOTE"]);
            for row in rows {
                columns.row(cells(row));
            }
            columns.print();
            if !catalog.faults.is_empty() {
                println!("\nCannot be enforced as written:");
                for fault in &catalog.faults {
                    println!("  {} {} {}: {}", fault.kind, fault.object, fault.field, fault.message);
                }
            }
        }
    }
    Ok(())
}

fn cells(row: Row) -> Vec<String> {
    let Row { entry, state } = row;
    let pod = match (&entry.namespace, &entry.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => "-".to_owned(),
    };
    let addresses: Vec<String> = entry.addresses.iter().map(ToString::to_string).collect();
    let isolation = |isolated: bool, policies: &[String]| match isolated {
        true => policies.join(","),
        false => "open".to_owned(),
    };
    let note = match (&entry.closed, entry.trusted) {
        (Some(reason), _) => reason.clone(),
        (None, true) => "trusted with every address".to_owned(),
        (None, false) => String::new(),
    };
    vec![
        pod,
        format!("{} ({})", entry.interface, entry.ifindex),
        addresses.join(","),
        state.to_owned(),
        isolation(entry.isolated_ingress, &entry.ingress_policies),
        isolation(entry.isolated_egress, &entry.egress_policies),
        note,
    ]
}
