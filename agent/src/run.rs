//! The agent's life: the only file that spawns tasks and connects stages.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::RingBuf;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until, timeout};

use crate::agent::{Agent, Signals};
use crate::alone;
use crate::api::OpenSource;
use crate::api::contact::{Contact, Requests};
use crate::api::events::Events as Notices;
use crate::capabilities;
use crate::cni::server::{self, Ask, Senders};
use crate::cni::{keeper, socket_path};
use crate::config::AgentConfig;
use crate::facts::{NodeChange, Update};
use crate::kernel::{Kernel, PinDir};
use crate::last_known::{self, Keeper, Written};
use crate::node::{self, NodeConfig, Telling};
use crate::observe::accounts::Accounts;
use crate::observe::capture::{CaptureAsk, Caught};
use crate::observe::events::{Report, Ring};
use crate::observe::http::{self, Readiness};
use crate::observe::metrics::Metrics;
use crate::observe::reporter::Reporter;
use crate::observe::sinks::file::FileSink;
use crate::observe::sinks::otlp::OtlpSink;
use crate::observe::socket::{self, NamesAsked, Sources};
use crate::observe::turns::Turns;
use crate::observe::{self, Fill};

/// Batches that wait for the loop; a source that is faster waits.
const QUEUE: usize = 64;
/// Updates that are taken in between two looks at everything else, but for what is left of a batch.
const UPDATES_AT_ONCE: usize = 1024;
/// How many events are looked at between two looks at everything else.
const EVENTS_AT_ONCE: usize = 4096;
/// Likewise of packets that are captured.
const CAUGHT_AT_ONCE: usize = 256;
/// After some were read the next wait for so long, as waking up for each costs more than all else about them.
const EVENTS_PAUSE: Duration = Duration::from_millis(50);
/// How long after a change the catalog is written, so that a burst writes it once.
const CATALOG_DELAY: Duration = Duration::from_millis(100);
/// At least so many times as long as writing it took last: where pods change all the time and names are many, it takes no more than a part
/// of a processor that small.
const CATALOG_PAUSE: u32 = 40;
/// How long the objects last known may take to be written at the end.
const KEEP_TIME: Duration = Duration::from_secs(2);
/// How often the flow table's fill is looked at.
const FLOWS_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is looked whether the programs are still where they were put: links go without an event.
const VERIFY_INTERVAL: Duration = Duration::from_secs(10);

/// Runs until asked to stop. Enforcement stays.
///
/// # Errors
///
/// When the agent cannot start, or a source has ended for good.
pub async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let turns = Turns::default();
    turns.clone().measure("loop", live(config, turns)).await
}

