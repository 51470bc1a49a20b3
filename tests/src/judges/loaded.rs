//! The third judge: the program as it is loaded, by BPF_PROG_TEST_RUN on raw frames.
//!
//! Interfaces of a case are bridges with the same index in a network namespace of our own. Time passes by making what the maps
//! remember older.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, ensure};
use aya::TestRun as _;
use aya::programs::TestRunOptions;
use palisade::kernel::{AttachMode, FROM_POD, Kernel, PinDir, Settings, Sizes, TO_POD};
use palisade::tables::Tables;
use palisade_common::layout::Config;
use palisade_common::{Hook, Reason, Verdict};

use super::memory::Memory;
use super::pipeline::Pipeline;
use crate::case::{Existing, Judge, ObjectChange, PacketStep, Setup};

/// Interfaces of cases have indices up to here.
const INTERFACES: std::ops::RangeInclusive<u32> = 2..=200;

/// The loaded programs, used by one case after another.
pub struct Machine {
    kernel: Kernel,
    memory: Memory,
    counters: Vec<u64>,
}

impl Machine {
    /// Loads the programs with pins below `pins` (a bpffs), in a network namespace of this thread's own.
    pub fn new(pins: &Path) -> anyhow::Result<Rc<RefCell<Self>>> {
        // SAFETY: only this thread changes its namespace; it shares no file system state that matters.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .context("a network namespace")?;
        for index in INTERFACES {
            let status = Command::new("ip")
                .args(["link", "add", &format!("t{index}"), "index", &index.to_string(), "type", "bridge"])
                .status()
                .context("running ip")?;
            ensure!(status.success(), "no interface with index {index}");
        }
        let sizes =
            Sizes { exact: 4096, prefixes: 16_384, rules: 65_536, ports: 65_536, flows: 16_384, ..Sizes::default() };
        let kernel = Kernel::open(PinDir::open(pins)?, sizes, Settings::default(), AttachMode::Auto)?;
        let memory = Memory::open(pins)?;
        Ok(Rc::new(RefCell::new(Self { kernel, memory, counters: Vec::new() })))
    }

    /// Empty tables, no flows, and these settings.
    pub fn reset(&mut self, settings: &Config) -> anyhow::Result<()> {
        self.change(&Tables::default())?;
        self.memory.forget()?;
        self.kernel.maps().config.store_settings(settings);
        self.counters = self.read_counters()?;
        Ok(())
    }

    /// The tables become these.
    pub fn change(&mut self, wanted: &Tables) -> anyhow::Result<()> {
        let delta = self.kernel.tables().delta_to(wanted);
        self.kernel.apply(&delta)?;
        Ok(())
    }

    /// Makes what is remembered older.
    pub fn age(&mut self, nanoseconds: u64) -> anyhow::Result<()> {
        self.memory.age(nanoseconds)
    }

    fn read_counters(&self) -> anyhow::Result<Vec<u64>> {
        Ok(self.kernel.maps().counters()?.into_iter().map(|(_, packets)| packets).collect())
    }

    pub fn run(&mut self, packet: &PacketStep) -> anyhow::Result<Verdict> {
        let program = match packet.hook {
            Hook::FromPod => FROM_POD,
            Hook::ToPod => TO_POD,
        };
        let context = skb_context(packet);
        let options =
            TestRunOptions { data_in: Some(&packet.frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        let returned = self.kernel.program_mut(program)?.test_run(options)?.return_value as i32;
        let now = self.read_counters()?;
        let reason = Reason::ALL
            .iter()
            .zip(now.iter().zip(&self.counters))
            .find(|(_, (now, before))| now != before)
            .map(|(reason, _)| *reason)
            .context("the program counted no reason")?;
        self.counters = now;
        let pass = returned == -1;
        ensure!(pass || returned == 2, "the program returned {returned}");
        ensure!(pass == reason.passes(), "the program returned {returned} for {}", reason.name());
        Ok(Verdict { pass, reason })
    }
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h) with the fields that a test run may set.
fn skb_context(packet: &PacketStep) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 192];
    let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(INGRESS_IFINDEX, packet.ingress_ifindex);
    put(IFINDEX, packet.ifindex);
    if packet.gso {
        put(GSO_SEGS, 2);
        put(GSO_SIZE, 1400);
    }
    context
}

pub struct Loaded {
    machine: Rc<RefCell<Machine>>,
    pipeline: Pipeline,
    time: Option<u64>,
    /// A pod of the case is known to listen, which only a socket in a namespace of its own could show the program.
    has_listener: bool,
}

impl Loaded {
    pub fn new(machine: &Rc<RefCell<Machine>>, setup: &Setup) -> anyhow::Result<Self> {
        let settings = Config {
            keep_existing: u32::from(setup.existing == Existing::Keep),
            midstream_budget: setup.midstream_budget,
            inserts_safe: u64::MAX,
            ..Config::default()
        };
        machine.borrow_mut().reset(&settings)?;
        Ok(Self { machine: machine.clone(), pipeline: Pipeline::new(&setup.node), time: None, has_listener: false })
    }
}

/// A test run takes no frame that ends within its first IP header (net/bpf/test_run.c, EINVAL).
pub fn can_be_run(frame: &[u8]) -> bool {
    let header = match frame.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        Some(_) => 0,
        None => return false,
    };
    frame.len() >= 14 + header
}

impl Judge for Loaded {
    fn apply(&mut self, change: &ObjectChange) {
        if let ObjectChange::Endpoint(endpoint) = change {
            self.has_listener |= endpoint.listening.is_some();
        }
        self.pipeline.apply(change);
    }

    fn settle(&mut self) {
        let delta = self.pipeline.compile();
        self.machine.borrow_mut().kernel.apply(&delta).expect("the maps take a test's change");
    }

    fn packet(&mut self, packet: &PacketStep) -> Option<Verdict> {
        const WORTH_AGING: u64 = 500_000_000;
        let mut machine = self.machine.borrow_mut();
        let passed = packet.time - self.time.unwrap_or(packet.time);
        if passed > WORTH_AGING {
            machine.age(passed).expect("the maps can be read and written");
        }
        self.time = Some(packet.time);
        if self.has_listener || !can_be_run(&packet.frame) {
            return None;
        }
        Some(machine.run(packet).unwrap_or_else(|error| panic!("no verdict about {packet:?}: {error:#}")))
    }
}
