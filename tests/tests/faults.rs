//! Every single write to the kernel's maps fails once, with every error that a map gives, those that take a failed change back and those
//! that clean up after one included: what is in force is the old state or the new one, never another, and trying again ends well.
#![cfg(feature = "live")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use aya::maps::{Array, HashMap, Map, MapData};
use ipnet::{IpNet, Ipv4Net};
use palisade::compile::Limits;
use palisade::kernel::{AttachMode, Kernel, PinDir, Settings, Sizes, maps_folder};
use palisade::tables::adopted::adopted;
use palisade::tables::plan::Write;
use palisade::tables::{Delta, Tables};
use palisade_common::Verdict;
use palisade_common::layout::{CLASS_NONE, RuleKey, RuleValue, service_port_bit};
use palisade_tests::case::{self, Judge, ObjectChange, PacketStep, Setup, World};
use palisade_tests::judges::{Bpffs, Pipeline, bpffs};
use palisade_tests::random::{self, Dice};
use serde_json::Value;

/// What a map may answer to a write, or memory's allocator for it.
const ERRORS: [i32; 3] = [libc::ENOMEM, libc::E2BIG, libc::ENOENT];

/// Twice so many records, so that one that is lost with each failure is soon missed.
const ENDPOINTS: u32 = 24;

const CASES: u64 = 2;

/// Kernel and maps of one test, and what its failures should have been counted as.
struct Bench {
    kernel: Kernel,
    stamps: Array<MapData, u32>,
    service_ports: Array<MapData, u64>,
    failed: u64,
    root: PathBuf,
    _folder: Bpffs,
}

impl Bench {
    fn new() -> Self {
        Self::of(Sizes::default())
    }

    fn of(sizes: Sizes) -> Self {
        let folder = bpffs("faults").expect("a bpffs can be mounted");
        let root = folder.path().join("maps");
        let pins = PinDir::open(&root).expect("a folder for pins");
        let sizes = Sizes { endpoints: ENDPOINTS, ..sizes };
        let kernel = Kernel::open(pins, sizes, Settings::default(), AttachMode::Auto).expect("the programs are loaded");
        let [stamps, service_ports] = ["STAMPS", "SERVICE_PORTS"].map(|name| pinned(&root, name));
        Self {
            kernel,
            stamps: stamps.try_into().expect("an array"),
            service_ports: service_ports.try_into().expect("an array"),
            failed: 0,
            root,
            _folder: folder,
        }
    }

    /// Applies what leads to `wanted`, while the writes of these numbers fail.
    fn apply(&mut self, wanted: &Tables, failures: &[(usize, i32)]) -> anyhow::Result<usize> {
        let failed = self.kernel.failed_writes();
        self.kernel.fail_writes(failures.iter().copied());
        let delta = self.kernel.tables().delta_to(wanted);
        let applied = self.kernel.apply(&delta);
        self.kernel.fail_writes([]);
        self.failed = self.kernel.failed_writes() - failed;
        Ok(applied?.writes)
    }

    /// That `wanted` is in force. `Leftovers::May`: rows that nothing refers to may be there, and prefixes that say nothing new.
    fn expect(&self, wanted: &Tables, leftovers: Leftovers, when: &str) {
        assert_eq!(self.kernel.tables(), wanted, "{when}: what the agent believes");
        let adopted = adopted(self.kernel.maps().found().expect("the maps can be read"));
        let mut tables = adopted.tables;
        match leftovers {
            Leftovers::None => {
                let settled = |write: &Write| matches!(write, Write::ServicePort(..) | Write::Epoch(_));
                assert!(
                    adopted.writes.iter().all(settled),
                    "{when}: something waits for an epoch: {:?}",
                    adopted.writes
                );
            }
            Leftovers::May => {
                tables.rules.retain(|key, _| wanted.rules.contains_key(key));
                tables.ports.retain(|key, _| wanted.ports.contains_key(key));
                tables.backends.retain(|row, _| wanted.backends.contains_key(row));
                tables.cidr_v4.retain(|net, class| {
                    wanted.cidr_v4.contains_key(net) || *class != class_around(wanted, IpNet::V4(*net))
                });
                tables.cidr_v6.retain(|net, class| {
                    wanted.cidr_v6.contains_key(net) || *class != class_around(wanted, IpNet::V6(*net))
                });
            }
        }
        assert_eq!(&tables, wanted, "{when}: what is in force");
        for (ifindex, record) in wanted.endpoints.iter().filter(|(_, record)| record.stamp != 0) {
            let owner = self.stamps.get(&record.stamp, 0).expect("it is read");
            assert_eq!(owner, *ifindex, "{when}: whose stamp {} is", record.stamp);
        }
        for key in wanted.services.keys() {
            let (word, bit) = service_port_bit(key.port);
            assert!(self.service_ports.get(&word, 0).expect("it is read") & bit != 0, "{when}: port {}", key.port);
        }
    }

