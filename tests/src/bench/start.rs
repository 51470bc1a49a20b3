//! From the agent's start until every pod of the node is enforced, beside what a bare HTTP client needs for the same lists; and how much
//! memory and idle processor time the agent then takes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

use super::cluster::{Cluster, processor_time, size_name};
use super::machine;
use super::stats::Sample;
use super::table::Table;
use crate::lab::agent::palisade;
use crate::lab::{Agent, AgentOptions, Lab, Node};

const STARTS: usize = 10;
const IDLE: Duration = Duration::from_secs(30);
const LISTS: [&str; 4] =
    ["/api/v1/namespaces", "/api/v1/pods", "/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/nodes"];
/// As the agent asks for.
const PAGE: usize = 500;

pub fn run() -> Result<()> {
    println!("{}\n", machine::description());
    let cluster = Cluster::new()?;
    let mut starts =
        Table::new(&["cluster", "pins", "programs loaded, ms", "enforced, ms", "lists alone, ms", "goal", ""]);
    let mut sizes = Table::new(&["cluster", "resident, MB", "goal", "", "highest", "idle, % of a core", "goal", ""]);
    for large in [false, true] {
        if large {
            cluster.grow()?;
        }
        let goal = Goal::of(large);
        let mut measured = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..STARTS {
            measured[0].push(Times { loaded: 0.0, enforced: cluster.plane.with_client(lists)? });
            uninstall(&cluster.node)?;
            for times in &mut measured[1..] {
                times.push(start(&cluster.lab, &cluster.node, &cluster.options())?);
            }
        }
        let [lists, first, again] = measured;
        let lists = Sample::new(lists.into_iter().map(|times| times.enforced).collect());
        for (pins, times) in [("none", first), ("an earlier agent's", again)] {
            starts.row(row(&size_name(large), pins, &times, &lists, goal));
        }
        let agent = cluster.start_agent()?;
        sizes.row(size_row(&size(&agent)?, large, goal));
        ensure!(agent.stop()?.success(), "the agent did not end well");
    }
    println!("{starts}\n{sizes}\n{}", kernel_memory(&cluster.node)?.0);
    println!("Load at the end: {}", machine::load());
    Ok(())
}

#[derive(Clone, Copy)]
struct Goal {
    /// Milliseconds, beyond the lists alone where these count.
    start: f64,
    beyond_lists: bool,
    resident_mb: f64,
    idle_percent: f64,
}

impl Goal {
    const fn of(large: bool) -> Self {
        if large {
            Self { start: 1000.0, beyond_lists: true, resident_mb: 35.0, idle_percent: 0.2 }
        } else {
            Self { start: 300.0, beyond_lists: false, resident_mb: 20.0, idle_percent: 0.2 }
        }
    }
}

/// Milliseconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Times {
    pub loaded: f64,
    pub enforced: f64,
}

pub(super) fn verdict(met: bool) -> String {
    if met { "met" } else { "NOT met" }.into()
}

fn row(cluster: &str, pins: &str, times: &[Times], lists: &Sample, goal: Goal) -> Vec<String> {
    let loaded = Sample::new(times.iter().map(|times| times.loaded).collect());
    let enforced = Sample::new(times.iter().map(|times| times.enforced).collect());
    let spread =
        |sample: &Sample| format!("{:.0} ({:.0} to {:.0})", sample.median(), sample.least(), sample.greatest());
    let allowed = if goal.beyond_lists { lists.median() + goal.start } else { goal.start };
    vec![
        cluster.into(),
        pins.into(),
        spread(&loaded),
        spread(&enforced),
        spread(lists),
        format!("≤ {allowed:.0}"),
        verdict(enforced.median() <= allowed),
    ]
}

/// The agent says both in its log as they happen, and it is stopped again.
pub(super) fn start(lab: &Lab, node: &Node, options: &AgentOptions) -> Result<Times> {
    let log = node.folder.join("agent.log");
    let length = fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let begun = Instant::now();
    let agent = Agent::spawn(lab, node, options)?;
    let mut times = Times::default();
    while times.enforced == 0.0 {
        ensure!(begun.elapsed() < Duration::from_secs(120), "the agent does not enforce:\n{}", agent.log_text());
        // A file has no event that is cheaper than this.
        std::thread::sleep(Duration::from_millis(1));
        if fs::metadata(&log).map_or(0, |metadata| metadata.len()) == length {
            continue;
        }
        let text = fs::read(&log)?;
        let said = String::from_utf8_lossy(text.get(usize::try_from(length)?..).unwrap_or_default());
        let now = begun.elapsed().as_secs_f64() * 1e3;
        if times.loaded == 0.0 && said.contains("started;") {
            times.loaded = now;
        }
        if said.contains("enforcing:") {
            times.enforced = now;
        }
    }
    ensure!(agent.stop()?.success(), "the agent did not end well");
    Ok(times)
}

