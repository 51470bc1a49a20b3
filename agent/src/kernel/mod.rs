//! The only part that touches the kernel's programs and maps: loading, pinning, attaching, writing, and reading back what an
//! earlier agent left.
//!
//! Nothing here decides anything: `tables::plan` says what is written and in which order.

mod adopt;
mod attach;
mod awaited;
mod batch;
mod bulk;
mod captures;
mod config_cell;
mod exits;
mod filters;
mod flows;
mod found;
mod handover;
mod link;
mod maps;
mod pinned;
mod pins;
mod placeholder;
mod predecessors;
mod qdisc;
mod routes;
mod routing_rules;
mod run_time;
mod sizes;
mod stamp_mask;
mod syscall;
mod tcx;
mod trouble;
mod uplinks;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::programs::{Program, SchedClassifier};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use palisade_common::layout::{Config, EndpointRecord};

pub use attach::{AttachMode, Standing, detach_clsact};
pub use flows::{FlowFill, FlowWatch};
pub use handover::Earlier;
pub use maps::{Live, Maps, Snapshot};
pub use pins::{PinDir, abandoned, is_in_use, maps_folder, other_version, remove_all as remove_pins};
pub use predecessors::Copied;
pub use run_time::RunTime;
pub use sizes::{OtherSize, Sizes};
pub use stamp_mask::StampMask;
pub use uplinks::{UPLINK, XdpMode, XdpRefusal, XdpWish};

use self::captures::Captures;
use self::found::FoundMaps;
use self::predecessors::Predecessors;
use self::trouble::Trouble;
use self::uplinks::{UPLINK_LINEAR, Uplinks};
use crate::tables::plan::{Installed, Write};
use crate::tables::{Delta, Tables, pod_addresses};

include!(concat!(env!("OUT_DIR"), "/ebpf_object.rs"));

/// Names of the two programs of a pod's interface in the object.
pub const FROM_POD: &str = "from_pod";
pub const TO_POD: &str = "to_pod";
/// Names of those where marked packets end up.
pub const EXIT_LINK: &str = "exit_link";
pub const EXIT_RAW: &str = "exit_raw";
pub const DELIVER: &str = "deliver";
/// All that are attached somewhere.
const PROGRAMS: [&str; 5] = [FROM_POD, TO_POD, EXIT_LINK, DELIVER, EXIT_RAW];

/// Settings of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub keep_existing: bool,
    /// Mid-stream admissions per endpoint and second.
    pub midstream_budget: u32,
    /// Events per CPU and second.
    pub events_budget: u32,
    /// Of these, for one reason at one pod in one direction.
    pub events_group_budget: u32,
    /// New flows that are admitted are told of too.
    pub events_admitted: bool,
    /// The programs log oddities (aya-log, debug level).
    pub debug_programs: bool,
    /// Bits of `skb->mark` that say which pod opened a packet's flow.
    pub stamp_mask: StampMask,
    /// The program on uplinks.
    pub xdp: XdpWish,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keep_existing: false,
            midstream_budget: 256,
            events_budget: 1000,
            events_group_budget: 100,
            events_admitted: false,
            debug_programs: false,
            stamp_mask: StampMask::default(),
            xdp: XdpWish::default(),
        }
    }
}

/// Loaded programs, pinned maps, and what has been written to them.
pub struct Kernel {
    ebpf: Ebpf,
    maps: Maps,
    captures: Captures,
    pins: PinDir,
    predecessors: Predecessors,
    /// The epoch of our own tables as they were found.
    found_at: u32,
    earlier: Earlier,
    /// Maps of an earlier agent were lost, so that its programs go on with what nobody else has.
    remade: bool,
    resumes: bool,
    /// As wanted, and no more than the maps hold.
    sizes: Sizes,
    /// Maps that an earlier agent made of another size.
    other_sizes: Vec<OtherSize>,
    installed: Installed,
    /// Writes that failed when a change was taken back or cleaned up after, in their order.
    unfinished: Vec<Write>,
    /// The programs have been told something else about exits, and flows were not yet judged anew.
    rejudge: bool,
    trouble: Trouble,
    uplinks: Uplinks,
    mode: AttachMode,
    stamp_mask: StampMask,
}

/// What came of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub writes: usize,
    pub epoch: u32,
}

