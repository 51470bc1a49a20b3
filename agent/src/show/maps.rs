//! `palisade maps`: every table, decoded.

use palisade_common::layout::{
    BACKENDS_FIRST, CLASS_ASK_CIDR, EndpointRecord, FlowKey, FlowValue, PORTS_ALL, PORTS_NONE, ServiceKey, Versioned,
    endpoint_flag, flow_flag,
};
use palisade_common::parse::{V4, V6};
use serde_json::{Value, json};

use super::page::show;
use super::rows::range;
use super::style;
use super::table::Columns;
use crate::compile::Catalog;
use crate::config::ShowFlags;
use crate::kernel::{Maps, Snapshot};
use crate::observe;
use crate::observe::events::{address_text, protocol_name};
use palisade_common::layout::Address;

/// One printed table: its name, its columns, its rows.
struct Shown {
    name: &'static str,
    columns: &'static [&'static str],
    /// So many columns at the right are for `-o wide` and for programs.
    wide: usize,
    rows: Vec<Vec<Value>>,
}

/// # Errors
///
/// When nothing is pinned there.
pub fn maps(flags: &ShowFlags) -> anyhow::Result<()> {
    let snapshot = Maps::open_pinned(&flags.pin_dir)?.snapshot(true)?;
    let catalog = observe::read_catalog(&flags.pin_dir).unwrap_or_default();
    let tables = [
        config(&snapshot),
        endpoints(&snapshot, &catalog),
        exact(&snapshot, &catalog),
        cidrs(&snapshot, &catalog),
        rules(&snapshot, &catalog),
        ports(&snapshot, &catalog),
        services(&snapshot),
        flows(&snapshot),
        counters(&snapshot),
    ];
    let all: serde_json::Map<String, Value> =
        tables.iter().map(|table| (table.name.to_owned(), objects(table))).collect();
    show(flags.output, &all, |page| {
        for table in &tables {
            let (columns, wide) = table.columns.split_at(table.columns.len() - table.wide);
            let mut columns = Columns::with_wide(columns, wide);
            for row in &table.rows {
                columns.row(row.iter().map(text));
            }
            page.line(format_args!("{}{}{:#} ({})", style::HEADING, table.name, style::HEADING, columns.len()));
            page.columns(&columns);
            page.line("");
        }
    })
}

fn objects(table: &Shown) -> Value {
    let keys = table.columns.iter().map(|name| name.to_lowercase().replace(' ', "_"));
    let object = |row: &Vec<Value>| -> Value {
        Value::Object(keys.clone().zip(row.iter().cloned()).collect::<serde_json::Map<String, Value>>())
    };
    table.rows.iter().map(object).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn config(snapshot: &Snapshot) -> Shown {
    let (config, stats) = (&snapshot.config, &snapshot.flow_stats);
    let rows = vec![
        vec![json!("epoch"), json!(config.epoch)],
        vec![json!("existing flows"), json!(if config.keep_existing == 0 { "cut" } else { "keep" })],
        vec![json!("mid-stream budget (per pod and second)"), json!(config.midstream_budget)],
        vec![json!("events budget (per CPU and second)"), json!(config.events_budget)],
        vec![json!("exits"), json!(if config.exits_missing == 0 { "complete" } else { "missing" })],
        vec![json!("flow insertions"), json!(stats.inserts)],
        vec![json!("flows to Services that were answered"), json!(stats.service_answered)],
        vec![json!("flows judged where they ended up"), json!(stats.service_judged)],
        vec![json!("the node's own packets with marks of the stamp's"), json!(stats.foreign_marks)],
    ];
    Shown { name: "CONFIG", columns: &["NAME", "VALUE"], wide: 0, rows }
}

fn endpoints(snapshot: &Snapshot, catalog: &Catalog) -> Shown {
    let epoch = snapshot.config.epoch;
    let mut rows = Vec::new();
    for (ifindex, index) in &snapshot.found.tables.endpoints {
        let pod = catalog.endpoints.iter().find(|entry| entry.ifindex == *ifindex);
        let name = pod.and_then(|entry| Some(format!("{}/{}", entry.namespace.as_ref()?, entry.pod.as_ref()?)));
        let Some(record) = snapshot.found.records.get(&index.at(epoch)) else {
            rows.push(vec![json!(ifindex), json!(name)]);
            continue;
        };
        rows.push(vec![
            json!(ifindex),
            json!(name),
            json!(index.at(epoch)),
            json!(record.number),
            json!((record.stamp != 0).then_some(record.stamp)),
            json!(record.generation),
            json!(flag_names(record.flags)),
            json!(record.ingress.table),
            json!(port_set(record.ingress.default.ports)),
            json!(record.egress.table),
            json!(port_set(record.egress.default.ports)),
            json!(addresses(record)),
        ]);
    }
    Shown {
        name: "ENDPOINTS",
        columns: &[
            "IFINDEX",
            "POD",
            "RECORD",
            "NUMBER",
            "STAMP",
            "GENERATION",
            "FLAGS",
            "INGRESS TABLE",
            "INGRESS DEFAULT",
            "EGRESS TABLE",
            "EGRESS DEFAULT",
            "ADDRESSES",
        ],
        wide: 0,
        rows,
    }
}

fn flag_names(flags: u32) -> Vec<&'static str> {
    [
        (endpoint_flag::ISOLATED_INGRESS, "isolated-ingress"),
        (endpoint_flag::ISOLATED_EGRESS, "isolated-egress"),
        (endpoint_flag::CLOSED, "closed"),
        (endpoint_flag::TRUSTED, "trusted"),
        (endpoint_flag::MIDSTREAM, "midstream"),
        (endpoint_flag::EARLY, "early"),
    ]
    .into_iter()
    .filter(|(bit, _)| flags & bit != 0)
    .map(|(_, name)| name)
    .collect()
}

