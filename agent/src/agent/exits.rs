//! Devices by which packets leave the node, and its sockets: whether Service traffic can be judged wherever it may end up.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::Agent;
use super::attachments::Attachments;
use super::retry::Retry;
use crate::facts::Device;
use crate::kernel::Standing;

/// What stands between a pod's Service traffic and where it may end up.
#[derive(Debug, Default)]
pub(super) struct Exits {
    /// The devices there are; `None`: not told yet.
    devices: Option<BTreeMap<u32, Device>>,
    pub(super) attachments: Attachments,
    deliver: Deliver,
}

/// The program before the node's sockets.
#[derive(Debug, Default)]
enum Deliver {
    #[default]
    Untried,
    Attached,
    Failed(Retry, String),
}

// === impl Exits ===

impl Exits {
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let deliver = match &self.deliver {
            Deliver::Failed(retry, _) => Some(retry.at),
            Deliver::Untried | Deliver::Attached => None,
        };
        self.attachments.retry_at().into_iter().chain(deliver).min()
    }

    pub(super) fn has(&self, ifindex: u32) -> bool {
        self.devices.as_ref().is_some_and(|devices| devices.contains_key(&ifindex))
    }

    pub(super) fn name(&self, ifindex: u32) -> Option<&str> {
        self.devices.as_ref()?.get(&ifindex).map(|device| &*device.name)
    }

    /// Names of the devices that have their program.
    pub(super) fn judged(&self) -> Vec<String> {
        let all = self.devices.iter().flat_map(BTreeMap::values);
        all.filter(|device| self.attachments.has(device.ifindex)).map(|device| device.name.to_string()).collect()
    }

    /// Where Service traffic could end up without being judged.
    pub(super) fn missing(&self) -> Vec<String> {
        let Some(devices) = &self.devices else { return vec!["the node's devices are not known yet".to_owned()] };
        let failed = self.attachments.failed();
        let mut missing: Vec<String> = devices
            .values()
            .filter(|device| device.up && !self.attachments.has(device.ifindex))
            .map(|Device { name, ifindex, .. }| match failed.get(ifindex) {
                Some(failed) => format!("{name} lacks its program: {}", failed.error),
                None => format!("{name} lacks its program"),
            })
            .collect();
        match &self.deliver {
            Deliver::Attached => {}
            Deliver::Untried => missing.push("the node's sockets lack their program".to_owned()),
            Deliver::Failed(_, error) => missing.push(format!("the node's sockets lack their program: {error}")),
        }
        missing
    }
}

impl Agent {
    pub(super) fn take_devices(&mut self, devices: Vec<Device>) {
        let devices: BTreeMap<u32, Device> = devices.into_iter().map(|device| (device.ifindex, device)).collect();
        let before = self.exits.devices.replace(devices).unwrap_or_default();
        for (ifindex, device) in before {
            if !self.exits.has(ifindex) && self.exits.attachments.forget(ifindex).is_some() {
                // It has gone, or is a pod's by now, which has programs of its own.
                self.detach_exit(ifindex, &device.name);
            }
        }
        if self.judges_exits() {
            self.attach_exits();
        }
    }

    /// Our programs judge by tables that hold: those of the first complete list, or an earlier agent's, whose programs are replaced at once.
    /// Where that one was of another version, its programs stay until the list, and are not told of by our tables.
    fn judges_exits(&self) -> bool {
        self.synced || self.succeeded && (!self.kernel.has_predecessors() || self.kernel.resumes())
    }

    fn detach_exit(&mut self, ifindex: u32, name: &str) {
        if let Err(error) = self.kernel.detach_exit(ifindex) {
            tracing::warn!(interface = name, error = format!("{error:#}"), "taking a program off");
        }
    }

