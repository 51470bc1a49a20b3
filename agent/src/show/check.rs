//! `palisade check`: manifests, and where it is asked for the running agent's objects, into `check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use palisade_common::layout::{FlowKey, FlowValue, flow_flag};
use serde::Serialize;

use super::diff::ingredients;
use super::endpoints::tell_faults;
use super::page::{Page, show};
use super::style;
use super::table::Columns;
use crate::check::compare::{Change as Otherwise, Comparison, compare};
use crate::check::expect::{self, Expectation, unmet};
use crate::check::manifests::Objects;
use crate::check::peers::Who;
use crate::check::world::World;
use crate::compile::FaultEntry;
use crate::config::CheckFlags;
use crate::exit::Exit;
use crate::explain::port::port_text;
use crate::explain::way::{Flow, Seat, is_allowed, way};
use crate::facts::{Change, Update};
use crate::kernel::Maps;
use crate::observe::events::address_text;

/// How many pods of those that are alike are named.
const NAMED: usize = 3;

/// Field names are part of the output of `-o json`.
#[derive(Debug, Serialize)]
struct Checked {
    /// Every expectation is met, and nothing is newly refused if that was asked for.
    passed: bool,
    refused: Vec<Row>,
    allowed: Vec<Row>,
    /// Flows that this node's kernel remembers and that would be refused; none, unless compared with what is live.
    flows: Vec<SeenFlow>,
    /// None: there was no table of expectations.
    expectations: Option<usize>,
    unmet: Vec<Line>,
    faults: Vec<FaultEntry>,
}

#[derive(Debug, Serialize)]
struct Row {
    from: Vec<String>,
    to: Vec<String>,
    families: &'static str,
    ports: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SeenFlow {
    from: String,
    to: String,
    port: String,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Line {
    line: usize,
    text: String,
    found: String,
}

/// # Errors
///
/// When a file cannot be read, or what is in it cannot be enforced as written.
pub fn check(flags: &CheckFlags) -> anyhow::Result<Exit> {
    let expectations = flags.expect.as_deref().map(|file| expectations(file, &flags.namespace)).transpose()?;
    let mut objects = Objects::default();
    for file in &flags.files {
        read(&mut objects, file)?;
    }
    let (base, live) = match flags.against.as_deref() {
        None => (Vec::new(), false),
        Some("live") => (ingredients(&flags.show.pin_dir)?.objects.into_updates(), true),
        Some(folder) => (folder_objects(Path::new(folder), &mut objects)?, false),
    };
    let known = base.iter().filter_map(|update| match &update.change {
        Change::Namespace(name, Some(_)) => Some(name.clone()),
        _ => None,
    });
    objects.imply_namespaces(&known.collect());
    let is_policy = |update: &&Update| matches!(update.change, Change::Policy(..));
    let others = objects.updates.iter().filter(|update| !is_policy(update));
    let before = World::new(base.iter().chain(others).cloned());
    let after = World::new(base.iter().chain(&objects.updates).cloned());
    let compared = compare(&before, &after);
    let flows = if live { cut_flows(&flags.show.pin_dir, [&before, &after])? } else { Vec::new() };
    let not_met = expectations.as_ref().map(|expected| unmet(&after, expected)).unwrap_or_default();
    let mut faults: Vec<FaultEntry> = objects.faults.iter().chain(&after.faults).map(FaultEntry::from).collect();
    faults.dedup();
    let strict = flags.strict && !(compared.refused.is_empty() && flows.is_empty());
    let checked = Checked {
        passed: not_met.is_empty() && !strict && faults.is_empty(),
        refused: rows(&compared.refused, &objects),
        allowed: rows(&compared.allowed, &objects),
        flows,
        expectations: expectations.map(|all| all.len()),
        unmet: not_met
            .into_iter()
            .map(|unmet| Line { line: unmet.line, text: unmet.text, found: unmet.found })
            .collect(),
        faults,
    };
    show(flags.show.output, &checked, |page| tell(page, &checked, &compared))?;
    Ok(match (checked.faults.is_empty(), checked.passed) {
        (false, _) => Exit::Failed,
        (true, true) => Exit::Done,
        (true, false) => Exit::No,
    })
}

fn expectations(file: &Path, namespace: &str) -> anyhow::Result<Vec<Expectation>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    expect::read(&text, namespace).map_err(|errors| anyhow::anyhow!("{}: {}", file.display(), errors.join("; ")))
}

/// A file, every manifest below a folder, or standard input (`-`).
fn read(objects: &mut Objects, path: &Path) -> anyhow::Result<()> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        objects.read("standard input", &text);
        return Ok(());
    }
    let context = || format!("reading {}", path.display());
    if fs::metadata(path).with_context(context)?.is_dir() {
        let entries: Result<Vec<_>, _> = fs::read_dir(path).with_context(context)?.collect();
        let mut paths: Vec<_> = entries.with_context(context)?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let extension = path.extension().and_then(|extension| extension.to_str());
            let manifest = matches!(extension, Some("yaml" | "yml" | "json"));
            if !hidden && (path.is_dir() || manifest) {
                read(objects, &path)?;
            }
        }
        return Ok(());
    }
    let text = fs::read_to_string(path).with_context(context)?;
    objects.read(&path.to_string_lossy(), &text);
    Ok(())
}

