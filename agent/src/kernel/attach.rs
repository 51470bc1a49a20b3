//! Programs on interfaces: TCX links where the kernel has them, clsact filters elsewhere.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions, TcAttachType};
use aya::util::KernelVersion;

use super::filters::{self, Place};
use super::pins::PinDir;
use super::qdisc::{TC_H_EGRESS, TC_H_INGRESS};
use super::{EXIT_LINK, EXIT_RAW, FROM_POD, TO_POD, program_mut};

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

const PLACES: [(&str, TcAttachType); 2] = [(FROM_POD, TcAttachType::Ingress), (TO_POD, TcAttachType::Egress)];

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
        let attached = attach_one(program_mut(ebpf, name)?, (pins, &pin), mode, (ifindex, interface), (name, place));
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
    (ifindex, interface): (u32, &str),
    place: (&str, TcAttachType),
) -> anyhow::Result<()> {
    match mode {
        AttachMode::Tcx | AttachMode::Auto => attach_tcx(program, pin, interface, place.1),
        AttachMode::Clsact => attach_clsact(program, pins, ifindex, interface, place),
    }
}

/// How our programs stand on an interface, in the worse of its two directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    First,
    /// Behind a program of somebody else (its name), which can end the chain before ours is asked.
    Behind(String),
    Missing,
}

pub(super) fn standing(ebpf: &mut Ebpf, mode: AttachMode, ifindex: u32, interface: &str) -> anyhow::Result<Standing> {
    let mut standing = Standing::First;
    for place in PLACES {
        match standing_of(ebpf, mode, (ifindex, interface), place)? {
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
    (ifindex, interface): (u32, &str),
    (name, place): (&str, TcAttachType),
) -> anyhow::Result<Standing> {
    let ours = program_mut(ebpf, name)?.info()?.id();
    let all: Vec<(Option<u32>, String)> = match mode {
        AttachMode::Tcx | AttachMode::Auto => {
            let programs = SchedClassifier::query_tcx(interface, place)?.1;
            programs.iter().map(|it| (Some(it.id()), it.name_as_str().unwrap_or_default().to_owned())).collect()
        }
        AttachMode::Clsact => {
            let filters = filters::list(ifindex, parent(place))?;
            filters.into_iter().map(|filter| (filter.program, filter.title())).collect()
        }
    };
    Ok(match all.iter().position(|(program, _)| *program == Some(ours)) {
        None => Standing::Missing,
        Some(0) => Standing::First,
        Some(_) => Standing::Behind(all[0].1.clone()),
    })
}

fn attach_tcx(program: &mut SchedClassifier, pin: &Path, interface: &str, place: TcAttachType) -> anyhow::Result<()> {
    match PinnedLink::from_pin(pin) {
        Ok(old) => {
            let link: SchedClassifierLink = FdLink::from(old).try_into()?;
            match program.attach_to_link(link) {
                Ok(id) => {
                    // The pin holds the link; our descriptor may go.
                    drop(program.take_link(id)?);
                    return Ok(());
                }
                // The interface has gone, and its index has come again (ENOLINK: the link is severed).
                Err(error) => tracing::debug!(%error, interface, "link of an earlier interface"),
            }
            fs::remove_file(pin).with_context(|| format!("removing {}", pin.display()))?;
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("opening {}", pin.display())),
    }
    let id = program.attach_with_options(interface, place, TcAttachOptions::TcxOrder(LinkOrder::first()))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin).with_context(|| format!("pinning {}", pin.display()))?;
    Ok(())
}

fn attach_clsact(
    program: &mut SchedClassifier,
    pins: &PinDir,
    ifindex: u32,
    interface: &str,
    (name, place): (&str, TcAttachType),
) -> anyhow::Result<()> {
    // Fails where there is one already, of whomever.
    if tc::qdisc_add_clsact(interface).is_ok() {
        pins.own_qdisc(ifindex)?;
    }
    let id = match filters::place(&filters::list(ifindex, parent(place))?, name) {
        Place::Replace { priority, handle } => {
            program.attach_to_link(SchedClassifierLink::attached(interface, place, priority, handle.into(), None)?)?
        }
        Place::New { priority, handle } => {
            if priority != 1 {
                tracing::warn!(
                    interface,
                    "a filter of another kind or protocol stands in front of ours and may let packets pass"
                );
            }
            let options = NlOptions { priority, handle: handle.into(), ..NlOptions::default() };
            program.attach_with_options(interface, place, TcAttachOptions::Netlink(options))?
        }
    };
    // A filter stays when the agent ends; a link that is dropped would take it away.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// The number of a direction of the clsact qdisc.
const fn parent(place: TcAttachType) -> u32 {
    match place {
        TcAttachType::Egress => TC_H_EGRESS,
        TcAttachType::Ingress | TcAttachType::Custom(_) => TC_H_INGRESS,
    }
}

pub(super) fn detach(pins: &PinDir, mode: AttachMode, ifindex: u32, interface: &str) -> anyhow::Result<()> {
    for (name, place) in PLACES {
        detach_one(&pins.link(ifindex, name), mode, interface, (name, place))?;
    }
    if mode == AttachMode::Clsact {
        pins.forget_qdisc(ifindex);
    }
    Ok(())
}

pub(super) fn detach_one(
    pin: &Path,
    mode: AttachMode,
    interface: &str,
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
            take_off(interface, place);
            Ok(())
        }
    }
}

/// Takes our filters off an interface, if they are there.
pub fn detach_clsact(interface: &str) {
    let exits = [EXIT_LINK, EXIT_RAW].map(|name| (name, TcAttachType::Egress));
    PLACES.into_iter().chain(exits).for_each(|place| take_off(interface, place));
}

fn take_off(interface: &str, (name, place): (&str, TcAttachType)) {
    match tc::qdisc_detach_program(interface, place, name) {
        Ok(()) => {}
        Err(error) => tracing::debug!(%error, interface, name, "no filter to take off"),
    }
}