    /// Attaches what is not attached, and has Service traffic refused while something that matters is not.
    pub(super) fn attach_exits(&mut self) {
        let missing = |exits: &Exits, device: &Device| {
            !exits.attachments.has(device.ifindex) && !exits.attachments.failed().contains_key(&device.ifindex)
        };
        let all = self.exits.devices.iter().flat_map(BTreeMap::values);
        let new: Vec<Device> = all.filter(|device| missing(&self.exits, device)).cloned().collect();
        // What an earlier agent attached judges until it is replaced.
        let pinned = self.kernel.exits().unwrap_or_default();
        // A veth that is new is most often a pod's, which is not known yet, and nothing is sent by it before it has a bridge or an address.
        if new.iter().any(|device| device.up && !device.is_veth && !pinned.contains(&device.ifindex)) {
            self.tell_exits();
        }
        for device in &new {
            self.attach_exit(device);
        }
        if matches!(self.exits.deliver, Deliver::Untried) {
            self.attach_deliver();
        }
        self.exits.attachments.schedule(Instant::now());
        self.tell_exits();
    }

    fn attach_exit(&mut self, device: &Device) {
        let result = self.kernel.attach_exit(device.ifindex, &device.name, device.has_link_header);
        self.exits.attachments.tried(device.ifindex, device.name.clone(), result);
    }

    fn attach_deliver(&mut self) {
        self.exits.deliver = match self.kernel.attach_deliver(&self.cgroup) {
            Ok(()) => Deliver::Attached,
            Err(error) => {
                let last = match self.exits.deliver {
                    Deliver::Failed(retry, _) => Some(retry),
                    Deliver::Untried | Deliver::Attached => None,
                };
                Deliver::Failed(Retry::after(last, Instant::now()), format!("{error:#}"))
            }
        };
    }

    fn tell_exits(&mut self) {
        let missing = !self.exits.missing().is_empty();
        if let Err(error) = self.kernel.set_exits_missing(missing) {
            tracing::error!(error = format!("{error:#}"), "telling the programs whether Service traffic can be judged");
        }
    }

    /// Tries again what failed.
    pub(super) fn retry_exits(&mut self, now: Instant) {
        if self.exits.attachments.retry_at().is_some_and(|at| at <= now) {
            let failed: Vec<u32> = self.exits.attachments.failed().keys().copied().collect();
            let devices = self.exits.devices.iter().flat_map(BTreeMap::values);
            for device in devices.filter(|device| failed.contains(&device.ifindex)).cloned().collect::<Vec<_>>() {
                self.attach_exit(&device);
            }
        }
        if matches!(&self.exits.deliver, Deliver::Failed(retry, _) if retry.at <= now) {
            self.attach_deliver();
        }
        self.exits.attachments.schedule(now);
        self.tell_exits();
    }

    /// Puts programs back that somebody took off a device.
    pub(super) fn verify_exits(&mut self) {
        let devices: Vec<Device> = self.exits.devices.iter().flat_map(BTreeMap::values).cloned().collect();
        for device in devices.iter().filter(|device| self.exits.attachments.has(device.ifindex)).collect::<Vec<_>>() {
            match self.kernel.exit_standing(device.ifindex, device.has_link_header) {
                Ok(Standing::First) => self.exits.attachments.found_behind(device.ifindex, None),
                Ok(Standing::Behind(program)) => self.exits.attachments.found_behind(device.ifindex, Some(program)),
                Ok(Standing::Missing) => {
                    tracing::warn!(interface = %device.name, "somebody took a program off the device; attached again");
                    self.attach_exit(device);
                }
                // Most likely the device is about to go.
                Err(error) => {
                    let name: &Arc<str> = &device.name;
                    tracing::debug!(interface = %name, error = format!("{error:#}"), "looking at the programs")
                }
            }
        }
        self.exits.attachments.schedule(Instant::now());
        if self.judges_exits() {
            self.tell_exits();
        }
        // Another's program may have gone, and routes may have changed.
        self.look_at_uplinks();
    }

    /// Sweeps what an earlier agent left on devices that have gone.
    pub(super) fn sweep_exits(&mut self) {
        match self.kernel.exits() {
            Ok(pinned) => {
                for ifindex in pinned.into_iter().filter(|ifindex| !self.exits.has(*ifindex)).collect::<Vec<_>>() {
                    self.detach_exit(ifindex, "");
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "reading pinned links"),
        }
    }
}
