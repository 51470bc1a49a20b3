//! The inputs that fuzzing has kept, put to the same checks again; with feature `live` also before the loaded programs.

use palisade_tests::fuzz::TARGETS;

#[test]
fn kept_inputs() {
    for target in TARGETS {
        let kept = target.kept().expect("the kept inputs can be read");
        assert!(!kept.is_empty(), "no input of {} is kept", target.name);
        for (path, input) in kept {
            // Shown where the check panics.
            println!("{}", path.display());
            (target.check)(&input);
        }
    }
}

#[cfg(feature = "live")]
mod live {
    use palisade::tables::Tables;
    use palisade_common::Hook;
    use palisade_common::decide::Place;
    use palisade_common::layout::{Config, EndpointRecord, RuleValue, TableRef, endpoint_flag};
    use palisade_tests::case::PacketStep;
    use palisade_tests::fuzz::decide::Judge;
    use palisade_tests::fuzz::scene::{self, Event, FIRST_IFINDEX, Settings, Shot};
    use palisade_tests::fuzz::target;
    use palisade_tests::judges::{Machine, bpffs, can_be_run};
    use palisade_tests::random::Dice;

    /// Nanoseconds; the machine's own clock need not have run for longer.
    const WAITS_MAX: u64 = 1000 * 1_000_000_000;

    fn kept(name: &str) -> Vec<Vec<u8>> {
        let kept = target(name).expect("it is a target").kept().expect("the kept inputs can be read");
        kept.into_iter().map(|(_, input)| input).collect()
    }

    /// The decision function over tables, and the loaded programs: one scene before both.
    struct Both<'a> {
        machine: &'a mut Machine,
        judge: Judge,
        packets: u64,
    }

    impl<'a> Both<'a> {
        fn new(machine: &'a mut Machine, settings: Settings) -> Self {
            // There is no namespace in which a socket could listen.
            let settings = Settings { listens: None, ..settings };
            let config = Config {
                keep_existing: settings.keeps_existing.into(),
                midstream_budget: if settings.midstream { u32::MAX } else { 0 },
                inserts_safe: u64::MAX,
                pressure_until: if settings.pressure { u64::MAX } else { 0 },
                ..Config::default()
            };
            machine.reset(&config).expect("the maps can be emptied");
            Self { machine, judge: Judge::new(settings), packets: 0 }
        }

        fn change(&mut self, tables: &Tables) {
            self.judge.change(tables);
            self.machine.change(tables).expect("the maps take a small world");
        }

        fn wait(&mut self, time: u64) {
            self.judge.wait(time);
            self.machine.age(time).expect("the maps can be read and written");
        }

        fn packet(&mut self, shot: &Shot) {
            if !can_be_run(&shot.frame) {
                return;
            }
            let Shot { meeting, gso, frame } = shot.clone();
            let step = PacketStep {
                hook: meeting.hook,
                place: Place::Pod,
                by: None,
                ifindex: meeting.ifindex,
                ingress_ifindex: if meeting.from_node { 0 } else { 2 },
                time: 0,
                gso,
                frame,
                words: String::new(),
            };
            let verdict =
                self.machine.run(&step).unwrap_or_else(|error| panic!("no verdict about {shot:?}: {error:#}"));
            let ruling = self.judge.packet(shot);
            assert_eq!(verdict.reason, ruling.reason(), "left: the program, right: the decision function; {shot:?}");
            self.packets += 1;
        }
    }

    /// One test, as the programs are loaded once.
    #[test]
    fn loaded_program() {
        let pins = bpffs("fuzz").expect("a bpffs can be mounted");
        let machine = Machine::new(pins.path()).expect("the programs can be loaded");
        let mut machine = machine.borrow_mut();
        println!("{} packets of kept scenes", scenes(&mut machine));
        println!("{} arbitrary frames", frames(&mut machine));
    }

    /// The kept scenes as they are, and mutated.
    fn scenes(machine: &mut Machine) -> u64 {
        const MUTATIONS: usize = 8;
        let mut dice = Dice::new(2);
        let mut inputs = Vec::new();
        for input in kept("decide") {
            inputs.extend((0..MUTATIONS).map(|_| mutated(&input, &mut dice)));
            inputs.push(input);
        }
        let mut packets = 0;
        for input in inputs {
            let Some((settings, events)) = scene::read(&input) else { continue };
            let mut both = Both::new(machine, settings);
            let mut waited = 0;
            for event in &events {
                match event {
                    Event::Tables(tables) => both.change(tables),
                    Event::Packet(shot) => both.packet(shot),
                    Event::Wait(time) => {
                        waited += time;
                        if waited > WAITS_MAX {
                            break;
                        }
                        both.wait(*time);
                    }
                }
            }
            packets += both.packets;
        }
        packets
    }

    const ISOLATED: u32 = endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS;
    /// An open pod, an isolated one and a closed one; and one that is judged by nothing but its policies.
    const FLAGS: [u32; 4] = [0, ISOLATED, endpoint_flag::CLOSED, ISOLATED | endpoint_flag::TRUSTED];

    fn world(flags: u32) -> Tables {
        let mut tables = Tables::default();
        let all = TableRef { table: 1, default: RuleValue::all(1) };
        let record = EndpointRecord {
            ifindex: FIRST_IFINDEX,
            generation: 1,
            flags,
            ingress: all,
            egress: all,
            netns_id: -1,
            ..EndpointRecord::default()
        };
        tables.endpoints.insert(FIRST_IFINDEX, record);
        tables
    }

    /// The kept frames as they are, mutated, and cut or prolonged to every length.
    fn frames(machine: &mut Machine) -> u64 {
        const MUTATIONS: usize = 12;
        const LENGTH_MAX: usize = 1600;
        let kept = kept("parse");
        let mut dice = Dice::new(1);
        let mut inputs = Vec::new();
        for frame in &kept {
            inputs.push(frame.clone());
            inputs.extend((0..MUTATIONS).map(|_| mutated(frame, &mut dice)));
        }
        for length in 14..=LENGTH_MAX {
            let mut frame = dice.pick(&kept).clone();
            frame.resize(length, dice.below(256) as u8);
            inputs.push(frame);
        }
        let settings = Settings { keeps_existing: false, pressure: false, midstream: true, listens: None };
        let mut packets = 0;
        for flags in FLAGS {
            let mut both = Both::new(machine, settings);
            both.change(&world(flags));
            for frame in &inputs {
                for hook in Hook::ALL {
                    both.packet(&Shot::new(hook, 0, dice.percent(20), dice.percent(20), frame.clone()));
                }
            }
            packets += both.packets;
        }
        packets
    }

    fn mutated(frame: &[u8], dice: &mut Dice) -> Vec<u8> {
        let mut frame = frame.to_vec();
        for _ in 0..=dice.below(4) {
            if frame.is_empty() {
                break;
            }
            let at = dice.below(frame.len());
            match dice.below(4) {
                0 => frame[at] = dice.below(256) as u8,
                1 => frame[at] ^= 1 << dice.below(8),
                2 => frame.truncate(at),
                _ => frame.insert(at, dice.below(256) as u8),
            }
        }
        frame
    }
}