pub(super) fn uninstall(node: &Node) -> Result<()> {
    let said = palisade(node, &["uninstall"])?;
    ensure!(said.status.success(), "uninstall: {}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

/// What a client needs that asks for the same lists, page by page and all kinds at once, and looks at nothing but where the next page is.
/// Milliseconds.
pub(super) async fn lists(client: Client) -> Result<f64> {
    let begun = Instant::now();
    futures::future::try_join_all(LISTS.map(|path| list(&client, path))).await?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

async fn list(client: &Client, path: &str) -> Result<()> {
    let mut token = String::new();
    loop {
        let request = hyper::Request::get(format!("{path}?limit={PAGE}&continue={token}")).body(Body::empty())?;
        let answer = client.send(request).await?;
        ensure!(answer.status().is_success(), "the API server says {}", answer.status());
        let page = answer.into_body().collect().await?.to_bytes();
        match next_page(&page)? {
            Some(next) => token = next,
            None => return Ok(()),
        }
    }
}

/// It stands in the list's own metadata, before the items.
fn next_page(page: &[u8]) -> Result<Option<String>> {
    let head = page.get(..page.len().min(2048)).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let metadata = head.split_once("\"metadata\":").context("a list has metadata")?.1;
    let metadata =
        serde_json::Deserializer::from_str(metadata).into_iter::<Value>().next().context("and it is whole")??;
    Ok(metadata["continue"].as_str().filter(|token| !token.is_empty()).map(str::to_owned))
}

/// Of an agent that has started anew and is left alone.
pub(super) struct Size {
    /// MB.
    pub resident: f64,
    pub highest: f64,
    /// Percent of a core.
    pub idle: f64,
}

pub(super) fn size(agent: &Agent) -> Result<Size> {
    let pid = agent.pid().context("the agent runs")?;
    // What the start leaves to be done later is done by then.
    std::thread::sleep(Duration::from_secs(3));
    let before = processor_time(pid)?;
    std::thread::sleep(IDLE);
    let idle = (processor_time(pid)? - before) / IDLE.as_secs_f64() * 100.0;
    Ok(Size { resident: memory(pid, "VmRSS:")?, highest: memory(pid, "VmHWM:")?, idle })
}

/// A size of a process, by its name in /proc/PID/status; MB.
pub(super) fn memory(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).context("a process has its sizes")?;
    Ok(line.split_whitespace().nth(1).context("and they are numbers")?.parse::<f64>()? * 1024.0 / 1e6)
}

fn size_row(size: &Size, large: bool, goal: Goal) -> Vec<String> {
    let Size { resident, highest, idle } = *size;
    vec![
        size_name(large),
        format!("{resident:.1}"),
        format!("≤ {}", goal.resident_mb),
        verdict(resident <= goal.resident_mb),
        format!("{highest:.1}"),
        format!("{idle:.3}"),
        format!("≤ {}", goal.idle_percent),
        verdict(idle <= goal.idle_percent),
    ]
}

/// Of each pinned map, as the kernel reckons it; and of all together.
pub(super) fn kernel_memory(node: &Node) -> Result<(Table, String)> {
    let mut table = Table::new(&["map", "kernel memory, MB"]);
    let folder = palisade::kernel::maps_folder(&node.pin_dir);
    let mut all = 0.0;
    let mut pins: Vec<_> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    pins.sort();
    for pin in pins {
        let said = node.netns.command("bpftool").args(["-j", "map", "show", "pinned"]).arg(&pin).output()?;
        let map: Value = serde_json::from_slice(&said.stdout).context("bpftool prints JSON")?;
        let megabytes = map["bytes_memlock"].as_f64().context("a map has a size")? / 1e6;
        all += megabytes;
        table.row(vec![pin.file_name().unwrap_or_default().to_string_lossy().into(), format!("{megabytes:.1}")]);
    }
    table.row(vec!["all".into(), format!("{all:.1}")]);
    Ok((table, format!("{all:.0}")))
}
