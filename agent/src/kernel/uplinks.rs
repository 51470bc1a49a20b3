//! The program on the node's uplinks, before there is an skb: loading it, its tables, and its links.
//!
//! It refuses only what to-pod would, so that nothing here has to succeed: where it cannot be, packets are judged at the pods' interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::{ProgramFd, Xdp};
use palisade_common::layout::{Address, UplinkConfig};

use super::Kernel;
use super::awaited::Awaited;
use super::link;
use super::maps::Plain;
use super::pinned::{self, LINK_XDP, Pinned};
use super::pins::PinDir;
use super::syscall::bpf;
use super::tcx::{pin_link, update};
use crate::tables::{Delta, Tables, pod_addresses};

/// Its names in the object: for all packets, and for kernels that know only of those in one piece.
pub const UPLINK: &str = "uplink";
pub(super) const UPLINK_LINEAR: &str = "uplink_linear";

/// bpf(2), linux/bpf.h.
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_XDP: u32 = 37;

/// `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpWish {
    #[default]
    Off,
    Native,
    Generic,
    /// Native where the driver can, but never on a veth.
    Auto,
}

/// How the program is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// In the driver, before there is an skb.
    Native,
    /// In the kernel's own receive path, with an skb.
    Generic,
}

/// Why the program is not on a device.
#[derive(Debug)]
pub enum XdpRefusal {
    /// A program of somebody else is there, as of a dispatcher; it is left alone.
    Foreign,
    Failed(anyhow::Error),
}

/// The part of union bpf_attr for BPF_LINK_CREATE.
#[repr(C)]
struct Create {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The program and what it alone reads.
pub(super) struct Uplinks {
    wish: XdpWish,
    program: Result<ProgramFd, String>,
    addresses: HashMap<MapData, Plain<Address>, u32>,
    /// What is in there.
    known: BTreeMap<Address, u32>,
    config: Array<MapData, Plain<UplinkConfig>>,
    pub(super) awaited: Awaited,
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE (linux/if_link.h).
    const fn flag(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

impl XdpWish {
    const fn modes(self, is_veth: bool) -> &'static [XdpMode] {
        match self {
            Self::Off => &[],
            Self::Native => &[XdpMode::Native],
            Self::Generic => &[XdpMode::Generic],
            // There it takes the other end's segmentation offload away.
            Self::Auto if is_veth => &[XdpMode::Generic],
            Self::Auto => &[XdpMode::Native, XdpMode::Generic],
        }
    }
}

impl Uplinks {
    /// Takes the program's maps, and loads it if it is wanted. What agents of other versions have attached goes, and so does an earlier one
    /// of ours if it is not wanted any longer, or cannot be replaced.
    pub(super) fn open(ebpf: &mut Ebpf, pins: &PinDir, wish: XdpWish, tables: &Tables) -> anyhow::Result<Self> {
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("no map {name} in the object"));
        let awaited = map("AWAITED")?;
        let Map::Array(data) = &awaited else { bail!("AWAITED is not an array") };
        let awaited = Awaited::map(data.fd().as_fd())?;
        let (addresses, config) = (map("POD_ADDRESSES")?.try_into()?, map("UPLINK")?.try_into()?);
        let program = match wish {
            XdpWish::Off => Err("--xdp off".to_owned()),
            XdpWish::Native | XdpWish::Generic | XdpWish::Auto => load(ebpf).map_err(|error| format!("{error:#}")),
        };
        let mut uplinks = Self { wish, program, addresses, known: BTreeMap::new(), config, awaited };
        if let Err(error) = &uplinks.program
            && wish != XdpWish::Off
        {
            tracing::warn!(error, "the program for uplinks cannot be loaded; policies are enforced without it");
        }
        uplinks.put(&pod_addresses(tables.endpoints.values()));
        for (own, pin) in pins.uplinks()? {
            let replaced = own && uplinks.program.as_ref().is_ok_and(|program| replace(&pin, program.as_fd()));
            if !replaced {
                take_off(&pin)?;
            }
        }
        Ok(uplinks)
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wish != XdpWish::Off
    }

