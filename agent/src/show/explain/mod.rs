//! `palisade explain`: the decision function's own answers over the loaded maps, at every hook of this node that the packet passes.

mod change;
mod parties;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, bail};
use palisade_common::Reason;
use palisade_common::decide::Tables as _;
use palisade_common::layout::PauseKey;
use serde::Serialize;

use super::page::{print, show};
use super::rows::row_text;
use crate::cni::client;
use crate::cni::protocol::Request;
use crate::cni::socket_path;
use crate::compile::Catalog;
use crate::config::{ExplainFlags, FindFlags};
use crate::exit::Exit;
use crate::explain::names::Reference;
use crate::explain::port::port_text;
use crate::explain::trace::{Asked, ClassFrom};
use crate::explain::way::{Flow, Hop, Seat, Stage, is_allowed, is_settled, record_of, way};
use crate::kernel::{Live, Maps};
use crate::observe;
use crate::observe::events::address_text;
use crate::pause::{now, wall_clock};
use parties::{Directory, Party, Target};

/// How often it is asked again, as the tables have changed meanwhile.
const ATTEMPTS: usize = 100;

/// Field names are part of the output of `-o json`.
#[derive(Debug, Serialize)]
struct Explained {
    /// `allowed` if every way is, as far as this node knows; else `refused`.
    verdict: &'static str,
    source: String,
    destination: String,
    /// One for each address and port that is meant.
    ways: Vec<Way>,
}

#[derive(Debug, Serialize)]
struct Way {
    verdict: &'static str,
    source: End,
    /// What the packet is addressed to.
    destination: End,
    /// Who is reached by a Service's address; none: the destination, or nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<End>,
    /// `tcp/80`, or the protocol alone.
    port: String,
    hooks: Vec<Hook>,
    /// What others than this node decide, or what is not known.
    open_questions: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct End {
    /// `namespace/name` of the pod or Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    address: IpAddr,
    /// 0: the protocol has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Hook {
    /// `from-pod`, `to-pod`, `exit` or `process`.
    hook: &'static str,
    /// `namespace/name`, where it is a pod's hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    /// The packet comes that far. What it would be told is said anyway.
    reached: bool,
    verdict: &'static str,
    /// One of the names that logs and metrics use.
    reason: &'static str,
    meaning: &'static str,
    /// `palisade pause` lets pass what would be refused, until then (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_until: Option<String>,
    /// Devices where the hook `xdp` refuses it already, for want of the same rule (of UDP only what cannot be an answer).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    xdp: Vec<String>,
    asked: Vec<Question>,
    /// What would have to be otherwise for the packet to pass.
    change: Vec<String>,
}

/// A question to a decision table, and what was found there.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Question {
    direction: &'static str,
    /// Whose policies: `namespace/name`.
    pod: String,
    table: u32,
    /// `namespace/name`.
    policies: Vec<String>,
    peer: String,
    class: Option<u32>,
    /// What the class stands for.
    class_means: Option<String>,
    /// `CLASS_EXACT`, `CLASS_CIDR`, or neither knows the address.
    class_found: Option<&'static str>,
    /// What the class may use.
    row: Option<String>,
    /// RULES has a row for the class; else it is what everybody may use.
    own_row: bool,
    allowed: bool,
    rule: Option<RuleShown>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RuleShown {
    number: u32,
    policy: String,
    direction: String,
    /// Place in spec.ingress or spec.egress, from 0.
    index: usize,
}

/// # Errors
///
/// When there is no agent's state to read, or neither end is known here.
pub fn explain(flags: &ExplainFlags) -> anyhow::Result<Exit> {
    let pin_dir = &flags.show.pin_dir;
    let maps = Maps::open_pinned(pin_dir)?;
    let catalog = observe::read_catalog(pin_dir)?;
    let reference = |text: &str| Reference::parse(text, &flags.namespace).map_err(anyhow::Error::msg);
    let (from, to) = (reference(&flags.source)?, reference(&flags.destination)?);
    let directory = Directory::new(pin_dir, &catalog);
    let (sources, targets) = (directory.sources(&from)?, directory.targets(&to, flags.port.as_ref())?);
    let pairs = pairs(&sources, &targets);
    if pairs.is_empty() {
        bail!("{from} and {to} have no addresses of the same family");
    }
    let here = |party: &Party| matches!(party.seat, Seat::Pod(_));
    if !pairs.iter().any(|(source, target)| here(source) || target.reached.iter().any(|(party, _)| here(party))) {
        let nodes = pairs.iter().flat_map(|(source, target)| {
            source.other_node.iter().chain(target.reached.iter().flat_map(|(party, _)| &party.other_node))
        });
        let nodes: std::collections::BTreeSet<&str> = nodes.map(String::as_str).collect();
        let where_else = match nodes.is_empty() {
            true => String::new(),
            false => format!("; ask on {}", Vec::from_iter(nodes).join(" or ")),
        };
        bail!(
            "neither {from} nor {to} is a pod of this node ({}), so nothing is decided here{where_else}",
            catalog.agent.node
        );
    }
    let teller = Teller { maps: &maps, catalog: &catalog, pauses: maps.pauses()? };
    let ways = teller.ways(&pairs)?;
    let allowed = ways.iter().all(|way| way.verdict == "allowed");
    let explained = Explained {
        verdict: verdict(allowed),
        source: flags.source.clone(),
        destination: flags.destination.clone(),
        ways,
    };
    show(flags.show.output, &explained, |page| text::tell(page, &explained))?;
    Ok(if allowed { Exit::Done } else { Exit::No })
}

/// What the agent knows of somebody, as JSON.
///
/// # Errors
///
/// When the name makes no sense, or no agent answers.
pub fn find(flags: &FindFlags) -> anyhow::Result<()> {
    let what = Reference::parse(&flags.who, &flags.namespace).map_err(anyhow::Error::msg)?;
    match client::fetch(&socket_path(&flags.pin_dir), &Request::Find { what }).context("no agent answers")? {
        Ok(known) => print(&format!("{known}\n")),
        Err(refusal) => bail!("the agent does not say: {}", refusal.message),
    }
}

const fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "refused" }
}

