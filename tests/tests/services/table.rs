//! The table: rows of policies, and who answers then. First without an agent, where everything must be reached: a row that
//! is refused for another reason than its policy shows there. Then with agents, then with agents that know no Services.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use palisade_tests::lab::{Agent, Mode, Outcome, objects};
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

/// What is right.
#[derive(Clone, Copy)]
enum Judge {
    /// Exactly what is expected.
    Exact,
    /// Nothing that is not.
    NotMore,
}

type Judged = (Question, Judge);

/// For kube-proxy to take in the last objects, and for a policy that was taken in to be in force.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn play(mode: Mode) {
    let rows: Vec<Row> = serde_norway::from_str(include_str!("rows.yaml")).expect("the table is YAML");
    let world = World::new(mode);
    let mut failures = Vec::new();
    control(&world, &rows, &mut failures);
    let agents = world.start_agents(true);
    let mut there = Vec::new();
    for row in &rows {
        let exact = row.expect.iter().flat_map(|line| question::parse(&world, line));
        play_row(
            &world,
            row,
            &agents,
            &mut there,
            exact.map(|question| (question, Judge::Exact)).collect(),
            &mut failures,
        );
    }
    assert!(failures.is_empty(), "{mode:?}:\n{}", failures.join("\n"));
}

/// Every line of every row, as if nothing were forbidden.
fn control(world: &World, rows: &[Row], failures: &mut Vec<String>) {
    let lines = rows.iter().flat_map(|row| row.expect.iter().chain(&row.withheld));
    let mut questions = BTreeMap::new();
    for mut question in lines.flat_map(|line| question::parse(world, line)) {
        question.expect_all();
        questions.insert(question.text.clone(), (question, Judge::Exact));
    }
    failures.extend(check(world, questions.into_values().collect()).map(|wrong| format!("no agent:\n    {wrong}")));
}

fn play_row(
    world: &World,
    row: &Row,
    agents: &[Agent],
    there: &mut Vec<Value>,
    questions: Vec<Judged>,
    failures: &mut Vec<String>,
) {
    let policies: Vec<Value> = row.policies.iter().map(|(name, spec)| world.policy(name, spec)).collect();
    world.change_policies(agents, there, &policies);
    *there = policies;
    failures.extend(check(world, questions).map(|wrong| format!("{}:\n    {wrong}", row.name)));
}

/// What is wrong, after it had time to become right.
fn check(world: &World, mut left: Vec<Judged>) -> Option<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let questions: Vec<&Question> = left.iter().map(|(question, _)| question).collect();
        let outcomes = question::ask(world, &questions);
        let judged = |((question, judge), outcomes): (&Judged, &Vec<Outcome>)| match judge {
            Judge::Exact => question.wrong(outcomes),
            Judge::NotMore => question.too_much(outcomes),
        };
        let wrong: Vec<Option<String>> = left.iter().zip(&outcomes).map(judged).collect();
        let mut keep = wrong.iter();
        left.retain(|_| keep.next().is_some_and(Option::is_some));
        if left.is_empty() {
            return None;
        }
        if Instant::now() > end {
            return Some(wrong.into_iter().flatten().collect::<Vec<_>>().join("\n    "));
        }
    }
}

// === impl World ===

impl World {
    fn policy(&self, name: &str, spec: &Value) -> Value {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        objects::policy(namespace, name, &self.with_addresses(&spec.to_string())).expect("JSON is YAML")
    }

    /// `$b.v4` and so on are addresses of places.
    fn with_addresses(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, place) in &self.places {
            for (family, address) in ["v4", "v6"].iter().zip(place.addresses) {
                text = text.replace(&format!("${name}.{family}"), &address.to_string());
            }
        }
        assert!(!text.contains('$'), "a name is not known: {text}");
        text
    }
}