fn addresses(record: &EndpointRecord) -> Vec<String> {
    let v4 = record.v4.iter().filter(|word| **word != 0).map(|word| address_text(V4, &Address::v4(*word)));
    let v6 = record.v6.iter().filter(|address| **address != Address::ZERO).map(|address| address_text(V6, address));
    v4.chain(v6).collect()
}

fn port_set(ports: u32) -> Value {
    match ports {
        PORTS_NONE => json!("nothing"),
        PORTS_ALL => json!("everything"),
        set => json!(set),
    }
}

fn class_cells(value: Versioned, epoch: u32, catalog: &Catalog) -> Vec<Value> {
    match value.at(epoch) {
        CLASS_ASK_CIDR => vec![json!("ask CIDR"), Value::Null, json!(value.since)],
        class => {
            let peers = catalog.classes.get(&class).map(|entry| entry.description.clone());
            vec![json!(class), json!(peers), json!(value.since)]
        }
    }
}

fn exact(snapshot: &Snapshot, catalog: &Catalog) -> Shown {
    let epoch = snapshot.config.epoch;
    let v4 = snapshot.found.tables.exact_v4.iter().map(|(word, value)| (address_text(V4, &Address::v4(*word)), value));
    let v6 = snapshot.found.tables.exact_v6.iter().map(|(address, value)| (address_text(V6, address), value));
    let row =
        |(address, value): (String, &Versioned)| [vec![json!(address)], class_cells(*value, epoch, catalog)].concat();
    let rows = v4.chain(v6).map(row).collect();
    Shown { name: "CLASS_EXACT", columns: &["ADDRESS", "CLASS", "PEERS", "SINCE EPOCH"], wide: 1, rows }
}

fn cidrs(snapshot: &Snapshot, catalog: &Catalog) -> Shown {
    let epoch = snapshot.config.epoch;
    let v4 = snapshot.found.tables.cidr_v4.iter().map(|(prefix, value)| (prefix.to_string(), value));
    let v6 = snapshot.found.tables.cidr_v6.iter().map(|(prefix, value)| (prefix.to_string(), value));
    let row =
        |(prefix, value): (String, &Versioned)| [vec![json!(prefix)], class_cells(*value, epoch, catalog)].concat();
    let rows = v4.chain(v6).map(row).collect();
    Shown { name: "CLASS_CIDR", columns: &["PREFIX", "CLASS", "PEERS", "SINCE EPOCH"], wide: 1, rows }
}

fn rule_name(rule: u32, catalog: &Catalog) -> Value {
    match catalog.rules.get(&rule) {
        Some(entry) => json!(entry.to_string()),
        None if rule == 0 => Value::Null,
        None => json!(rule),
    }
}

fn rules(snapshot: &Snapshot, catalog: &Catalog) -> Shown {
    let rows = snapshot
        .found
        .tables
        .rules
        .iter()
        .map(|(key, value)| {
            let table = catalog.tables.get(&key.table).map(|t| format!("{} of {}", t.direction, t.policies.join(",")));
            vec![
                json!(key.table),
                json!(table),
                json!(key.class),
                port_set(value.ports),
                rule_name(value.rule, catalog),
            ]
        })
        .collect();
    Shown { name: "RULES", columns: &["TABLE", "WHAT", "CLASS", "PORTS", "RULE"], wide: 0, rows }
}

