//! Flows of another version's table, taken into ours.

use std::collections::HashMap;

use palisade_common::flow::is_over;
use palisade_common::layout::{FlowKey, FlowValue, flow_flag};

use super::conversion::Conversion;
use super::map::Described;
use crate::kernel::maps::{Maps, Plain};

/// As many are put at once.
const AT_ONCE: usize = 4096;

/// Bits of a TCP connection's end.
const ENDED: u32 = ((flow_flag::FIN | flow_flag::FIN_ACKED) * 3) | flow_flag::RESET | flow_flag::RESET_SEEN;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Flows that the other table has.
    pub found: u64,
    /// Those of which ours knew nothing, or less.
    pub taken: u64,
}

/// Copies what our table does not have, or has from longer ago. `now`: nanoseconds, CLOCK_MONOTONIC.
///
/// Programs of both versions may run meanwhile. What ours put in between stays: of a flow that both know, the one that was seen last counts.
/// While ours is empty, none of them has any flow yet, and all is put without asking.
pub(super) fn copy(theirs: &Described, how: &[Conversion; 2], ours: &mut Maps, now: u64) -> anyhow::Result<Copied> {
    let mut known = HashMap::new();
    ours.each_flow(|key, value| _ = known.insert(*key, (value.seen, value.flags)))?;
    let (mut copied, mut result) = (Copied::default(), Ok(()));
    let mut batch = Batch::default();
    theirs.for_each(how, |Plain(key): Plain<FlowKey>, Plain(value): Plain<FlowValue>| {
        if result.is_err() || is_over(&key, &value, now) {
            return;
        }
        copied.found += 1;
        let put = match known.get(&key) {
            None if known.is_empty() => batch.put(ours, key, value),
            Some(entry) if !knows_less(*entry, &value) => Ok(0),
            entry => ours.put_flow(&key, &value, entry.is_some()).map(u64::from),
        };
        result = put.map(|put| copied.taken += put);
    })?;
    result?;
    copied.taken += batch.write(ours)?;
    Ok(copied)
}

/// Flows to be put at once.
#[derive(Default)]
struct Batch {
    keys: Vec<Plain<FlowKey>>,
    values: Vec<Plain<FlowValue>>,
}

impl Batch {
    /// Returns how many were written.
    fn put(&mut self, to: &Maps, key: FlowKey, value: FlowValue) -> anyhow::Result<u64> {
        self.keys.push(Plain(key));
        self.values.push(Plain(value));
        if self.keys.len() < AT_ONCE { Ok(0) } else { self.write(to) }
    }

    fn write(&mut self, to: &Maps) -> anyhow::Result<u64> {
        to.put_flows(&self.keys, &self.values)?;
        let count = self.keys.len() as u64;
        self.keys.clear();
        self.values.clear();
        Ok(count)
    }
}

/// Of two entries of one flow, ours (when it was seen, and its flags) has missed something. The time is not written for every packet, but
/// the end of a connection is.
fn knows_less((seen, flags): (u64, u32), theirs: &FlowValue) -> bool {
    theirs.seen > seen || (theirs.seen == seen && theirs.flags & !flags & ENDED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_that_has_seen_more_counts() {
        let theirs = |seen, flags| FlowValue { seen, flags, ..FlowValue::default() };
        let (opened, fin) = (flow_flag::OPENED, flow_flag::FIN << 1);
        for (ours, theirs, less) in [
            ((5, opened), theirs(6, opened), true),
            ((5, opened), theirs(5, opened), false),
            ((5, opened), theirs(5, opened | fin), true),
            ((5, opened | fin), theirs(5, opened), false),
            ((6, opened), theirs(5, opened | fin), false),
            ((5, opened), theirs(5, opened | flow_flag::ANSWERED), false),
        ] {
            assert_eq!(knows_less(ours, &theirs), less, "{ours:?}, {theirs:?}");
        }
    }
}