/// Of the same family, and not somebody with himself (that does not leave the pod), unless by way of a Service.
fn pairs<'a>(sources: &'a [Party], targets: &'a [Target]) -> Vec<(&'a Party, &'a Target)> {
    let all = sources.iter().flat_map(|source| targets.iter().map(move |target| (source, target)));
    let meet = |(source, target): &(&Party, &Target)| {
        source.address.is_ipv4() == target.addressed.0.is_ipv4() && source.address != target.addressed.0
    };
    all.filter(meet).collect()
}

/// Puts names to what was answered.
struct Teller<'a> {
    maps: &'a Maps,
    catalog: &'a Catalog,
    pauses: BTreeMap<PauseKey, u64>,
}

impl Teller<'_> {
    /// All of one epoch.
    fn ways(&self, pairs: &[(&Party, &Target)]) -> anyhow::Result<Vec<Way>> {
        for _ in 0..ATTEMPTS {
            let live = self.maps.live()?;
            let epoch = live.epoch();
            let mut settled = true;
            let ways = pairs.iter().map(|(source, target)| {
                let flow = flow(source, target);
                let hops = way(&live, &flow);
                settled &= is_settled(&hops);
                self.way(&live, source, target, &flow, &hops)
            });
            let ways: anyhow::Result<Vec<Way>> = ways.collect();
            live.check()?;
            if settled && live.epoch() == epoch {
                return ways;
            }
        }
        bail!("the tables change all the time; nothing that holds can be said")
    }

    fn way(&self, live: &Live<'_>, source: &Party, target: &Target, flow: &Flow, hops: &[Hop]) -> anyhow::Result<Way> {
        let hooks = hops.iter().map(|hop| self.hook(live, hop, flow)).collect::<anyhow::Result<Vec<Hook>>>()?;
        let passes = hooks.iter().all(|hook| hook.verdict == "passes");
        let has_port = port_text(target.protocol, 1).ends_with("/1");
        let end = |name: Option<String>, (address, port): (IpAddr, u16)| End {
            name,
            address,
            port: has_port.then_some(port),
        };
        let backend = target.reached.as_ref().filter(|_| target.service.is_some());
        let destination_name = match &target.service {
            Some(service) => Some(format!("svc/{service}")),
            None => target.reached.as_ref().and_then(|(party, _)| party.name.clone()),
        };
        debug_assert!(is_allowed(hops) <= passes, "a pause only lets more pass");
        Ok(Way {
            verdict: verdict(passes),
            source: End { name: source.name.clone(), address: source.address, port: None },
            destination: end(destination_name, target.addressed),
            backend: backend.map(|(party, port)| end(party.name.clone(), (party.address, *port))),
            port: port_text(target.protocol, target.addressed.1),
            hooks,
            open_questions: open_questions(source, target),
        })
    }

    fn hook(&self, live: &Live<'_>, hop: &Hop, flow: &Flow) -> anyhow::Result<Hook> {
        let entry =
            hop.ifindex.and_then(|ifindex| self.catalog.endpoints.iter().find(|entry| entry.ifindex == ifindex));
        let asked: Vec<Question> =
            hop.asked.iter().map(|asked| self.question(live, asked)).collect::<Result<_, _>>()?;
        let paused_until = if hop.passes() { None } else { self.paused_until(live, hop, flow) };
        let reason = if paused_until.is_some() { Reason::Paused } else { hop.ruling.reason() };
        let change = if hop.passes() { Vec::new() } else { change::changes(live, self.catalog, hop, &asked)? };
        Ok(Hook {
            hook: match hop.stage {
                Stage::FromPod => "from-pod",
                Stage::ToPod => "to-pod",
                Stage::Exit => "exit",
                Stage::Process => "process",
            },
            pod: hop.ifindex.map(|ifindex| self.pod_name(ifindex)),
            interface: entry.map(|entry| entry.interface.clone()),
            reached: hop.reached,
            verdict: if reason.passes() { "passes" } else { "refused" },
            reason: reason.name(),
            meaning: match (hop.stage, reason) {
                (Stage::FromPod, Reason::Allowed) if asked.is_empty() => "no policy isolates the pod for egress",
                (Stage::ToPod, Reason::Allowed) if asked.is_empty() => "no policy isolates the pod for ingress",
                _ => reason.text(),
            },
            paused_until,
            xdp: self.refused_early(hop, reason, flow),
            asked,
            change,
        })
    }

    fn question(&self, live: &Live<'_>, asked: &Asked) -> anyhow::Result<Question> {
        let class_means = asked.class.and_then(|class| self.catalog.classes.get(&class));
        let found = |found| match found {
            ClassFrom::Exact => Some("CLASS_EXACT"),
            ClassFrom::Cidr => Some("CLASS_CIDR"),
            ClassFrom::Nowhere => None,
        };
        let table = self.catalog.tables.get(&asked.table);
        let rule = asked.rule.map(|number| match self.catalog.rules.get(&number) {
            Some(rule) => {
                let (policy, direction) = (rule.policy.clone(), rule.direction.clone());
                RuleShown { number, policy, direction, index: rule.index }
            }
            None => RuleShown { number, policy: String::new(), direction: String::new(), index: 0 },
        });
        Ok(Question {
            direction: if asked.ingress { "ingress" } else { "egress" },
            pod: self.pod_name(asked.ifindex),
            table: asked.table,
            policies: table.map(|table| table.policies.clone()).unwrap_or_default(),
            peer: address_text(asked.family, &asked.peer),
            class: asked.class,
            class_means: class_means.map(|entry| entry.description.clone()),
            class_found: asked.class.and_then(|_| found(asked.found)),
            row: asked.row.map(|row| row_text(live, &row)).transpose()?,
            own_row: asked.own_row,
            allowed: asked.allowed,
            rule,
        })
    }

    /// Where it comes in, if it comes in.
    fn refused_early(&self, hop: &Hop, reason: Reason, flow: &Flow) -> Vec<String> {
        let comes_in = hop.stage == Stage::ToPod && flow.from == Seat::Elsewhere;
        if !comes_in || reason != Reason::NoRule {
            return Vec::new();
        }
        let devices = self.catalog.agent.xdp.iter().flatten();
        devices.filter(|entry| entry.mode.is_some()).map(|entry| entry.device.clone()).collect()
    }

    /// On whose account the packet is refused, and until when that is paused.
    fn paused_until(&self, live: &Live<'_>, hop: &Hop, flow: &Flow) -> Option<String> {
        let sender = if let Seat::Pod(ifindex) = flow.from { Some(ifindex) } else { None };
        let ifindex = if hop.ruling.stamp() != 0 { sender } else { hop.ifindex }?;
        let generation = record_of(live, ifindex).map_or(0, |record| record.generation);
        let keys = [PauseKey { ifindex, generation }, PauseKey::NODE];
        let until = keys.iter().filter_map(|key| self.pauses.get(key)).max().copied()?;
        (until > now()).then(|| wall_clock(until).0)
    }

    fn pod_name(&self, ifindex: u32) -> String {
        let entry = self.catalog.endpoints.iter().find(|entry| entry.ifindex == ifindex);
        entry.and_then(crate::pause::name_of).unwrap_or_else(|| format!("interface {ifindex}"))
    }
}

fn flow(source: &Party, target: &Target) -> Flow {
    let (to, reached) = match &target.reached {
        Some((party, port)) => (party.seat, (party.address, *port)),
        None => (Seat::Elsewhere, target.addressed),
    };
    let (from, source) = (source.seat, source.address);
    Flow { from, source, addressed: target.addressed, to, reached, protocol: target.protocol }
}

/// What is not this node's to decide.
fn open_questions(source: &Party, target: &Target) -> Vec<String> {
    let mut open = Vec::new();
    if let Some(node) = &source.other_node {
        let name = source.name.as_deref().unwrap_or("the source");
        open.push(format!("the egress policies of {name} are known on its own node: ask there ({node})"));
    }
    match &target.reached {
        Some((Party { other_node: Some(node), name, .. }, _)) => {
            let name = name.as_deref().unwrap_or("the destination");
            open.push(format!("the ingress policies of {name} are known on its own node: ask there ({node})"));
        }
        Some(_) => {}
        None => {
            let service = target.service.as_deref().unwrap_or("the Service");
            open.push(format!(
                "no pod is known to stand behind {service}; whoever is reached is judged where the packet ends up"
            ));
        }
    }
    open
}
