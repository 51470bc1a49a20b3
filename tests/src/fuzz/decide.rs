//! The decision function over arbitrary tables, changes and frames: it always answers, and keeps what it promises.
//!
//! Each promise is read off the tables anew and without regard to how the decision function goes about it. The same scenes are
//! played before the loaded programs (`tests/tests/fuzz.rs`).

use std::collections::BTreeSet;

use palisade::tables::plan::Installed;
use palisade::tables::sim::{FrameBytes, Sim, bytes_of};
use palisade::tables::{Tables, sim};
use palisade_common::decide::Ruling;
use palisade_common::layout::{
    Address, EndpointRecord, FlowKey, PORTS_ALL, PORTS_NONE, RuleKey, TableRef, endpoint_flag,
};
use palisade_common::parse::{self, Packet, V4, packet_trait as is};
use palisade_common::{Hook, Reason, flow};

use super::scene::{self, Event, FIRST_IFINDEX, Settings, Shot};

pub fn check(input: &[u8]) {
    let Some((settings, events)) = scene::read(input) else { return };
    let mut judge = Judge::new(settings);
    for event in &events {
        let now = judge.sim.now.get();
        match event {
            Event::Tables(tables) => judge.change(tables),
            Event::Wait(time) => judge.sim.now.set(now + time),
            Event::Packet(shot) => {
                let flows = judge.sim.flows();
                let ruling = judge.packet(shot);
                assert!(ruling.passes() || judge.sim.flows() == flows, "refused and yet remembered: {shot:?}");
                judge.promises(shot, ruling);
            }
        }
    }
}

/// The tables in userspace, and what the promises have to know.
pub struct Judge {
    settings: Settings,
    sim: Sim,
    installed: Installed,
    /// Flows in which the node has sent.
    nodes: BTreeSet<FlowKey>,
}

impl Judge {
    pub fn new(settings: Settings) -> Self {
        const RECORDS: u32 = 8;
        let mut sim = Sim::default();
        // A day after the machine's start.
        sim.now.set(24 * 3600 * 1_000_000_000);
        sim.keeps_existing = settings.keeps_existing;
        sim.pressure = settings.pressure;
        sim.midstream_budget = if settings.midstream { u32::MAX } else { 0 };
        if let Some(listens) = settings.listens {
            let ports: BTreeSet<u16> = if listens { BTreeSet::from([80]) } else { BTreeSet::new() };
            sim.listening = [FIRST_IFINDEX, FIRST_IFINDEX + 1].map(|ifindex| (ifindex, ports.clone())).into();
        }
        Self { settings, sim, installed: Installed::new(0, RECORDS), nodes: BTreeSet::new() }
    }

    pub fn change(&mut self, wanted: &Tables) {
        let delta = self.installed.tables().delta_to(wanted);
        let plan = self.installed.plan(&delta).expect("there are fewer endpoints than records");
        for write in &plan.writes {
            self.sim.write(write);
        }
        self.installed.commit(&plan);
    }

    pub fn wait(&mut self, time: u64) {
        self.sim.now.set(self.sim.now.get() + time);
    }

    pub fn packet(&mut self, shot: &Shot) -> Ruling {
        let ruling = self.sim.judge(FrameBytes { bytes: &shot.frame, gso: shot.gso }, shot.meeting);
        if ruling.reason() == Reason::Node {
            self.nodes.insert(flow::key(&shot.packet()).0);
        }
        ruling
    }

    fn promises(&self, shot: &Shot, ruling: Ruling) {
        let (reason, meeting) = (ruling.reason(), shot.meeting);
        let packet = shot.packet();
        let told = || format!("{ruling:?} for {packet:?} at {meeting:?}");
        assert_eq!(ruling.passes(), reason.passes(), "{}", told());
        assert_ne!(reason, Reason::Unsettled, "nothing changed meanwhile: {}", told());
        assert_ne!(reason, Reason::Unremembered, "there was room: {}", told());
        if reason == Reason::Node {
            assert!(meeting.from_node && meeting.hook == Hook::ToPod, "{}", told());
        }
        let Some(record) = self.installed.tables().endpoints.get(&meeting.ifindex) else {
            let allowed = [Reason::Closed, Reason::Node, Reason::Neighbour];
            assert!(allowed.contains(&reason), "an interface without an endpoint: {}", told());
            return;
        };
        self.identity(record, &packet, meeting.hook, reason, &told);
        let closed = record.flags & endpoint_flag::CLOSED != 0;
        if closed && ruling.passes() {
            let allowed = [Reason::Node, Reason::Neighbour, Reason::Reply];
            assert!(allowed.contains(&reason), "a closed endpoint: {}", told());
        }
        let isolated = record.flags & (endpoint_flag::ISOLATED_INGRESS | endpoint_flag::ISOLATED_EGRESS);
        if !closed && isolated == 0 {
            let about_policy = !ruling.passes() && !is_admission(reason);
            assert!(!about_policy, "no policy isolates the pod: {}", told());
        }
        if closed || is_admission(reason) || reason == Reason::NotIsolated || meeting.from_node {
            return;
        }
        self.policy(record, shot, &packet, ruling, &told);
    }

