//! `palisade drops`: what was refused lately, and what is refused now, as the agent that runs has seen it.

use std::io::Write;

use anyhow::bail;
use serde::Serialize;

use super::filter::End;
use super::live::{Conversation, printing, structured};
use super::page::show;
use super::table::Columns;
use crate::config::{DropsFlags, Output};
use crate::kernel::Maps;
use crate::observe::record::Record;
use crate::observe::socket::{Ask, Said};

/// What `-o json` prints where lines were lost.
#[derive(Debug, Serialize)]
struct Lost {
    lost_lines: u64,
}

/// # Errors
///
/// When no agent runs, or it cannot be asked.
pub fn drops(flags: &DropsFlags) -> anyhow::Result<()> {
    let ask = if flags.watch { Ask::Watch } else { Ask::Recent };
    let Some(conversation) = Conversation::begin(&flags.show.pin_dir, &ask)? else { return no_agent(flags) };
    if flags.watch { printing(|out| watch(out, conversation, flags)) } else { recent(conversation, flags) }
}

/// What is still known: the kernel counts.
fn no_agent(flags: &DropsFlags) -> anyhow::Result<()> {
    let pin_dir = flags.show.pin_dir.display();
    let Ok(maps) = Maps::open_pinned(&flags.show.pin_dir) else {
        bail!(
            "no agent runs with --pin-dir {pin_dir}, and none has left any tables: nothing is enforced, so nothing is refused"
        );
    };
    let counted = maps.counters()?.into_iter().filter(|(reason, packets)| !reason.passes() && *packets != 0);
    let counted: Vec<String> = counted.map(|(reason, packets)| format!("{} {packets}", reason.name())).collect();
    let counted = if counted.is_empty() { "none".to_owned() } else { counted.join(", ") };
    bail!(
        "no agent runs with --pin-dir {pin_dir}: what is in the tables stays enforced, but only an agent keeps what was refused. Packets that \
         the kernel has counted, by reason: {counted}. `palisade flows` works without an agent, `palisade endpoints` has counts by pod"
    )
}

fn is_wanted(record: &Record, flags: &DropsFlags) -> bool {
    let ends = [
        End { name: Some(&record.pod), address: None },
        End { name: record.peer.as_deref(), address: record.peer_address },
    ];
    let verdict = if flags.admitted { "admitted" } else { "refused" };
    record.verdict == verdict
        && flags.reason.as_ref().is_none_or(|reason| *reason == record.reason)
        && flags.filter.admits(ends, record.protocol.as_deref(), record.port)
}

fn recent(mut conversation: Conversation, flags: &DropsFlags) -> anyhow::Result<()> {
    let mut records = Vec::new();
    while let Some(said) = conversation.next()? {
        if let Said::Record(record) = said
            && is_wanted(&record, flags)
        {
            records.push(*record);
        }
    }
    if let Some(most) = flags.top {
        records.sort_by_key(|record| std::cmp::Reverse(record.packets));
        records.truncate(most as usize);
    }
    show(flags.show.output, &records, |page| {
        let mut columns = Columns::with_wide(
            &[
                "LAST",
                "POD",
                "DIRECTION",
                "PEER",
                "PORT",
                "REASON",
                "PACKETS",
                if flags.admitted { "BY" } else { "ISOLATED BY" },
            ],
            &["FIRST", "FROM", "TO", "AT"],
        );
        records.iter().for_each(|record| columns.row(cells(record)));
        page.columns(&columns);
    })
}

fn cells(record: &Record) -> Vec<String> {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        record.time.clone(),
        record.pod.clone(),
        record.direction.clone(),
        peer(record),
        port(record),
        record.reason.clone(),
        record.packets.to_string(),
        record.rule.clone().unwrap_or_else(|| record.policies.join(",")),
        record.first.clone(),
        or_none(&record.source),
        or_none(&record.destination),
        or_none(&record.at),
    ]
}

fn peer(record: &Record) -> String {
    let address = record.peer_address.map(|address| address.to_string());
    record.peer.clone().or(address).unwrap_or_else(|| "-".to_owned())
}

