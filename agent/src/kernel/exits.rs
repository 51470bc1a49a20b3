//! Programs where marked packets end up: devices by which they leave the node, and the node's own sockets.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::programs::links::{CgroupAttachMode, FdLink, PinnedLink};
use aya::programs::tc::TcAttachType;
use aya::programs::{CgroupSkb, CgroupSkbAttachType};

use super::attach::{AttachMode, attach_one, detach_one, give_up_qdisc, standing_of};
use super::pins::PinDir;
use crate::config::CGROUP_DIR;

use super::{DELIVER, EXIT_LINK, EXIT_RAW, Standing, program_mut};

/// CGROUP2_SUPER_MAGIC, linux/magic.h.
const CGROUP2_MAGIC: i128 = 0x6367_7270;

/// Inode of the hierarchy's root (the first of its kernfs, fs/kernfs/dir.c).
const CGROUP2_ROOT: u64 = 1;

/// Which program a device needs.
pub(super) const fn program_of(has_link_header: bool) -> &'static str {
    if has_link_header { EXIT_LINK } else { EXIT_RAW }
}

pub(super) fn attach(
    ebpf: &mut Ebpf,
    (pins, mode): (&PinDir, AttachMode),
    ifindex: u32,
    interface: &str,
    has_link_header: bool,
) -> anyhow::Result<()> {
    let name = program_of(has_link_header);
    let pin = pins.exit(ifindex, name);
    let place = (name, TcAttachType::Egress);
    attach_one(program_mut(ebpf, name)?, (pins, &pin), mode, ifindex, place)
        .with_context(|| format!("attaching {name} to {interface}"))
}

pub(super) fn standing(
    ebpf: &mut Ebpf,
    mode: AttachMode,
    ifindex: u32,
    has_link_header: bool,
) -> anyhow::Result<Standing> {
    standing_of(ebpf, mode, ifindex, (program_of(has_link_header), TcAttachType::Egress))
}

pub(super) fn detach(pins: &PinDir, mode: AttachMode, ifindex: u32) -> anyhow::Result<()> {
    for name in [EXIT_LINK, EXIT_RAW] {
        detach_one(&pins.exit(ifindex, name), mode, ifindex, (name, TcAttachType::Egress))?;
    }
    if mode == AttachMode::Clsact { give_up_qdisc(pins, ifindex) } else { Ok(()) }
}

/// Puts the program before every socket of the cgroup and those below it. What an earlier agent put there goes when this one is in place.
pub(super) fn attach_deliver(ebpf: &mut Ebpf, pins: &PinDir, cgroup: &Path) -> anyhow::Result<()> {
    let folder = cgroup2(cgroup)?;
    let opened = File::open(&folder).with_context(|| format!("opening {}", folder.display()))?;
    let program: &mut CgroupSkb =
        ebpf.program_mut(DELIVER).with_context(|| format!("no program {DELIVER} in the object"))?.try_into()?;
    // Links may always stand beside others; the kernel takes no flag that says so.
    let id = program
        .attach(opened, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)
        .with_context(|| format!("attaching {DELIVER} to {}", folder.display()))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    let (pin, new) = (pins.deliver(), pins.new_deliver());
    // Of an agent that was killed between the two steps.
    let _ = fs::remove_file(&new);
    let _pinned: PinnedLink = link.pin(&new).with_context(|| format!("pinning {}", new.display()))?;
    fs::rename(&new, &pin).with_context(|| format!("pinning {}", pin.display()))
}

/// The folder itself, or where hosts that still have cgroup v1 as well keep version 2.
fn cgroup2(folder: &Path) -> anyhow::Result<PathBuf> {
    for candidate in [folder.to_owned(), folder.join("unified")] {
        match rustix::fs::statfs(&candidate) {
            Ok(stat) if i128::from(stat.f_type) == CGROUP2_MAGIC => {
                // Who says where it is may mean a part of it.
                if folder == Path::new(CGROUP_DIR) && fs::metadata(&candidate)?.ino() != CGROUP2_ROOT {
                    bail!(
                        "{} is not the root of the cgroup v2 hierarchy, as in a container with a cgroup namespace of its own: mount the host's \
                         and say where with --cgroup",
                        candidate.display()
                    );
                }
                return Ok(candidate);
            }
            _ => {}
        }
    }
    bail!("{} is not a folder of the cgroup v2 hierarchy; say where that is with --cgroup", folder.display())
}