async fn live(config: AgentConfig, turns: Turns) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    capabilities::check()?;
    // Before anything is made or loaded.
    let requests = Requests::default();
    let contact = Contact::new(requests.clone());
    let mut stale = contact.subscribe();
    let source = OpenSource::open(&config.source, contact).await?;
    alone::refuse_others(&config.pin_dir)?;
    let pins = PinDir::open(&config.pin_dir)?;
    let _presence = alone::announce(&config.pin_dir)?;
    let (update_sender, mut updates) = mpsc::channel::<Vec<Update>>(QUEUE);
    let (node_sender, mut node_changes) = mpsc::channel::<Vec<NodeChange>>(QUEUE);
    let (cidr_sender, pod_cidrs) = watch::channel(Vec::new());
    let mut tasks = JoinSet::new();
    let Plugin { mut asks, tellings, mut trouble } = plugin(&config, &mut tasks);
    let (notices, waiting_notices) = Notices::channel();
    if let Some(publisher) = source.publisher(&config.node_name, waiting_notices) {
        tasks.spawn(async move {
            publisher.await;
            Ok(())
        });
    }
    // Lists are fetched while the kernel verifies the programs. Interfaces wait: those that are there before them are older than them.
    tasks.spawn(turns.clone().measure("objects", source.watch(update_sender)));
    let AgentConfig { sizes, settings, attach, .. } = config;
    // Pods' interfaces, so that what waits for each of them on a node's first start need not wait for the programs.
    let veths = node::veths(&config.cni_cache_dir, config.bridge.as_deref()).await.unwrap_or_else(|error| {
        tracing::debug!(error = format!("{error:#}"), "listing the interfaces beforehand");
        Vec::new()
    });
    let loading = tokio::task::spawn_blocking(move || Kernel::open_beside(&veths, pins, sizes, settings, attach));
    let mut kernel = loading.await.context("loading the programs panicked")??;
    let node_config =
        NodeConfig { cni_cache_dir: config.cni_cache_dir.clone(), bridge: config.bridge.clone(), pod_cidrs, tellings };
    let watching = async move { node::watch(node_config, node_sender).await.context("watching the node's interfaces") };
    tasks.spawn(turns.clone().measure("node", watching));
    let (mut events, mut caught) = (ring(&mut kernel, "EVENTS")?, ring(&mut kernel, "CAPTURED")?);
    if config.settings.debug_programs {
        program_log(&mut kernel, &mut tasks)?;
    }
    let not_yet = Readiness::NotYet("no complete list of objects yet".to_owned());
    let (ready_sender, ready) = watch::channel(not_yet);
    let fill = Fill::default();
    let mut metrics = Metrics::new(observe::snapshot_of(&config.pin_dir, fill.clone(), kernel.sizes())?);
    metrics.register_requests(requests);
    metrics.register_turns(&turns);
    let accounts = Accounts::new(&config.pin_dir)?;
    accounts.register(metrics.registry_mut());
    let (reporter, mut looking) = reporter(&config, &mut metrics, &mut tasks)?;
    let metrics = Arc::new(metrics);
    if let Some(address) = config.metrics_addr {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("listening on --metrics-addr {address}"))?;
        let server = http::serve(listener, metrics.clone(), ready);
        tasks.spawn(async move { match server.await {} });
    }
    tell_start(&config, &kernel);
    let signals = Signals {
        metrics,
        fill,
        accounts,
        reporter,
        pod_cidrs: cidr_sender,
        ready: ready_sender,
        events: notices,
        cni_trouble: trouble.clone(),
    };
    let mut agent = Agent::new(&config, kernel, signals);
    let (mut kept, keeping) = keep_objects(&config, &mut agent);
    let (mut catalog_at, mut catalog_delay): (Option<Instant>, _) = (None, CATALOG_DELAY);
    let mut flows_at = Instant::now() + FLOWS_INTERVAL;
    let mut verify_at = Instant::now() + VERIFY_INTERVAL;
    let mut drift_at = Instant::now() + config.drift_every;
    let (drift_sender, mut drifts) = mpsc::channel(1);
    let mut events_at: Option<Instant> = None;
    agent.look_at_flows();
    if agent.is_first() {
        agent.write_catalog();
    }
    loop {
        let (retry_at, keep_at) = (agent.retry_at(), agent.keep_at());
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(batch) = node_changes.recv() => {
                agent.take_node(batch);
                while let Ok(batch) = node_changes.try_recv() {
                    agent.take_node(batch);
                }
                agent.settle();
            }
            Some(batch) = updates.recv() => {
                let mut taken = batch.len();
                agent.take_updates(batch);
                while taken < UPDATES_AT_ONCE && let Ok(batch) = updates.try_recv() {
                    taken += batch.len();
                    agent.take_updates(batch);
                }
                agent.settle();
            }
            Some(ask) = asks.recv() => agent.take_ask(ask),
            Ok(()) = trouble.changed() => agent.after_attaching(),
            Ok(()) = stale.changed() => agent.take_stale(&stale.borrow_and_update()),
            Ok(()) = kept.changed() => agent.kept_until(&kept.borrow_and_update()),
            Some(ended) = tasks.join_next() => ended.context("a task of the agent panicked")??,
            reports = events.next(EVENTS_AT_ONCE, Report::decode), if events_at.is_none() => {
                let reports = reports.context("reading EVENTS")?;
                agent.take_reports(&reports);
                events_at = (reports.len() < EVENTS_AT_ONCE).then(|| Instant::now() + EVENTS_PAUSE);
            }
            () = sleep_until(events_at.unwrap_or_else(Instant::now)), if events_at.is_some() => events_at = None,
            Some(asked) = looking.names.recv() => agent.take_names_asked(asked),
            Some(ask) = looking.captures.recv() => agent.take_capture_ask(ask),
            packets = caught.next(CAUGHT_AT_ONCE, Caught::decode) => agent.take_caught(&packets.context("reading CAPTURED")?),
            () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => agent.retry(),
            () = sleep_until(catalog_at.unwrap_or_else(Instant::now)), if catalog_at.is_some() => {
                catalog_at = None;
                let begun = Instant::now();
                agent.write_catalog();
                catalog_delay = CATALOG_DELAY.max(CATALOG_PAUSE * begun.elapsed());
            }
            () = sleep_until(keep_at.unwrap_or_else(Instant::now)), if keep_at.is_some() => drop(agent.keep_now()),
            () = sleep_until(flows_at) => {
                flows_at = Instant::now() + FLOWS_INTERVAL;
                agent.look_at_flows();
            }
            () = sleep_until(verify_at) => {
                verify_at = Instant::now() + VERIFY_INTERVAL;
                agent.verify_attached();
            }
            Some(drift) = drifts.recv() => agent.take_drift(drift),
            () = sleep_until(drift_at) => {
                drift_at = Instant::now() + config.drift_every;
                if let Some(check) = agent.drift_check() {
                    let sender = drift_sender.clone();
                    drop(tokio::task::spawn_blocking(move || sender.blocking_send(check.run())));
                }
            }
        }
        if agent.has_new_catalog() && catalog_at.is_none() {
            catalog_at = Some(Instant::now() + catalog_delay);
        }
        // Else a loop that always has something to do would keep all others from the thread.
        yield_now().await;
    }
    agent.end_captures();
    if agent.keep_now() && timeout(KEEP_TIME, kept.changed()).await.is_ok_and(|told| told.is_ok()) {
        agent.kept_until(&kept.borrow_and_update());
    }
    drop(keeping);
    agent.write_catalog();
    tracing::info!("asked to stop; enforcement stays in place (`palisade uninstall` ends it)");
    Ok(())
}

