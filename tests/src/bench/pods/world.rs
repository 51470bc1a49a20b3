//! Two nodes, whom new pods may and may not talk to, agents that are kept busy, and waves of new pods.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Outcome;
use super::probe::{ALLOWED, Report, Stranger, Targets, Watcher, live};
use crate::lab::server::Server;
use crate::lab::{Agent, AgentOptions, Lab, Manifests, Node, Pod, PodSpec, objects, overlay};

/// libcni side by side, as a kubelet starts several pods at once.
const RUNNERS: usize = 3;
/// Pods that live at the same time in their first milliseconds.
const THREADS: usize = 12;
/// A change of policy that concerns every new pod.
const CHURN: Duration = Duration::from_millis(10);

const POLICY: &str = "{podSelector: {matchLabels: {app: new}}, policyTypes: [Ingress, Egress],
    egress: [{to: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 80}]}, {to: [{ipBlock: {cidr: BLOCK/32}}], ports: [{port: 80}]}]}";
const OF_REMOTE: &str = "{podSelector: {matchLabels: {app: friend, place: far}}, ingress: [{from: [{podSelector: {matchLabels: {app: new}}}]}]}";

pub struct World {
    lab: Lab,
    nodes: [Node; 2],
    manifests: Manifests,
    targets: Targets,
    watchers: Vec<Watcher>,
    stranger: Stranger,
    agents: Vec<Agent>,
    started: AtomicUsize,
    _servers: Vec<Server>,
}

impl World {
    pub fn new() -> Result<Self> {
        let lab = Lab::new("pods")?;
        let nodes = [lab.node("one", 1)?, lab.node("two", 2)?];
        overlay::join(&[&nodes[0], &nodes[1]])?;
        let spec = |name: &str, place: &str| PodSpec::new("web", name, &[("app", name), ("place", place)]);
        let [friend, other] = nodes[0]
            .start_pods(&lab, &[spec("friend", "near"), spec("other", "near")])?
            .try_into()
            .ok()
            .context("two")?;
        let remote = nodes[1].start_pod(&lab, PodSpec::new("web", "remote", &[("app", "friend"), ("place", "far")]))?;
        let (block, block_addresses) = lab.outside("block", 200)?;
        let (outside, outside_addresses) = lab.outside("outside", 201)?;
        let manifests = Manifests::new(&lab.folder.join("manifests"))?;
        let allow = objects::policy("web", "new", &POLICY.replace("BLOCK", &block_addresses[0].to_string()))?;
        let of_remote = objects::policy("web", "remote", OF_REMOTE)?;
        let there = [
            objects::node(&nodes[0]),
            objects::node(&nodes[1]),
            objects::namespace("web", &[]),
            objects::pod(&friend, &nodes[0]),
            objects::pod(&other, &nodes[0]),
            objects::pod(&remote, &nodes[1]),
            allow,
            of_remote,
        ];
        there.iter().try_for_each(|object| manifests.put(object))?;
        let server = |netns| Server::start(lab.guard(), netns, "friend", &[ALLOWED], &[]);
        let servers = vec![server(&friend.netns)?, server(&remote.netns)?, server(&block)?];
        let forbidden = other.addresses.iter().chain(&outside_addresses).copied().collect();
        let targets = Targets { forbidden, local: friend.ipv4(), block: block_addresses[0], remote: remote.ipv4() };
        let watchers = vec![Watcher::start(&other.netns)?, Watcher::start(&outside)?];
        let stranger = Stranger::start(&other.netns);
        let agents = Vec::new();
        Ok(Self {
            lab,
            nodes,
            manifests,
            targets,
            watchers,
            stranger,
            agents,
            started: AtomicUsize::new(0),
            _servers: servers,
        })
    }

    /// Where the new pods are.
    pub fn node(&self) -> &Node {
        &self.nodes[0]
    }

    pub fn start_agents(&mut self) -> Result<()> {
        let options = AgentOptions::manifests(&self.manifests.folder);
        self.agents = self.nodes.iter().map(|node| Agent::start(&self.lab, node, &options)).collect::<Result<_>>()?;
        Ok(())
    }

