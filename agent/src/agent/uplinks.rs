//! Devices by which packets come in: which of them have the XDP program, and what it knows of the node's network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use palisade_common::layout::{Address, TunnelEnd, UplinkConfig};

use super::{Agent, second};
use crate::compile::XdpEntry;
use crate::facts::Device;
use crate::kernel::{XdpMode, XdpRefusal, XdpWish};
use crate::tables::{address_v4, address_v6};

/// Flannel's own devices begin so.
const OVERLAY: &str = "flannel";

#[derive(Debug, Default)]
pub(super) struct Uplinks {
    wish: XdpWish,
    /// `--xdp-devices`.
    names: Vec<String>,
    devices: BTreeMap<u32, Device>,
    gateways: BTreeSet<IpAddr>,
    told: UplinkConfig,
    /// How the program is on each device, or why it is not.
    standing: BTreeMap<u32, (Arc<str>, Result<XdpMode, String>)>,
    /// What the routes would say cannot be asked.
    trouble: Option<String>,
}

impl Uplinks {
    pub(super) fn new(wish: XdpWish, names: &[String]) -> Self {
        Self { wish, names: names.to_vec(), ..Self::default() }
    }

    fn is_wanted(&self) -> bool {
        self.wish != XdpWish::Off
    }

    /// How many devices have the program in this mode (`None`: should have it and have not).
    pub(super) fn count(&self, mode: Option<XdpMode>) -> usize {
        self.standing.values().filter(|(_, standing)| standing.as_ref().ok().copied() == mode).count()
    }

    pub(super) fn entries(&self) -> Option<Vec<XdpEntry>> {
        let entry = |(name, standing): &(Arc<str>, Result<XdpMode, String>)| XdpEntry {
            device: name.to_string(),
            mode: standing.as_ref().ok().map(|mode| mode.name().to_owned()),
            trouble: standing.as_ref().err().cloned(),
        };
        self.is_wanted().then(|| self.standing.values().map(entry).collect())
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let without = "what it would refuse is refused at the pods' interfaces, at more cost";
        let missing = self.standing.values().filter_map(|(name, standing)| Some((name, standing.as_ref().err()?)));
        let missing = missing.map(|(name, error)| format!("the XDP program is not on {name}: {error}; {without}"));
        let nowhere = self.is_wanted() && self.standing.is_empty() && !self.devices.is_empty();
        let nowhere =
            nowhere.then(|| format!("--xdp: no device is an uplink, name them with --xdp-devices; {without}"));
        missing.chain(nowhere).chain(self.trouble.clone()).collect()
    }

    /// The tunnels' ends and the source that is masqueraded with.
    fn config(&self) -> UplinkConfig {
        let mut config = UplinkConfig::default();
        for (name, vxlan) in self.devices.values().filter_map(|device| Some((&device.name, device.vxlan?))) {
            let Some(local) = vxlan.local.filter(|_| name.starts_with(OVERLAY)) else { continue };
            let (part, address) = placed(local);
            config.tunnels[part] = TunnelEnd { address, vni: vxlan.vni, port: vxlan.port, pad: 0 };
        }
        for gateway in &self.gateways {
            let (part, address) = placed(*gateway);
            if config.masquerade[part] != Address::ZERO {
                config.unsure[part] = 1;
            }
            config.masquerade[part] = address;
        }
        config
    }

    /// Those that should have the program, of `routed` ones where none are named.
    fn wanted(&self, routed: &BTreeSet<u32>) -> Vec<Device> {
        let is_wanted = |device: &&Device| match &self.names[..] {
            [] => device.is_wire && routed.contains(&device.ifindex),
            names => device.has_link_header && names.iter().any(|name| matches(name, &device.name)),
        };
        self.devices.values().filter(|device| device.up).filter(is_wanted).cloned().collect()
    }
}

/// Index of the address's family, and the address.
fn placed(address: IpAddr) -> (usize, Address) {
    match address {
        IpAddr::V4(address) => (0, Address::v4(address_v4(address))),
        IpAddr::V6(address) => (1, address_v6(address)),
    }
}

/// `*` stands for any letters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| matches(after, rest)))),
    }
}

impl Agent {
    pub(super) fn take_uplink_devices(&mut self, devices: &[Device]) {
        self.uplinks.devices = devices.iter().map(|device| (device.ifindex, device.clone())).collect();
        self.look_at_uplinks();
    }

    pub(super) fn take_gateways(&mut self, gateways: BTreeSet<IpAddr>) {
        self.uplinks.gateways = gateways;
        self.look_at_uplinks();
    }

