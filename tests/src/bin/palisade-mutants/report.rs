//! What a run found: kept for the next one, and told with the reasons of those that live.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::schemata::Mutant;
use super::suite::Fate;
use super::tree::{folder, module, workspace};

/// Of a hundred viable mutants.
const KILLED_MIN: f64 = 95.0;

/// The fates of the last runs, by the mutants' names.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    fates: BTreeMap<String, Fate>,
}

/// Why a mutant may live: tests/mutants.yaml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    reason: String,
    mutants: Vec<String>,
}

impl Outcome {
    pub fn read() -> Result<Self> {
        match fs::read(folder().join("outcome.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).context("outcome.json"),
            Err(_) => Ok(Self::default()),
        }
    }

    /// Kept at once: a run may be cut short.
    pub fn note(&mut self, mutant: &Mutant, fate: Fate) -> Result<()> {
        self.fates.insert(mutant.name(), fate);
        let part = folder().join("outcome.json.part");
        fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(part, folder().join("outcome.json"))?)
    }

    pub fn is_dead(&self, mutant: &Mutant) -> bool {
        self.fates.get(&mutant.name()).is_some_and(Fate::is_death)
    }

    pub fn is_unviable(&self, mutant: &Mutant) -> bool {
        self.fates.get(&mutant.name()) == Some(&Fate::Unviable)
    }
}

#[derive(Debug, Default)]
struct Count {
    viable: usize,
    killed: usize,
    stuck: usize,
    explained: usize,
    unviable: usize,
    /// Not run so far.
    skipped: usize,
}

/// Prints the table and the survivors among the mutants of the files with `file` in their path.
pub fn tell(file: &str, mutants: &[Mutant], chosen: &[usize], outcome: &Outcome) -> Result<bool> {
    let text = fs::read_to_string(workspace().join("tests/mutants.yaml")).context("tests/mutants.yaml")?;
    let reasons: Vec<Reason> = serde_norway::from_str(&text).context("tests/mutants.yaml")?;
    let reasons: BTreeMap<&str, &str> =
        reasons.iter().flat_map(|entry| entry.mutants.iter().map(|name| (&**name, &*entry.reason))).collect();
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    let mut unexplained = Vec::new();
    for &number in chosen {
        let mutant = &mutants[number];
        let count = counts.entry(module(&mutant.file).unwrap_or_default()).or_default();
        let name = mutant.name();
        if !outcome.fates.contains_key(&name) {
            count.skipped += 1;
            continue;
        }
        count.viable += 1;
        if outcome.is_dead(mutant) {
            count.killed += 1;
            count.stuck += usize::from(matches!(outcome.fates[&name], Fate::Stuck(_)));
        } else if reasons.contains_key(&*name) {
            count.explained += 1;
        } else {
            unexplained.push(format!("{name} (line {})", mutant.change.line));
        }
    }
    for mutant in mutants.iter().filter(|mutant| mutant.unviable) {
        if let Some(count) = counts.get_mut(module(&mutant.file).unwrap_or_default()) {
            count.unviable += 1;
        }
    }
    println!(
        "\n| module | viable | killed | of these, by time or memory | live, with a reason | live | killed of viable |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut enough = true;
    for (module, count) in &counts {
        let Count { viable, killed, stuck, explained, .. } = count;
        let rate = 100.0 * *killed as f64 / *viable as f64;
        enough &= rate >= KILLED_MIN;
        let others = viable - killed - explained;
        println!("| {module} | {viable} | {killed} | {stuck} | {explained} | {others} | {rate:.1} % |");
    }
    let unviable: usize = counts.values().map(|count| count.unviable).sum();
    let skipped: usize = counts.values().map(|count| count.skipped).sum();
    println!(
        "\n{unviable} more in these modules do not type-check; {skipped} have not been run to the end, and are not counted."
    );
    unexplained.iter().for_each(|name| println!("lives without a reason: {name}"));
    let stale = |name: &&&str| name.contains(file) && mutants.iter().all(|mutant| mutant.name() != **name);
    reasons.keys().filter(stale).for_each(|name| println!("has a reason to live, and is not there: {name}"));
    Ok(enough && unexplained.is_empty() && skipped == 0)
}