    /// Who a pod says it is, and what it may be told.
    fn identity(
        &self,
        record: &EndpointRecord,
        packet: &Packet,
        hook: Hook,
        reason: Reason,
        told: &dyn Fn() -> String,
    ) {
        let nameless = record.flags & endpoint_flag::CLOSED != 0 && record.v4_count + record.v6_count == 0;
        if record.flags & endpoint_flag::TRUSTED != 0 || nameless || hook == Hook::ToPod || !reason.passes() {
            return;
        }
        let mac = (u32::from_be(record.mac_hi), u32::from(u16::from_be(record.mac_lo as u16)));
        assert_eq!(packet.source_mac, mac, "another's MAC address: {}", told());
        if packet.has(is::IP) && reason != Reason::Neighbour {
            assert!(owns(record, packet.family, &packet.source), "another's address: {}", told());
        }
    }

    /// An isolated pod's packet that nobody but policy decides about.
    fn policy(&self, record: &EndpointRecord, shot: &Shot, packet: &Packet, ruling: Ruling, told: &dyn Fn() -> String) {
        if !packet.has(is::IP) || packet.has(is::MALFORMED) {
            assert!(!ruling.passes(), "no whole packet: {}", told());
            return;
        }
        let hook = shot.meeting.hook;
        if packet.has(is::ICMP_ERROR) {
            let mut quoted = Packet::default();
            parse::quoted(&FrameBytes { bytes: &shot.frame, gso: shot.gso }, packet, &mut quoted);
            if ruling.passes() {
                assert_eq!(quoted.source.words, packet.destination.words, "not to whom it is about: {}", told());
                self.is_covered(record, &quoted, hook.opposite(), told);
            }
            return;
        }
        if packet.has(is::FRAGMENT_LATER) {
            assert!(!ruling.passes() || ruling.reason() == Reason::Fragment, "{}", told());
            return;
        }
        if packet.has(is::OPENING) {
            // Whatever came before, an opening passes where the tables say so now and nowhere else.
            assert_eq!(ruling.passes(), self.admits(record, packet, hook, true), "an opening: {}", told());
        } else if ruling.passes() {
            self.is_covered(record, packet, hook, told);
        }
    }

    /// What passes is admitted by the tables as they are, one way or the other, or has a tuple that the node uses.
    fn is_covered(&self, record: &EndpointRecord, packet: &Packet, hook: Hook, told: &dyn Fn() -> String) {
        if self.settings.keeps_existing || self.nodes.contains(&flow::key(packet).0) {
            return;
        }
        let either = self.admits(record, packet, hook, true) || self.admits(record, packet, hook, false);
        assert!(either, "no rule admits it in any direction: {}", told());
    }

    /// Whether the tables admit the flow of a packet that was opened in the packet's own direction (`forward`), or the other way.
    fn admits(&self, record: &EndpointRecord, packet: &Packet, hook: Hook, forward: bool) -> bool {
        let peer = if hook == Hook::FromPod { &packet.destination } else { &packet.source };
        let port = if forward { packet.destination_port } else { packet.source_port };
        let (flag, table) = if (hook == Hook::FromPod) == forward {
            (endpoint_flag::ISOLATED_EGRESS, record.egress)
        } else {
            (endpoint_flag::ISOLATED_INGRESS, record.ingress)
        };
        if record.flags & flag == 0 {
            return true;
        }
        self.allows(table, packet.family, peer, packet.protocol, port)
    }

    fn allows(&self, table: TableRef, family: u8, peer: &Address, protocol: u8, port: u16) -> bool {
        let tables = self.installed.tables();
        let class = class_of(tables, family, peer);
        let key = RuleKey { table: table.table, class };
        let row = tables.rules.get(&key).copied().unwrap_or(table.default);
        match row.ports {
            PORTS_NONE => false,
            PORTS_ALL => true,
            _ if row.protocol != 0 => row.protocol == protocol && (row.first..=row.last).contains(&port),
            set => tables.ports.keys().any(|(key, length)| {
                let covers = (u16::from_be(key.port_be) ^ port).checked_shr(64 - length).unwrap_or(0) == 0;
                u32::from_be(key.ports_be) == set && key.protocol == protocol && covers
            }),
        }
    }
}

impl Shot {
    pub fn packet(&self) -> Packet {
        let mut packet = Packet::default();
        parse::frame(&sim::FrameBytes { bytes: &self.frame, gso: self.gso }, &mut packet);
        packet
    }
}

/// The pod's own business and its neighbours', whatever policy says.
fn is_admission(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Neighbour
            | Reason::SpoofedMac
            | Reason::SpoofedAddress
            | Reason::SpoofedNeighbour
            | Reason::SpoofedFragment
            | Reason::RouterAdvertisement
            | Reason::Redirect
            | Reason::NotForPod
    )
}

fn owns(record: &EndpointRecord, family: u8, address: &Address) -> bool {
    if family == V4 {
        return record.v4[..record.v4_count as usize].contains(&address.v4_word());
    }
    record.v6[..record.v6_count as usize].contains(address)
}

fn class_of(tables: &Tables, family: u8, peer: &Address) -> u32 {
    let bytes = bytes_of(peer);
    if family == V4 {
        let ip = std::net::Ipv4Addr::from(*bytes.last_chunk().expect("four of sixteen"));
        let covering = tables.cidr_v4.iter().filter(|(net, _)| net.contains(&ip));
        let block = covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, class)| *class);
        return tables.exact_v4.get(&peer.v4_word()).copied().or(block).unwrap_or(0);
    }
    let ip = std::net::Ipv6Addr::from(bytes);
    let covering = tables.cidr_v6.iter().filter(|(net, _)| net.contains(&ip));
    let block = covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, class)| *class);
    tables.exact_v6.get(peer).copied().or(block).unwrap_or(0)
}
