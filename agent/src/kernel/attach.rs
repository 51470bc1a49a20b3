//! Programs on interfaces: TCX links where the kernel has them, clsact filters elsewhere.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcAttachType};
use aya::util::KernelVersion;

use super::filters::{self, Place};
use super::pinned::Program;
use super::pins::PinDir;
use super::qdisc::{self, TC_H_EGRESS, TC_H_INGRESS};
use super::{EXIT_LINK, EXIT_RAW, FROM_POD, TO_POD, program_mut, tcx};

/// How programs are attached (`--attach`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it.
    Auto,
    /// Links that are pinned; Linux 6.6 and later.
    Tcx,
    /// Filters of a clsact qdisc, which survive by themselves.
    Clsact,
}

/// The programs of a pod's interface and where they are.
pub(super) const PLACES: [(&str, TcAttachType); 2] =
    [(FROM_POD, TcAttachType::Ingress), (TO_POD, TcAttachType::Egress)];

impl AttachMode {
    pub(super) fn resolve(self) -> anyhow::Result<Self> {
        let has_tcx = KernelVersion::current().context("reading the kernel's version")? >= KernelVersion::new(6, 6, 0);
        match self {
            Self::Auto if has_tcx => Ok(Self::Tcx),
            Self::Auto | Self::Clsact => Ok(Self::Clsact),
            Self::Tcx if has_tcx => Ok(Self::Tcx),
            Self::Tcx => bail!("this kernel has no TCX (Linux 6.6 and later); use --attach clsact"),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// To-pod first: what the pod is sent is the more urgent half. Where one half fails, the other is attached nevertheless.
///
/// Between the two the pod's other program may be one with other tables, which knows nothing of a flow that the first has let through
/// (see [`super::Kernel::doubt_predecessors`]).
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &PinDir,
    mode: AttachMode,
    ifindex: u32,
    interface: &str,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    for (name, place) in PLACES.into_iter().rev() {
        let pin = pins.link(ifindex, name);
        let attached = attach_one(program_mut(ebpf, name)?, (pins, &pin), mode, ifindex, (name, place));
        if let Err(error) = attached.with_context(|| format!("attaching {name} to {interface}")) {
            result = match result {
                Ok(()) => Err(error),
                Err(first) => Err(anyhow!("{first:#}; {error:#}")),
            };
        }
    }
    result
}

/// Puts a program on an interface, or replaces what an earlier agent put there; a link of TCX goes to `pin`.
pub(super) fn attach_one(
    program: &mut SchedClassifier,
    (pins, pin): (&PinDir, &Path),
    mode: AttachMode,
    ifindex: u32,
    place: (&str, TcAttachType),
) -> anyhow::Result<()> {
    match mode {
        AttachMode::Tcx | AttachMode::Auto => {
            attach_tcx(program, pin, ifindex, place)?;
            // Of an agent with --attach clsact, whose tables may be another version's.
            if has_filter(ifindex, place) {
                take_off(&name_of(ifindex)?, place)?;
            }
            Ok(())
        }
        AttachMode::Clsact => {
            attach_clsact(program, pins, ifindex, place)?;
            detach_one(pin, AttachMode::Tcx, ifindex, place)
        }
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    pin: &Path,
    ifindex: u32,
    (name, place): (&str, TcAttachType),
) -> anyhow::Result<()> {
    let ours = program.info()?.id();
    let attach = || tcx::attach((program.fd()?.as_fd(), name), pin, ifindex, place);
    let is_there = || -> anyhow::Result<bool> {
        Ok(programs_at(AttachMode::Tcx, ifindex, place)?.iter().any(|(id, _)| *id == Some(ours)))
    };
    attach()?;
    if is_there()? {
        return Ok(());
    }
    // The link is of an interface that has gone to another namespace and has the same index there.
    detach_one(pin, AttachMode::Tcx, ifindex, (name, place))?;
    attach()?;
    ensure!(is_there()?, "{name} is not on interface {ifindex} after it was attached");
    Ok(())
}

/// How our programs stand on an interface, in the worse of its two directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    First,
    /// Behind a program of somebody else (its name), which can end the chain before ours is asked.
    Behind(String),
    Missing,
}

pub(super) fn standing(ebpf: &mut Ebpf, mode: AttachMode, ifindex: u32) -> anyhow::Result<Standing> {
    let mut standing = Standing::First;
    for place in PLACES {
        match standing_of(ebpf, mode, ifindex, place)? {
            Standing::First => {}
            Standing::Missing => return Ok(Standing::Missing),
            behind @ Standing::Behind(_) => standing = behind,
        }
    }
    Ok(standing)
}

pub(super) fn standing_of(
    ebpf: &mut Ebpf,
    mode: AttachMode,
    ifindex: u32,
    (name, place): (&str, TcAttachType),
) -> anyhow::Result<Standing> {
    let ours = program_mut(ebpf, name)?.info()?.id();
    let all = programs_at(mode, ifindex, place)?;
    Ok(match all.iter().position(|(program, _)| *program == Some(ours)) {
        None => Standing::Missing,
        Some(0) => Standing::First,
        Some(_) => Standing::Behind(all[0].1.clone()),
    })
}

/// Ids, where they are programs, and names of what is on an interface, in the order in which they are asked.
fn programs_at(mode: AttachMode, ifindex: u32, place: TcAttachType) -> anyhow::Result<Vec<(Option<u32>, String)>> {
    Ok(match mode {
        AttachMode::Tcx | AttachMode::Auto => {
            let ids = tcx::programs(ifindex, place).with_context(|| format!("looking at interface {ifindex}"))?;
            let name = |id| Program::of_id(id).name.unwrap_or_else(|| format!("with id {id}"));
            ids.into_iter().map(|id| (Some(id), name(id))).collect()
        }
        AttachMode::Clsact => {
            let filters = filters::list(ifindex, parent(place))?;
            filters.into_iter().map(|filter| (filter.program, filter.title())).collect()
        }
    })
}

/// Programs of some version of ours are on the interface in both directions, in whichever way they were attached.
pub(super) fn is_judged(pins: &PinDir, ifindex: u32) -> anyhow::Result<bool> {
    for place in PLACES {
        let links = pins.links_of_all_versions(ifindex, place.0)?;
        if !links.iter().any(|link| tcx::is_in_use(link, ifindex, place)) && !has_filter(ifindex, place) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a filter of this name is there.
fn has_filter(ifindex: u32, (name, place): (&str, TcAttachType)) -> bool {
    filters::list(ifindex, parent(place)).unwrap_or_default().into_iter().any(|filter| filter.title() == name)
}

/// Requests for clsact take a name. It is looked up just before, and seen after whether the interface has got the program.
fn attach_clsact(
    program: &mut SchedClassifier,
    pins: &PinDir,
    ifindex: u32,
    (name, place): (&str, TcAttachType),
) -> anyhow::Result<()> {
    let interface = name_of(ifindex)?;
    // Remembered first, as nobody takes away a qdisc that nobody knows of. It fails where there is one already, of whomever.
    let owned = pins.owns_qdisc(ifindex);
    pins.own_qdisc(ifindex)?;
    if tc::qdisc_add_clsact(&interface).is_err() && !owned {
        pins.forget_qdisc(ifindex);
    }
    let id = match filters::place(&filters::list(ifindex, parent(place))?, name) {
        Place::Replace { priority, handle } => {
            program.attach_to_link(SchedClassifierLink::attached(&interface, place, priority, handle.into(), None)?)?
        }
        Place::New { priority, handle } => {
            if priority != 1 {
                tracing::warn!(
                    interface,
                    "a filter of another kind or protocol stands in front of ours and may let packets pass"
                );
            }
            let options = NlOptions { priority, handle: handle.into(), ..NlOptions::default() };
            program.attach_with_options(&interface, place, TcAttachOptions::Netlink(options))?
        }
    };
    // A filter stays when the agent ends; a link that is dropped would take it away.
    let link = program.take_link(id)?;
    let ours = program.info()?.id();
    if !filters::list(ifindex, parent(place))?.iter().any(|filter| filter.program == Some(ours)) {
        drop(link);
        bail!("interface {ifindex} is not {interface} any longer");
    }
    std::mem::forget(link);
    Ok(())
}

/// The name that the interface has now.
fn name_of(ifindex: u32) -> anyhow::Result<String> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    rustix::net::netdevice::index_to_name(&socket, ifindex).with_context(|| format!("interface {ifindex}"))
}

fn index_of(interface: &str) -> anyhow::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, interface)?)
}

