//! `palisade status`.

use palisade_common::layout::FlowStats;
use serde::Serialize;

use super::endpoints::{Row, rows, tell_faults};
use super::page::show;
use crate::compile::{AgentEntry, Catalog, FaultEntry, XdpEntry};
use crate::config::ShowFlags;
use crate::kernel::{self, Maps};
use crate::observe;
use crate::pause::{Paused, paused};

/// Field names are part of the output of `-o json`.
#[derive(Debug, Serialize)]
struct Status {
    /// `running` or `not running`.
    agent: &'static str,
    #[serde(flatten)]
    entry: AgentEntry,
    /// The kernel refuses pods with an egress policy what they send to Services.
    service_traffic_refused: bool,
    /// Flows to Services that were answered, and flows judged where they ended up: more of the former mean that marks get lost.
    service_flows_answered: u64,
    service_flows_judged: u64,
    pods: Pods,
    /// On whose account nothing is refused, by `palisade pause`.
    paused: Vec<Paused>,
    faults: Vec<FaultEntry>,
}

/// How many of the node's pods, by what the kernel does with them.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Pods {
    isolated: usize,
    open: usize,
    /// Not known yet, or not to be enforced: nothing passes but between the pod and its node.
    closed: usize,
    /// Without programs: not enforced.
    not_attached: usize,
}

/// # Errors
///
/// When there is no agent's state to read.
pub fn status(flags: &ShowFlags) -> anyhow::Result<()> {
    let maps = Maps::open_pinned(&flags.pin_dir)?;
    let snapshot = maps.snapshot(false)?;
    let runs = kernel::is_in_use(&flags.pin_dir)?;
    let catalog = observe::read_catalog(&flags.pin_dir)?;
    let paused = paused(&maps.pauses()?, &snapshot.found, &catalog);
    let Catalog { agent, endpoints, tables, faults, .. } = catalog;
    let FlowStats { service_answered, service_judged, .. } = snapshot.flow_stats;
    let status = Status {
        agent: if runs { "running" } else { "not running" },
        entry: agent,
        service_traffic_refused: snapshot.config.exits_missing != 0,
        service_flows_answered: service_answered,
        service_flows_judged: service_judged,
        pods: Pods::of(&rows(endpoints, &snapshot.found, &tables)),
        paused,
        faults,
    };
    show(flags.output, &status, |page| {
        status.lines().into_iter().for_each(|line| page.line(line));
        tell_faults(page, &status.faults);
    })
}

impl Pods {
    fn of(rows: &[Row]) -> Self {
        let mut pods = Self::default();
        for Row { entry, state, .. } in rows {
            let count = match *state {
                "not attached" => &mut pods.not_attached,
                "enforced" if entry.isolated_ingress || entry.isolated_egress => &mut pods.isolated,
                "enforced" => &mut pods.open,
                _ => &mut pods.closed,
            };
            *count += 1;
        }
        pods
    }
}

impl Status {
    fn lines(&self) -> Vec<String> {
        let AgentEntry { node, version, not_ready, exits, exits_missing, cni, stale, xdp, .. } = &self.entry;
        let running = self.agent == "running";
        let agent = match running {
            true => format!("running, {version}"),
            false => {
                "not running: what is in the tables stays enforced until it runs again or `palisade uninstall` ends it, and nothing that \
                 changes is taken in"
                    .to_owned()
            }
        };
        let enforced = match (not_ready, running) {
            (Some(reason), _) => format!("not as a whole: {reason}"),
            (None, true) => "yes".to_owned(),
            (None, false) => "as when the agent ended".to_owned(),
        };
        let view = match stale.is_empty() {
            true => "up to date".to_owned(),
            false => format!("STALE, what is known stays in force: {}", stale.join("; ")),
        };
        let Pods { isolated, open, closed, not_attached } = self.pods;
        let mut pods = format!("{isolated} isolated, {open} open, {closed} closed");
        if not_attached != 0 {
            pods += &format!(", {not_attached} NOT ENFORCED");
        }
        let services = match self.service_traffic_refused {
            false => format!("judged where it ends up: by the node's processes, and leaving by {}", exits.join(", ")),
            true => format!("REFUSED to pods with an egress policy: {}", exits_missing.join("; ")),
        };
        let new_pods = match cni {
            Some([conf_dir, _]) if running => {
                format!("start once they are enforced, by palisade-cni in {}", conf_dir.display())
            }
            Some([conf_dir, _]) => format!(
                "do not start until an agent runs, or `palisade cni uninstall` takes palisade-cni out of {}",
                conf_dir.display()
            ),
            None if running => {
                "are closed once they are noticed; this agent does not see to palisade-cni (--cni-conf-dir)".to_owned()
            }
            None => {
                "ARE NOT ENFORCED until an agent runs: nobody notices them, and palisade-cni is not seen to".to_owned()
            }
        };
        let rows =
            [("node", node.clone()), ("agent", agent), ("enforced", enforced), ("objects", view), ("pods", pods)];
        let more = [
            ("new pods", new_pods),
            ("Service traffic", services),
            (
                "Service flows",
                format!("{} answered, {} judged", self.service_flows_answered, self.service_flows_judged),
            ),
        ];
        let xdp = xdp.iter().map(|devices| ("xdp", xdp_text(devices)));
        let paused = |Paused { what, until, seconds_left }: &Paused| {
            let left =
                if *seconds_left < 120 { format!("{seconds_left} s") } else { format!("{} min", seconds_left / 60) };
            format!("PAUSED           {what}, until {until} ({left} left): nothing is refused on its account")
        };
        let loud = self.paused.iter().map(paused);
        loud.chain(rows.into_iter().chain(more).chain(xdp).map(|(name, text)| format!("{name:<16} {text}"))).collect()
    }
}