/// Starts from the objects that were last known, and keeps those to come. What is returned last ends the keeping.
fn keep_objects(config: &AgentConfig, agent: &mut Agent) -> (watch::Receiver<Written>, JoinSet<()>) {
    let mut keeping = JoinSet::new();
    let (told, kept) = watch::channel(Ok(0));
    let Some(state_dir) = &config.state_dir else { return (kept, keeping) };
    let path = last_known::path(state_dir, &config.pin_dir);
    let (sender, given) = watch::channel(None);
    let mut trouble = None;
    match last_known::read(&path, &config.node_name) {
        Ok(Some(known)) if agent.is_first() || last_known::is_current(&config.pin_dir) => {
            tracing::info!(path = %path.display(), taken = known.taken, "objects last known, until the API server has told all");
            agent.begin_with(known);
        }
        // What an earlier agent has left in the kernel is newer.
        Ok(_) => {}
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "the objects last known are of no use");
            trouble = Some(error);
        }
    }
    agent.keep_objects(Keeper::new(&config.pin_dir, sender), trouble);
    keeping.spawn(last_known::keep(path, given, told));
    (kept, keeping)
}

/// A ring buffer of the programs.
fn ring(kernel: &mut Kernel, name: &str) -> anyhow::Result<Ring> {
    let map = kernel.ebpf_mut().take_map(name).with_context(|| format!("no map {name} in the object"))?;
    Ok(Ring::new(RingBuf::try_from(map)?)?)
}