    /// From what is in force to `wanted`, with every write failing once, there and back again.
    fn disturb(&mut self, wanted: &Tables, when: &str) -> usize {
        let old = self.kernel.tables().clone();
        let writes = self.apply(wanted, &[]).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        self.expect(wanted, Leftovers::None, when);
        self.back(&old, when);
        let epoch = self.kernel.epoch();
        let mut tried = 0;
        for at in 0..writes {
            let error = ERRORS[at % 3];
            // Alone, and with one of those that take the change back; a number beyond them all fails nothing else.
            for second in undoing(at).chain([usize::MAX]) {
                let when = format!("{when}: write {at} of {writes}, error {error}, and {second}");
                let failures = [(at, error), (second, ERRORS[(at + 1) % 3])];
                self.disturb_once(&old, wanted, &failures, &when);
                tried += 1;
            }
        }
        assert!(self.kernel.epoch() >= epoch, "{when}");
        self.apply(wanted, &[]).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        tried
    }

    fn disturb_once(&mut self, old: &Tables, wanted: &Tables, failures: &[(usize, i32)], when: &str) {
        let epoch = self.kernel.epoch();
        let result = self.apply(wanted, failures);
        assert!((1..=2).contains(&self.failed), "{when}: {} were counted", self.failed);
        if result.is_err() {
            assert_eq!(self.kernel.epoch(), epoch, "{when}");
            let leftovers = if self.failed == 1 { Leftovers::None } else { Leftovers::May };
            self.expect(old, leftovers, when);
            // What could not be taken back is first to be, before the epoch moves for whatever reason.
            if self.failed == 2 && failures[0].0.is_multiple_of(2) {
                self.apply(wanted, &[(0, failures[0].1)]).expect_err(when);
                self.expect(old, leftovers, when);
            } else if self.failed == 2 {
                let missing = self.kernel.maps().config.exits_missing();
                self.kernel.set_exits_missing(!missing).expect(when);
                self.expect(old, Leftovers::None, &format!("{when}, after another raised the epoch"));
            }
        } else {
            self.expect(wanted, Leftovers::May, when);
        }
        // The retry.
        self.apply(wanted, &[]).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        self.expect(wanted, Leftovers::None, &format!("{when}, tried again"));
        self.back(old, when);
    }