/// The devices of `--xdp`.
fn xdp_text(devices: &[XdpEntry]) -> String {
    let device = |XdpEntry { device, mode, trouble }: &XdpEntry| match (mode, trouble) {
        (Some(mode), _) => format!("{device} ({mode})"),
        (None, trouble) => format!("NOT on {device}: {}", trouble.as_deref().unwrap_or("nobody knows why")),
    };
    match devices {
        [] => "on no device".to_owned(),
        all => all.iter().map(device).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            agent: "running",
            entry: AgentEntry {
                node: "one".to_owned(),
                version: "1".to_owned(),
                exits: vec!["eth0".to_owned(), "flannel.1".to_owned()],
                cni: Some(["/etc/cni/net.d".into(), "/opt/cni/bin".into()]),
                ..AgentEntry::default()
            },
            service_traffic_refused: false,
            service_flows_answered: 3,
            service_flows_judged: 4,
            pods: Pods { isolated: 2, open: 1, ..Pods::default() },
            paused: Vec::new(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn all_is_well() {
        let expected = [
            "node             one",
            "agent            running, 1",
            "enforced         yes",
            "objects          up to date",
            "pods             2 isolated, 1 open, 0 closed",
            "new pods         start once they are enforced, by palisade-cni in /etc/cni/net.d",
            "Service traffic  judged where it ends up: by the node's processes, and leaving by eth0, flannel.1",
            "Service flows    3 answered, 4 judged",
        ];
        assert_eq!(status().lines(), expected);
    }

    #[test]
    fn where_the_xdp_program_is() {
        let mut status = status();
        let entry = |device: &str, mode: Option<&str>| XdpEntry {
            device: device.to_owned(),
            mode: mode.map(str::to_owned),
            trouble: mode.is_none().then(|| "another".to_owned()),
        };
        status.entry.xdp = Some(vec![entry("eth0", Some("native")), entry("eth1", None)]);
        let last = status.lines().pop();
        assert_eq!(last.as_deref(), Some("xdp              eth0 (native), NOT on eth1: another"));
        status.entry.xdp = Some(Vec::new());
        assert_eq!(status.lines().pop().as_deref(), Some("xdp              on no device"));
    }

    #[test]
    fn what_is_paused_comes_first() {
        let mut status = status();
        let until = "2026-01-01T03:15:00Z".to_owned();
        status.paused = vec![Paused { what: "a/web".to_owned(), until, seconds_left: 840 }];
        let first =
            "PAUSED           a/web, until 2026-01-01T03:15:00Z (14 min left): nothing is refused on its account";
        assert_eq!(status.lines()[0], first);
    }

    #[test]
    fn what_is_not_enforced_stands_out() {
        let mut status = status();
        status.agent = "not running";
        status.pods.not_attached = 1;
        status.service_traffic_refused = true;
        status.entry.exits_missing = vec!["eth1 lacks its program: no".to_owned()];
        let lines = status.lines();
        assert!(lines[1].contains("not running"), "{lines:?}");
        assert_eq!(lines[2], "enforced         as when the agent ended");
        assert!(lines[5].starts_with("new pods         do not start until an agent runs"), "{lines:?}");
        assert!(lines[4].ends_with("1 NOT ENFORCED"), "{lines:?}");
        assert_eq!(lines[6], "Service traffic  REFUSED to pods with an egress policy: eth1 lacks its program: no");
        status.entry.not_ready = Some("stuck".to_owned());
        assert_eq!(status.lines()[2], "enforced         not as a whole: stuck");
    }
}