/// The folder's objects; pods that would be made are named by what makes them.
fn folder_objects(folder: &Path, named: &mut Objects) -> anyhow::Result<Vec<Update>> {
    ensure!(folder.is_dir(), "--against {} is no folder, and not `live`", folder.display());
    let mut objects = Objects::default();
    read(&mut objects, folder)?;
    objects.imply_namespaces(&BTreeSet::new());
    named.made_by.append(&mut objects.made_by);
    for fault in &objects.faults {
        eprintln!("palisade: in {}: {} {}: {}", folder.display(), fault.kind.name(), fault.object, fault.message);
    }
    Ok(objects.updates)
}

/// Flows that this node's kernel remembers, which the one world allows and the other does not.
fn cut_flows(pin_dir: &Path, worlds: [&World; 2]) -> anyhow::Result<Vec<SeenFlow>> {
    let snapshot = Maps::open_pinned(pin_dir)?.snapshot(true)?;
    let mut counts: BTreeMap<(IpAddr, IpAddr, u8, u16), u64> = BTreeMap::new();
    for (key, value) in &snapshot.flows {
        if let Some(flow) = opened(key, value) {
            *counts.entry(flow).or_default() += 1;
        }
    }
    let mut cut: BTreeMap<_, u64> = BTreeMap::new();
    for ((source, destination, protocol, port), count) in counts {
        let allowed = worlds.map(|world| {
            let (from, to) = (world.seat(source), world.seat(destination));
            let reached = (destination, port);
            let flow = Flow { from, source, addressed: reached, to, reached, protocol };
            is_allowed(&way(&world.sim, &flow))
        });
        if allowed == [true, false] {
            let name = |address: IpAddr| match worlds[1].seat(address) {
                Seat::Pod(ifindex) => worlds[1].entry(ifindex).and_then(crate::pause::name_of),
                Seat::Node | Seat::Elsewhere => None,
            };
            let name = |address: IpAddr| name(address).unwrap_or_else(|| address.to_string());
            // A pod's flows of both families are told together.
            *cut.entry((name(source), name(destination), port_text(protocol, port))).or_default() += count;
        }
    }
    Ok(cut.into_iter().map(|((from, to, port), count)| SeenFlow { from, to, port, count }).collect())
}

/// By whom, to whom, protocol and port; `None`: opened by the node itself, or addressed to a Service, of which there is another entry.
fn opened(key: &FlowKey, value: &FlowValue) -> Option<(IpAddr, IpAddr, u8, u16)> {
    let opener = [0, 1].into_iter().find(|opener| value.flags & (flow_flag::OPENED << opener) != 0)?;
    if value.flags & (flow_flag::NODE | flow_flag::DEFERRED << opener) != 0 {
        return None;
    }
    let address = |address| address_text(key.family, address).parse().ok();
    let (source, destination, port) =
        if opener == 0 { (&key.low, &key.high, key.high_port) } else { (&key.high, &key.low, key.low_port) };
    Some((address(source)?, address(destination)?, key.protocol, port))
}

fn rows(changes: &[Otherwise], objects: &Objects) -> Vec<Row> {
    let who = |who: &Who| match who {
        Who::Pods(pods) => {
            let name = |pod: &crate::facts::ObjectName| {
                let name = pod.to_string();
                objects.made_by.get(&name).cloned().unwrap_or(name)
            };
            BTreeSet::from_iter(pods.iter().map(name)).into_iter().collect()
        }
        Who::Outside(net) => vec![net.to_string()],
        Who::Elsewhere { v4: true } => vec!["anywhere else (IPv4)".to_owned()],
        Who::Elsewhere { v4: false } => vec!["anywhere else (IPv6)".to_owned()],
    };
    let row = |change: &Otherwise| Row {
        from: who(&change.from),
        to: who(&change.to),
        families: change.families,
        ports: change.ports.clone(),
    };
    changes.iter().map(row).collect()
}

fn tell(page: &mut Page, checked: &Checked, compared: &Comparison) {
    let wide = page.is_wide();
    let names = |names: &[String]| match names.len().saturating_sub(NAMED) {
        more if more > 0 && !wide => format!("{} and {more} more", names[..NAMED].join(", ")),
        _ => names.join(", "),
    };
    for (title, rows) in [("NEWLY REFUSED", &checked.refused), ("NEWLY ALLOWED", &checked.allowed)] {
        let shade = if title.ends_with("REFUSED") { style::BAD } else { style::WARN };
        if rows.is_empty() {
            page.line(format_args!("{title}: nothing"));
            continue;
        }
        page.line(format_args!("{shade}{title}{shade:#}:"));
        let mut columns = Columns::new(&["  FROM", "TO", "FAMILIES", "PORTS"]);
        for Row { from, to, families, ports } in rows {
            columns.row([format!("  {}", names(from)), names(to), (*families).to_owned(), ports.join(", ")]);
        }
        page.columns(&columns);
    }
    if !checked.flows.is_empty() {
        page.line(format_args!("{}FLOWS SEEN NOW THAT WOULD BE REFUSED{:#}:", style::BAD, style::BAD));
        let mut columns = Columns::new(&["  FROM", "TO", "PORT", "FLOWS"]);
        for SeenFlow { from, to, port, count } in &checked.flows {
            columns.row([format!("  {from}"), to.clone(), port.clone(), count.to_string()]);
        }
        page.columns(&columns);
    }
    if let Some(all) = checked.expectations {
        page.line(format_args!("EXPECTATIONS: {} of {all} met", all - checked.unmet.len()));
        for Line { line, text, found } in &checked.unmet {
            page.line(format_args!("  {}line {line}{:#}: {text}: {found}", style::BAD, style::BAD));
        }
    }
    debug_assert_eq!(compared.is_empty(), checked.refused.is_empty() && checked.allowed.is_empty());
    tell_faults(page, &checked.faults);
}
