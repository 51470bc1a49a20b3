//! The third judge: the program as it is loaded, by BPF_PROG_TEST_RUN on raw frames.
//!
//! Interfaces of a case are bridges with the same index in a network namespace of our own. Time passes by making what the maps
//! remember older.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context as _, ensure};
use aya::TestRun as _;
use aya::programs::{CgroupSkb, TestRunOptions, Xdp};
use palisade::kernel::{
    AttachMode, DELIVER, EXIT_LINK, FROM_POD, Kernel, PinDir, Settings, Sizes, StampMask, TO_POD, UPLINK, XdpWish,
};
use palisade::tables::sim::FrameBytes;
use palisade::tables::{Tables, pod_addresses};
use palisade_common::decide::Place;
use palisade_common::layout::Config;
use palisade_common::parse::{self, Packet};
use palisade_common::{Hook, Reason, Verdict};
use rustix::time::{ClockId, clock_gettime};

use super::early;
use super::memory::Memory;
use super::pipeline::Pipeline;
use crate::case::world::UPLINK_IFINDEX;
use crate::case::{Existing, Judge, Mark, ObjectChange, PacketStep, Services, Setup};

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
        let settings = Settings { xdp: XdpWish::Generic, ..Settings::default() };
        let kernel = Kernel::open(PinDir::open(pins)?, sizes, settings, AttachMode::Auto)?;
        let memory = Memory::open(pins)?;
        Ok(Rc::new(RefCell::new(Self { kernel, memory, counters: Vec::new() })))
    }

    /// Empty tables, no flows, and these settings.
    pub fn reset(&mut self, settings: &Config) -> anyhow::Result<()> {
        self.change(&Tables::default())?;
        self.memory.forget()?;
        // The machine is up for longer than an answer is awaited.
        self.kernel.forget_awaited(1);
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
        self.kernel.age_awaited((nanoseconds / 1_000_000_000) as u32);
        self.memory.age(nanoseconds)
    }

    fn read_counters(&self) -> anyhow::Result<Vec<u64>> {
        Ok(self.kernel.maps().counters()?.into_iter().map(|(_, packets)| packets).collect())
    }

    /// Whether the program on the uplinks refuses the frame.
    pub fn run_early(&mut self, frame: &[u8]) -> anyhow::Result<bool> {
        const DROP: u32 = 1;
        const PASS: u32 = 2;
        let program: &mut Xdp =
            self.kernel.ebpf_mut().program_mut(UPLINK).context("no program for uplinks")?.try_into()?;
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let returned = program.test_run(options)?.return_value;
        ensure!(returned == DROP || returned == PASS, "the program on uplinks returned {returned}");
        self.counters = self.read_counters()?;
        Ok(returned == DROP)
    }

    /// A packet without a mark at a pod's interface.
    pub fn run(&mut self, packet: &PacketStep) -> anyhow::Result<Verdict> {
        Ok(self.run_marked(packet, 0)?.0)
    }

    /// The verdict about a packet that bears this stamp, and the stamp that it bears then.
    pub fn run_marked(&mut self, packet: &PacketStep, stamp: u16) -> anyhow::Result<(Verdict, u16)> {
        let shift = StampMask::default().shift();
        let context = skb_context(packet, u32::from(stamp) << shift);
        let mut context_out = [0; CONTEXT];
        let options = TestRunOptions {
            data_in: Some(&packet.frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::default()
        };
        let (passes, drops) = if packet.place == Place::Process { (1, 0) } else { (-1, 2) };
        let returned = match (packet.place, packet.hook) {
            (Place::Process, _) => {
                let program = self.kernel.ebpf_mut().program_mut(DELIVER).context("no program for processes")?;
                <&mut CgroupSkb>::try_from(program)?.test_run(options)?
            }
            (Place::Device, _) => self.kernel.program_mut(EXIT_LINK)?.test_run(options)?,
            (Place::Pod, Hook::FromPod) => self.kernel.program_mut(FROM_POD)?.test_run(options)?,
            (Place::Pod, Hook::ToPod) => self.kernel.program_mut(TO_POD)?.test_run(options)?,
        };
        let returned = returned.return_value as i32;
        let now = self.read_counters()?;
        let counted = Reason::ALL
            .iter()
            .zip(now.iter().zip(&self.counters))
            .find(|(_, (now, before))| now != before)
            .map(|(reason, _)| *reason);
        self.counters = now;
        let reason = match counted {
            // Nothing is asked about what bears no mark.
            None if packet.place != Place::Pod && stamp == 0 => Reason::NotIsolated,
            counted => counted.context("the program counted no reason")?,
        };
        let pass = returned == passes;
        ensure!(pass || returned == drops, "the program returned {returned}");
        ensure!(pass == reason.passes(), "the program returned {returned} for {}", reason.name());
        let mark = u32::from_ne_bytes(context_out[MARK..MARK + 4].try_into().expect("four bytes"));
        Ok((Verdict { pass, reason }, (mark >> shift) as u16))
    }

    /// Whether the packet's destination is the pod's at whose interface it is.
    fn owns(&self, packet: &PacketStep) -> bool {
        let mut parsed = Packet::default();
        parse::frame(&FrameBytes { bytes: &packet.frame, gso: false }, &mut parsed);
        pod_addresses(self.kernel.endpoints().values()).get(&parsed.destination) == Some(&packet.ifindex)
    }

    /// The interface that has the stamp.
    fn stamp_owner(&self, stamp: u16) -> Option<u32> {
        let mut endpoints = self.kernel.endpoints().iter();
        endpoints.find(|(_, record)| record.stamp == u32::from(stamp)).map(|(ifindex, _)| *ifindex)
    }
}