impl Kernel {
    /// Loads the programs over the maps pinned under `pins`, making what is missing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a program or map, when the folder is in use by another agent, or when this build has no programs.
    pub fn open(pins: PinDir, sizes: Sizes, settings: Settings, mode: AttachMode) -> anyhow::Result<Self> {
        Self::open_beside(&[], pins, sizes, settings, mode)
    }

    /// The same, on a node where these interfaces (by index) will get their programs soon.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_beside(
        interfaces: &[u32],
        pins: PinDir,
        sizes: Sizes,
        settings: Settings,
        mode: AttachMode,
    ) -> anyhow::Result<Self> {
        if EBPF_OBJECT.is_empty() {
            bail!("this palisade was built without its kernel programs; build it with `cargo xtask build`");
        }
        let mode = mode.resolve()?;
        let mut predecessors = Predecessors::find(&pins)?;
        // Where an agent was, its programs are there to be replaced, and what has none is to be closed.
        let is_first = predecessors.is_empty() && !pins.map("CONFIG").exists();
        let FoundMaps { held, forgetful, remade } = found::maps(&pins, sizes)?;
        let interfaces = if is_first && !remade && mode == AttachMode::Tcx { interfaces } else { &[] };
        let mut ebpf = placeholder::beside(&pins, interfaces, || load(&pins, sizes, &held, settings))?;
        let mut maps = Maps::take(&mut ebpf)?;
        let captures = Captures::take(&mut ebpf)?;
        if let Err(error) = predecessors::keep_types(&pins) {
            tracing::warn!(
                error = format!("{error:#}"),
                "an agent of another version will need CAP_SYS_ADMIN to take over connections"
            );
        }
        let inherited = predecessors.read(&pins);
        let found_at = maps.config.epoch();
        handover::take_pauses(&mut maps, &inherited, found_at)?;
        let installed = adopt::installed(&mut maps, inherited.last().map(|last| last.epoch))?;
        let uplinks = Uplinks::open(&mut ebpf, &pins, settings.xdp, installed.tables())?;
        let (inserts_safe, pressure_until) = maps.config.pressure();
        let pressure_until = if forgetful { flows::lasting_pressure() } else { pressure_until };
        let pressure_until = inherited.iter().map(|earlier| earlier.pressure_until).fold(pressure_until, u64::max);
        // Until an agent has attached what is needed; what an earlier one has attached is still there.
        let exits_missing = match inherited.last().filter(|last| last.epoch > found_at) {
            Some(last) => last.exits_missing,
            None => installed.is_new() || maps.config.exits_missing(),
        };
        let resumes = handover::resumes(&pins, (found_at, &installed), (&predecessors, &inherited));
        let found = (found_at, maps.last_generation()?);
        let earlier = Earlier::new(found, &installed.tables().endpoints, inherited, predecessors.are_unknown());
        let config = Config {
            epoch: installed.epoch(),
            keep_existing: u32::from(settings.keep_existing),
            // A map that is new says 0.
            inserts_safe: if inserts_safe == 0 { u64::MAX } else { inserts_safe },
            pressure_until,
            midstream_budget: settings.midstream_budget,
            events_budget: settings.events_budget,
            events_group_budget: settings.events_group_budget,
            events_admitted: u32::from(settings.events_admitted),
            exits_missing: u32::from(exits_missing),
            ..Config::default()
        };
        maps.config.store_settings(&config);
        let holds = |map: &str| held[map];
        let (sizes, other_sizes) = (sizes.within(holds), sizes.others(holds));
        Ok(Self {
            ebpf,
            maps,
            captures,
            pins,
            predecessors,
            found_at,
            earlier,
            remade,
            resumes,
            sizes,
            other_sizes,
            installed,
            unfinished: Vec::new(),
            rejudge: false,
            trouble: Trouble::default(),
            uplinks,
            mode,
            stamp_mask: settings.stamp_mask,
        })
    }

    /// What the maps hold by now.
    pub fn tables(&self) -> &Tables {
        self.installed.tables()
    }

    pub fn epoch(&self) -> u32 {
        self.installed.epoch()
    }

    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// What fits into the maps, in the units of the flags.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Maps that are of another size than was asked for.
    pub fn other_sizes(&self) -> &[OtherSize] {
        &self.other_sizes
    }

    /// Earlier endpoints, by interface.
    pub fn endpoints(&self) -> &BTreeMap<u32, EndpointRecord> {
        &self.installed.tables().endpoints
    }

    /// Makes one change, whole or not at all.
    ///
    /// # Errors
    ///
    /// When a write fails: what is in force is then as it was before, and the delta is to be tried again.
    pub fn apply(&mut self, delta: &Delta) -> anyhow::Result<Applied> {
        self.finish()?;
        let plan =
            self.installed.plan(delta).map_err(|_| anyhow::anyhow!("more endpoints than --endpoints-max allows"))?;
        if plan.is_empty() {
            return Ok(Applied { writes: 0, epoch: self.installed.epoch() });
        }
        let addresses = self.addresses_after(delta);
        self.uplinks.withdraw(&addresses);
        let commit = plan.commit_len();
        let mut done = 0;
        while done < commit {
            let (more, result) = self.trouble.write_leading(&mut self.maps, &plan.writes[done..commit]);
            done += more;
            if let Err(error) = result {
                self.carry_out(&plan.undo(done));
                self.uplinks.put(&pod_addresses(self.installed.tables().endpoints.values()));
                return Err(error).with_context(|| format!("write {} of {}", done + 1, plan.writes.len()));
            }
        }
        self.installed.commit(&plan);
        self.uplinks.put(&addresses);
        self.carry_out(&plan.writes[commit..]);
        Ok(Applied { writes: plan.writes.len(), epoch: self.installed.epoch() })
    }

    /// Takes a change back or cleans up after one. What fails is tried again before the next change.
    fn carry_out(&mut self, mut writes: &[Write]) {
        while !writes.is_empty() {
            let (done, result) = self.trouble.write_leading(&mut self.maps, writes);
            writes = &writes[done..];
            if let (Err(error), [failed, rest @ ..]) = (result, writes) {
                tracing::warn!(%error, "a change is not quite finished; tried again before the next one");
                self.unfinished.push(*failed);
                writes = rest;
            }
        }
    }

    /// A reference that was not taken back would hold with the next epoch, and one that was not removed hides what is put around it:
    /// no change may begin before all of them are gone.
    fn finish(&mut self) -> anyhow::Result<()> {
        while let Some(write) = self.unfinished.first() {
            self.trouble.write(&mut self.maps, write).context("finishing an earlier change")?;
            self.unfinished.remove(0);
        }
        Ok(())
    }

    /// Puts both programs on the interface, or replaces what an earlier agent put there. From then on it is closed unless
    /// ENDPOINTS has an entry for it.
    ///
    /// # Errors
    ///
    /// When one of them cannot be put there; the other one is, if it can.
    pub fn attach(&mut self, ifindex: u32, interface: &str) -> anyhow::Result<()> {
        self.take_links(ifindex)?;
        attach::attach(&mut self.ebpf, &self.pins, self.mode, ifindex, interface)
    }

    /// Whether both programs are still on the interface, and first: somebody may have taken them off, or put others in front.
    pub fn standing(&mut self, ifindex: u32) -> anyhow::Result<Standing> {
        attach::standing(&mut self.ebpf, self.mode, ifindex)
    }

    /// Takes both programs off the interface (which may be gone already).
    pub fn detach(&mut self, ifindex: u32) -> anyhow::Result<()> {
        attach::detach(&self.pins, self.mode, ifindex)
    }

    /// Interfaces that an agent has put programs on, whatever has become of them.
    pub fn attached(&self) -> anyhow::Result<Vec<u32>> {
        self.pins.interfaces()
    }

    /// Puts the program on a device by which packets leave the node.
    pub fn attach_exit(&mut self, ifindex: u32, interface: &str, has_link_header: bool) -> anyhow::Result<()> {
        self.take_exit(ifindex, has_link_header)?;
        exits::attach(&mut self.ebpf, (&self.pins, self.mode), ifindex, interface, has_link_header)
    }

    pub fn exit_standing(&mut self, ifindex: u32, has_link_header: bool) -> anyhow::Result<Standing> {
        exits::standing(&mut self.ebpf, self.mode, ifindex, has_link_header)
    }

    pub fn detach_exit(&mut self, ifindex: u32) -> anyhow::Result<()> {
        exits::detach(&self.pins, self.mode, ifindex)
    }

    /// Devices that an agent has put programs on, whatever has become of them.
    pub fn exits(&self) -> anyhow::Result<Vec<u32>> {
        Ok([self.pins.exits()?, self.predecessors.exits()?].concat())
    }

    /// Puts the program before the sockets of a cgroup.
    pub fn attach_deliver(&mut self, cgroup: &Path) -> anyhow::Result<()> {
        self.take_deliver()?;
        let attached = exits::attach_deliver(&mut self.ebpf, &self.pins, cgroup);
        if attached.is_err() && self.has_predecessors() {
            // Another version's would judge by tables that nobody writes any longer.
            self.pins.remove_deliver()?;
        }
        attached
    }

    /// Whether Service traffic can be judged wherever it may end up. A change is told to the programs at once, and every flow is judged anew.
    pub fn set_exits_missing(&mut self, missing: bool) -> anyhow::Result<()> {
        if self.maps.config.exits_missing() != missing {
            self.maps.config.store_exits_missing(missing);
            self.rejudge = true;
        }
        if self.rejudge {
            self.finish()?;
            let write = self.installed.raise_epoch();
            self.maps.write(&write)?;
            self.rejudge = false;
        }
        Ok(())
    }

    /// Writes that the kernel did not take, since this agent's start.
    pub fn failed_writes(&self) -> u64 {
        self.trouble.failed()
    }

    /// For tests: of the writes from now on, those of these numbers fail with these errors.
    #[doc(hidden)]
    pub fn fail_writes(&mut self, failures: impl IntoIterator<Item = (usize, i32)>) {
        self.trouble.plan(failures);
    }

    /// Routing rules of the node that use bits of the stamp's mask.
    pub fn routing_rules(&self) -> anyhow::Result<Vec<String>> {
        routing_rules::with_mark_bits(self.stamp_mask.bits()).context("listing the node's routing rules")
    }

    /// How often the programs have run and for how long, by name; nothing where the kernel does not count (kernel.bpf_stats_enabled).
    pub fn run_times(&self) -> anyhow::Result<BTreeMap<&'static str, RunTime>> {
        let times = PROGRAMS.iter().filter_map(|name| Some((*name, self.ebpf.program(name)?)));
        let times =
            times.map(|(name, program)| Ok((name, run_time::of(program)?))).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(times.into_iter().filter(|(_, time)| time.runs != 0).collect())
    }

    pub fn program_mut(&mut self, name: &str) -> anyhow::Result<&mut SchedClassifier> {
        program_mut(&mut self.ebpf, name)
    }
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name} in the object"))?;
    Ok(program.try_into()?)
}