    fn back(&mut self, old: &Tables, when: &str) {
        self.apply(old, &[]).unwrap_or_else(|error| panic!("{when}, and back: {error:#}"));
        self.expect(old, Leftovers::None, &format!("{when}, and back"));
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leftovers {
    None,
    May,
}

/// Numbers of writes that take back what came before write `at` failed: the first, one in the middle, the last.
fn undoing(at: usize) -> impl Iterator<Item = usize> {
    let mut some = vec![at + 1, at + 1 + at / 2, at + at];
    some.retain(|number| *number > at);
    some.dedup();
    some.into_iter()
}

/// The class of the longest prefix around this one.
fn class_around(tables: &Tables, net: IpNet) -> u32 {
    let all = tables.cidr_v4.iter().map(|(net, class)| (IpNet::V4(*net), *class));
    let all = all.chain(tables.cidr_v6.iter().map(|(net, class)| (IpNet::V6(*net), *class)));
    let around = all.filter(|(other, _)| *other != net && other.contains(&net));
    around.max_by_key(|(other, _)| other.prefix_len()).map_or(CLASS_NONE, |(_, class)| class)
}

fn pinned(root: &Path, name: &str) -> Map {
    let data = MapData::from_pin(maps_folder(root).join(name)).expect("it is pinned");
    Map::from_map_data(data).expect("it is a map")
}

/// Keeps what each change of a case compiles to.
struct Recorder {
    pipeline: Pipeline,
    changes: Rc<RefCell<Vec<Delta>>>,
}

impl Judge for Recorder {
    fn apply(&mut self, change: &ObjectChange) {
        self.pipeline.apply(change);
    }

    fn settle(&mut self) {
        let delta = self.pipeline.compile();
        self.changes.borrow_mut().push(delta);
    }

    fn packet(&mut self, _: &PacketStep) -> Option<Verdict> {
        None
    }
}

#[test]
fn every_write_may_fail() {
    let mut bench = Bench::new();
    let mut tried = 0;
    for seed in 0..CASES {
        let changes = Rc::new(RefCell::new(Vec::new()));
        let recorder = |setup: &Setup| -> case::Judges {
            vec![("recorder", Box::new(Recorder { pipeline: Pipeline::of(setup), changes: changes.clone() }))]
        };
        case::run(&random::case(seed), &recorder).expect("a random case can be played");
        let mut wanted = Tables::default();
        for (number, delta) in changes.take().into_iter().enumerate() {
            wanted.apply(&delta);
            if &wanted != bench.kernel.tables() {
                tried += bench.disturb(&wanted, &format!("seed {seed}, change {number}"));
            }
        }
        bench.apply(&Tables::default(), &[]).expect("everything goes");
    }
    assert!(tried > 1000, "{tried} failures are few");
}

/// Many entries go to the kernel at once. A full map takes some of them and refuses the rest: they are taken back.
#[test]
fn what_does_not_fit_is_taken_back_whole() {
    const ROOM: u32 = 64;
    let mut bench = Bench::of(Sizes { exact: ROOM / 2, prefixes: ROOM / 2, ..Sizes::default() });
    let exact = |count: u32| (0..count).map(|number| (number.to_be(), 7));
    let cidr = |count: u32| (0..count).map(|number| (Ipv4Net::new_assert((number << 12).into(), 20), 7));
    let old = Tables { exact_v4: exact(20).collect(), cidr_v4: cidr(20).collect(), ..Tables::default() };
    bench.apply(&old, &[]).expect("it fits");
    for (wanted, what) in [
        (Tables { exact_v4: exact(ROOM + 40).collect(), ..old.clone() }, "addresses"),
        (Tables { cidr_v4: cidr(ROOM + 40).collect(), ..old.clone() }, "prefixes"),
    ] {
        let error = bench.apply(&wanted, &[]).expect_err(what);
        // Those that fit were written.
        let first = format!("write {} of", ROOM - 20 + 1);
        assert!(format!("{error:#}").contains(&first), "{what}: {error:#}");
        assert_eq!(bench.failed, 1, "{what}");
        bench.expect(&old, Leftovers::None, what);
    }
    let rules = (0..ROOM).map(|class| (RuleKey { table: 1, class }, RuleValue::all(3)));
    let full = Tables {
        exact_v4: exact(ROOM).collect(),
        cidr_v4: cidr(ROOM).collect(),
        rules: rules.collect(),
        ..Tables::default()
    };
    bench.apply(&full, &[]).expect("it fits");
    bench.expect(&full, Leftovers::None, "full");
    // Some rows are gone already; the rest goes all the same.
    let mut map = pinned(&bench.root, "RULES");
    let mut rows: HashMap<_, [u32; 2], [u32; 4]> = (&mut map).try_into().expect("a hash map");
    for class in (5..ROOM).step_by(9) {
        rows.remove(&[1, class]).expect("it is there");
    }
    bench.apply(&Tables::default(), &[]).expect("everything goes");
    assert_eq!(bench.failed, 0);
    bench.expect(&Tables::default(), Leftovers::None, "empty");
}

/// A stamp that a failed change would have taken from its pod is not given to another while that pod has it, whatever becomes of later
/// changes.
#[test]
fn a_stamp_in_force_is_nobody_elses() {
    let mut bench = Bench::new();
    let mut world = World::new("n1");
    let mut pipeline = Pipeline::with_limits("n1", Limits { stamps_max: 2, ..Limits::default() });
    let mut wanted = Tables::default();
    let mut dice = Dice::new(7);
    let mut isolated = [false; 4];
    let names = ["a", "b", "c", "d"];
    let mut change = |pipeline: &mut Pipeline, text: &str| {
        let items: Vec<Value> = serde_norway::from_str(text).expect("changes can be read");
        for item in items {
            for change in world.change(&item).expect("it is legal").expect("it is a change") {
                pipeline.apply(&change);
            }
        }
    };
    change(&mut pipeline, include_str!("../cases/world-pair.yaml"));
    change(&mut pipeline, "[pod x/c pod=c 10.244.0.13 fd00:244::13, pod x/d pod=d 10.244.0.14 fd00:244::14]");
    let mut failures = 0;
    for step in 0..400 {
        let pod = dice.below(4);
        isolated[pod] = !isolated[pod];
        let name = names[pod];
        if isolated[pod] {
            let spec = format!("{{podSelector: {{matchLabels: {{pod: {name}}}}}, policyTypes: [Egress]}}");
            change(&mut pipeline, &format!("['policy x/{name}': {spec}]"));
        } else {
            change(&mut pipeline, &format!("[delete policy x/{name}]"));
        }
        wanted.apply(&pipeline.compile());
        let before = bench.kernel.tables().clone();
        for (ifindex, record) in wanted.endpoints.iter().filter(|(_, record)| record.stamp != 0) {
            let mut others = bench.kernel.tables().endpoints.iter().filter(|(other, _)| *other != ifindex);
            // While the change is written, both would have it.
            assert!(others.all(|(_, other)| other.stamp != record.stamp), "step {step}: {} is another's", record.stamp);
        }
        let fails = dice.percent(60).then(|| (dice.below(8), *dice.pick(&ERRORS)));
        let when = format!("step {step}, {fails:?}");
        match bench.apply(&wanted, fails.as_slice()) {
            Ok(_) => bench.expect(&wanted, Leftovers::May, &when),
            Err(_) => {
                pipeline.hold();
                bench.expect(&before, Leftovers::None, &when);
                failures += 1;
            }
        }
    }
    assert!(failures > 50, "{failures} failures are few");
}
