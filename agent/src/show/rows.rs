//! What rows of RULES and PORTS allow, in words.

use palisade_common::layout::{PORTS_ALL, PORTS_NONE, PortKey, PortValue, RuleValue};

use crate::kernel::Live;
use crate::observe::events::protocol_name;

/// First and last port of a prefix.
pub(super) fn range(key: &PortKey, length: u32) -> (u16, u16) {
    let first = u16::from_be(key.port_be);
    let wild = u16::MAX.checked_shr(length.saturating_sub(48)).unwrap_or(0);
    (first, first | wild)
}

/// Ports of a protocol, and the rule that admits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) protocol: u8,
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) rule: u32,
}

/// What is in a port set: prefixes that go on from each other, by the same rule, are one range.
pub(super) fn ranges<'a>(prefixes: impl IntoIterator<Item = (&'a (PortKey, u32), &'a PortValue)>) -> Vec<Range> {
    let mut prefixes: Vec<Range> = prefixes
        .into_iter()
        .map(|((key, length), value)| {
            let (first, last) = range(key, *length);
            Range { protocol: key.protocol, first, last, rule: value.rule }
        })
        .collect();
    prefixes.sort_by_key(|range| (range.protocol, range.first));
    let mut ranges: Vec<Range> = Vec::new();
    for next in prefixes {
        match ranges.last_mut() {
            Some(before)
                if (before.protocol, before.rule) == (next.protocol, next.rule)
                    && before.last.checked_add(1) == Some(next.first) =>
            {
                before.last = next.last;
            }
            _ => ranges.push(next),
        }
    }
    ranges
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { protocol, first, last, .. } = *self;
        let protocol = protocol_name(protocol);
        match (first, last) {
            (0 | 1, u16::MAX) => write!(f, "{protocol}"),
            (first, last) if first == last => write!(f, "{protocol}/{first}"),
            (first, last) => write!(f, "{protocol}/{first}-{last}"),
        }
    }
}

/// What a row gives, one range after the other.
///
/// # Errors
///
/// When PORTS cannot be read.
pub(super) fn ranges_of(live: &Live<'_>, row: &RuleValue) -> anyhow::Result<Vec<Range>> {
    Ok(match row.ports {
        PORTS_NONE | PORTS_ALL => Vec::new(),
        _ if row.rule != 0 => {
            vec![Range { protocol: row.protocol, first: row.first, last: row.last, rule: row.rule }]
        }
        set => ranges(&live.ports_of(set)?),
    })
}

/// `everything`, `nothing`, or the ports.
///
/// # Errors
///
/// When PORTS cannot be read.
pub(super) fn row_text(live: &Live<'_>, row: &RuleValue) -> anyhow::Result<String> {
    Ok(match row.ports {
        PORTS_NONE => "nothing".to_owned(),
        PORTS_ALL => "everything".to_owned(),
        _ => {
            let ranges = ranges_of(live, row)?;
            let shown: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn prefixes_that_go_on_from_each_other_are_one_range() {
        let prefix = |protocol, port: u16, length, rule| {
            let key = PortKey { ports_be: 2_u32.to_be(), protocol, pad: 0, port_be: port.to_be() };
            ((key, length), PortValue { rule })
        };
        let set: BTreeMap<_, _> = [
            prefix(6, 1000, 61, 1),
            prefix(6, 1008, 62, 1),
            prefix(6, 1012, 64, 2),
            prefix(17, 53, 64, 1),
            prefix(132, 0, 48, 3),
        ]
        .into();
        let shown: Vec<String> = ranges(&set).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["tcp/1000-1011", "tcp/1012", "udp/53", "sctp"]);
    }
}