/// Size of `struct __sk_buff`, and where its mark is (bytes).
const CONTEXT: usize = 192;
const MARK: usize = 8;

/// `struct __sk_buff` (include/uapi/linux/bpf.h) with the fields that a test run may set.
fn skb_context(packet: &PacketStep, mark: u32) -> [u8; CONTEXT] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = [0; CONTEXT];
    let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(MARK, mark);
    put(INGRESS_IFINDEX, packet.ingress_ifindex);
    put(IFINDEX, if packet.place == Place::Pod { packet.ifindex } else { UPLINK_IFINDEX });
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
    /// The mark of the last packet that each interface let through.
    marks: BTreeMap<u32, u16>,
    mark: Mark,
    /// The second (CLOCK_MONOTONIC) whose budget for connections met mid-stream the case has used.
    budget_second: Option<i64>,
    /// It went by, so that the program has a new budget of which the other judges know nothing: what follows cannot be compared.
    outpaced: bool,
}

fn second() -> i64 {
    clock_gettime(ClockId::Monotonic).tv_sec
}

impl Loaded {
    pub fn new(machine: &Rc<RefCell<Machine>>, setup: &Setup) -> anyhow::Result<Self> {
        let settings = Config {
            keep_existing: u32::from(setup.existing == Existing::Keep),
            midstream_budget: setup.midstream_budget,
            inserts_safe: u64::MAX,
            exits_missing: u32::from(setup.services == Services::NoExits),
            ..Config::default()
        };
        machine.borrow_mut().reset(&settings)?;
        Ok(Self {
            machine: machine.clone(),
            pipeline: Pipeline::of(setup),
            time: None,
            has_listener: false,
            marks: BTreeMap::new(),
            mark: Mark::Nobody,
            budget_second: None,
            outpaced: false,
        })
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
            self.budget_second = None;
        }
        self.time = Some(packet.time);
        if self.has_listener || self.outpaced || !can_be_run(&packet.frame) {
            return None;
        }
        let stamp = packet.by.and_then(|by| self.marks.get(&by)).copied().unwrap_or(0);
        let outside = early::may_come_from_outside(packet);
        let early = outside.then(|| machine.run_early(&packet.frame).expect("the program on uplinks runs"));
        let before = second();
        let (verdict, marked) =
            machine.run_marked(packet, stamp).unwrap_or_else(|error| panic!("no verdict about {packet:?}: {error:#}"));
        if matches!(verdict.reason, Reason::Midstream | Reason::MidstreamBudget) {
            let now = second();
            self.outpaced = now != *self.budget_second.get_or_insert(before);
            if self.outpaced {
                return None;
            }
        }
        if early == Some(true) && machine.owns(packet) {
            early::check(packet, Some(packet.ifindex), verdict, &early::LOADED);
        }
        if outside && let Some(frame) = early::untranslated(packet, verdict) {
            let refused = machine.run_early(&frame).expect("the program on uplinks runs");
            assert!(!refused, "an answer before it was translated back: {packet:?}");
        }
        if packet.place == Place::Pod && packet.hook == Hook::FromPod && verdict.pass {
            self.marks.insert(packet.ifindex, marked);
            let owner = if marked == 0 { None } else { machine.stamp_owner(marked) };
            self.mark = owner.map_or(Mark::Nobody, Mark::Pod);
        }
        Some(verdict)
    }

    fn mark(&self) -> Option<Mark> {
        Some(self.mark)
    }
}