    /// Before a change: what it says otherwise about an address goes.
    pub(super) fn withdraw(&mut self, after: &BTreeMap<Address, u32>) {
        let gone: Vec<Address> = self
            .known
            .iter()
            .filter(|(address, ifindex)| after.get(address) != Some(ifindex))
            .map(|(a, _)| *a)
            .collect();
        for address in gone {
            match self.addresses.remove(&Plain(address)) {
                Ok(()) => _ = self.known.remove(&address),
                // The record tells whose it is; tried again with the next change.
                Err(error) => tracing::warn!(%error, "removing an address from POD_ADDRESSES"),
            }
        }
    }

    /// After a change. What is not in there is judged at the pod's interface.
    pub(super) fn put(&mut self, after: &BTreeMap<Address, u32>) {
        if !self.is_wanted() || self.program.is_err() {
            return;
        }
        for (address, ifindex) in after {
            if self.known.contains_key(address) {
                continue;
            }
            match self.addresses.insert(Plain(*address), *ifindex, 0) {
                Ok(()) => _ = self.known.insert(*address, *ifindex),
                Err(error) => tracing::warn!(%error, "putting an address into POD_ADDRESSES"),
            }
        }
    }

    pub(super) fn configure(&mut self, config: UplinkConfig) -> anyhow::Result<()> {
        self.config.set(0, Plain(config), 0).context("UPLINK")
    }

    /// Puts the program on a device, or says that it is there already.
    pub(super) fn attach(&self, pins: &PinDir, ifindex: u32, is_veth: bool) -> Result<XdpMode, XdpRefusal> {
        let failed = |error: anyhow::Error| XdpRefusal::Failed(error);
        let program = self.program.as_ref().map_err(|error| failed(anyhow::anyhow!("{error}")))?;
        let modes = self.wish.modes(is_veth);
        for mode in XdpMode::ALL {
            let pin = pins.uplink(ifindex, mode.name());
            if !pin.exists() {
                continue;
            }
            if modes.contains(&mode) && is_on(&pin, ifindex) && replace(&pin, program.as_fd()) {
                return Ok(mode);
            }
            take_off(&pin).map_err(failed)?;
        }
        let mut last = None;
        for mode in modes {
            match create(program.as_fd(), ifindex, *mode) {
                Ok(link) => {
                    let pin = pins.uplink(ifindex, mode.name());
                    pin_link(&link, &pin).with_context(|| format!("pinning {}", pin.display())).map_err(failed)?;
                    return Ok(*mode);
                }
                // dev_xdp_attach: a program or link in this mode, or in the other one.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                    return Err(XdpRefusal::Foreign);
                }
                Err(error) => {
                    last = Some(anyhow::Error::new(error).context(format!("BPF_LINK_CREATE, {} mode", mode.name())));
                }
            }
        }
        Err(failed(last.unwrap_or_else(|| anyhow::anyhow!("it is off"))))
    }
}

impl Kernel {
    /// Puts the program on a device by which packets come in, or says how it is there.
    ///
    /// # Errors
    ///
    /// Why it is not there.
    pub fn attach_uplink(&mut self, ifindex: u32, is_veth: bool) -> Result<XdpMode, XdpRefusal> {
        self.uplinks.attach(&self.pins, ifindex, is_veth)
    }

    pub fn is_uplink_attached(&self, ifindex: u32) -> bool {
        is_attached(&self.pins, ifindex)
    }

    pub fn detach_uplink(&mut self, ifindex: u32) -> anyhow::Result<()> {
        detach(&self.pins, ifindex)
    }

    /// Devices that have the program on uplinks, whatever has become of them.
    pub fn uplinks(&self) -> anyhow::Result<BTreeSet<u32>> {
        Ok(self.pins.uplinks()?.iter().filter_map(|(_, pin)| super::pins::ifindex_of(pin)).collect())
    }

    /// What the program on uplinks has to know of the node's network.
    pub fn configure_uplinks(&mut self, config: UplinkConfig) -> anyhow::Result<()> {
        self.uplinks.configure(config)
    }

