//! Whether the stamps in packets' marks arrive: others on the node may erase them, or use the same bits.

use palisade_common::layout::FlowStats;

/// What was counted of stamps so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Flows to Services that were answered: somebody has received them.
    answered: u64,
    /// Flows judged where they ended up.
    judged: u64,
    /// The node's own packets with bits of the stamp's.
    foreign: u64,
}

#[derive(Debug, Default)]
pub(super) struct Marks {
    last: Option<Counts>,
    /// How many more flows were answered than judged, since that was last not so.
    deficit: u64,
    /// Looks since then at which it grew, beyond what chance may do.
    short: u32,
    erased: bool,
    foreign: u64,
}

/// So many looks in a row make a gap a lasting one.
const LASTING: u32 = 3;
/// So many flows may be answered before a look and judged after it, as far as one can tell.
const SLACK: u64 = 8;

impl Counts {
    pub(super) fn new(stats: &FlowStats, hairpins: u64) -> Self {
        let FlowStats { service_answered, service_judged, foreign_marks, .. } = *stats;
        Self { answered: service_answered, judged: service_judged + hairpins, foreign: foreign_marks }
    }
}

impl Marks {
    pub(super) fn look(&mut self, now: Counts) {
        let Some(last) = self.last.replace(now) else { return };
        let answered = now.answered.saturating_sub(last.answered);
        let judged = now.judged.saturating_sub(last.judged);
        if answered > judged {
            self.deficit += answered - judged;
            self.short += u32::from(self.deficit > SLACK);
        } else if answered != 0 {
            (self.deficit, self.short) = (0, 0);
        }
        self.erased = self.short >= LASTING;
        self.foreign = now.foreign.saturating_sub(last.foreign);
    }

    /// `rules`: routing rules that use bits of the stamp's.
    pub(super) fn faults(&self, rules: &[String]) -> Vec<String> {
        let mut faults = Vec::new();
        if self.erased {
            faults.push(
                "somebody erases the marks of packets: flows to Services are answered that were judged nowhere, so that egress policies do \
                 not hold for Services"
                    .to_owned(),
            );
        }
        if self.foreign != 0 {
            faults.push(
                "packets of the node's own bear marks with bits of --stamp-mask: choose another mask, or another for them".to_owned(),
            );
        }
        faults.extend(
            rules.iter().map(|rule| format!("the routing rule {rule} uses bits of --stamp-mask: choose another")),
        );
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(answered: u64, judged: u64, foreign: u64) -> Counts {
        let stats = FlowStats {
            service_answered: answered,
            service_judged: judged,
            foreign_marks: foreign,
            ..FlowStats::default()
        };
        Counts::new(&stats, 0)
    }

    #[test]
    fn a_gap_that_lasts_is_told_of() {
        let mut marks = Marks::default();
        let mut told = Vec::new();
        for (answered, judged) in [
            (900, 0),
            (1000, 90),
            (1100, 190),
            (1200, 290),
            (1300, 290),
            (1400, 300),
            (1400, 300),
            (1500, 310),
            (1510, 410),
        ] {
            marks.look(counts(answered, judged, 0));
            told.push(!marks.faults(&[]).is_empty());
        }
        // Others' traffic from before is no gap; a quiet while ends none.
        assert_eq!(told, [false, false, false, false, false, false, false, true, false]);
    }

    #[test]
    fn a_few_flows_at_a_time_are_a_gap_as_well() {
        let mut marks = Marks::default();
        let told = |marks: &mut Marks, answered, judged| {
            marks.look(counts(answered, judged, 0));
            !marks.faults(&[]).is_empty()
        };
        let lost: Vec<bool> = (0..7).map(|look| told(&mut marks, look * 3, 0)).collect();
        assert_eq!(lost, [false, false, false, false, false, true, true]);
        // One is judged before a look and answered after it, by turns.
        let turns: Vec<bool> = (7..30).map(|look| told(&mut marks, look * 3 + look % 2, 100 + look * 3)).collect();
        assert!(!turns[0] && !turns.contains(&true), "{turns:?}");
    }

    #[test]
    fn who_uses_the_same_bits_is_told_of() {
        let mut marks = Marks::default();
        let rule = ["fwmark 0x1000000/0xff000000".to_owned()];
        for (foreign, told) in [(5, 0), (6, 1), (6, 0)] {
            marks.look(counts(0, 0, foreign));
            assert_eq!(marks.faults(&[]).len(), told, "{foreign}");
            assert_eq!(marks.faults(&rule).len(), told + 1, "{foreign}");
        }
    }
}
