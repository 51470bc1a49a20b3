//! How long the agent's tasks hold its one thread: nothing else is done meanwhile, no new interface closed and no change written.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Seconds.
const BUCKETS: [f64; 10] = [0.000_1, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 4.0];

type Task = [(&'static str, &'static str); 1];

/// Turns of tasks by their names. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Turns {
    seconds: Family<Task, Histogram, fn() -> Histogram>,
    longest: Family<Task, Gauge<f64, AtomicU64>>,
}

// === impl Turns ===

impl Default for Turns {
    fn default() -> Self {
        Self { seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)), longest: Family::default() }
    }
}

impl Turns {
    /// The future, with each of its turns measured from its being woken to its waiting again.
    pub async fn measure<F: Future>(self, task: &'static str, future: F) -> F::Output {
        let label: Task = [("task", task)];
        let seconds = self.seconds.get_or_create_owned(&label);
        let longest = self.longest.get_or_create_owned(&label);
        let mut future = pin!(future);
        poll_fn(|context| {
            let begun = Instant::now();
            let polled = future.as_mut().poll(context);
            let turn = begun.elapsed().as_secs_f64();
            seconds.observe(turn);
            if turn > longest.get() {
                longest.set(turn);
            }
            polled
        })
        .await
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "turn",
            "Time for which a task of the agent held its one thread: loop takes changes in and writes them, objects reads what the API \
             server or folder tells, node what the node tells. Often above 0.1: the node is short of CPU, or the cluster is beyond what \
             docs/scale.md speaks of; new pods and changes wait so long",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register_with_unit(
            "longest_turn",
            "The longest palisade_turn_seconds of each task since the agent's start. Most often that of the first complete list",
            Unit::Seconds,
            self.longest.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_turn_is_what_holds_the_thread() {
        let turns = Turns::default();
        let work = async {
            std::thread::sleep(Duration::from_millis(20));
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::thread::sleep(Duration::from_millis(5));
            7
        };
        assert_eq!(turns.clone().measure("loop", work).await, 7);
        let longest = turns.longest.get_or_create(&[("task", "loop")]).get();
        assert!((0.02..0.2).contains(&longest), "{longest}");
        let mut registry = Registry::with_prefix("palisade");
        turns.register(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("a String takes everything");
        assert!(page.contains("palisade_turn_seconds_count{task=\"loop\"} 2"), "{page}");
        assert!(page.contains("palisade_longest_turn_seconds{task=\"loop\"} 0.0"), "{page}");
    }
}