    /// That of the node where the new pods are.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agents.remove(0).stop().map(drop)
    }

    /// Starts and stops as many pods.
    pub fn waves(&self, pods: usize, wave: usize) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let churn = scope.spawn(|| self.churn(&over));
            let done = (|| {
                let mut left = pods;
                while left != 0 {
                    let now = left.min(wave);
                    self.wave(now, &mut outcome)?;
                    left -= now;
                }
                Ok(())
            })();
            over.store(true, Ordering::Relaxed);
            churn.join().expect("it does not panic")?;
            done
        })
        .map(|()| outcome)
    }

    /// Policies that select every new pod and allow what nobody asks for.
    fn churn(&self, over: &AtomicBool) -> Result<()> {
        let mut turn = 0_u32;
        while !over.load(Ordering::Relaxed) {
            turn += 1;
            let [high, low] = [turn / 250 % 250, turn % 250];
            let spec = format!(
                "{{podSelector: {{matchLabels: {{app: new}}}}, ingress: [{{from: [{{ipBlock: {{cidr: 10.200.{high}.{low}/32}}}}]}}]}}"
            );
            self.manifests.put(&objects::policy("web", &format!("churn-{}", turn % 8), &spec)?)?;
            std::thread::sleep(CHURN);
        }
        Ok(())
    }

    fn wave(&self, count: usize, outcome: &mut Outcome) -> Result<()> {
        let first = self.started.fetch_add(count, Ordering::Relaxed);
        let mut specs: Vec<PodSpec> = (first..first + count)
            .map(|number| {
                let mut spec = PodSpec::new("web", &format!("new-{number}"), &[("app", "new")]);
                spec.uid = Some(format!("uid-new-{number}"));
                spec
            })
            .collect();
        // As the scheduler leaves them, before there is a sandbox.
        let scheduled: Vec<_> = specs.iter().map(|spec| objects::scheduled(spec, self.node())).collect();
        scheduled.iter().try_for_each(|object| self.manifests.put(object))?;
        let mut chunks: Vec<Vec<PodSpec>> = (0..RUNNERS).map(|_| Vec::new()).collect();
        for (number, spec) in specs.drain(..).enumerate() {
            chunks[number % RUNNERS].push(spec);
        }
        let arrived = || self.watchers.iter().map(|watcher| watcher.count.load(Ordering::Relaxed)).sum::<usize>();
        let before = arrived();
        let (pods, reports, failed) = self.start(&chunks)?;
        // What is under way arrives.
        std::thread::sleep(Duration::from_millis(20));
        let leaks = arrived() - before;
        outcome.leaks += leaks;
        outcome.leaking += usize::from(leaks != 0);
        outcome.not_started += failed;
        reports.iter().for_each(|report| outcome.take(report));
        self.stop(&pods)?;
        scheduled.iter().try_for_each(|object| self.manifests.remove(object))
    }

    /// Each lives as soon as its ADD has returned. Those that were started, what they tell, and how many could not be started.
    fn start(&self, chunks: &[Vec<PodSpec>]) -> Result<(Vec<Pod>, Vec<Report>, usize)> {
        let (sender, receiver) = channel::<(Pod, Instant)>();
        let receiver = Arc::new(Mutex::new(receiver));
        std::thread::scope(|scope| {
            let runners: Vec<_> = chunks
                .iter()
                .map(|specs| {
                    let sender = sender.clone();
                    scope.spawn(move || {
                        let mut failed = 0;
                        self.node().start_pods_each(&self.lab, specs, |started| match started {
                            Ok(pod) => drop(sender.send((pod, Instant::now()))),
                            Err(_) => failed += 1,
                        })?;
                        Ok::<usize, anyhow::Error>(failed)
                    })
                })
                .collect();
            drop(sender);
            // The kubelet tells the API server a pod's addresses once it has them; nothing in the pod waits for it.
            let (told, tells) = channel();
            let kubelet = scope.spawn(move || tells.iter().try_for_each(|object| self.manifests.put(&object)));
            let lives: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (receiver, told) = (receiver.clone(), told.clone());
                    scope.spawn(move || self.watch(&receiver, &told))
                })
                .collect();
            drop(told);
            let mut failed = 0;
            for runner in runners {
                failed += runner.join().expect("it does not panic")?;
            }
            let (mut pods, mut reports) = (Vec::new(), Vec::new());
            for thread in lives {
                for (pod, report) in thread.join().expect("it does not panic")? {
                    pods.push(pod);
                    reports.push(report);
                }
            }
            kubelet.join().expect("it does not panic")?;
            Ok((pods, reports, failed))
        })
    }

    fn watch(&self, pods: &Mutex<Receiver<(Pod, Instant)>>, told: &Sender<Value>) -> Result<Vec<(Pod, Report)>> {
        let mut all = Vec::new();
        loop {
            let next = pods.lock().expect("nobody panics with it").recv();
            let Ok((pod, added)) = next else { return Ok(all) };
            pod.netns.enter()?;
            let report = live(&pod, &self.targets, added, || {
                self.stranger.seek(&pod.addresses);
                let _ = told.send(objects::pod(&pod, self.node()));
            })?;
            all.push((pod, report));
        }
    }

    fn stop(&self, pods: &[Pod]) -> Result<()> {
        let chunk = pods.len().div_ceil(RUNNERS).max(1);
        std::thread::scope(|scope| {
            let runners: Vec<_> = pods.chunks(chunk).map(|pods| scope.spawn(|| self.node().stop_pods(pods))).collect();
            runners.into_iter().try_for_each(|runner| runner.join().expect("it does not panic"))
        })?;
        pods.iter().try_for_each(|pod| pod.netns.remove())
    }
}