/// `tcp/80`, as policies are written.
fn port(record: &Record) -> String {
    match (&record.protocol, record.port) {
        (Some(protocol), Some(port)) => format!("{protocol}/{port}"),
        (Some(protocol), None) => protocol.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn lost(out: &mut dyn Write, lost_lines: u64, output: Output) -> anyhow::Result<()> {
    if !structured(out, output, &Lost { lost_lines })? {
        writeln!(out, "... {lost_lines} lines were lost: whoever reads this is too slow")?;
    }
    Ok(())
}

fn watch(out: &mut dyn Write, mut conversation: Conversation, flags: &DropsFlags) -> anyhow::Result<()> {
    while let Some(said) = conversation.next()? {
        match said {
            Said::Record(record) if is_wanted(&record, flags) => line(out, &record, flags.show.output)?,
            Said::Lost(lost_lines) => lost(out, lost_lines, flags.show.output)?,
            Said::Watching => eprintln!("palisade: watching; the same is told once in ten seconds, with a count"),
            // Of other questions.
            Said::Record(_)
            | Said::Names(_)
            | Said::Refused(_)
            | Said::Capturing { .. }
            | Said::Packet(_)
            | Said::LostPackets(_)
            | Said::Over => {}
        }
        out.flush()?;
    }
    bail!("the agent has ended; what is in the tables stays enforced")
}

/// Short, and with all that belongs together on one line.
fn line(out: &mut dyn Write, record: &Record, output: Output) -> anyhow::Result<()> {
    if !structured(out, output, record)? {
        writeln!(out, "{}", text(record))?;
    }
    Ok(())
}

fn text(record: &Record) -> String {
    let Record { time, verdict, direction, pod, source, destination, reason, .. } = record;
    let end = |address: &Option<String>| address.clone().unwrap_or_else(|| "?".to_owned());
    let (source, destination) = (end(source), end(destination));
    // Names stand before the addresses of their ends.
    let named = |name: &str, address: String| format!("{name} ({address})");
    let peer = |address: String| match &record.peer {
        Some(peer) => named(peer, address),
        None => address,
    };
    let (from, to) = if direction == "egress" {
        (named(pod, source), peer(destination))
    } else {
        (peer(source), named(pod, destination))
    };
    let protocol = record.protocol.as_deref().unwrap_or("below-IP");
    let mut text = format!("{time} {verdict} {direction} {protocol} {from} > {to} {reason}");
    for (word, said) in [
        (
            "isolated by",
            Some(record.policies.join(",")).filter(|policies| !policies.is_empty() && verdict == "refused"),
        ),
        ("by", record.rule.clone()),
        ("at", record.at.clone()),
    ] {
        text += &said.map_or_else(String::new, |said| format!(" {word} {said}"));
    }
    for (count, what) in [(record.more, "more"), (record.others, "others")] {
        if count != 0 {
            text += &format!(" +{count} {what}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_from_the_sender_to_the_receiver() {
        let mut record = Record {
            time: "2026-01-01T00:00:00.500Z".to_owned(),
            verdict: "refused".to_owned(),
            reason: "no-rule".to_owned(),
            direction: "ingress".to_owned(),
            pod: "shop/db".to_owned(),
            peer: Some("shop/web".to_owned()),
            peer_address: Some("10.0.0.1".parse().expect("an address")),
            protocol: Some("tcp".to_owned()),
            port: Some(5432),
            source: Some("10.0.0.1:40000".to_owned()),
            destination: Some("10.0.0.2:5432".to_owned()),
            policies: vec!["shop/p".to_owned()],
            packets: 3,
            more: 2,
            ..Record::default()
        };
        assert_eq!(
            text(&record),
            "2026-01-01T00:00:00.500Z refused ingress tcp shop/web (10.0.0.1:40000) > shop/db (10.0.0.2:5432) no-rule isolated by shop/p \
             +2 more"
        );
        assert_eq!(cells(&record)[3..8], ["shop/web", "tcp/5432", "no-rule", "3", "shop/p"]);
        (record.direction, record.peer, record.more) = ("egress".to_owned(), None, 0);
        assert!(text(&record).contains("tcp shop/db (10.0.0.1:40000) > 10.0.0.2:5432 no-rule"), "{}", text(&record));
    }

    /// ARP, for one.
    #[test]
    fn what_is_below_ip_has_a_line_too() {
        let pod = "shop/db".to_owned();
        let record = Record { pod, direction: "egress".to_owned(), verdict: "refused".to_owned(), ..Record::default() };
        assert!(text(&record).contains(" refused egress below-IP shop/db (?) > ? "), "{}", text(&record));
        assert_eq!(cells(&record)[3..5], ["-", "-"]);
    }
}