    /// Every pod's program writes down which flows of UDP it lets open, from this second (CLOCK_MONOTONIC) on.
    pub fn begin_awaited(&mut self, second: u32) {
        if self.uplinks.is_wanted() && self.uplinks.awaited.since() == 0 {
            self.uplinks.awaited.set_since(second.max(1));
        }
    }

    /// For tests: what is known of awaited answers is forgotten, and complete since that second.
    #[doc(hidden)]
    pub fn forget_awaited(&mut self, since: u32) {
        self.uplinks.awaited.forget();
        self.uplinks.awaited.set_since(since);
    }

    /// For tests: what is known of awaited answers becomes older.
    #[doc(hidden)]
    pub fn age_awaited(&mut self, seconds: u32) {
        self.uplinks.awaited.age(seconds);
    }

    /// Devices by which the node's routes lead to other machines.
    pub fn devices_to_routers(&self) -> anyhow::Result<BTreeSet<u32>> {
        super::routes::by_routers().context("listing the node's routes")
    }

    /// POD_ADDRESSES as a change will have it.
    pub(super) fn addresses_after(&self, delta: &Delta) -> BTreeMap<Address, u32> {
        if !self.uplinks.is_wanted() {
            return BTreeMap::new();
        }
        let now = &self.installed.tables().endpoints;
        let stay = now.iter().filter(|(ifindex, _)| !delta.endpoints.contains_key(ifindex)).map(|(_, record)| record);
        pod_addresses(stay.chain(delta.endpoints.values().flatten()))
    }
}

/// Links of one device in whichever mode.
fn detach(pins: &PinDir, ifindex: u32) -> anyhow::Result<()> {
    for mode in XdpMode::ALL {
        let pin = pins.uplink(ifindex, mode.name());
        if pin.exists() {
            take_off(&pin)?;
        }
    }
    Ok(())
}

/// Whether the program is on the device by one of our links.
fn is_attached(pins: &PinDir, ifindex: u32) -> bool {
    XdpMode::ALL.iter().any(|mode| is_on(&pins.uplink(ifindex, mode.name()), ifindex))
}

fn is_on(pin: &Path, ifindex: u32) -> bool {
    matches!(pinned::look(pin), Ok(Pinned::Link(_, link)) if link.kind == LINK_XDP && link.ifindex == ifindex)
}

/// Gives a link another program, in one step. `false`: it is none of ours, or its device has gone.
fn replace(pin: &Path, program: BorrowedFd<'_>) -> bool {
    match pinned::look(pin) {
        Ok(Pinned::Link(link, info)) if info.kind == LINK_XDP && info.ifindex != 0 => update(&link, program).is_ok(),
        _ => false,
    }
}

/// Detaches a link and removes its pin.
fn take_off(pin: &Path) -> anyhow::Result<()> {
    link::detach(pin).with_context(|| format!("detaching {}", pin.display()))?;
    super::pins::remove_pin(pin).with_context(|| format!("removing {}", pin.display()))
}

fn load(ebpf: &mut Ebpf) -> anyhow::Result<ProgramFd> {
    let mut program = |name: &str| -> anyhow::Result<ProgramFd> {
        let program: &mut Xdp =
            ebpf.program_mut(name).with_context(|| format!("no program {name} in the object"))?.try_into()?;
        program.load().with_context(|| format!("loading program {name}"))?;
        Ok(program.fd()?.try_clone()?)
    };
    program(UPLINK).or_else(|error| {
        tracing::debug!(error = format!("{error:#}"), "packets in several buffers");
        program(UPLINK_LINEAR)
    })
}

fn create(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let mut attributes = Create {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: BPF_XDP,
        flags: mode.flag(),
    };
    // SAFETY: nothing is pointed to.
    let link = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: BPF_LINK_CREATE has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Of all versions: whether it is ours, and where.
pub(super) fn pinned_uplinks(current: &Path, all: &[PathBuf]) -> anyhow::Result<Vec<(bool, PathBuf)>> {
    let mut found = Vec::new();
    for version in all {
        for pin in super::pins::entries(&version.join(super::pins::EXITS))? {
            if super::pins::is_uplink(&pin) && fs::symlink_metadata(&pin).is_ok() {
                found.push((version == current, pin));
            }
        }
    }
    Ok(found)
}