/// Questions of those who look.
struct Looking {
    names: mpsc::Receiver<NamesAsked>,
    captures: mpsc::Receiver<CaptureAsk>,
}

/// Where lines about flows go, and questions that come from whoever looks at them.
fn reporter(
    config: &AgentConfig,
    metrics: &mut Metrics,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<(Reporter, Looking)> {
    let mut reporter = Reporter::new(metrics.registry_mut());
    if let Some(options) = config.events_file.clone() {
        reporter.set_file(|lost| FileSink::start(options, lost))?;
    }
    if let Some(endpoint) = config.otlp_endpoint.clone() {
        let node = config.node_name.clone();
        reporter.set_otlp(|lost| {
            let (sink, sending) = OtlpSink::start(endpoint, node, lost);
            tasks.spawn(async move {
                sending.await;
                Ok(())
            });
            sink
        });
    }
    let (names, names_asked) = mpsc::channel(QUEUE);
    let (captures, captures_asked) = mpsc::channel(QUEUE);
    let (recent, watchers, lost) = (reporter.recent(), reporter.watchers(), reporter.lost());
    let sources = Sources { recent, watchers, names, captures, lost };
    let path = socket::path(&config.pin_dir);
    tasks.spawn(async move { match socket::run(path, sources).await {} });
    Ok((reporter, Looking { names: names_asked, captures: captures_asked }))
}

/// What comes by way of the CNI plugin.
struct Plugin {
    asks: mpsc::Receiver<Ask>,
    tellings: mpsc::Receiver<Telling>,
    trouble: watch::Receiver<Option<String>>,
}

/// Serves the plugin, and keeps it in the runtime's chain if that is wanted. What it asks before the programs are loaded waits.
fn plugin(config: &AgentConfig, tasks: &mut JoinSet<anyhow::Result<()>>) -> Plugin {
    let (agent, asks) = mpsc::channel(QUEUE);
    let (node, tellings) = mpsc::channel(QUEUE);
    let (trouble_sender, trouble) = watch::channel(None);
    let socket = socket_path(&config.pin_dir);
    tasks.spawn(async move { match server::run(socket, Senders { agent, node }).await {} });
    if let Some((places, plugin)) = config.cni.clone() {
        tasks.spawn(async move { keeper::keep(places, plugin, trouble_sender).await });
    }
    Plugin { asks, tellings, trouble }
}

fn tell_start(config: &AgentConfig, kernel: &Kernel) {
    tracing::info!(
        version = crate::VERSION,
        node = %config.node_name,
        pins = %config.pin_dir.display(),
        attach = kernel.mode().name(),
        epoch = kernel.epoch(),
        endpoints = kernel.earlier().endpoints.len(),
        "started; what an earlier agent left stays in force until the first complete list"
    );
    if !kernel.other_sizes().is_empty() {
        let others: Vec<String> = kernel.other_sizes().iter().map(ToString::to_string).collect();
        tracing::warn!(
            "an earlier agent made maps of other sizes, and what fits these is the limit: {}; `palisade uninstall` between two agents \
             lets the next one make them anew",
            others.join(", ")
        );
    }
}

/// What aya-log is for: oddities that the programs report at debug level.
fn program_log(kernel: &mut Kernel, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    // Records go to the `log` crate, and from there to tracing.
    let logger = aya_log::EbpfLogger::init(kernel.ebpf_mut()).context("the programs' log")?;
    // SAFETY: the logger owns one descriptor, its ring buffer's, from its making to its end, and always returns it.
    let logger = unsafe { AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE) };
    let mut logger = logger.map_err(std::io::Error::from)?;
    tasks.spawn(async move {
        loop {
            let mut guard = logger.readable_mut().await.context("reading the programs' log")?;
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}
