//! The table: rows of policies, and who answers then. First without an agent, where everything must be reached: a row that
//! is refused for another reason than its policy shows there. Then with agents, then with agents that know no Services.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use palisade_tests::lab::{Agent, Mode};
use serde::Deserialize;
use serde_json::Value;

use crate::question::{self, Question};
use crate::world::World;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    /// `namespace/name` → spec.
    #[serde(default)]
    policies: BTreeMap<String, Value>,
    expect: Vec<String>,
    /// What answers where the agents know no Services. Lines that are not repeated here may be silent, but not say more.
    #[serde(default)]
    withheld: Vec<String>,
}

/// For kube-proxy to take in the last objects, and for a policy that was taken in to be in force.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn play(mode: Mode) {
    let rows: Vec<Row> = serde_norway::from_str(include_str!("rows.yaml")).expect("the table is YAML");
    assert!(rows.len() >= 35, "{} rows", rows.len());
    let world = World::new(mode);
    let mut failures = Vec::from_iter(control(&world, &rows));
    for knowing_services in [true, false] {
        let agents = world.start_agents(knowing_services);
        let mut there = Vec::new();
        for row in &rows {
            there = world.make(row, &agents, &there);
            let questions = if knowing_services { row.known(&world) } else { row.withheld(&world) };
            let when = if knowing_services { "" } else { " (Services withheld)" };
            failures.extend(check(&world, questions).map(|wrong| format!("{}{when}:\n    {wrong}", row.name)));
        }
        world.change_policies(&agents, &there, &[]);
    }
    assert!(failures.is_empty(), "{mode:?}: {} rows fail\n{}", failures.len(), failures.join("\n"));
}

/// Every line of every row, as if nothing were forbidden.
fn control(world: &World, rows: &[Row]) -> Option<String> {
    let mut questions = BTreeMap::new();
    for row in rows {
        for mut question in row.known(world).into_iter().chain(row.withheld(world)) {
            question.expect_all();
            questions.insert(question.text.clone(), question);
        }
    }
    check(world, questions.into_values().collect()).map(|wrong| format!("no agent:\n    {wrong}"))
}

/// What is wrong, after it had time to become right.
pub fn check(world: &World, mut left: Vec<Question>) -> Option<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let outcomes = question::ask(world, &left);
        let judged = left.iter().zip(&outcomes).map(|(question, outcomes)| question.wrong(outcomes));
        let wrong: Vec<Option<String>> = judged.collect();
        let mut keep = wrong.iter();
        left.retain(|_| keep.next().is_some_and(Option::is_some));
        if left.is_empty() {
            return None;
        }
        if Instant::now() > end {
            return Some(wrong.into_iter().flatten().collect::<Vec<_>>().join("\n    "));
        }
        // Nobody tells when it has become right, and asking without pause keeps those busy who are to make it so.
        std::thread::sleep(Duration::from_millis(50));
    }
}

// === impl Row ===

impl Row {
    fn known(&self, world: &World) -> Vec<Question> {
        self.expect.iter().flat_map(|line| question::parse(world, line)).collect()
    }

    fn withheld(&self, world: &World) -> Vec<Question> {
        let mut questions: Vec<Question> = self.withheld.iter().flat_map(|line| question::parse(world, line)).collect();
        let repeated: BTreeSet<String> = questions.iter().map(|question| question.text.clone()).collect();
        let others = self.known(world).into_iter().filter(|question| !repeated.contains(&question.text));
        questions.extend(others.map(Question::not_more));
        questions
    }
}

// === impl World ===

impl World {
    /// The policies of the row, in the place of those that are there.
    fn make(&self, row: &Row, agents: &[Agent], there: &[Value]) -> Vec<Value> {
        let policies: Vec<Value> =
            row.policies.iter().map(|(name, spec)| self.policy(name, &spec.to_string())).collect();
        self.change_policies(agents, there, &policies);
        policies
    }
}