fn ports(snapshot: &Snapshot, catalog: &Catalog) -> Shown {
    let rows = snapshot
        .found
        .tables
        .ports
        .iter()
        .map(|((key, length), value)| {
            let (first, last) = range(key, *length);
            let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
            vec![
                json!(u32::from_be(key.ports_be)),
                json!(protocol_name(key.protocol)),
                json!(ports),
                rule_name(value.rule, catalog),
            ]
        })
        .collect();
    Shown { name: "PORTS", columns: &["SET", "PROTOCOL", "PORTS", "RULE"], wide: 0, rows }
}

fn services(snapshot: &Snapshot) -> Shown {
    let epoch = snapshot.config.epoch;
    let row = |(key, value): (&ServiceKey, &Versioned)| -> Vec<Value> {
        let ServiceKey { address, port, protocol, family } = *key;
        let any = address == Address::ZERO;
        let shown = if any { format!("any IPv{family}:{port}") } else { end(family, &address, port) };
        let row = snapshot.found.tables.backends.get(&value.at(epoch)).filter(|_| value.at(epoch) >= BACKENDS_FIRST);
        let backends = row.map(|row| {
            let ends = row.addresses.iter().zip(row.ports).take(row.count as usize);
            ends.map(|(address, port)| end(family, address, port)).collect::<Vec<_>>()
        });
        vec![json!(protocol_name(protocol)), json!(shown), json!(backends)]
    };
    let rows = snapshot.found.tables.services.iter().map(row).collect();
    Shown { name: "SERVICES", columns: &["PROTOCOL", "DESTINATION", "STANDING FOR IT ON THE NODE"], wide: 0, rows }
}

fn flows(snapshot: &Snapshot) -> Shown {
    let row = |(key, value): (&FlowKey, &FlowValue)| -> Vec<Value> {
        let low = end(key.family, &key.low, key.low_port);
        let high = end(key.family, &key.high, key.high_port);
        let from_low = value.flags & flow_flag::OPENED != 0;
        let (from, to, opener) = if from_low { (low, high, 0) } else { (high, low, 1) };
        let judged = |role: usize| {
            let judged = value.judged[opener][role];
            (judged.generation != 0).then(|| format!("generation {} at epoch {}", judged.generation, judged.epoch))
        };
        vec![
            json!(protocol_name(key.protocol)),
            json!(from),
            json!(to),
            json!(judged(0)),
            json!(judged(1)),
            json!(flow_flags(value.flags)),
        ]
    };
    let rows = snapshot.flows.iter().map(row).collect();
    Shown {
        name: "FLOWS",
        columns: &["PROTOCOL", "FROM", "TO", "EGRESS JUDGED", "INGRESS JUDGED", "FLAGS"],
        wide: 0,
        rows,
    }
}

fn end(family: u8, address: &Address, port: u16) -> String {
    let address = address_text(family, address);
    if family == V6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn flow_flags(flags: u32) -> Vec<&'static str> {
    [
        (flow_flag::OPENED * 3, flow_flag::OPENED * 3, "opened-by-both"),
        (flow_flag::NODE, flow_flag::NODE, "node"),
        (flow_flag::FIN_ACKED * 3, flow_flag::FIN_ACKED * 3, "closed"),
        (flow_flag::RESET, flow_flag::RESET, "reset"),
        (flow_flag::RESET_SEEN, flow_flag::RESET_SEEN, "reset-seen"),
        (flow_flag::UNCONFIRMED, flow_flag::UNCONFIRMED, "unconfirmed"),
        (flow_flag::DEFERRED, flow_flag::DEFERRED, "to-service"),
        (flow_flag::DEFERRED << 1, flow_flag::DEFERRED << 1, "to-service"),
        (flow_flag::LEAVING, flow_flag::LEAVING, "leaving"),
    ]
    .into_iter()
    .filter(|(mask, value, _)| flags & mask == *value)
    .map(|(_, _, name)| name)
    .collect()
}

fn counters(snapshot: &Snapshot) -> Shown {
    let rows = snapshot
        .counters
        .iter()
        .filter(|(_, packets)| *packets != 0)
        .map(|(reason, packets)| {
            let verdict = if reason.passes() { "passed" } else { "refused" };
            vec![json!(reason.name()), json!(verdict), json!(packets), json!(reason.text())]
        })
        .collect();
    Shown { name: "COUNTERS", columns: &["REASON", "VERDICT", "PACKETS", "MEANING"], wide: 0, rows }
}