/// The number of a direction of the clsact qdisc.
const fn parent(place: TcAttachType) -> u32 {
    match place {
        TcAttachType::Egress => TC_H_EGRESS,
        TcAttachType::Ingress | TcAttachType::Custom(_) => TC_H_INGRESS,
    }
}

pub(super) fn detach(pins: &PinDir, mode: AttachMode, ifindex: u32) -> anyhow::Result<()> {
    for (name, place) in PLACES {
        detach_one(&pins.link(ifindex, name), mode, ifindex, (name, place))?;
    }
    if mode == AttachMode::Clsact { give_up_qdisc(pins, ifindex) } else { Ok(()) }
}

/// Takes the qdisc away that the interface has from us, once nothing is on it any longer: it may have other programs of ours.
pub(super) fn give_up_qdisc(pins: &PinDir, ifindex: u32) -> anyhow::Result<()> {
    let gone = pins.owns_qdisc(ifindex)
        && qdisc::remove_if_empty(ifindex).with_context(|| format!("the clsact qdisc of interface {ifindex}"))?;
    if gone {
        pins.forget_qdisc(ifindex);
    }
    Ok(())
}

pub(super) fn detach_one(
    pin: &Path,
    mode: AttachMode,
    ifindex: u32,
    place: (&str, TcAttachType),
) -> anyhow::Result<()> {
    match mode {
        AttachMode::Tcx | AttachMode::Auto => match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", pin.display()))
            }
            _ => Ok(()),
        },
        AttachMode::Clsact => {
            // With the interface its filters have gone; its name may be another's by now.
            if let Ok(interface) = name_of(ifindex) {
                take_off(&interface, place)?;
            }
            Ok(())
        }
    }
}

/// Takes our filters off an interface, if they are there.
///
/// # Errors
///
/// When one stays.
pub fn detach_clsact(interface: &str) -> anyhow::Result<()> {
    let exits = [EXIT_LINK, EXIT_RAW].map(|name| (name, TcAttachType::Egress));
    PLACES.into_iter().chain(exits).try_for_each(|place| take_off(interface, place))
}

fn take_off(interface: &str, (name, place): (&str, TcAttachType)) -> anyhow::Result<()> {
    match tc::qdisc_detach_program(interface, place, name) {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::debug!(%error, interface, name, "no filter to take off");
            let Ok(ifindex) = index_of(interface) else { return Ok(()) };
            let stays = has_filter(ifindex, (name, place));
            ensure!(!stays, "the filter {name} cannot be taken off {interface}: {error}");
            Ok(())
        }
    }
}
