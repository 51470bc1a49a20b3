//! Who reaches whom, as a table: a line for who asks, a column for who is asked.

use std::collections::BTreeMap;
use std::fmt::Write;

use palisade_tests::lab::Outcome;

use crate::scene::Scene;

pub fn reachability(scene: &Scene, outcomes: &[Outcome]) -> String {
    let mut cells: BTreeMap<(String, String), (bool, bool)> = BTreeMap::new();
    for (question, outcome) in scene.questions().into_iter().zip(outcomes) {
        let (v4, v6) = cells.entry((question.from, question.to)).or_default();
        *(if question.probe.to.is_ipv4() { v4 } else { v6 }) = outcome.reached();
    }
    let columns: Vec<(String, u16)> = scene.pods.iter().map(|pod| (pod.full_name(), pod.ports[0].2)).collect();
    let mut text = format!("{:16}", "from \\ to");
    for (name, port) in &columns {
        write!(text, "{:>21}", format!("{name}:{port}")).expect("a String takes everything");
    }
    for (from, _) in scene.askers() {
        write!(text, "\n{from:16}").expect("a String takes everything");
        for (to, _) in &columns {
            let cell = match cells.get(&(from.clone(), to.clone())) {
                None => "",
                Some((true, true)) => "yes",
                Some((true, false)) => "IPv4 only",
                Some((false, true)) => "IPv6 only",
                Some((false, false)) => "-",
            };
            write!(text, "{cell:>21}").expect("a String takes everything");
        }
    }
    text
}