fn load(pins: &PinDir, sizes: Sizes, held: &BTreeMap<&str, u32>, settings: Settings) -> anyhow::Result<Ebpf> {
    let level: u8 = if settings.debug_programs { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    let (mask, shift) = (settings.stamp_mask.bits(), settings.stamp_mask.shift());
    loader
        .verifier_log_level(VerifierLogLevel::default())
        .override_global("AYA_LOG_LEVEL", &level, false)
        .override_global("STAMP_MASK", &mask, true)
        .override_global("STAMP_SHIFT", &shift, true);
    for (name, _) in sizes::pinned(sizes) {
        loader.map_pin_path(name, pins.map(name));
        if let Some(size) = held.get(name) {
            loader.map_max_entries(name, *size);
        }
    }
    loader.map_max_entries("POD_ADDRESSES", sizes.endpoints.saturating_mul(8));
    let mut ebpf = loader.load(EBPF_OBJECT).context("loading the kernel programs")?;
    // Most of the time goes into their verification, which the kernel does on the thread that asks.
    std::thread::scope(|scope| {
        let wanted = ebpf.programs_mut().filter(|(name, _)| PROGRAMS.contains(name));
        let threads: Vec<_> = wanted.map(|(name, program)| scope.spawn(move || load_program(name, program))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("loading does not panic"))
    })?;
    Ok(ebpf)
}

fn load_program(name: &str, program: &mut Program) -> anyhow::Result<()> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        other => bail!("program {name} is of type {:?}", other.prog_type()),
    };
    loaded.with_context(|| format!("loading program {name}"))
}