    /// Puts the program where it should be and takes it off elsewhere. What fails is tried again the next time.
    pub(super) fn look_at_uplinks(&mut self) {
        if !self.uplinks.is_wanted() {
            return;
        }
        self.tell_uplinks();
        let named = !self.uplinks.names.is_empty();
        let routed = if named { Ok(BTreeSet::new()) } else { self.kernel.devices_to_routers() };
        self.uplinks.trouble = None;
        let routed = routed.unwrap_or_else(|error| {
            self.uplinks.trouble = Some(format!("{error:#}"));
            BTreeSet::new()
        });
        if self.uplinks.trouble.is_some() {
            return;
        }
        let wanted = self.uplinks.wanted(&routed);
        let all: BTreeSet<u32> = wanted.iter().map(|device| device.ifindex).collect();
        let pinned = self.kernel.uplinks().unwrap_or_default();
        for ifindex in pinned.into_iter().filter(|ifindex| !all.contains(ifindex)).collect::<Vec<_>>() {
            if let Err(error) = self.kernel.detach_uplink(ifindex) {
                tracing::warn!(ifindex, error = format!("{error:#}"), "taking the XDP program off a device");
            }
        }
        self.uplinks.standing.retain(|ifindex, _| all.contains(ifindex));
        for device in wanted {
            self.look_at_uplink(&device);
        }
        self.catalog_is_old = true;
        let modes = [Some(XdpMode::Native), Some(XdpMode::Generic), None];
        self.signals.metrics.set_xdp_devices(modes.map(|mode| (mode, self.uplinks.count(mode))));
    }

    fn look_at_uplink(&mut self, device: &Device) {
        let Device { ifindex, name, .. } = device;
        let known = matches!(self.uplinks.standing.get(ifindex), Some((_, Ok(_))));
        if known && self.kernel.is_uplink_attached(*ifindex) {
            return;
        }
        let standing = match self.kernel.attach_uplink(*ifindex, device.is_veth) {
            Ok(mode) => {
                tracing::info!(interface = %name, mode = mode.name(), "the XDP program is on the device");
                Ok(mode)
            }
            Err(XdpRefusal::Foreign) => Err("another XDP program is there, and is left alone".to_owned()),
            Err(XdpRefusal::Failed(error)) => Err(format!("{error:#}")),
        };
        self.uplinks.standing.insert(*ifindex, (name.clone(), standing));
    }

    fn tell_uplinks(&mut self) {
        let config = self.uplinks.config();
        if config == self.uplinks.told {
            return;
        }
        match self.kernel.configure_uplinks(config) {
            Ok(()) => self.uplinks.told = config,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "telling the XDP program of the node's network"),
        }
    }

    /// Every pod's program is ours from now on.
    pub(super) fn begin_awaited(&mut self) {
        self.kernel.begin_awaited(second());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Vxlan;

    fn device(ifindex: u32, name: &str) -> Device {
        Device {
            ifindex,
            name: name.into(),
            up: true,
            has_link_header: true,
            is_veth: false,
            is_wire: true,
            vxlan: None,
        }
    }

    fn uplinks(names: &[&str]) -> Uplinks {
        let mut uplinks = Uplinks::new(XdpWish::Auto, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let veth = Device { is_veth: true, is_wire: false, ..device(4, "veth1") };
        let local = Some([172, 30, 0, 11].into());
        let overlay =
            Device { is_wire: false, vxlan: Some(Vxlan { local, vni: 1, port: 8472 }), ..device(5, "flannel.1") };
        let down = Device { up: false, ..device(6, "eth2") };
        for device in [device(2, "eth0"), device(3, "eth1"), veth, overlay, down] {
            uplinks.devices.insert(device.ifindex, device);
        }
        uplinks
    }

    fn names(devices: Vec<Device>) -> Vec<String> {
        devices.into_iter().map(|device| device.name.to_string()).collect()
    }

    #[test]
    fn what_routes_lead_by_unless_devices_are_named() {
        let routed = BTreeSet::from([2, 4, 5, 6]);
        assert_eq!(names(uplinks(&[]).wanted(&routed)), ["eth0"]);
        assert_eq!(names(uplinks(&["eth*"]).wanted(&routed)), ["eth0", "eth1"]);
        assert_eq!(names(uplinks(&["veth1", "eth1", "eth9"]).wanted(&routed)), ["eth1", "veth1"]);
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("e*s*0", "enp1s0f0", true),
            ("e*s*1", "enp1s0f0", false),
            ("*", "x", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn tunnels_and_what_masquerades() {
        let mut uplinks = uplinks(&[]);
        uplinks.gateways = BTreeSet::from([[10, 244, 1, 1].into()]);
        let config = uplinks.config();
        let (part, address) = placed([172, 30, 0, 11].into());
        assert_eq!(config.tunnels[part], TunnelEnd { address, vni: 1, port: 8472, pad: 0 });
        assert_eq!(config.tunnels[1], TunnelEnd::default());
        assert_eq!((config.masquerade[0], config.unsure), (placed([10, 244, 1, 1].into()).1, [0, 0]));
        uplinks.gateways.insert([10, 244, 1, 2].into());
        assert_eq!(uplinks.config().unsure, [1, 0]);
    }

    #[test]
    fn it_is_told_where_the_program_is_not() {
        let mut uplinks = uplinks(&[]);
        assert!(uplinks.faults()[0].contains("no device is an uplink"), "{:?}", uplinks.faults());
        uplinks.standing.insert(2, ("eth0".into(), Ok(XdpMode::Native)));
        assert!(uplinks.faults().is_empty());
        uplinks.standing.insert(3, ("eth1".into(), Err("another XDP program is there".to_owned())));
        assert!(uplinks.faults()[0].contains("not on eth1: another XDP program"), "{:?}", uplinks.faults());
        assert_eq!(uplinks.count(Some(XdpMode::Native)), 1);
        assert_eq!((uplinks.count(Some(XdpMode::Generic)), uplinks.count(None)), (0, 1));
        assert_eq!(Uplinks::default().entries(), None);
    }
}
