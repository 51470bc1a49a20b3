//! The loaded programs, with what is in their tables, as test runs measure them.

use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use palisade::kernel::{AttachMode, FROM_POD, Kernel, PinDir, Settings, Sizes, TO_POD};
use palisade::tables::Tables;
use palisade_common::layout::Config;
use palisade_common::{Hook, Reason};

use super::scene::{self, Packet, Subject};
use super::test_run::{Run, test_run};
use super::vary::{Cycle, Varied};
use crate::case::ObjectChange;
use crate::judges::{Bpffs, Memory, Pipeline, bpffs};

/// Repetitions of the empty program.
const REPEAT_EMPTY: u32 = 1_000_000;

/// The programs in a network namespace of this thread's own.
pub struct Programs {
    pub kernel: Kernel,
    pub memory: Memory,
    /// How long loading took.
    pub loading: Duration,
    _pins: Bpffs,
}

impl Programs {
    pub fn new() -> Result<Self> {
        // SAFETY: only this thread changes its namespace; it shares no file system state that matters.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .context("a network namespace")?;
        for subject in Subject::ALL {
            let index = subject.ifindex().to_string();
            let status = Command::new("ip")
                .args(["link", "add", &format!("t{index}"), "index", &index, "type", "bridge"])
                .status()
                .context("running ip")?;
            ensure!(status.success(), "no interface with index {index}");
        }
        let pins = bpffs("bench")?;
        let folder = pins.path().join("agent");
        let pin_dir = PinDir::open(&folder)?;
        let started = Instant::now();
        let mut kernel = Kernel::open(pin_dir, Sizes::default(), Settings::default(), AttachMode::Auto)?;
        let loading = started.elapsed();
        kernel.program_mut("empty")?.load()?;
        let memory = Memory::open(&folder)?;
        Ok(Self { kernel, memory, loading, _pins: pins })
    }

    /// Puts these objects into the tables in place of what is there.
    pub fn make_world(&mut self, changes: &[ObjectChange]) -> Result<()> {
        self.change(&Tables::default())?;
        let mut pipeline = Pipeline::new(scene::NODE);
        for change in changes {
            pipeline.apply(change);
        }
        self.kernel.apply(&pipeline.compile())?;
        Ok(())
    }

    /// Puts these tables in place of what is there.
    pub fn change(&mut self, wanted: &Tables) -> Result<()> {
        let delta = self.kernel.tables().delta_to(wanted);
        self.kernel.apply(&delta)?;
        Ok(())
    }

    /// How many events a second may have; all else as it is.
    pub fn set_events_budget(&self, events_budget: u32) {
        let settings =
            Config { events_budget, events_group_budget: events_budget, inserts_safe: u64::MAX, ..Config::default() };
        self.kernel.maps().config.store_settings(&settings);
    }

    pub fn plain(&mut self, program: &str, packet: Packet, repeat: u32) -> Result<Run> {
        let program = self.kernel.program_mut(program)?;
        let run = test_run(program.fd()?.as_fd(), &packet.frame(), packet.subject.ifindex(), repeat)?;
        ensure!(matches!(run.returned, -1 | 2), "{packet:?} came to {}", run.returned);
        Ok(run)
    }

    /// Every packet as `cycle` has it after the one before, the first one after the frame's; nanoseconds, without what the varying costs.
    /// `passes`: what the last packet must come to.
    pub fn varied(&mut self, packet: Packet, frame: &[u8], cycle: Cycle, repeat: u32, passes: bool) -> Result<f64> {
        let gross = self.behind(program_name(packet.hook), packet, frame, cycle, repeat, passes)?;
        let varying = self.behind("empty", packet, frame, cycle, repeat, true)?;
        let empty = f64::from(self.plain("empty", packet, REPEAT_EMPTY)?.nanoseconds);
        Ok(gross - varying + empty)
    }

    fn behind(
        &mut self,
        name: &str,
        packet: Packet,
        frame: &[u8],
        cycle: Cycle,
        repeat: u32,
        passes: bool,
    ) -> Result<f64> {
        let program = self.kernel.program_mut(name)?;
        let varied = Varied::new(program.fd()?.as_fd(), cycle)?;
        let run = test_run(varied.program(), frame, packet.subject.ifindex(), repeat)?;
        ensure!(run.returned == if passes { -1 } else { 2 }, "{packet:?}, varied, came to {}", run.returned);
        Ok(f64::from(run.nanoseconds))
    }

    /// How many packets came to this end so far.
    pub fn packets(&self, reason: Reason) -> Result<u64> {
        let counters = self.kernel.maps().counters()?;
        counters.iter().find(|(other, _)| *other == reason).map(|(_, count)| *count).context("every reason is counted")
    }
}

pub const fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => FROM_POD,
        Hook::ToPod => TO_POD,
    }
}
